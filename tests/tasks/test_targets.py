"""Targets: labels become numbers and back, and labels that do not suit the task are refused."""

from __future__ import annotations

import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.examples import EXAMPLES
from wsi_ats.errors import ManifestError, SettingsError
from wsi_ats.tasks.registry import TASKS
from wsi_ats.tasks.targets import Target

MULTI = EXAMPLES["multilabel"].target


@pytest.mark.parametrize("task", TASKS)
def test_a_target_is_found_from_labels(task):
    example = EXAMPLES[task]
    target = Target.of(task, iter(example.labels))
    assert target == example.target
    assert target.columns == example.columns
    assert target.outputs == len(target.names)
    assert pickle.loads(pickle.dumps(target)) == target
    assert all(math.isfinite(sum(target.encode(label))) for label in example.labels if "?" not in label)


@pytest.mark.parametrize(
    ("target", "label", "numbers"),
    [
        (Target("classification", ("x", "y", "z")), "y", (1,)),
        (Target("classification", ("a;b", "-")), "-", (1,)),  # a mark of multilabel has no meaning here
        (MULTI, "pr", (0, 0, 1)),
        (MULTI, " er ; her2", (1, 1, 0)),
        (MULTI, "-", (0, 0, 0)),
        (MULTI, "pr;?er", (math.nan, 0, 1)),
        (Target("regression", ("value",)), "-3.2e1", (-32,)),
        (Target("regression", ("value",), 7, 2), "3", (3,)),  # normalise is another step
        (Target("survival", ("risk",)), "23.5;1", (23.5, 1)),
        (Target("survival", ("risk",)), "0; False", (0, 0)),
    ],
)
def test_labels_become_numbers(target, label, numbers):
    encoded = target.encode(label)
    assert all(type(value) is float for value in encoded)
    np.testing.assert_array_equal(encoded, numbers)


@pytest.mark.parametrize(
    ("target", "label", "said"),
    [
        (Target("classification", ("x", "y")), "z", "label is 'z', but 'z' is not one of x, y"),
        (MULTI, "er;ki67", "label is 'er;ki67', but 'ki67' is not one of er, her2, pr"),
        (MULTI, "er;", "label is 'er;', expected names joined by ';'"),
        (MULTI, "er;-", "or '-' for none"),
        (MULTI, "?", "label is '?', expected names"),
        (Target("regression", ("value",)), "high", "label is 'high', expected a number such as 3.2"),
        (Target("regression", ("value",)), "3,2", "decimal point"),
        (Target("regression", ("value",)), "inf", "label is 'inf', expected a number"),
        (Target("survival", ("risk",)), "23.5", "label is '23.5', expected time;event"),
        (Target("survival", ("risk",)), "23.5;dead", "label is '23.5;dead', expected time;event"),
        (Target("survival", ("risk",)), "23.5;2", "with event 1, or 0"),
        (Target("survival", ("risk",)), "long;1", "label is 'long;1', expected time;event"),
        (Target("survival", ("risk",)), "-1;1", "label is '-1;1', but a time cannot be negative"),
        (Target("survival", ("risk",)), "1;1;0", "label is '1;1;0', expected time;event"),
    ],
)
def test_a_label_of_a_wrong_type_is_refused_with_itself_and_what_was_expected(target, label, said):
    with pytest.raises(ManifestError, match=re.escape(said)):
        target.encode(label)


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        ("classification", ["a", "a"], "classification needs two classes or more, not ['a']"),
        ("multilabel", ["-", "-"], "none of 2 slides has any label"),
        ("multilabel", ["a;;b"], "label is 'a;;b'"),
        ("regression", ["2", "2.0"], "regression needs values that differ, but all 2 slides have ['2']"),
        ("regression", [], "regression needs values that differ, but all 0 slides have []"),
        ("regression", ["2", "many"], "label is 'many'"),
    ],
)
def test_labels_without_information_are_refused(task, labels, said):
    with pytest.raises(ManifestError, match=re.escape(said)):
        Target.of(task, labels)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("ranking", ("a", "b")), "must be one of classification, multilabel, regression, survival"),
        (("classification", ("a",)), "classification needs 2 different names"),
        (("classification", ("a", "a")), "classification needs 2 different names"),
        (("multilabel", ()), "multilabel needs 1 different names"),
        (("regression", ("a", "b")), "regression predicts 1 number"),
        (("survival", ("risk",), 0.0, 2.0), "survival has no units"),
        (("regression", ("value",), 0.0, 0.0), "positive scale"),
        (("regression", ("value",), math.nan, 1.0), "finite centre"),
    ],
)
def test_a_target_is_checked_at_birth(values, said):
    with pytest.raises(SettingsError, match=said):
        Target(*values)


