"""Splits keep cases together, are stratified, and never let a case leak."""

from __future__ import annotations

import itertools

import pytest

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.splits import folds_by_case, split_by_case


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


def test_no_share_sets_nothing_aside():
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
    with pytest.raises(ManifestError, match=f"{folds} folds are asked for"):
        folds_by_case(refs(3), folds, seed=0)


def test_a_fold_that_would_leave_a_class_untrained_is_refused():
    slides = [*refs(3), *(SlideRef(f"r{i}", "path", "rare", label="rare") for i in range(3))]
    with pytest.raises(ManifestError, match="none to train on of 'rare'"):
        folds_by_case(slides, 3, seed=0)
