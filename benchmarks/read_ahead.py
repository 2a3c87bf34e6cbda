"""How much of the time of reading is hidden behind computing, and what reading ahead costs the estimate.

Run ``python -m benchmarks.read_ahead``. Every tile takes 10 ms to be read, by a few threads, as from a slow
disk or network; the step is otherwise the same. Step times are medians; the feeds take turns, several rounds
in one process. What is hidden is

    1 - (t_ahead - t_memory) / (t_0 - t_memory)

where t_memory is the step whose tiles lie in memory. Cases: a device that computes by itself while the
processor waits (as a graphics processor does; here it is a pause in the encoder), for longer than reading
takes and for shorter, when a step cannot be shorter than its reads and ``hidden_of_possible`` tells how near
it comes; and a processor that computes, whose times depend on what else it has to do. ``waited_ms`` is how
long a step waits for its tiles, and ``wait_hidden`` how much less that is than without reading ahead.

The second table trains on slides whose label is in a few cells, and shows how old attention is when its tiles
are weighed (staleness), how many of the tiles drawn are left in effect, and what comes of it after as many
steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks._steps import JOINT, Memory, Steps, measure, table, train
from benchmarks.report import report
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.records import Overview
from wsi_ats.overview.tiles import read_thumbnail
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Pixels, SlideRef
from wsi_ats.slides.memory import MemorySlide

READ_SECONDS = 0.01  # of one tile
SLIDES = 8  # in a step
TILES = 8  # of each slide
MEMORY = "memory"
AHEAD = {f"read_ahead={steps}": steps for steps in (0, 1, 2)}
_SIDE = 16  # cells of a slide, down and across
_PIXELS_PER_CELL = 4

SETTINGS = Settings().with_values(
    [
        *("thumbnail.tissue=none", f"thumbnail.pixels_per_cell={_PIXELS_PER_CELL}"),
        *("model.pretrained=false", "model.backbone=test_resnet"),
        *(f"sampling.tiles={TILES}", f"training.slides_per_step={SLIDES}", "training.validation=0"),
        *JOINT,
        # All of a step in one pass.
        *("training.tiles_per_pass=4096", "training.calibration_tiles=64", "training.precision=float32"),
    ]
)


class SlowSlide(MemorySlide):
    """A slide in memory, each of whose regions takes a while to be read."""

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """See :meth:`wsi_ats.slides.base.Slide.read_regions`."""
        time.sleep(READ_SECONDS * len(corners))
        return super().read_regions(level, corners, width, height)


def make_slides(count: int, tile_size: int, seed: int = 0) -> tuple[list[Example], dict[str, Pixels]]:
    """Make slides of noise, every other one with a darker patch of 2 x 2 cells of stripes, and their pixels.

    All have patches that look like it in the thumbnail and have no stripes.
    """
    generator = np.random.default_rng(seed)
    grid = Grid(_SIDE * tile_size, _SIDE * tile_size, tile_size, tile_size)
    mask = np.ones(grid.shape, dtype=bool)
    tissue = TissueMask(grid, mask.astype(np.float32), mask)
    stripes = 40 * np.where(np.arange(2 * tile_size) // 2 % 2, 1, -1)
    examples, images = [], {}
    for number in range(count):
        name, label = f"slide{number}", number % 2
        pixels = generator.normal((205, 150, 190), 12, (grid.height, grid.width, 3))
        for place in range(4):
            y, x = generator.integers(0, _SIDE - 1, 2) * tile_size
            part = pixels[y : y + 2 * tile_size, x : x + 2 * tile_size]
            part -= 50
            if label and place == 3:
                part += stripes[:, None, None]
        images[name] = np.clip(pixels, 0, 255).astype(np.uint8)
        thumbnail = read_thumbnail(MemorySlide([images[name]], mpp=0.5), grid, _PIXELS_PER_CELL)
        examples.append(Example(SlideRef(name, name, name), Overview(thumbnail, tissue), (float(label),)))
    return examples, images


def opener(images: dict[str, Pixels], kind: type[MemorySlide]) -> Callable[[SlideRef], MemorySlide]:
    """Open slides made by :func:`make_slides`; repetitions of one have names that end in ``-k``."""
    return lambda ref: kind([images[ref.id.split("-")[0]]], mpp=0.5)


def repeated(examples: Sequence[Example], count: int) -> list[Example]:
    """As many slides as are wanted, the same ones under other names."""
    return [
        Example(
            SlideRef(f"{each.ref.id}-{k}", each.ref.path, f"case{k}"),
            each.overview,
            each.target,
        )
        for k in range(count)
        for each in [examples[k % len(examples)]]
    ]


@dataclass(frozen=True)
class Case:
    """What is measured.

    Parameters
    ----------
    name
        For people.
    threads
        That read: the step's tiles take ``SLIDES * TILES * READ_SECONDS / threads`` seconds.
    tile_size
        Of what the processor computes.
    device_seconds
        For which a device computes that does not need the processor.
    """

    name: str
    threads: int
    tile_size: int = 16
    device_seconds: float = 0.0


CASES = (
    Case("device, computes longer", threads=1, device_seconds=0.8),
    Case("device, reads longer", threads=1, device_seconds=0.3),
    Case("processor, computes", threads=4, tile_size=96),
)


@contextmanager
def computing_elsewhere(seconds: float) -> Iterator[None]:
    """Let encoding take longer, without the processor."""
    embed = AttentionSampler.embed

    def embed_elsewhere(self: AttentionSampler, tiles: Tensor) -> Tensor:
        time.sleep(seconds)
        return embed(self, tiles)

    with patch.object(AttentionSampler, "embed", embed_elsewhere):
        yield


def hiding(case: Case, *, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Measure steps by all feeds, which take turns."""
    examples, images = make_slides(8, case.tile_size)
    shown = repeated(examples, SLIDES * (steps + 5))
    settings = SETTINGS.with_values([f"tile.size={case.tile_size}", "training.joint_epochs=1"])
    tiles = np.zeros((TILES, case.tile_size, case.tile_size, 3), np.uint8)
    found: dict[str, list[Steps]] = {}
    for _ in range(rounds):
        for feed in (MEMORY, *AHEAD):
            ahead = settings.with_values([f"training.read_ahead={AHEAD.get(feed, 0)}"])
            with (
                computing_elsewhere(case.device_seconds),
                TileReader(case.threads, opener(images, SlowSlide)) as slow,
            ):
                reader = Memory(tiles) if feed == MEMORY else slow
                found.setdefault(feed, []).append(measure(shown, ahead, reader, torch.device("cpu")))
    reading = READ_SECONDS * SLIDES * TILES / case.threads
    together = {
        feed: Steps([s for each in parts for s in each.seconds], [s for each in parts for s in each.waits])
        for feed, parts in found.items()
    }
    floor, whole = together[MEMORY].typical, together["read_ahead=0"].typical
    possible = whole - max(floor, reading)
    rows = []
    for feed, seen in together.items():
        saved = whole - seen.typical
        row: dict[str, Any] = {"case": case.name, "tiles": SLIDES * TILES, "threads": case.threads}
        row |= {"reading_ms": 1e3 * reading, "feed": feed, "steps": len(seen.seconds)}
        row |= {"step_ms": 1e3 * seen.typical, "waited_ms": 1e3 * median(seen.waits)}
        row |= dict.fromkeys(("hidden", "hidden_of_possible", "hidden_by_round", "wait_hidden"))
        if AHEAD.get(feed):
            row["hidden"] = saved / (whole - floor)
            row["hidden_of_possible"] = saved / possible
            row["wait_hidden"] = 1 - median(seen.waits) / median(together["read_ahead=0"].waits)
            row["hidden_by_round"] = " ".join(
                f"{(high.typical - part.typical) / (high.typical - low.typical):.2f}"
                for part, low, high in zip(found[feed], found[MEMORY], found["read_ahead=0"], strict=True)
            )
        rows.append(row)
    return rows


