"""Folders, globs and tables become slides, and what cannot work is refused with what was found."""

from __future__ import annotations

import logging
import unicodedata

import pytest

from wsi_ats.errors import ManifestError, MppError
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.label_table import read_labels
from wsi_ats.tables.manifest import read_manifest, with_tables
from wsi_ats.tables.sources import find_slides
from wsi_ats.tables.split_table import read_splits


@pytest.fixture
def folder(tmp_path):
    """Files a.svs, below/b.ndpi, and things that are no slides."""
    (tmp_path / "below").mkdir()
    for name in ("a.svs", "below/b.ndpi", "notes.txt", "._a.svs", ".hidden.tif", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def table(folder, text, name="table.csv"):
    (folder / name).write_text(text)
    return folder / name


def ref(name, case=None, label=None):
    return SlideRef(name, f"{name}.svs", case or name, label)


# --- files, folders, globs ---


def test_a_folder_is_searched_for_slides_and_what_else_lies_there_is_ignored(folder):
    refs = read_manifest(folder)
    assert [(r.id, r.path, r.case) for r in refs] == [
        ("a", str(folder / "a.svs"), "a"),
        ("b", str(folder / "below/b.ndpi"), "b"),
    ]


def test_hidden_folders_are_not_searched(folder):
    for name in (".~tmp~/c.svs", ".rsync-partial/a.svs", "below/.d.zarr/zarr.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("half of it")
    assert [r.id for r in read_manifest(folder)] == ["a", "b"]


def test_what_is_there_now_may_be_nothing_or_two_of_a_name(folder):
    assert find_slides(folder) == read_manifest(folder)
    (folder / "below" / "a.svs").write_text("another")
    assert [r.id for r in find_slides(folder)] == ["a", "a", "b"]
    (folder / "empty").mkdir()
    assert find_slides(folder / "empty") == find_slides(folder / "*.ndpi") == []
    with pytest.raises(ManifestError, match="gone: no such file or folder"):
        find_slides(folder / "gone")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("slide_id\n", []),
        ("path\nyet to come.svs\n", ["yet to come"]),
        ("slide_id\nyet to come\na\nb\n", ["a", "b"]),
        ("slide_id,path\nyet to come,\n1,a.svs\n", ["1"]),
    ],
)
def test_a_table_of_slides_that_are_awaited(folder, text, ids):
    assert [r.id for r in find_slides(table(folder, text))] == ids
    with pytest.raises(ManifestError):
        read_manifest(table(folder, "slide_id\n"))


def test_a_folder_of_zarr_is_one_slide_however_it_is_named(folder):
    for name in ("c.ome.zarr", "below/d.zarr"):
        inner = folder / name / "0" / "c"
        inner.mkdir(parents=True)
        (folder / name / "zarr.json").write_text("{}")
        (inner / "0.tif").write_text("")  # whatever is in it, it is no slide
    names = ["a", "b", "c", "d"]
    assert sorted(r.id for r in read_manifest(folder)) == names
    assert sorted(r.id for r in read_manifest(f"{folder}/**")) == names
    assert [r.id for r in read_manifest(f"{folder}/*.zarr")] == ["c"]
    [ref] = read_manifest(folder / "c.ome.zarr")
    assert (ref.id, ref.path) == ("c", str(folder / "c.ome.zarr"))
    found = read_manifest(table(folder, "slide_id,label\nc.ome.zarr,x\nd,y\n"))
    assert [(r.id, r.path) for r in found] == [
        ("c", str(folder / "c.ome.zarr")),
        ("d", str(folder / "below/d.zarr")),
    ]


def test_a_file_is_a_slide_whatever_it_ends_in(folder):
    assert [r.id for r in read_manifest(folder / "a.jpg")] == ["a"]


