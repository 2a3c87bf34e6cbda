"""The demo on many seeds, with disturbed weights and other numbers of threads."""

from __future__ import annotations

import pytest
import torch

from benchmarks.demo_seeds import Trial, disturbed, run
from pipelines.demo import SETTINGS, Scale
from wsi_ats.models.kinds import model_for
from wsi_ats.settings import Settings
from wsi_ats.tasks.targets import Target

TARGET = Target("classification", ("negative", "positive"))


def test_weights_are_perturbed_by_a_millionth_differently_each_time():
    def weights(number):
        torch.manual_seed(0)
        network = disturbed(model_for, number)(Settings().with_values(SETTINGS), TARGET)
        return torch.cat([weight.detach().flatten() for weight in network.parameters()])

    plain, one, two = weights(0), weights(1), weights(2)
    for other in (one, two):
        relative = ((other - plain) / plain)[plain.abs() > 1e-6]
        assert 5e-7 < relative.std() < 2e-6
    assert not torch.equal(one, two)


@pytest.mark.slow
def test_a_seed_is_trained_and_scored_in_several_ways():
    trials = [Trial(3), Trial(3, 1), Trial(3, threads=2)]
    rows = run(trials, Scale(training=8, held_out=6, side=1024, epochs=1))
    found = [(row["seed"], row["disturbance"], row["threads"]) for row in rows]
    assert found == [(3, 0, 1), (3, 1, 1), (3, 0, 2)]
    assert all(0 <= row["auc"] <= 1 and row["seconds"] > 0 for row in rows)