def staleness(*, epochs: int, slides: int, seeds: Sequence[int], tile_size: int = 32) -> list[dict[str, Any]]:
    """Train by attention of several ages."""
    examples, images = make_slides(slides, tile_size)
    rows = []
    for ahead in (0, 1, 4):
        runs = []
        for seed in seeds:
            changes = [
                f"tile.size={tile_size}",
                f"training.joint_epochs={epochs}",
                f"training.read_ahead={ahead}",
            ]
            settings = SETTINGS.with_values([*changes, f"training.seed={seed}", "training.slides_per_step=4"])
            with TileReader(2, opener(images, MemorySlide)) as reader:
                runs.append(train(examples, settings, reader, torch.device("cpu")))
        epoch_rows = [row for run in runs for row in run]
        late = [row for run in runs for row in run[-max(1, epochs // 4) :]]
        rows.append(
            {
                "read_ahead": ahead,
                "seeds": len(seeds),
                "steps": epochs * slides // 4,
                "tiles_per_slide": TILES,
                "staleness": _mean(epoch_rows, "staleness"),
                "effective": _mean(epoch_rows, "effective"),
                "least_effective": min(float(row["effective"] or 0) for row in epoch_rows),
                "effective_last_quarter": _mean(late, "effective"),
                "cells_last_quarter": _mean(late, "effective_cells"),
                "loss_last_quarter": _mean(late, "loss"),
                "loss_by_seed": " ".join(f"{_mean(run[-max(1, epochs // 4) :], 'loss'):.3f}" for run in runs),
            }
        )
    return rows


def _mean(rows: Sequence[Mapping[str, float | None]], name: str) -> float:
    return fmean(float(row[name] or 0) for row in rows)


def main() -> None:
    """Print both tables and write them to ``results/read_ahead*.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="Of each feed in a round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="Of the trainings of the second table.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("hiding", "staleness"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "staleness":
        rows = [row for case in CASES for row in hiding(case, steps=options.steps, rounds=options.rounds)]
        report("read ahead", "read_ahead", table(rows))
    if options.only != "hiding":
        found = staleness(epochs=options.epochs, slides=32, seeds=options.seeds)
        report("attention of several ages", "read_ahead_staleness", table(found))


if __name__ == "__main__":
    main()
