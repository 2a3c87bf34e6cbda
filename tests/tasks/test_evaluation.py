"""Metrics agree with their textbook definitions, intervals with theory, and undefined ones are None."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from tasks.examples import EXAMPLES, Example
from wsi_ats.tasks import evaluation
from wsi_ats.tasks.evaluation import auc, bootstrap, main_metric, metrics_table
from wsi_ats.tasks.registry import TASKS
from wsi_ats.tasks.targets import Target


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=30))
def test_area_is_the_chance_that_a_positive_outranks_a_negative(pairs):
    true, score = np.array(pairs).T
    if len(set(true)) < 2:
        return
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in score[true == 1] for n in score[true == 0]]
    probabilities = np.stack([5 - score, score], axis=1) / 5
    assert auc(true, probabilities) == pytest.approx(np.mean(wins))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_precision_and_f1_are_those_of_scikit_learn_also_of_equal_probabilities(pairs):
    happened, score = (np.array(each) for each in zip(*pairs, strict=True))
    if not happened.any():
        return
    precision = metrics.average_precision_score(happened, score / 5)
    event, one = evaluation.Event(happened, score / 5, np.arange(len(pairs))), evaluation.once(len(pairs))
    assert evaluation.average_precision([event], one) == pytest.approx([precision], rel=1e-12)
    expected = metrics.f1_score(happened, score > 2, zero_division=0.0)
    assert evaluation.f1(happened[:, None], score[:, None] > 2, one) == pytest.approx([expected], rel=1e-12)


def test_area_of_several_classes_is_the_mean_of_each_against_the_rest():
    true = np.array([0, 0, 1, 1, 2, 2])
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), 6)
    each = [auc(true == k, np.stack([1 - probabilities[:, k], probabilities[:, k]], 1)) for k in range(3)]
    assert auc(true, probabilities) == pytest.approx(np.mean(each))


def test_area_is_not_defined_where_a_class_is_absent():
    assert auc([1, 1], [[0.2, 0.8], [0.5, 0.5]]) is None
    assert auc([0, 1, 1], [[0.2, 0.4, 0.4]] * 3) is None


def test_probabilities_in_single_precision_need_not_sum_to_exactly_one():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 5, (30, 3)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert 0 <= auc(np.arange(30) % 3, probabilities) <= 1


def metrics_of(task, targets, scores, *, names=()):
    return evaluation.metrics_of(TASKS[task], targets, scores, names=names)


def undefined(task, targets, names):
    return TASKS[task].undefined(np.array(targets, dtype=float), names)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_classification_metrics_match_scikit_learn(classes):
    generator = np.random.default_rng(classes)
    true = np.arange(60) % classes
    scores = softmax(generator.normal(0, 1, (60, classes)) + np.eye(classes)[true])
    found = metrics_of("classification", true, scores, names="xyz"[:classes])
    assert next(iter(found)) == "auc"
    assert found["accuracy"] == metrics.accuracy_score(true, scores.argmax(1))
    assert found["balanced_accuracy"] == pytest.approx(
        metrics.recall_score(true, scores.argmax(1), average="macro")
    )
    one = np.eye(classes)[true]
    if classes == 2:
        assert found["auc"] == pytest.approx(metrics.roc_auc_score(true, scores[:, 1]), rel=1e-12)
        precision = metrics.average_precision_score(true, scores[:, 1])
        assert found["average_precision"] == pytest.approx(precision, rel=1e-12)
        assert found["f1"] == pytest.approx(metrics.f1_score(true, scores.argmax(1)), rel=1e-12)
        assert found["brier"] == pytest.approx(metrics.brier_score_loss(true, scores[:, 1]))
        assert not any(name.startswith("auc_") for name in found)
    else:
        assert found["auc"] == pytest.approx(metrics.roc_auc_score(true, scores, multi_class="ovr"))
        assert found["average_precision"] == pytest.approx(metrics.average_precision_score(one, scores))
        assert found["f1"] == pytest.approx(metrics.f1_score(true, scores.argmax(1), average="macro"))
        half = metrics.brier_score_loss(true, scores, labels=[0, 1, 2], scale_by_half=True)
        assert found["brier"] == pytest.approx(half)
        assert found["auc_y"] == pytest.approx(metrics.roc_auc_score(true == 1, scores[:, 1]), rel=1e-12)


def test_an_absent_class_makes_only_dependent_metrics_none():
    scores = np.array([[0.2, 0.8], [0.6, 0.4]])
    found = metrics_of("classification", [[1], [1]], scores)
    assert {name for name, value in found.items() if value is None} == {
        *("auc", "average_precision", "balanced_accuracy", "f1")
    }
    assert found["accuracy"] == 0.5
    assert found["brier"] == pytest.approx((0.04 + 0.36) / 2)
    assert undefined("classification", [[1], [1]], ["no", "yes"]) == "there are no slides of class 'no'"
    assert undefined("classification", [[0], [1]], ["no", "yes"]) == ""


@pytest.mark.parametrize("task", TASKS)
def test_metrics_of_no_slides_are_undefined(task):
    example = EXAMPLES[task]
    true, scores = example.targets(0), example.scores(0)
    assert set(metrics_of(task, true, scores).values()) == {None}
    rows = metrics_table(TASKS[task], example.target.names, true, scores, [], resamples=5, seed=0)
    assert {row["note"] for row in rows} == {"not defined: there are no slides to evaluate"}
    assert {(row["value"], row["low"], row["n"], row["cases"]) for row in rows} == {(None, None, 0, 0)}


def test_multilabel_metrics_are_means_over_known_labels():
    generator = np.random.default_rng(0)
    true = generator.integers(0, 2, (40, 2)).astype(float)
    scores = generator.random((40, 2))
    found = metrics_of("multilabel", true, scores, names=["er", "her2"])
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(true, scores))
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(true, scores))
    assert found["f1"] == pytest.approx(metrics.f1_score(true, scores >= 0.5, average="macro"))
    assert found["accuracy"] == pytest.approx(1 - metrics.hamming_loss(true, scores >= 0.5))
    true[:10, 1] = np.nan
    found = metrics_of("multilabel", true, scores, names=["er", "her2"])
    assert found["auc_her2"] == pytest.approx(metrics.roc_auc_score(true[10:, 1], scores[10:, 1]), rel=1e-12)
    true[:, 1] = np.nan
    found = metrics_of("multilabel", true, scores, names=["er", "her2"])
    assert (found["auc"], found["auc_her2"]) == (None, None)
    assert found["auc_er"] == pytest.approx(metrics.roc_auc_score(true[:, 0], scores[:, 0]), rel=1e-12)
    assert found["brier"] == pytest.approx(np.mean((true[:, 0] - scores[:, 0]) ** 2))
    assert undefined("multilabel", true, ["er", "her2"]) == "slides with and without 'her2' are needed"


def test_one_label_alone_is_like_two_classes():
    true, scores = np.array([[0], [1], [1], [0]]), np.array([[0.1], [0.4], [0.8], [0.6]])
    one = metrics_of("multilabel", true, scores)
    two = metrics_of("classification", true, np.hstack([1 - scores, scores]))
    assert {name: one[name] for name in one} == {name: pytest.approx(two[name]) for name in one}


def test_regression_metrics_are_in_the_unit_of_the_value():
    true, scores = [[10.0], [20.0], [30.0]], [[11.0], [20.0], [27.0]]
    found = metrics_of("regression", true, scores)
    assert list(found) == ["r2", "mae", "rmse"]
    assert found == pytest.approx({"r2": 1 - 10 / 200, "mae": 4 / 3, "rmse": (10 / 3) ** 0.5})
    same = metrics_of("regression", [[5.0]] * 3, scores)
    assert same["r2"] is None
    assert same["mae"] > 0
    assert undefined("regression", [[5.0]] * 3, ["value"]) == "all values are the same"


def test_survival_is_judged_by_concordance():
    true = [[1, 1], [2, 0], [3, 1]]
    assert metrics_of("survival", true, [[0.9], [0.5], [0.1]]) == {"concordance": 1.0}
    assert metrics_of("survival", [[1, 0], [2, 0]], [[0.9], [0.5]]) == {"concordance": None}
    assert undefined("survival", [[1, 0], [2, 0]], ["risk"]) == "no event was observed"


TWO_CLASSES = Example(Target("classification", ("x", "y")), ("prob_x", "prob_y"), ("y", "x", "x"))


@pytest.mark.parametrize("example", [*EXAMPLES.values(), TWO_CLASSES], ids=lambda example: example.columns)
@pytest.mark.parametrize("cases", [0, 1, 40])
def test_the_main_metric_alone_is_the_first_of_all(example, cases):
    task, targets, scores = example.task, example.targets(cases), example.scores(cases)
    every = metrics_of(task.name, targets, scores)
    assert main_metric(task, targets, scores) == next(iter(every.items()))
    assert cases < 40 or main_metric(task, targets, scores)[1] is not None


@pytest.mark.parametrize("example", [*EXAMPLES.values(), TWO_CLASSES], ids=lambda example: example.columns)
@given(data=st.data())
def test_metrics_of_samples_are_those_of_the_slides_in_each(example, data):
    """Slides may be in a sample never or often; scores have ties, and classes may be absent."""
    slides = data.draw(st.integers(1, 8))
    number = st.integers(0, 3)
    counts = np.array(data.draw(st.lists(st.lists(number, min_size=slides, max_size=slides), min_size=1)))
    targets, task = example.targets(slides), example.task
    scores = example.scores(slides)[
        data.draw(st.lists(st.integers(0, slides - 1), min_size=slides, max_size=slides))
    ]
    found = task.metrics(targets, scores, example.target.names, counts.astype(float))
    for row, each in enumerate(counts):
        sample = np.repeat(np.arange(slides), each)
        expected = metrics_of(task.name, targets[sample], scores[sample], names=example.target.names)
        assert {name: evaluation.alone(values[[row]]) for name, values in found.items()} == {
            name: None if value is None else pytest.approx(value, rel=1e-12, abs=1e-12)
            for name, value in expected.items()
        }


@pytest.mark.parametrize("name", EXAMPLES)
def test_intervals_are_those_of_one_sample_after_the_other(name, monkeypatch):
    """Samples are drawn with one generator, a case after the other, whatever the size of the blocks."""
    example, slides = EXAMPLES[name], 24
    targets, scores, names = example.targets(slides), example.scores(slides), example.target.names
    cases = [f"case {number // 2:02}" for number in range(slides)]
    generator, found = np.random.default_rng(7), []
    for _ in range(50):
        drawn = generator.integers(12, size=12)
        sample = [slide for case in drawn for slide in (2 * case, 2 * case + 1)]
        found.append(metrics_of(name, targets[sample], scores[sample], names=names))
    for counts in (24 * 7, 2**20):
        monkeypatch.setattr(evaluation, "_COUNTS", counts)
        rows = metrics_table(example.task, names, targets, scores, cases, resamples=50, seed=7)
        for row in rows:
            values = [each[row["metric"]] for each in found if each[row["metric"]] is not None]
            assert (row["low"], row["high"]) == pytest.approx(np.percentile(values, (2.5, 97.5)), rel=1e-12)
            assert row["undefined_resamples"] == 50 - len(values)


def mean_of(values):
    return lambda counts: {"mean": counts @ values / counts.sum(axis=1)}


def test_resamples_follow_their_seed():
    values, cases = np.arange(30.0), [str(i) for i in range(30)]
    first, again, other = (
        bootstrap(mean_of(values), cases, resamples=50, seed=seed)["mean"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_intervals_are_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(0, 1, 400)
    interval = bootstrap(mean_of(values), [str(i) for i in range(400)], resamples=2000, seed=0)["mean"]
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.01)


def test_slides_of_a_case_are_drawn_together():
    """Ten copies of each slide carry no more information than one."""
    values = np.random.default_rng(0).normal(0, 1, 40)
    one = bootstrap(mean_of(values), [str(i) for i in range(40)], resamples=300, seed=0)["mean"]
    cases = [str(i) for i in range(40) for _ in range(10)]
    ten = bootstrap(mean_of(np.repeat(values, 10)), cases, resamples=300, seed=0)["mean"]
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))


def test_resamples_without_a_class_are_counted_and_left_out():
    true, scores = np.array([[0], [0], [0], [1]]), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    rows = metrics_table(
        TASKS["classification"], ["no", "yes"], true, scores, list("abcd"), resamples=200, seed=0
    )
    area, accuracy = (next(row for row in rows if row["metric"] == name) for name in ("auc", "accuracy"))
    # A resample of four lacks the one with chance (3/4)^4, and holds nothing else with (1/4)^4.
    assert area["undefined_resamples"] == pytest.approx(200 * (81 + 1) / 256, abs=20)
    assert accuracy["undefined_resamples"] == 0
    assert area["low"] <= area["value"] <= area["high"]
    assert (area["n"], area["cases"], area["note"]) == (4, 4, None)


def test_one_case_gives_no_interval():
    interval = bootstrap(mean_of(np.arange(3.0)), ["a"] * 3, resamples=10, seed=0)["mean"]
    assert (interval.low, interval.high, interval.undefined) == (None, None, 0)