def test_a_glob_finds_slides_and_folders_of_them(folder):
    assert [r.id for r in read_manifest(f"{folder}/*.svs")] == ["a"]
    assert [r.id for r in read_manifest(f"{folder}/*")] == ["a", "b"]
    assert [r.id for r in read_manifest(f"{folder}/**/*.ndpi")] == ["b"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(folder):
    odd = folder / "run[1]"
    odd.mkdir()
    (odd / "c.svs").write_bytes(b"x")
    assert [r.id for r in read_manifest(odd)] == ["c"]


def test_a_mirax_slide_is_its_index_file_alone(tmp_path):
    (tmp_path / "m").mkdir()
    for name in ("m.mrxs", "m/Slidedat.ini", "m/Data0000.dat"):
        (tmp_path / name).write_bytes(b"x")
    assert [r.path for r in read_manifest(tmp_path)] == [str(tmp_path / "m.mrxs")]


def test_ome_tiff_loses_both_endings(tmp_path):
    (tmp_path / "s.ome.tif").write_bytes(b"x")
    assert read_manifest(tmp_path)[0].id == "s"


@pytest.mark.parametrize("source", ["", "sub", "*.svs", "sub/**/*"])
def test_where_no_slide_is_found_the_known_endings_are_named(tmp_path, source):
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ManifestError, match=r"no slides found.*\.svs"):
        read_manifest(f"{tmp_path}/{source}")


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no such file or folder"):
        read_manifest(tmp_path / "none")


def test_two_files_of_one_stem_are_an_error_that_names_both(folder):
    (folder / "below" / "a.tif").write_bytes(b"x")
    with pytest.raises(ManifestError, match=r"called 'a': .*a\.svs and .*below/a\.tif"):
        read_manifest(folder)


# --- slide tables ---


def test_the_own_table_gives_every_field_and_paths_relative_to_itself(folder):
    path = table(
        folder,
        "slide_id,case_id,path,label,split,mpp\n"
        "one,p1,a.svs,x,train,0.25\n"
        f"two,p2,{folder}/below/b.ndpi,y,Test,\n",
    )
    assert read_manifest(path) == [
        SlideRef("one", str(folder / "a.svs"), "p1", "x", "train", 0.25),
        SlideRef("two", str(folder / "below/b.ndpi"), "p2", "y", "test", None),
    ]


def test_a_path_alone_is_enough(folder):
    [slide] = read_manifest(table(folder, "path\na.svs\n"))
    assert (slide.id, slide.case, slide.label, slide.mpp) == ("a", "a", None, None)


def test_clam_table_finds_its_slides_at_or_below_its_folder(folder):
    refs = read_manifest(table(folder, "case_id,slide_id,label\np1,a,x\np1,b,y\n"))
    assert [(r.id, r.case, r.label, r.path) for r in refs] == [
        ("a", "p1", "x", str(folder / "a.svs")),
        ("b", "p1", "y", str(folder / "below/b.ndpi")),
    ]


def test_clam_table_names_the_slides_that_are_not_there(folder):
    path = table(folder, "case_id,slide_id,label\np1,a,x\np2,c,y\np3,d,y\n")
    with pytest.raises(ManifestError, match=r"no path for 2 slides.*: c, d;.*--labels"):
        read_manifest(path)


def test_a_name_that_fits_two_files_needs_a_path_but_only_if_it_is_asked_for(folder):
    (folder / "below" / "a.tif").write_bytes(b"x")
    assert [r.id for r in read_manifest(table(folder, "slide_id\nb\n"))] == ["b"]
    with pytest.raises(ManifestError, match=r"may be .*a\.svs or .*a\.tif; add a column path"):
        read_manifest(table(folder, "slide_id\na\n"))


def test_stamp_pair_joins_by_patient(folder):
    slides = table(folder, "PATIENT,FILENAME\np1,a.svs\np2,below/b.ndpi\n", "slides.csv")
    clini = table(folder, "PATIENT,AGE,isMSIH\np1,50,MSIH\np2,60,nonMSIH\n", "clini.csv")
    refs = read_manifest(slides, labels=clini, label_column="isMSIH")
    assert [(r.id, r.case, r.label) for r in refs] == [("a", "p1", "MSIH"), ("b", "p2", "nonMSIH")]
    with pytest.raises(ManifestError, match=r"no column 'label'; found PATIENT, AGE, isMSIH"):
        read_manifest(slides, labels=clini)
    with pytest.raises(ManifestError, match=r"no column 'MSI'; found PATIENT, AGE, isMSIH"):
        read_manifest(slides, labels=clini, label_column="MSI")


def test_trident_table_overrides_the_resolution(folder):
    refs = read_manifest(table(folder, 'wsi,mpp\na.svs,0.25\nbelow/b.ndpi,"0,5"\n'))
    assert [(r.id, r.mpp) for r in refs] == [("a", 0.25), ("b", 0.5)]


