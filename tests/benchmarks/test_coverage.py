"""Intervals of scoring and the draws that they rest on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.coverage import Plan, half_width, measure, standard_error, stopping_time
from pipelines.demo import Scale
from wsi_ats.models.stopping import MOST_DRAWS, stop
from wsi_ats.settings import LEAST_DRAWS, SamplingSettings


def test_the_benchmark_runs_on_a_few_slides(tmp_path):
    torch.set_num_threads(1)
    slides = Scale(training=4, held_out=2, side=1024, epochs=1)
    small = Plan(slides, draws=24, tiles=(4,), repeats=(2, 4), least=(2, 8), tolerances=(0.5,))
    rows = measure(tmp_path, small, 0)
    assert [(row["pool"], row["rule"].split()[0], row["least"]) for row in rows] == [
        (pool, rule, least)
        for pool in ("gated", "linear")
        for rule, least in (("fixed", 2), ("fixed", 4), ("tolerance", 2), ("tolerance", 8))
    ]
    for row in rows:
        assert 0 <= row["covers_exact"] <= 1
        assert row["half_width"] > 0
        if row["rule"] == "fixed":
            assert (row["mean_draws"], row["intervals"]) == (row["least"], 2 * 24 // row["least"])
            assert row["least"] * 4 >= row["mean_tiles"] > 4
        else:
            assert row["mean_draws"] >= row["least"]
        if row["pool"] == "linear":  # the log-odds of the mean are the mean of the log-odds
            assert row["bias_mean"] == pytest.approx(row["bias_pooled"], rel=1e-3)


def test_intervals_of_normal_draws_cover_nine_times_in_ten():
    rng = np.random.default_rng(0)
    hits = [abs(draws.mean()) <= half_width(draws) for draws in rng.normal(size=(4000, 3))]
    assert np.mean(hits) == pytest.approx(0.9, abs=0.02)


def test_stopping_agrees_with_scoring():
    sampling = SamplingSettings(tolerance=0.3)
    for values in np.random.default_rng(0).normal(size=(20, MOST_DRAWS)):
        draws = 1
        while not stop(
            sampling, draws=draws, error=standard_error(values[:draws]) if draws > 1 else None, read=0
        ):
            draws += 1
        assert stopping_time(values, 0.3, LEAST_DRAWS) == draws
