"""The benchmark of reading ahead times what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import read_ahead
from benchmarks._steps import Clock, Memory, measure
from benchmarks.read_ahead import (
    SETTINGS,
    SLIDES,
    TILES,
    Case,
    hiding,
    make_slides,
    opener,
    repeated,
    staleness,
)
from wsi_ats.models.batches import TileReader
from wsi_ats.slides.memory import MemorySlide

torch.set_num_threads(1)  # tiny networks


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(read_ahead, "READ_SECONDS", 1e-4)


def test_memory_gives_as_many_tiles_as_are_asked_for():
    examples, images = make_slides(1, 16)
    with TileReader(1, opener(images, MemorySlide)) as reader:
        for memory in (Memory(np.zeros((2, 16, 16, 3), np.uint8)), reader):
            clock = Clock(memory, lambda number: None)
            (tiles,) = clock.read([(examples[0].ref, examples[0].tissue.grid, np.array([3, 1, 4]))])
            assert tiles.result().shape == (3, 16, 16, 3)
            assert len(clock.times) == len(clock.waits) == 1


@pytest.mark.parametrize("ahead", [0, 2])
def test_each_steady_step_is_timed_once(quick, ahead):
    examples, _ = make_slides(2, 16)
    settings = SETTINGS.with_values(
        ["tile.size=16", "training.joint_epochs=1", f"training.read_ahead={ahead}"]
    )
    begun = []
    seen = measure(
        repeated(examples, 7 * SLIDES),
        settings,
        Memory(np.zeros((TILES, 16, 16, 3), np.uint8)),
        torch.device("cpu"),
        on_step=begun.append,
    )
    assert begun == list(range(7))
    assert len(seen.seconds) == len(seen.waits) == 7 - 1 - 2 - ahead
    assert all(seconds > 0 for seconds in seen.seconds)


def test_hiding_gives_a_row_for_each_feed(quick):
    rows = hiding(Case("tiny", threads=2), steps=1, rounds=1)
    assert [row["feed"] for row in rows] == ["memory", "read_ahead=0", "read_ahead=1", "read_ahead=2"]
    assert [row["hidden"] is None for row in rows] == [True, True, False, False]
    assert rows[0]["waited_ms"] < 1


def test_staleness_is_as_asked_for():
    rows = staleness(epochs=1, slides=16, seeds=[0], tile_size=16)
    assert [row["staleness"] for row in rows] == [0, 0.75, 1.5]  # 4 steps: 0 1 1 1 and 0 1 2 3
    assert all(0 < row["least_effective"] <= TILES + 1e-3 for row in rows)
