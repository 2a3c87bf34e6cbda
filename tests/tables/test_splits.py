"""Splits keep cases together, are stratified, and never let a case leak."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.split_table import read_splits
from wsi_ats.tables.splits import (
    check_leakage,
    check_tested_once,
    folds_by_case,
    read_folds,
    split_by_case,
    untrained,
    with_validation,
    write_splits,
)
from wsi_ats.tasks.registry import TASKS


def refs(cases_per_class: int = 10, slides_per_case: int = 3, classes: int = 2) -> list[SlideRef]:
    return [
        SlideRef(f"s{label}-{case}-{slide}", "path", f"c{label}-{case}", label=f"class{label}")
        for label, case, slide in itertools.product(
            range(classes), range(cases_per_class), range(slides_per_case)
        )
    ]


def ids(slides) -> list[str]:
    return [slide.id for slide in slides]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_split_parts_the_slides_by_case_and_keeps_the_share_of_every_class(share, classes):
    slides = refs(20, classes=classes)
    training, aside = split_by_case(slides, share, seed=0)
    assert sorted(ids(training) + ids(aside)) == sorted(ids(slides))
    assert not {s.case for s in training} & {s.case for s in aside}
    for label in range(classes):
        cases = {s.case for s in aside if s.label == f"class{label}"}
        assert len(cases) == pytest.approx(20 * share, abs=1)


def test_a_split_follows_its_seed():
    first, again, other = (ids(split_by_case(refs(), 0.2, seed=seed)[1]) for seed in (1, 1, 2))
    assert first == again != other


def test_a_zero_fraction_holds_out_nothing():
    assert split_by_case(refs(), 0, seed=0) == (refs(), [])


def test_too_few_cases_of_a_class_are_refused_with_what_to_do():
    few = refs(10) + [SlideRef(f"r{i}", "path", f"rare{i % 3}", label="rare") for i in range(12)]
    with pytest.raises(ManifestError, match=r"only 3 cases.*20%.*training\.validation=0"):
        split_by_case(few, 0.2, seed=0)


def test_a_prescribed_split_is_kept_and_test_slides_are_left_out():
    slides = [
        SlideRef(f"s{i}", "path", f"c{i}", label=str(i % 2), split=split)
        for i, split in enumerate(["train", "val", "test", None, "val", "train"])
    ]
    training, aside = split_by_case(slides, 0.2, seed=0)
    assert ids(training) == ["s0", "s3", "s5"]
    assert ids(aside) == ["s1", "s4"]


@pytest.mark.parametrize("splits", [("train", "val"), (None, "val"), ("train", "test"), ("val", "test")])
def test_a_case_in_two_splits_is_refused(splits):
    slides = [SlideRef(f"s{i}", "path", "shared", label="a", split=split) for i, split in enumerate(splits)]
    with pytest.raises(ManifestError, match="case 'shared' is in splits"):
        split_by_case(slides, 0.2, seed=0)


def test_a_prescribed_split_that_leaves_a_class_out_of_training_is_refused():
    slides = [
        SlideRef("s0", "path", "c0", label="a", split="train"),
        SlideRef("s1", "path", "c1", label="b", split="val"),
    ]
    with pytest.raises(ManifestError, match="'b'"):
        split_by_case(slides, 0.2, seed=0)


@pytest.mark.parametrize("folds", [2, 3, 10])
def test_folds_test_every_slide_once_and_keep_cases_together(folds):
    slides = refs()
    made = folds_by_case(slides, folds, seed=1)
    assert len(made) == folds
    tested = [s.id for fold in made for s in fold if s.split == "test"]
    assert sorted(tested) == sorted(ids(slides))
    for fold in made:
        assert ids(fold) == ids(slides)
        assert not {s.case for s in fold if s.split == "test"} & {s.case for s in fold if s.split == "train"}
        for label in ("class0", "class1"):
            assert sum(s.label == label for s in fold if s.split == "test") == pytest.approx(
                30 / folds, abs=3
            )


def test_folds_are_splits_that_training_keeps():
    [fold, *_] = folds_by_case(refs(), 5, seed=0)
    training, aside = split_by_case(fold, 0.2, seed=0)
    assert ids(training) == [s.id for s in fold if s.split == "train"]
    assert aside == []


@pytest.mark.parametrize("folds", [1, 7])
def test_too_few_or_too_many_folds_are_refused(folds):
    with pytest.raises(ManifestError, match=f"{folds} folds were requested"):
        folds_by_case(refs(3), folds, seed=0)


def test_a_fold_that_would_leave_a_class_untrained_is_refused():
    slides = [*refs(3), *(SlideRef(f"r{i}", "path", "rare", label="rare") for i in range(3))]
    with pytest.raises(ManifestError, match="none to train on of 'rare'"):
        folds_by_case(slides, 3, seed=0)


def test_a_class_with_fewer_cases_than_folds_is_absent_from_some_tests_and_trained_in_all():
    slides = refs(5, 1) + [SlideRef(f"r{i}", "path", f"rare{i}", label="rare") for i in range(2)]
    made = folds_by_case(slides, 4, seed=0)
    tested = [{s.label for s in fold if s.split == "test"} for fold in made]
    assert sum("rare" in labels for labels in tested) == 2
    for fold in made:
        assert {s.label for s in fold if s.split == "train"} == {"class0", "class1", "rare"}


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from(["a", "b", "-", "a;b", "?a;b"])), min_size=4, max_size=30
    ),
    st.integers(2, 4),
    st.integers(0, 3),
)
def test_folds_keep_cases_together_whatever_the_task_and_the_labels(slides, folds, seed):
    made_of = [SlideRef(f"s{i}", "", f"c{case}", label) for i, (case, label) in enumerate(slides)]
    try:
        made = folds_by_case(made_of, folds, seed=seed, task="multilabel")
    except ManifestError:
        return
    check_tested_once({str(number): fold for number, fold in enumerate(made)})
    for fold in made:
        check_leakage(fold)
        assert untrained(fold, [s for s in fold if s.split == "train"], task="multilabel") == []
    assert sorted(s.id for fold in made for s in fold if s.split == "test") == sorted(ids(made_of))


def labelled(*labels: str) -> list[SlideRef]:
    return [SlideRef(f"s{i}", "", f"c{i}", label) for i, label in enumerate(labels)]


def strata(task, refs):
    return TASKS[task].strata([ref.label for ref in refs], [ref.case for ref in refs])


def test_each_task_is_stratified_by_its_own_strata():
    assert strata("classification", labelled("x", "y")) == ["x", "y"]
    assert strata("multilabel", labelled("a;b", "a", "-", "a;?b")) == ["b", "a", "-", "a"]
    assert strata("multilabel", labelled("a; b", "b ;a", "- ", "c; ?b")) == ["a", "a", "-", "c"]
    assert strata("survival", labelled("3;1", "4;0")) == ["event", "censored"]
    values = [str(value) for value in range(40)]
    assert strata("regression", labelled(*values)) == [str(value // 10) for value in range(40)]
    assert set(strata("regression", labelled(*values[:9]))) == {"0"}
    with pytest.raises(ManifestError, match="'high', expected a number"):
        strata("regression", labelled("high"))


@pytest.mark.parametrize(
    ("task", "labels", "trained", "missing"),
    [
        ("classification", ["x", "y"], [0], ["y"]),
        ("multilabel", ["a;b", "a", "-"], [1, 2], ["b"]),
        ("multilabel", ["a;?b", "a"], [1], []),
        ("survival", ["1;1", "2;0"], [1], ["event"]),
        ("survival", ["1;1", "2;0"], [0], []),
        ("regression", ["1", "2"], [0], []),
    ],
)
def test_classes_missing_from_training_are_listed(task, labels, trained, missing):
    slides = labelled(*labels)
    assert untrained(slides, [slides[i] for i in trained], task=task) == missing


def test_events_are_shared_out_among_folds():
    slides = labelled(*(f"{i};{int(i % 4 == 0)}" for i in range(40)))
    for fold in folds_by_case(slides, 5, seed=0, task="survival"):
        assert sum(s.label.endswith(";1") for s in fold if s.split == "test") == 2


def test_validation_is_taken_from_training_alone():
    [fold, *_] = folds_by_case(refs(), 5, seed=0)
    made = with_validation(fold, 0.25, seed=0)
    assert ids(made) == ids(fold)
    check_leakage(made)
    numbers = {split: len({s.case for s in made if s.split == split}) for split in ("train", "val", "test")}
    assert numbers == {"train": 12, "val": 4, "test": 4}
    assert [s.id for s in made if s.split == "test"] == [s.id for s in fold if s.split == "test"]
    assert with_validation(fold, 0, seed=0) == fold


def test_a_slide_or_case_that_two_folds_test_is_refused():
    once, twice = SlideRef("a", "", "case 1", split="test"), SlideRef("b", "", "case 1", split="test")
    train = SlideRef("a", "", "case 1", split="train")
    check_tested_once({"splits_0.csv": [once], "splits_1.csv": [train]})
    with pytest.raises(
        ManifestError, match=r"slide 'a' is in the test sets of splits_0\.csv and of splits_1"
    ):
        check_tested_once({"splits_0.csv": [once], "splits_1.csv": [once]})
    with pytest.raises(ManifestError, match="case 'case 1' is in the test sets of one and of two"):
        check_tested_once({"one": [once], "two": [twice]})


def test_splits_are_written_as_clam_reads_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    made = with_validation(folds_by_case(refs(), 5, seed=0)[0], 0.25, seed=0)
    write_splits(tmp_path / "splits_0.csv", made)
    read = pandas.read_csv(tmp_path / "splits_0.csv")
    assert list(read) == ["train", "val", "test"]
    for split in ("train", "val", "test"):
        assert read[split].dropna().tolist() == [s.id for s in made if s.split == split]
    assert read_splits(tmp_path / "splits_0.csv") == {s.id: s.split for s in made}


def test_a_folder_that_clam_wrote(tmp_path):
    for number in (0, 2, 10):
        (tmp_path / f"splits_{number}.csv").write_text(f",train,val,test\n0,a{number},b,c\n1,d,,\n")
        (tmp_path / f"splits_{number}_bool.csv").write_text(",train,val,test\na,True,False,False\n")
    folds = read_folds(tmp_path)
    assert list(folds) == ["splits_0.csv", "splits_2.csv", "splits_10.csv"]
    assert folds["splits_10.csv"] == {"a10": "train", "d": "train", "b": "val", "c": "test"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds 0 files"),
        ({"splits_0.csv": "train,val,test\na,,b\n"}, "holds 1 files"),
        ({"splits_0.csv": "train,val,test\na,,a\n", "splits_1.csv": "train,test\na,b\n"}, "'a' is in train"),
        (
            {"splits_0.csv": "a,b\n1,2\n", "splits_1.csv": "train,test\na,b\n"},
            "must have the columns train, val and test",
        ),
    ],
)
def test_folders_of_folds_that_cannot_be_used(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=said):
        read_folds(tmp_path)
    with pytest.raises(ManifestError, match="is not a folder"):
        read_folds(tmp_path / "none")