def test_the_mpp_option_fills_in_where_the_table_is_silent(folder):
    refs = read_manifest(table(folder, "wsi,mpp\na.svs,0.25\nbelow/b.ndpi,\n"), mpp=0.5)
    assert [r.mpp for r in refs] == [0.25, 0.5]


def test_some_missing_files_are_left_to_their_own_failure_but_not_all(folder):
    assert len(read_manifest(table(folder, "path\na.svs\ngone.svs\n"))) == 2
    with pytest.raises(ManifestError, match=r"none of its 2 slides exists.*relative to the table"):
        read_manifest(table(folder, "path\nx/a.svs\ngone.svs\n"))


def test_remote_paths_are_kept_as_they_are(folder):
    assert read_manifest(table(folder, "path\ns3://bucket/a.svs\n"))[0].path == "s3://bucket/a.svs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("slide_id,path\n", "no rows"),
        ("name,file\na,b\n", "needs a column path or slide_id; found name, file"),
        ("path,mpp\na.svs,fine\n", "row 1: mpp is 'fine'"),
        ("path,split\na.svs,training\n", "row 1: split is 'training', expected one of train, val, test"),
        ("slide_id,path\none,a.svs\none,below/b.ndpi\n", r"called 'one': .*a\.svs and .*b\.ndpi"),
        ("path\na.svs\na.svs\n", r"called 'a': .*a\.svs and .*a\.svs"),
        ("slide_id,path\nx/y,a.svs\n", "cannot be empty or contain a slash"),
        ("path,wsi\na.svs,a.svs\n", r"\['path', 'wsi'\] have the same meaning"),
        ("slide_id,path,label\n,,x\n", "row 1: names neither"),
    ],
)
def test_tables_that_cannot_work_are_refused_with_what_was_found(folder, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(table(folder, text))


@pytest.mark.parametrize("value", ["0", "352.8", "-1", "inf"])
def test_an_implausible_resolution_is_refused(folder, value):
    with pytest.raises(MppError, match="micrometres per pixel, expected"):
        read_manifest(table(folder, f"path,mpp\na.svs,{value}\n"))
    with pytest.raises(MppError):
        read_manifest(folder, mpp=float(value))


def test_a_spreadsheet_file_is_refused_with_advice(folder):
    (folder / "t.xlsx").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ManifestError, match="CSV UTF-8"):
        read_manifest(folder / "t.xlsx")


# --- labels ---


def test_labels_join_a_folder_by_slide_and_bring_the_patient(folder):
    labels = table(folder, "case_id,slide_id,label,split,mpp\np,a.svs,x,train,0.25\np,b,y,val,\n")
    refs = read_manifest(folder, labels=labels, mpp=0.5)
    assert [(r.id, r.case, r.label, r.split, r.mpp) for r in refs] == [
        ("a", "p", "x", "train", 0.25),
        ("b", "p", "y", "val", 0.5),
    ]


def test_labels_without_slide_and_slides_without_label_are_counted_in_the_log(folder, caplog):
    labels = table(folder, "slide_id,label\na,x\nc,y\nd,y\n")
    with caplog.at_level(logging.WARNING):
        refs = read_manifest(folder, labels=labels)
    assert [r.id for r in refs if r.label is None] == ["b"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{labels}: 2 labels have no slide: c, d",
        "1 of 2 slides have no label: b",
    ]


def test_a_label_column_without_a_table_is_refused(folder):
    with pytest.raises(ManifestError, match="the label column 'x' needs a table"):
        read_manifest(folder, label_column="x")


def test_labels_that_belong_to_no_slide_are_refused_with_both_sides_names(folder):
    labels = table(folder, "slide_id,label\nA-1,x\nA-2,x\n")
    with pytest.raises(ManifestError, match=r"no label belongs to any slide.*A-1, A-2.*have a, b"):
        read_manifest(folder, labels=labels)


@pytest.mark.parametrize("text", ["", "NaN", "nan", "NA", "N/A", "null", "None", " "])
def test_an_empty_label_means_unlabelled(folder, text):
    refs = read_manifest(folder, labels=table(folder, f"slide_id,label\na,{text}\nb,x\n"))
    assert [r.label for r in refs] == [None, "x"]


