"""Training that is interrupted and started again ends in the same weights, for every kind of model."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time

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

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX systems know them")

# The same weights


def test_a_run_stopped_after_every_epoch_and_started_again_ends_the_same(tmp_path, uninterrupted):
    rows: list = []

    def stop(row):
        rows.append(row["epoch"])
        raise KeyboardInterrupt

    for done in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, on_epoch=stop)
        assert len(progress(tmp_path)["rows"]) == done
    assert_same_weights(run(tmp_path, on_epoch=stop), uninterrupted[0])
    assert rows == [0, 1, 2]
    assert metrics_in(tmp_path) == metrics_in(uninterrupted[1])


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)  # in a thread that reads: the signal is the main thread's


def failure() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [failure, pytest.param(ctrl_c, marks=POSIX)])
def test_a_run_stopped_in_the_middle_of_an_epoch_ends_the_same(tmp_path, uninterrupted, end):
    reads = itertools.count(1)

    class Stops(MemorySlide):
        def read_regions(self, *args):
            if next(reads) == INTERRUPTED_READ:
                end()
            return super().read_regions(*args)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, opener=lambda ref: Stops(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id), threads=1)
    assert len(progress(tmp_path)["rows"]) == 1
    assert_same_weights(run(tmp_path), uninterrupted[0])
    assert metrics_in(tmp_path) == metrics_in(uninterrupted[1])


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
