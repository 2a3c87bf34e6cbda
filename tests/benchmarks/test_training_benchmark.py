"""Training is fed in three ways, and every steady step is timed once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import training
from benchmarks.engine import CPU, examples_of
from benchmarks.synthetic import TARGET
from benchmarks.training import FEEDS, Memory, Plan, measure, run
from wsi_ats.testing.synthetic import write_collection

torch.set_num_threads(1)  # tiny networks


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    write_collection(folder, slides=2, width=1536, height=1024, tile_size=64, seed=0, variants=2)
    return sorted(folder.glob("*.tif"))


@pytest.mark.parametrize(("tiles", "tiles_per_pass", "passes"), [(16, 16, 1), (16, 5, 4), (16, 1, 8)])
def test_a_step_is_cut_as_training_cuts_it(tiles, tiles_per_pass, passes):
    from wsi_ats.models.kinds import method_for, model_for

    plan = Plan("test_resnet", tiles, 64, tiles_per_pass)
    method = method_for(model_for(plan.settings, TARGET), plan.settings, CPU)
    assert plan.passes == method.passes(8) == passes


@pytest.mark.parametrize("ahead", [0, 2])
def test_each_steady_step_is_timed_once(slides, ahead):
    plan = Plan("test_resnet", 16, 64, 16)
    settings = plan.settings.with_values([f"training.read_ahead={ahead}"])
    shown = examples_of(training.slides_of(slides), settings) * 4 * 8  # eight steps of eight slides
    memory = Memory(np.zeros((2, 64, 64, 3), np.uint8))
    seconds, waits = measure(shown, settings, memory, passes=1)
    assert len(seconds) == len(waits) == 8 - 1 - 3 - ahead
    assert min(seconds) > 0


def test_each_feed_has_a_row(slides):
    rows = run(Plan("test_resnet", 16, 64, 8, threads=2), slides, steps=2, rounds=1)
    assert [row["feed"] for row in rows] == list(FEEDS)
    for row in rows:
        assert (row["tiles"], row["passes"], row["steps"]) == (16, 2, 2)
        assert row["of_ceiling"] == pytest.approx(row["steps_per_s"] / rows[0]["steps_per_s"])


def test_slow_reads_are_waited_for_and_memory_is_not(slides):
    plan = Plan("test_resnet", 16, 64, 16, read_seconds=1e-3, device_seconds=0.01)
    memory, _, slow = run(plan, slides, steps=1, rounds=1)
    assert (memory["hidden"], slow["hidden"]) == (1, 0)
    assert memory["waited_ms"] < slow["waited_ms"] > 16
