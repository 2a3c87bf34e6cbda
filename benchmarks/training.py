"""How near training comes to the speed of a device that never waits for tiles.

Run ``python -m benchmarks.training [SLIDE...]``. The same steps are fed in three ways: from slides with
reading ahead, from slides without, and from tiles that lie in the host's memory, the ceiling (they are pinned
and copied to the device in each step, as those of slides are). ``of_ceiling`` is the steps a second of a feed
divided by those of the ceiling. Times are medians; feeds take turns. On CUDA ``busy`` is the share of time in
which a kernel runs, from a profile of some more steps, and ``peak_gb`` what tensors take at most.

Without SLIDES, synthetic ones are written to ``results/slides``; they are soon in the system's cache, so that
a slow disk needs slides of its own. On a processor small networks are measured, where reading takes time from
computing: that says nothing of graphics processors.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks._steps import JOINT, Memory, Steps, measure, table
from benchmarks.report import report
from wsi_ats.errors import SettingsError
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.nn.precision import resolve
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Pixels, SlideRef
from wsi_ats.testing.bank import make_tile_bank
from wsi_ats.testing.synthetic import write_slide

MEMORY = "memory"
FEEDS = {MEMORY: 0, "slides, read ahead": 1, "slides": 0}
SLIDES = 8  # in a step
_SIDE = 12_000  # of synthetic slides, in pixels: some 600 tissue tiles of 256
_WARM = 3
_PROFILED = 4


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Parameters
    ----------
    model
        Name of the backbone, with random weights.
    tiles
        Of a step, a multiple of ``SLIDES``.
    tile_size
        In pixels.
    tiles_per_pass
        That are encoded at once: no more than memory holds.
    """

    model: str
    tiles: int
    tile_size: int
    tiles_per_pass: int

    @property
    def settings(self) -> Settings:
        """For one epoch without validation."""
        return Settings().with_values(
            [
                *(f"model.backbone={self.model}", "model.pretrained=false"),
                *(f"tile.size={self.tile_size}", f"sampling.tiles={self.tiles // SLIDES}"),
                *(
                    f"training.slides_per_step={SLIDES}",
                    *JOINT,
                    "training.joint_epochs=1",
                    "training.validation=0",
                ),
                *(f"training.tiles_per_pass={self.tiles_per_pass}", "training.calibration_tiles=64"),
                "training.checkpoint_steps=1000000",
            ]
        )

    @property
    def passes(self) -> int:
        """Into how many a step is cut."""
        slides = max(1, self.tiles_per_pass // (self.tiles // SLIDES))
        return -(-SLIDES // slides)


def synthetic(folder: Path, count: int) -> list[Path]:
    """Write slides, unless they are there."""
    paths = [folder / f"training_{number}.tif" for number in range(count)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        bank = make_tile_bank(256, 0, variants=16, palettes=2)
        for path in missing:
            generator = np.random.default_rng(paths.index(path))
            write_slide(path, bank=bank, width=_SIDE, height=_SIDE, positive=False, rng=generator)
    return paths


def look_at(paths: Iterable[Path], settings: Settings) -> list[Example]:
    """Prepare slides; their labels take turns."""
    examples = []
    for number, path in enumerate(paths):
        ref = SlideRef.from_path(path)
        with open_slide(ref) as slide:
            overview = read_overview(slide, settings)
        examples.append(Example(ref, overview, (float(number % 2),)))
    return examples


def some_tiles(example: Example, count: int) -> Pixels:
    """Tiles that lie in memory, shape (count, tile_size, tile_size, 3)."""
    with open_slide(example.ref) as slide:
        tissue = example.overview.tissue
        return read_tiles(slide, tissue.grid, np.resize(tissue.cells, count))


class Busy:
    """Share of time in which a device computes, over some steps; call it when a step begins.

    Parameters
    ----------
    first
        Step before which the profile begins.
    steps
        How many are in it.
    """

    def __init__(self, first: int, steps: int) -> None:
        self._first, self._last = first, first + steps
        self._profile = profile(activities=[ProfilerActivity.CUDA])
        self._begin = 0.0
        self.share: float | None = None

    def __call__(self, step: int) -> None:
        """Begin the profile, or end it."""
        if step not in {self._first, self._last}:
            return
        torch.cuda.synchronize()
        if step == self._first:
            self._profile.start()
            self._begin = perf_counter()
            return
        seconds = perf_counter() - self._begin
        self._profile.stop()
        self.share = covered(kernels(self._profile.events() or [])) / (1e6 * seconds)


def kernels(events: Iterable[Any]) -> list[tuple[float, float]]:
    """When kernels began and ended, in microseconds; copies and marks among a profile's events are none."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type != DeviceType.CPU
        and not event.name.startswith(("Memcpy", "Memset"))
        and not event.is_user_annotation
    ]


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    Examples
    --------
    >>> covered([(5, 6), (0, 2), (1, 3)])
    4.0
    """
    total, end = 0.0, -np.inf
    for left, right in sorted(intervals):
        total += max(0.0, right - max(left, end))
        end = max(end, right)
    return float(total)


def run(
    plan: Plan, paths: Sequence[Path], device: torch.device, *, threads: int, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """Measure steps by all feeds, which take turns."""
    settings, cuda = plan.settings, device.type == "cuda"
    examples = look_at(paths, settings)
    each, least = plan.tiles // SLIDES, min(len(example.overview.tissue.cells) for example in examples)
    if least < each:
        raise SettingsError(f"a slide has {least} tissue tiles, and {each} of each are wanted; give others")
    tiles = some_tiles(examples[0], each)
    found: dict[str, list[Steps]] = {}
    busy: dict[str, float | None] = dict.fromkeys(FEEDS)
    peak: dict[str, float | None] = dict.fromkeys(FEEDS)
    for turn in range(rounds):
        for feed, ahead in FEEDS.items():
            # The profile slows steps down: it comes after those that are timed.
            last = turn == rounds - 1 and cuda
            timed = _WARM + ahead + steps + 1
            count = timed + (_PROFILED + 1 + ahead if last else ahead)
            shown = [examples[k % len(examples)] for k in range(SLIDES * count)]
            watch = Busy(timed, _PROFILED) if last else None
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            with TileReader(threads) as reader:
                seen = measure(
                    shown,
                    settings.with_values([f"training.read_ahead={ahead}"]),
                    Memory(tiles) if feed == MEMORY else reader,
                    device,
                    passes=plan.passes,
                    warm=_WARM,
                    on_step=watch,
                )
            found.setdefault(feed, []).append(Steps(seen.seconds[:steps], seen.waits[:steps]))
            if cuda:
                peak[feed] = torch.cuda.max_memory_allocated(device) / 1e9
            if watch:
                busy[feed] = watch.share
    typical = {feed: median(s for each in parts for s in each.seconds) for feed, parts in found.items()}
    dtype = resolve(settings.training.precision, device, plan.tile_size)
    return [
        {
            "device": torch.cuda.get_device_name(device) if cuda else "cpu",
            "model": plan.model,
            "tile_size": plan.tile_size,
            "tiles": plan.tiles,
            "passes": plan.passes,
            "precision": str(dtype).removeprefix("torch."),
            "threads": threads,
            "feed": feed,
            "steps": sum(len(each.seconds) for each in found[feed]),
            "steps_per_s": 1 / seconds,
            "tiles_per_s": plan.tiles / seconds,
            "waited_ms": 1e3 * median(w for each in found[feed] for w in each.waits),
            "busy": busy[feed],
            "peak_gb": peak[feed],
            "of_ceiling": typical[MEMORY] / seconds,
        }
        for feed, seconds in typical.items()
    ]


def main() -> None:
    """Print the table and write it to ``results/training_<device>.csv``."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="*")
    models = ("resnet50", "vit_small_patch16_224") if cuda else ("test_resnet", "test_vit")
    parser.add_argument("--models", nargs="+", default=models)
    parser.add_argument("--tiles", type=int, nargs="+", default=(256, 1024) if cuda else (32, 64))
    parser.add_argument("--tile-size", type=int, default=256 if cuda else 128)
    parser.add_argument("--tiles-per-pass", type=int, default=256 if cuda else 64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="That read.")
    parser.add_argument("--steps", type=int, default=20 if cuda else 10, help="Of each feed in a round.")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    paths = options.slides or synthetic(Path("results/slides"), SLIDES)
    rows = []
    for model in options.models:
        for tiles in options.tiles:
            plan = Plan(model, tiles, options.tile_size, min(options.tiles_per_pass, tiles))
            rows += run(
                plan, paths, device, threads=options.threads, steps=options.steps, rounds=options.rounds
            )
    report("training fed in three ways", f"training_{device.type}", table(rows))
    if not cuda:
        print("measured on a processor, with small networks: this says nothing of graphics processors")


if __name__ == "__main__":
    main()