def test_one_slide_with_two_labels_is_refused_and_a_repeated_row_is_not(folder):
    assert read_labels(table(folder, "slide_id,label\na,x\na,x\n")).rows["a"].label == "x"
    with pytest.raises(ManifestError, match=r"row 2: 'a' is .*'y'.* above"):
        read_labels(table(folder, "slide_id,label\na,x\na,y\n"))


def test_patients_of_both_tables_must_agree(folder):
    slides = table(folder, "path,case_id\na.svs,p1\n", "slides.csv")
    with pytest.raises(ManifestError, match="'a' is of case 'p2' here and of 'p1'"):
        read_manifest(slides, labels=table(folder, "slide_id,case_id,label\na,p2,x\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,x\n", "needs a column slide_id or case_id; found name, label"),
        ("slide_id,age,sex\na,1,f\n", "no column 'label'; found slide_id, age, sex"),
        ("slide_id,label\n,x\n", "row 1: names no slide"),
        ("slide_id,label\n", "no rows"),
    ],
)
def test_label_tables_that_cannot_work_are_refused_with_what_was_found(folder, text, message):
    with pytest.raises(ManifestError, match=message):
        read_labels(table(folder, text))


def test_the_only_other_column_is_the_class_also_beside_a_row_number(folder):
    labels = read_labels(table(folder, ",slide_id,grade\n0,a,high\n"))
    assert labels.rows["a"].label == "high"


def test_clam_splits_are_ragged_columns(folder):
    splits = table(folder, ",train,val,test\n0,a,b,c\n1,d,,\n")
    assert read_splits(splits) == {"a": "train", "d": "train", "b": "val", "c": "test"}
    there = table(folder, "Unnamed: 0,train,val,test\n0,a,b,\n", "there.csv")
    assert [r.split for r in read_manifest(folder, splits=there)] == ["train", "val"]


def test_ids_that_pandas_has_made_numbers_of_are_understood(tmp_path, caplog):
    for name in ("100", "104", "106.0"):
        (tmp_path / f"{name}.svs").write_text("")
    splits = table(tmp_path, ",train,val,test\n0,100,104.0,106.0\n")
    with caplog.at_level(logging.WARNING):
        refs = read_manifest(tmp_path, splits=splits)
    assert {ref.id: ref.split for ref in refs} == {"100": "train", "104": "val", "106.0": "test"}
    assert "the ending '.0' of these ids is ignored: 104.0" in caplog.text


def test_of_one_split_that_is_of_interest_all_slides_must_be_known(folder):
    refs, splits = read_manifest(folder), table(folder, "train,test\nq,a\n")
    assert [ref.split for ref in with_tables(refs, splits=splits, split="test")] == ["test", None]
    with pytest.raises(ManifestError, match="1 of its 2 slides"):
        with_tables(refs, splits=splits)


