"""Labels and splits joined with slides: by name, by case, over several columns."""

from __future__ import annotations

import logging
import unicodedata

import pytest

from tables.table_files import table
from wsi_ats.errors import ManifestError
from wsi_ats.tables.manifest import read_manifest, with_tables
from wsi_ats.tables.slide_table import read_labels
from wsi_ats.tables.split_table import read_splits

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


def test_slides_without_label_in_several_sources_are_counted_once(folder, caplog):
    rows = {"1.csv": "a.svs,x", "2.csv": "below/b.ndpi,"}
    sources = [table(folder, f"path,label\n{row}\n", name) for name, row in rows.items()]
    with caplog.at_level(logging.WARNING):
        refs = read_manifest(sources)
    assert [(ref.id, ref.label) for ref in refs] == [("a", "x"), ("b", None)]
    assert [record.getMessage() for record in caplog.records] == ["1 of 2 slides have no label: b"]


def test_a_label_column_without_a_table_is_refused(folder):
    with pytest.raises(ManifestError, match="the label column 'x' needs a table"):
        read_manifest(folder, label_column="x")


def test_labels_matching_no_slide_are_refused_with_names_from_both(folder):
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
def test_invalid_label_tables_are_refused_with_the_reason(folder, text, message):
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


def test_ids_turned_into_floats_by_pandas_are_matched(tmp_path, caplog):
    for name in ("100", "104", "106.0"):
        (tmp_path / f"{name}.svs").write_text("")
    splits = table(tmp_path, ",train,val,test\n0,100,104.0,106.0\n")
    with caplog.at_level(logging.WARNING):
        refs = read_manifest(tmp_path, splits=splits)
    assert {ref.id: ref.split for ref in refs} == {"100": "train", "104": "val", "106.0": "test"}
    assert "the ending '.0' of these ids is ignored: 104.0" in caplog.text


def test_every_slide_of_a_requested_split_must_be_found(folder):
    refs, splits = read_manifest(folder), table(folder, "train,test\nq,a\n")
    assert [ref.split for ref in with_tables(refs, splits=splits, split="test")] == ["test", None]
    with pytest.raises(ManifestError, match="1 of its 2 slides"):
        with_tables(refs, splits=splits)


def test_slides_missing_from_a_split_table_are_left_out(folder, caplog):
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
def test_invalid_splits_are_refused(folder, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(folder, splits=table(folder, text))


def test_a_class_named_like_a_missing_label_is_warned_about(folder, caplog):
    with caplog.at_level(logging.WARNING):
        labels = read_labels(table(folder, "slide_id,label\na,None\nb,Mild\nc,None\nd,\n"))
        assert [row.label for row in labels.rows.values()] == [None, "Mild", None, None]
        assert caplog.text.count("means that the label is unknown") == 1
        assert "2 rows of column 'label' are 'None'" in caplog.text
        assert "another name in the table" in caplog.text
        caplog.clear()
        read_labels(table(folder, "slide_id,label\na,\nb,x\n"))  # not a plausible name of a class
        assert not caplog.text


@pytest.mark.parametrize("column", ["slide_id", "case_id", "path"])
def test_names_are_matched_across_unicode_normal_forms(tmp_path, column):
    name = "M\u00fcller_01"
    decomposed = unicodedata.normalize("NFD", name)
    (tmp_path / f"{decomposed}.svs").write_text("")
    ending = ".svs" if column == "path" else ""
    labels = table(tmp_path, f"{column},label\n{name}{ending},x\n")
    [ref] = read_manifest(tmp_path, labels=labels)
    assert (ref.id, ref.label, ref.path) == (name, "x", str(tmp_path / f"{decomposed}.svs"))
    splits = table(tmp_path, f"train\n{decomposed}\n", "splits.csv")
    assert read_manifest(tmp_path, splits=splits)[0].split == "train"


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
def test_invalid_label_columns_are_refused(folder, task, columns, message):
    labels = table(folder, "slide_id,months,died,her2,er\na,23.5,1,1,\nb,12,1,0,0\n")
    with pytest.raises(ManifestError, match=message):
        read_manifest(folder, labels=labels, label_column=columns, task=task)
