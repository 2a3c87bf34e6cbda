"""CSV and Parquet: tables round trip, and those of other programs are read or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.errors import ArtifactError, ManifestError, SettingsError
from wsi_ats.tables.files import read_csv, read_parquet, write_csv, write_parquet


@pytest.mark.parametrize(
    "text",
    [
        "slide_id,label\na,x\nb,y\n",
        "slide_id;label\na;x\nb;y\n",
        "slide_id\tlabel\na\tx\nb\ty\n",
        "\ufeffslide_id,label\r\na,x\r\nb,y\r\n",
        "\n slide_id , label \n\n a , x \nb,y",
        "slide_id,label,,\na,x,,\nb,y,,\n",
    ],
    ids=["commas", "semicolons", "tabs", "byte order mark", "spaces and empty lines", "empty columns"],
)
def test_a_table_is_read_however_spreadsheets_write_it(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    assert read_csv(path) == {"slide_id": ["a", "b"], "label": ["x", "y"]}


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "\ufeffsep=;\r"])
def test_the_first_line_may_name_the_separator_for_excel(tmp_path, first):
    (tmp_path / "t.csv").write_text(f"{first}\na,b;c\n1;2\n", encoding="utf-8")
    assert read_csv(tmp_path / "t.csv") == {"a,b": ["1"], "c": ["2"]}
    (tmp_path / "t.csv").write_text(f"{first}\na;b\n1;2;3\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="line 3: 3 values for 2 columns"):
        read_csv(tmp_path / "t.csv")


def test_short_rows_end_in_empty_cells(tmp_path):
    (tmp_path / "t.csv").write_text("train,val,test\na,b,c\nd\n")
    assert read_csv(tmp_path / "t.csv") == {"train": ["a", "d"], "val": ["b", ""], "test": ["c", ""]}


def test_quoted_values_keep_separators_and_line_breaks(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n"1,5","two\nlines"\n')
    assert read_csv(tmp_path / "t.csv") == {"a": ["1,5"], "b": ["two\nlines"]}


def test_a_table_without_rows_still_has_its_columns(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n")
    assert read_csv(tmp_path / "t.csv") == {"a": [], "b": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b",,\n", "is empty"),
        (b"a,a\n1,2\n", "occur twice: 'a'"),
        (b"a,b\n1,2\n3,4,5\n", "line 3: 3 values for 2 columns"),
        (b"PK\x03\x04\xff\xfe", "not UTF-8 text"),
        (b'a,b\n"open,1\n' + b"x" * 200_000, "is not a CSV table"),
    ],
    ids=["empty", "blank", "only commas", "twice", "long row", "binary", "open quote"],
)
def test_a_file_that_is_not_a_table_is_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_csv(tmp_path / "t.csv")


def test_a_missing_table_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_csv(tmp_path)


_words = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8).map(str.strip)


@given(values=st.lists(st.tuples(_words.filter(bool), st.floats(allow_nan=False)), min_size=1))
def test_csv_keeps_text_and_every_digit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    write_csv(path, {"word": [w for w, _ in values], "number": [n for _, n in values]})
    table = read_csv(path)
    assert table["word"] == [w for w, _ in values]
    assert [float(n) for n in table["number"]] == [n for _, n in values]


def test_csv_writes_nothing_for_none(tmp_path):
    write_csv(tmp_path / "t.csv", {"a": [1, None], "b": ["x", "y"]})
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\n1,x\n,y\n"


def test_parquet_keeps_values_types_and_metadata(tmp_path):
    columns = {"a": [1, 2], "b": [0.1, None], "c": ["x", "ü"], "d": [True, False]}
    metadata = {"grid": {"cell": 256.125}, "names": ["é", "b"], "none": None}
    write_parquet(tmp_path / "t.parquet", columns, metadata=metadata)
    assert read_parquet(tmp_path / "t.parquet") == (columns, metadata)


def test_parquet_types_hold_where_there_are_no_values(tmp_path):
    import pyarrow.parquet

    types = {"a": "int64", "b": "string"}
    write_parquet(tmp_path / "t.parquet", {"a": [], "b": []}, types=types)
    schema = pyarrow.parquet.read_schema(tmp_path / "t.parquet")
    assert [str(field.type) for field in schema] == ["int64", "string"]


def test_parquet_is_read_as_one_file_also_in_a_folder_named_like_a_partition(tmp_path):
    folder = tmp_path / "case=7"
    folder.mkdir()
    write_parquet(folder / "t.parquet", {"a": [1]})
    assert read_parquet(folder / "t.parquet") == ({"a": [1]}, {})


def test_equal_tables_make_equal_files(tmp_path):
    for name in ("1", "2"):
        write_parquet(tmp_path / name, {"a": [1, 2]}, metadata={"b": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_damaged_and_missing_parquet_is_an_artifact_error(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(ArtifactError, match="no such file"):
        read_parquet(path)
    write_parquet(path, {"a": list(range(1000))})
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-10], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="damaged"):
            read_parquet(path)
    with pytest.raises(ArtifactError):
        read_parquet(tmp_path)


def test_ragged_and_mixed_columns_are_refused(tmp_path):
    for write in (write_csv, write_parquet):
        with pytest.raises(SettingsError, match="equal lengths"):
            write(tmp_path / "t", {"a": [1], "b": []})
    with pytest.raises(SettingsError, match="column 'a'"):
        write_parquet(tmp_path / "t", {"a": [1, "x"]})
    assert not (tmp_path / "t").exists()
