"""Training that is interrupted and started again ends in the same weights, for every kind of model."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.runs import (
    INTERRUPTED_READ,
    SETTINGS,
    TARGET,
    assert_same_weights,
    metrics_in,
    progress,
    run,
    slide_of,
)
from wsi_ats.models.kinds import model_for
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.training import progress as progressing

# The same weights


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_run_stopped_after_any_epoch_and_started_again_ends_the_same(tmp_path, done, uninterrupted):
    def stop(row):
        if row["epoch"] == done - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_epoch=stop)
    assert len(progress(tmp_path)["rows"]) == done
    rows = []
    assert_same_weights(run(tmp_path, on_epoch=rows.append), uninterrupted[0])
    assert [row["epoch"] for row in rows] == list(range(done, 3))
    assert metrics_in(tmp_path) == metrics_in(uninterrupted[1])


def test_a_run_stopped_in_the_middle_of_an_epoch_ends_the_same(tmp_path, uninterrupted):
    reads = []

    class Stops(MemorySlide):
        def read_regions(self, *args):
            reads.append(self.path)
            if len(reads) == INTERRUPTED_READ:
                raise KeyboardInterrupt
            return super().read_regions(*args)

    def opener(ref):
        return Stops(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, opener=opener, threads=1)
    assert len(progress(tmp_path)["rows"]) == 1
    assert_same_weights(run(tmp_path), uninterrupted[0])


def test_a_run_stopped_between_state_and_metrics_has_all_metrics_in_the_end(
    tmp_path, monkeypatch, uninterrupted
):
    def stop(path, columns):
        if len(columns["epoch"]) == 3:
            raise KeyboardInterrupt
        return write(path, columns)

    write = progressing.write_csv
    monkeypatch.setattr(progressing, "write_csv", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    assert_same_weights(run(tmp_path), uninterrupted[0])
    assert metrics_in(tmp_path) == metrics_in(uninterrupted[1])


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX systems know them")
def test_a_process_interrupted_by_a_signal_and_started_again_ends_the_same(tmp_path, uninterrupted):
    tests = Path(__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-m", "training.interrupted_run", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
    )
    for line in child.stdout:
        if line.strip() == f"read {INTERRUPTED_READ}":
            child.send_signal(signal.SIGINT)
            break
    _, errors = child.communicate(timeout=900)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert len(progress(tmp_path)["rows"]) == 1
    assert_same_weights(run(tmp_path), uninterrupted[0])
    assert metrics_in(tmp_path) == metrics_in(uninterrupted[1])


# Every kind of model


OTHERS = ["training.epochs=3", "training.tiles=3", "training.joint_epochs=0"]
# Settings of each, and how many tiles are read in each epoch of 8 slides that have 20.
KINDS = [
    (["model.kind=uniform", *OTHERS], [8 * 3] * 3),
    (["model.kind=mil", *OTHERS], [8 * 20 * 2] * 3),
    (["model.kind=mil", "model.mil_attention=plain", *OTHERS], [8 * 20 * 2] * 3),
    (["model.kind=mil", "model.mil_tiles=7", *OTHERS], [8 * 7 * 2] * 3),
    (["model.kind=mil", "training.fine_tuning=frozen", *OTHERS], [8 * 20, 0, 0]),
    (["model.kind=image", "model.scale=1.0", *OTHERS], [0] * 3),
    (["model.kind=sampling", "training.fine_tuning=last-1"], [8 * 3] * 3),
]


@pytest.mark.parametrize(("changes", "tiles"), KINDS, ids=[" ".join(changes[:2]) for changes, _ in KINDS])
def test_every_kind_trains_and_a_stopped_run_ends_the_same(tmp_path, changes, tiles):
    def stop(row):
        if row["epoch"] == 0:
            raise KeyboardInterrupt

    rows = []
    model = run(tmp_path / "whole", *changes, on_epoch=rows.append)
    assert [row["tiles"] for row in rows] == tiles
    draws = changes[0].endswith(("sampling", "uniform"))
    assert [row["effective_cells"] is not None for row in rows] == [draws] * 3
    assert all(math.isfinite(row["loss"]) and row["validation_auc"] is not None for row in rows)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", *changes, on_epoch=stop)
    assert_same_weights(run(tmp_path / "stopped", *changes), model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = model_for(SETTINGS.with_values(changes), TARGET)
    backbones = zip(model.encoder.parameters(), start.encoder.parameters(), strict=True)
    learns = "training.fine_tuning=frozen" not in changes
    assert any(not torch.equal(one, other) for one, other in backbones) is learns
    assert not torch.equal(model.head.weight, start.head.weight)