def test_slides_that_a_table_of_splits_does_not_name_are_left_out(folder, caplog):
    splits = table(folder, ",train,val,test\n0,a,,\n")
    with caplog.at_level(logging.WARNING):
        assert [(r.id, r.split) for r in read_manifest(folder, splits=splits)] == [("a", "train")]
    assert "names no split for 1 slides, which are left out: b" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train,val\na,a\n", "'a' is in train and in val"),
        ("x,y\na,b\n", "must have the columns train, val and test; found x, y"),
        ("train,validation\na,b\n", "found train, validation; rename or remove 'validation'"),
        ("train,dev,x\na,b,\n", "rename or remove 'dev', 'x'"),
        ("train,val\nq,r\n", "2 of its 2 slides are not among the 2 given: 'q', 'r'"),
        ("train,val\na,bb\n", r"1 of its 2 slides .* 2 given: 'bb' \(nearest: 'b'\); correct or remove"),
        ("train,val\na,a.0\n", "'a' is in train and, as 'a.0', in val"),
    ],
)
def test_splits_that_cannot_work_are_refused(folder, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(folder, splits=table(folder, text))


def test_a_class_whose_name_means_no_label_is_warned_of(folder, caplog):
    with caplog.at_level(logging.WARNING):
        labels = read_labels(table(folder, "slide_id,label\na,None\nb,Mild\nc,None\nd,\n"))
        assert [row.label for row in labels.rows.values()] == [None, "Mild", None, None]
        assert caplog.text.count("means that the label is unknown") == 1
        assert "2 rows of column 'label' are 'None'" in caplog.text
        assert "another name in the table" in caplog.text
        caplog.clear()
        read_labels(table(folder, "slide_id,label\na,\nb,x\n"))  # nobody's class is called so
        assert not caplog.text


@pytest.mark.parametrize("column", ["slide_id", "case_id", "path"])
def test_names_are_compared_however_unicode_writes_them(tmp_path, column):
    name = "M\u00fcller_01"
    decomposed = unicodedata.normalize("NFD", name)
    (tmp_path / f"{decomposed}.svs").write_text("")
    ending = ".svs" if column == "path" else ""
    labels = table(tmp_path, f"{column},label\n{name}{ending},x\n")
    [ref] = read_manifest(tmp_path, labels=labels)
    assert (ref.id, ref.label, ref.path) == (name, "x", str(tmp_path / f"{decomposed}.svs"))
    splits = table(tmp_path, f"train\n{decomposed}\n", "splits.csv")
    assert read_manifest(tmp_path, splits=splits)[0].split == "train"


def test_linked_folders_are_searched_once_and_circles_end(tmp_path):
    real, linked = tmp_path / "elsewhere", tmp_path / "slides"
    (real / "deep").mkdir(parents=True)
    (linked / "own").mkdir(parents=True)
    for path in (real / "deep" / "a.svs", linked / "own" / "b.svs"):
        path.write_text("")
    (linked / "batch").symlink_to(real, target_is_directory=True)
    (linked / "again").symlink_to(linked / "own", target_is_directory=True)
    (real / "deep" / "up").symlink_to(linked, target_is_directory=True)
    refs = read_manifest(linked)
    assert [(ref.id, ref.path) for ref in refs] == [
        ("a", str(linked / "batch" / "deep" / "a.svs")),
        ("b", str(linked / "own" / "b.svs")),
    ]


def test_what_will_be_refused_is_not_passed_over(tmp_path):
    for name in ("a.qptiff", "b.vsi", "c.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dicom").write_text("")
    assert [ref.id for ref in read_manifest(tmp_path)] == ["a", "b", "1"]


def test_backslashes_of_a_table_from_windows_are_understood_or_named(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("scans/a.svs", "b\\c.svs"):
        (tmp_path / name).write_text("")
    table = tmp_path / "slides.csv"
    table.write_text("path,label\nscans\\a.svs,x\nb\\c.svs,y\n")
    # The second is the name of a file on this machine.
    [first] = read_manifest(tmp_path / "scans", labels=table)
    assert (first.id, first.label) == ("a", "x")
    table.write_text("path\nscans\\a.svs\n")
    assert [ref.path for ref in read_manifest(table)] == [str(tmp_path / "scans" / "a.svs")]
    for path in ("D:\\scans\\a.svs", "\\\\server\\share\\a.svs"):
        table.write_text(f"path\n{path}\n")
        with pytest.raises(ManifestError, match=r"row 1: .* is a Windows path"):
            read_manifest(table)


def test_a_name_that_is_too_long_for_the_files_of_a_slide_is_refused_by_its_length(tmp_path):
    (tmp_path / ("\u00e9" * 120 + ".svs")).write_text("")
    [longest] = read_manifest(tmp_path)
    assert len(longest.id.encode()) == 240
    (tmp_path / ("a" * 241 + ".svs")).write_text("")
    with pytest.raises(ManifestError, match=r"slide_id has 241 bytes .* allow only 240; .* shorter slide_id"):
        read_manifest(tmp_path)


# --- labels of several columns ---


def test_several_columns_are_one_label(folder):
    text = "slide_id,months,died,her2,er\na,23.5,1,1,\nb,12,,0,0\n"
    refs = read_manifest(folder, labels=table(folder, text), label_column="months,died", task="survival")
    assert [r.label for r in refs] == ["23.5;1", None]
    refs = read_manifest(folder, labels=table(folder, text), label_column="her2", task="multilabel")
    assert [r.label for r in refs] == ["1", "0"]  # one column holds labels as they are
    text = "path,her2,er\na.svs,1,\nbelow/b.ndpi,1,1\n"
    refs = read_manifest(table(folder, text), label_column="her2, er", task="multilabel")
    assert [r.label for r in refs] == ["her2;?er", "her2;er"]


def test_a_column_whose_name_has_a_comma_is_one_column(folder):
    labels = table(folder, 'slide_id,"stage, grade"\na,x\nb,y\n')
    assert [r.label for r in read_manifest(folder, labels=labels, label_column="stage, grade")] == ["x", "y"]


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("survival", "months,dead", "has no column 'dead'; found slide_id, months, died, her2, er"),
        ("survival", "months,died,er", "row 1: survival needs two columns, time and event"),
        ("classification", "her2,er", "classification has its label in one column, not in her2, er"),
        ("multilabel", "her2,months", "row 1: months is '23.5', expected 1 or 0"),
        ("multilabel", "her2,er", "no row of column 'er' is 1"),
    ],
)
def test_columns_that_make_no_label_are_refused(folder, task, columns, message):
    labels = table(folder, "slide_id,months,died,her2,er\na,23.5,1,1,\nb,12,1,0,0\n")
    with pytest.raises(ManifestError, match=message):
        read_manifest(folder, labels=labels, label_column=columns, task=task)


