"""The benchmark of training measures what it says, as far as a processor can tell."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import training
from benchmarks._steps import TARGET
from benchmarks.training import FEEDS, Plan, covered, kernels, run
from wsi_ats.errors import SettingsError
from wsi_ats.testing.synthetic import write_collection

torch.set_num_threads(1)  # tiny networks
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    write_collection(folder, slides=2, width=1536, height=1024, tile_size=64, seed=0, variants=2)
    return sorted(folder.glob("*.tif"))


@pytest.mark.parametrize(("tiles", "tiles_per_pass", "passes"), [(16, 16, 1), (16, 5, 4), (16, 1, 8)])
def test_a_step_is_cut_as_training_cuts_it(tiles, tiles_per_pass, passes):
    from wsi_ats.models.checkpoints import model_for
    from wsi_ats.models.kinds import method_for

    plan = Plan("test_resnet", tiles, 64, tiles_per_pass)
    method = method_for(model_for(plan.settings, TARGET), plan.settings, CPU)
    assert plan.passes == method.passes(training.SLIDES) == passes


def test_each_feed_has_a_row(slides):
    rows = run(Plan("test_resnet", 16, 64, 8), slides, CPU, threads=2, steps=2, rounds=1)
    assert [row["feed"] for row in rows] == list(FEEDS)
    for row in rows:
        assert (row["tiles"], row["passes"], row["steps"]) == (16, 2, 2)
        assert row["tiles_per_s"] == pytest.approx(16 * row["steps_per_s"])
        assert row["of_ceiling"] == pytest.approx(row["steps_per_s"] / rows[0]["steps_per_s"])
        assert row["busy"] is None
        assert row["peak_gb"] is None
    assert rows[0]["of_ceiling"] == 1


def test_slides_with_too_little_tissue_are_refused(slides):
    with pytest.raises(SettingsError, match="tissue tiles, and 1000 of each are wanted"):
        run(Plan("test_resnet", 8000, 64, 64), slides, CPU, threads=1, steps=1, rounds=1)


def test_a_device_is_busy_while_any_kernel_runs():
    def event(name, begin, end, device=DeviceType.CUDA, mark=False):
        span = SimpleNamespace(start=begin, end=end)
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=mark)

    events = [
        event("conv", 0, 10),
        event("conv, on another stream", 5, 12),
        event("relu", 20, 21),
        event("Memcpy HtoD", 30, 40),
        event("Optimizer.step", 0, 100, mark=True),
        event("aten::conv2d", 0, 100, DeviceType.CPU),
    ]
    assert covered(kernels(events)) == 13
    assert covered([]) == 0
