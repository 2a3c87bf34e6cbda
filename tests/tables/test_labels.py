"""Labels that are not enough to train on are refused, and the slides without label are counted."""

from __future__ import annotations

import pytest
from tasks.examples import EXAMPLES

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.labels import check_labels


def ref(name, case=None, label=None):
    return SlideRef(name, f"{name}.svs", case or name, label)


def test_classes_that_cannot_be_trained_on_are_refused_with_the_number_left_out():
    with pytest.raises(ManifestError, match="none of 1 slides has a label"):
        check_labels([ref("a")], "classification")
    with pytest.raises(ManifestError, match="none of 0"):
        check_labels([], "classification")
    with pytest.raises(
        ManifestError, match=r"needs two classes or more, not \['x'\]; 1 slides have no label: b"
    ):
        check_labels([ref("a", label="x"), ref("b"), ref("c", label="x")], "classification")


def test_a_class_needs_patients_not_slides():
    refs = [ref("a", "p1", "x"), ref("b", "p1", "x"), ref("c", "p2", "y"), ref("d", "p3", "y")]
    with pytest.raises(ManifestError, match="2 patients or more, but there are 1 of class 'x'"):
        check_labels(refs, "classification")


@pytest.mark.parametrize("task", EXAMPLES)
def test_the_target_is_inferred_from_slides_with_labels(task):
    refs = [ref(n, label=label) for n, label in zip("abcdefg", [*EXAMPLES[task].labels, None], strict=True)]
    assert check_labels(refs, task) == EXAMPLES[task].target


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("classification", "xxxy", "2 patients or more, but there are 1 of class 'y'"),
        ("regression", [None] * 4, "none of 4 slides has a label"),
        (
            "regression",
            ["1", None, None, None],
            "2 patients or more are needed, but there are 1; 3 slides have",
        ),
        ("regression", ["1", "2", "high", "3"], "slide 'c': label is 'high', expected a number"),
        ("regression", ["2", "2.0", "2", None], "regression needs values that differ"),
        ("survival", ["1;0", "2;0", "3;0", "4;0"], "none of 4 slides has an event"),
        ("survival", ["1;0", "2;1", "3", "4;0"], "slide 'c': label is '3', expected time;event"),
        ("multilabel", ["a", "a;b", "a", None], "3 slides are known to have label 'a' and 0 not to have it"),
        ("multilabel", ["a", "a;?b", "-", "?b"], "0 slides are known to have label 'b' and 2 not to have it"),
        ("multilabel", ["a", "a;b", ";", "-"], "slide 'c': label is ';', expected names"),
        ("multilabel", ["-", "-", "-", "-"], "none of 4 slides has any label"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused(task, labels, message):
    refs = [ref(n, label=label) for n, label in zip("abcd", labels, strict=True)]
    with pytest.raises(ManifestError, match=message):
        check_labels(refs, task)


def test_a_value_needs_patients_not_slides():
    refs = [ref("a", "p1", "1"), ref("b", "p1", "2")]
    with pytest.raises(ManifestError, match=r"2 patients or more are needed, but there are 1$"):
        check_labels(refs, "regression")
