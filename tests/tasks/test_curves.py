"""Curves pass through the right points, and calibration agrees with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve

from tasks.examples import EXAMPLES
from wsi_ats.tasks.curves import confusion, expected_calibration_error, precision_recall, reliability, roc
from wsi_ats.tasks.evaluation import Event, once
from wsi_ats.tasks.registry import TASKS


def event_of(happened, probability):
    return Event(np.array(happened, bool), np.array(probability, float), np.arange(len(happened)))


@pytest.mark.parametrize(
    ("task", "targets", "scores", "happened", "probability"),
    [
        # Of two classes, whether it is the second; of more, whether the most probable one is right.
        ("classification", [[1], [1]], [[0.2, 0.8], [0.7, 0.3]], [1, 1], [0.8, 0.3]),
        ("classification", [[1], [2]], [[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]], [1, 0], [0.7, 0.5]),
        ("multilabel", [[1, np.nan], [0, 1]], [[0.2, 0.8], [0.7, 0.3]], [1, 0, 1], [0.2, 0.7, 0.3]),
    ],
)
def test_calibration_compares_probabilities_with_outcomes(task, targets, scores, happened, probability):
    names = "xyz"[: len(scores[0])]
    details = TASKS[task].details(np.array(targets, float), np.array(scores), names, ["", ""])
    expected = reliability(np.array(happened) > 0, np.array(probability))
    assert details.tables["reliability.csv"] == expected


@pytest.mark.parametrize("task", TASKS)
def test_tables_and_plots_are_named_by_the_task(task):
    example = EXAMPLES[task]
    models = ["one"] * 4 + ["other"] * 2
    details = TASKS[task].details(example.targets(), example.scores(), example.target.names, models)
    assert tuple(details.tables) == TASKS[task].tables
    assert details.panels
    assert all(len({len(column) for column in table.values()}) == 1 for table in details.tables.values())


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_reliability_agrees_with_scikit_learn(bins):
    generator = np.random.default_rng(0)
    probability = generator.random(300)
    happened = generator.random(300) < probability
    table = reliability(happened, probability, bins=bins)
    frequency, mean = calibration_curve(happened, probability, n_bins=bins)
    assert np.allclose(table["frequency"], frequency)
    assert np.allclose(table["probability"], mean)
    assert sum(table["n"]) == 300
    expected = sum(n / 300 * abs(f - p) for n, f, p in zip(table["n"], frequency, mean, strict=True))
    event = event_of(happened, probability)
    assert expected_calibration_error(event, once(300), bins=bins) == pytest.approx([expected])


def test_calibration_by_hand():
    happened = np.array([True, True, False, True])
    probability = np.array([0.0, 0.1, 1.0, 1.0])  # edges belong to the bin below
    table = reliability(happened, probability)
    assert (table["n"][0], table["n"][9], sum(table["n"])) == (2, 2, 4)
    assert (table["probability"][0], table["frequency"][0]) == (0.05, 1)
    assert (table["frequency"][5], table["probability"][5]) == (None, None)
    error = expected_calibration_error(event_of(happened, probability), once(4))
    assert error == pytest.approx([(0.95 + 0.5) / 2])
    assert np.isnan(expected_calibration_error(event_of([], []), once(0)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_curves_are_those_of_scikit_learn(pairs):
    happened, score = (np.array(each) for each in zip(*pairs, strict=True))
    if len(set(happened.tolist())) < 2:
        return
    event = event_of(happened, score / 5)
    curve, (false, true, thresholds) = roc(event), metrics.roc_curve(happened, score / 5)
    assert curve["threshold"] == thresholds.tolist()
    assert curve["false_positive_rate"] == pytest.approx(false.tolist(), abs=1e-12)
    assert curve["true_positive_rate"] == pytest.approx(true.tolist(), abs=1e-12)
    curve = precision_recall(event)
    precision, recall, thresholds = metrics.precision_recall_curve(happened, score / 5)
    assert curve["threshold"] == [*thresholds.tolist(), float("inf")]
    assert curve["precision"] == pytest.approx(precision.tolist(), abs=1e-12)
    assert curve["recall"] == pytest.approx(recall.tolist(), abs=1e-12)


def test_curves_by_hand():
    event = event_of([False, True, False, True], [0.1, 0.4, 0.35, 0.8])
    curve = roc(event)
    points = set(zip(curve["false_positive_rate"], curve["true_positive_rate"], strict=True))
    assert {(0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (1.0, 1.0)} >= points >= {(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)}
    assert curve["threshold"][0] == float("inf")
    curve = precision_recall(event)
    assert (curve["precision"][-1], curve["recall"][-1], curve["threshold"][-1]) == (1, 0, float("inf"))
    assert (1.0, 1.0, 0.4) in set(zip(curve["precision"], curve["recall"], curve["threshold"], strict=True))


def test_the_confusion_matrix_has_true_classes_in_rows_and_all_of_them():
    assert confusion([0, 0, 1], [0, 1, 1], 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
