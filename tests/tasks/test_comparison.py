"""Comparison of ways to score the same slides."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsi_ats.tasks.comparison import compare
from wsi_ats.tasks.registry import task_named

N = 40
RNG = np.random.default_rng(0)
TARGETS = np.arange(N).reshape(-1, 1) % 2.0
CASES = [f"case {number // 2}" for number in range(N)]


def scores(noise, draws):
    """Probabilities of two classes, from labels with noise."""
    positive = TARGETS[:, 0] + noise * RNG.normal(size=(draws, N))
    positive = 1 / (1 + np.exp(-positive))
    return np.stack([1 - positive, positive], axis=-1)


GIVEN = {"all": scores(0.5, 1), "few": scores(2.0, 4)}


def compared(given=GIVEN, task="classification", models=("m",) * N, targets=TARGETS, resamples=300):
    return compare(
        *(task_named(task), targets, CASES, models, given), reference="all", resamples=resamples, seed=0
    )


def test_the_metric_is_the_mean_over_draws_and_the_loss_a_difference_to_the_reference():
    found = compared()
    areas = [roc_auc_score(TARGETS[:, 0], draw[:, 1]) for draw in GIVEN["few"]]
    assert found["few"].value == pytest.approx(np.mean(areas), abs=1e-12)
    whole = roc_auc_score(TARGETS[:, 0], GIVEN["all"][0, :, 1])
    assert found["few"].loss == pytest.approx(whole - np.mean(areas), abs=1e-12)
    assert found["all"].loss == found["all"].loss_low == found["all"].loss_high == 0
    for each in found.values():
        assert each.low <= each.value <= each.high


def test_the_loss_is_paired_so_equal_scores_never_differ():
    found = compared({"all": GIVEN["all"], "same": GIVEN["all"].repeat(3, axis=0)})
    losses = (found["same"].loss, found["same"].loss_low, found["same"].loss_high)
    assert losses == pytest.approx((0, 0, 0), abs=1e-12)  # a mean over draws is rounded
    assert found["same"].low < found["same"].high


def test_intervals_resample_cases_as_the_bootstrap_of_metrics_does():
    from wsi_ats.tasks.evaluation import metrics_table

    [row] = [
        row
        for row in metrics_table(
            *(task_named("classification"), ("a", "b"), TARGETS, GIVEN["all"][0], CASES),
            resamples=300,
            seed=0,
        )
        if row["metric"] == "auc"
    ]
    found = compared()["all"]
    assert (found.low, found.high) == (row["low"], row["high"])


def test_scores_of_models_that_cannot_be_compared_are_compared_within_each():
    """A risk has no meaning beyond its model: a constant added to those of one model changes nothing."""
    models = ["a" if number < N // 2 else "b" for number in range(N)]
    targets = np.stack([RNG.uniform(1, 9, N), np.ones(N)], axis=1)
    risk = -targets[:, :1] + RNG.normal(size=(N, 1))
    moved = risk + 100.0 * np.array([[each == "a"] for each in models])
    found = compared({"all": risk[None], "moved": moved[None]}, "survival", models, targets)
    assert found["moved"] == found["all"]
    assert 0.5 < found["all"].value < 1


def test_a_class_that_is_absent_leaves_the_metric_undefined():
    found = compared(targets=np.zeros((N, 1)))
    assert found["few"].value is found["few"].loss is found["few"].low is None