# --- stores ---


@pytest.fixture
def store():
    """Files in memory, of which some are slides."""
    import fsspec

    files = fsspec.filesystem("memory")
    names = (
        "a.svs",
        "below/b.ome.tif",
        "below/c.zarr/zarr.json",
        "below/c.zarr/0/c/0/0",
        "._a.svs",
        "note.txt",
    )
    for name in names:
        files.pipe_file(f"/store/{name}", b"x")
    yield "memory://store"
    files.rm("/store", recursive=True)


def test_a_folder_of_a_store_is_searched_as_one_of_this_machine(store):
    refs = read_manifest(f"{store}/")
    assert [(r.id, r.path, r.case) for r in refs] == [
        ("a", "memory:///store/a.svs", "a"),
        ("b", "memory:///store/below/b.ome.tif", "b"),
        ("c", "memory:///store/below/c.zarr", "c"),
    ]


@pytest.mark.parametrize(
    ("what", "ids"),
    [
        ("*.svs", ["a"]),
        ("**/*.tif", ["b"]),
        ("a.svs", ["a"]),
        ("note.txt", ["note"]),
        ("below/c.zarr", ["c"]),
    ],
)
def test_a_file_or_glob_of_a_store(store, what, ids):
    assert [r.id for r in read_manifest(f"{store}/{what}")] == ids


def test_urls_of_a_table_stay_as_they_are(tmp_path):
    urls = ["s3://bucket/a.svs", "https://host/b.ome.tif?X-Amz-Date=1&X-Amz-Signature=a/b.c"]
    refs = read_manifest(table(tmp_path, "path\n" + "\n".join(urls)))
    assert [(r.id, r.path) for r in refs] == [("a", urls[0]), ("b", urls[1])]
    labels = read_labels(table(tmp_path, f"path,label\n{urls[0]},x\n{urls[1]},y\n", "labels.csv"))
    assert {name: row.label for name, row in labels.rows.items()} == {"a": "x", "b": "y"}


def test_labels_are_joined_with_slides_of_a_store(store, tmp_path):
    labels = table(tmp_path, "slide_id,label\na,x\nb,y\nc,x\n")
    assert [r.label for r in read_manifest(f"{store}/", labels=labels)] == ["x", "y", "x"]


def test_a_signed_url_is_a_slide_without_being_asked_for():
    url = "https://no.such.host.invalid/scans/a.svs?" + "X-Amz-Signature=" + "0" * 1000
    [slide] = read_manifest(url)
    assert (slide.id, slide.path) == ("a", url)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("memory://store/nothing/", "no such file or folder"),
        ("memory://store/*.txt", "no slides found; looked for"),
        ("memory://store/table.csv", "tables must be on this machine"),
        ("https://host/scans/", "web servers do not list"),
        ("nosuch://store/", "nosuch:// is not a known protocol"),
    ],
)
def test_what_a_store_does_not_have(store, what, said):
    with pytest.raises(ManifestError, match=said):
        read_manifest(what)