def test_values_are_learnt_in_units_of_their_own_spread():
    labels = ["1000", "1010", "1040"]
    target = Target.of("regression", labels)
    values = np.array([target.encode(label) for label in labels])
    normal = target.normalise(values)
    assert (normal.mean(), normal.std()) == pytest.approx((0, 1))
    np.testing.assert_allclose(target.restore(normal), values, rtol=1e-15)
    assert torch.equal(target.normalise(torch.from_numpy(values)), torch.from_numpy(normal))


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if not task.has_units])
def test_other_targets_have_no_units(task):
    target = EXAMPLES[task].target
    values = np.array([[0.1, 3.0], [7.0, 1.0]])
    np.testing.assert_array_equal(target.normalise(values), values)
    np.testing.assert_array_equal(target.restore(values), values)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2))
def test_written_values_parse_to_the_same_value(values):
    labels = [repr(value) for value in values]
    if len(set(values)) > 1 and np.std(values) > 0:
        target = Target.of("regression", labels)
        assert [target.encode(label)[0] for label in labels] == values
        assert target.decide({"value": values[0]}) == labels[0]


def test_decisions_are_written_like_labels():
    classes = Target("classification", ("x", "y", "z"))
    assert classes.decide({"prob_x": 0.2, "prob_y": 0.5, "prob_z": 0.3}) == "y"
    assert MULTI.decide({"prob_er": 0.4, "prob_her2": 0.6, "prob_pr": 0.9}) == "her2;pr"
    assert MULTI.decide(dict.fromkeys(MULTI.columns, 0.1)) == "-"
    assert Target("survival", ("risk",)).decide({"risk": 3.0}) is None


def join(task, columns):
    """The label of one row; in another row, all columns are 1."""
    return TASKS[task].join({name: [text, "1"] for name, text in columns.items()})[0]


@pytest.mark.parametrize(
    ("task", "columns", "label"),
    [
        ("survival", {"months": "3", "died": "0"}, "3;0"),
        ("survival", {"months": "3", "died": "TRUE"}, "3;1"),
        ("survival", {"months": "3", "died": None}, None),
        ("survival", {"months": None, "died": "1"}, None),
        ("multilabel", {"a": "1", "b": "0.0", "c": "True"}, "a;c"),
        ("multilabel", {"a": "0", "b": "0"}, "-"),
        ("multilabel", {"a": "0", "b": None}, "?b"),
        ("multilabel", {"a": None, "b": None}, None),
    ],
)
def test_columns_become_one_label(task, columns, label):
    assert join(task, columns) == label


def test_columns_and_their_label_agree():
    label = join("multilabel", {"pr": "1", "er": "0", "her2": None})
    np.testing.assert_array_equal(MULTI.encode(label), [0, math.nan, 1])


@pytest.mark.parametrize(
    ("task", "columns", "said"),
    [
        ("survival", {"a": "1", "b": "1", "c": "1"}, "two columns, time and event, not a, b, c"),
        ("classification", {"a": "1", "b": "0"}, "classification has its label in one column, not in a, b"),
        ("regression", {"a": "1", "b": "0"}, "model.task"),
        ("multilabel", {"a": "yes"}, "a is 'yes', expected 1 or 0"),
        ("survival", {"months": "3", "died": "7"}, "died is '7', expected 1 or 0"),
        ("multilabel", {"a;b": "1"}, "label 'a;b' conflicts with"),
        ("multilabel", {"?a": "1"}, "rename its column"),
        ("multilabel", {"-": "1"}, "rename its column"),
    ],
)
def test_invalid_label_columns_are_refused(task, columns, said):
    with pytest.raises(ManifestError, match=re.escape(said)):
        join(task, columns)
