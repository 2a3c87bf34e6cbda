"""Share of slow reads that is hidden behind computing when tiles are read ahead in training.

Run ``python -m benchmarks.training``. Each tile takes 10 ms to read, as from a slow disk, and a device
computes without the CPU, as a GPU does (simulated by a pause in the encoder); in the last case cores do both.
The same steps are fed in three ways: from slides with reading ahead, from slides without it, and from tiles
in memory, the ceiling. ``of_ceiling`` is the steps per second of a feed divided by those of the ceiling;
``hidden`` is the share of the reading time that is hidden behind computing; ``waited_ms`` is the time that a
step waits for its tiles. Times are medians; feeds take turns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor

from benchmarks.engine import examples_of, ready, train
from benchmarks.report import Rows, command, report
from benchmarks.synthetic import TARGET, slides_to_train_on
from wsi_ats.geometry import IntArray
from wsi_ats.models.batches import Example, Reader, TileReader
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Pixels, Slide, SlideRef
from wsi_ats.slides.wrappers import WrappedSlide

MEMORY, SLIDES = "memory", "slides"
FEEDS = {MEMORY: 0, "slides, read ahead": 1, SLIDES: 0}
_SLIDES_A_STEP = 8
_SIDE = 12_000  # of synthetic slides, in pixels: some 600 tissue tiles of 256
_WARM = 3


@dataclass(frozen=True)
class Plan:
    """Work of a step: ``tiles`` of eight slides, in passes of at most ``tiles_per_pass``.

    ``read_seconds`` for each tile and ``device_seconds`` for each pass simulate slow reads and a device.
    """

    model: str
    tiles: int
    tile_size: int
    tiles_per_pass: int
    threads: int = 1
    read_seconds: float = 0.0
    device_seconds: float = 0.0

    @property
    def settings(self) -> Settings:
        """Settings of one epoch of joint training, in which every part computes, without validation."""
        return Settings().with_values(
            [
                *(f"model.backbone={self.model}", "model.pretrained=false"),
                *(f"tile.size={self.tile_size}", f"sampling.tiles={self.tiles // _SLIDES_A_STEP}"),
                *("training.epochs=0", "training.attention_epochs=0", "training.joint_epochs=1"),
                *(f"training.slides_per_step={_SLIDES_A_STEP}", "training.validation=0"),
                *(f"training.tiles_per_pass={self.tiles_per_pass}", "training.calibration_tiles=64"),
                "training.checkpoint_steps=1000000",
            ]
        )

    @property
    def passes(self) -> int:
        """Number of passes in a step."""
        return -(-_SLIDES_A_STEP // max(1, self.tiles_per_pass // (self.tiles // _SLIDES_A_STEP)))

    def open(self, ref: SlideRef) -> Slide:
        """Open a slide that is as slow as planned."""
        return SlowSlide(open_slide(ref), self.read_seconds) if self.read_seconds else open_slide(ref)

    @contextmanager
    def computing_elsewhere(self) -> Iterator[None]:
        """Make encoding take longer, without using the CPU."""
        embed = AttentionSampler.embed

        def embed_elsewhere(model: AttentionSampler, tiles: Tensor) -> Tensor:
            time.sleep(self.device_seconds)
            return embed(model, tiles)

        with patch.object(AttentionSampler, "embed", embed_elsewhere):
            yield


SLOW = {
    "device, computes longer": Plan("test_resnet", 64, 32, 4096, 1, 0.01, 0.8),
    "device, reads longer": Plan("test_resnet", 64, 32, 4096, 1, 0.01, 0.3),
    "processor, computes": Plan("test_resnet", 64, 96, 4096, 4, 0.01),
}


class Clock(Reader):
    """A reader that records when reads of ``inner`` begin, and how long the caller waits for them.

    Each steady step begins one set of reads, so that the time between these is the time of a step, however
    far reading is ahead.
    """

    def __init__(self, inner: Reader) -> None:
        self._inner = inner
        self.times: list[float] = []
        self.waits: list[float] = []

    def run(self, jobs: Sequence[Any]) -> list[Any]:
        """See :meth:`wsi_ats.models.batches.Reader.run`."""
        self.times.append(time.perf_counter())
        self.waits.append(0.0)
        number = len(self.waits) - 1
        return [_Waited(future, self.waits, number) for future in self._inner.run(jobs)]


@dataclass(frozen=True)
class _Waited:
    """A result that records the time spent waiting for it, by the number of its call."""

    future: Future[Any]
    waits: list[float]
    number: int

    def result(self) -> Any:
        begin = time.perf_counter()
        try:
            return self.future.result()
        finally:
            self.waits[self.number] += time.perf_counter() - begin


class Memory(Reader):
    """A reader that returns the same tiles (n, side, side, 3) from host memory every time."""

    def __init__(self, tiles: Pixels) -> None:
        self._tiles = tiles

    def run(self, jobs: Sequence[Any]) -> list[Future[Any]]:
        """See :meth:`wsi_ats.models.batches.Reader.run`."""
        return [self._given(len(job.keywords["cells"])) for _, job in jobs]

    def _given(self, count: int) -> Future[Any]:
        enough = count <= len(self._tiles)  # then no pixel is copied
        return ready(self._tiles[:count] if enough else self._tiles[np.arange(count) % len(self._tiles)])


class SlowSlide(WrappedSlide):
    """A slide that takes so many seconds to read each region."""

    def __init__(self, inner: Slide, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """Wait, then read from the inner slide."""
        time.sleep(self._seconds * len(corners))
        return self._inner.read_regions(level, corners, width, height)


def measure(
    examples: Sequence[Example], settings: Settings, reader: Reader, passes: int
) -> tuple[list[float], list[float]]:
    """Train for an epoch, and return the seconds of each steady step and the time it waits for tiles."""
    clock = Clock(reader)
    train(examples, [], settings, clock)
    # The first call is calibration. The first steps begin their reads at once, and the last begin none.
    begun = np.array(clock.times[1::passes])
    waits = np.array(clock.waits[1:]).reshape(-1, passes).sum(1)
    seconds = np.diff(begun[_WARM + settings.training.read_ahead :])
    return seconds.tolist(), waits[_WARM : _WARM + len(seconds)].tolist()


def slides_of(paths: Sequence[Path]) -> list[SlideRef]:
    """Return slides with alternating labels."""
    return [
        replace(SlideRef.from_path(path), label=TARGET.names[number % 2]) for number, path in enumerate(paths)
    ]


def run(plan: Plan, paths: Sequence[Path], *, steps: int, rounds: int) -> Rows:
    """Measure steps with all feeds in turn; return a row for each."""
    settings, count = plan.settings, plan.tiles // _SLIDES_A_STEP
    examples = examples_of(slides_of(paths), settings)
    with open_slide(examples[0].ref) as slide:
        tissue = examples[0].overview.tissue
        memory = Memory(read_tiles(slide, tissue.grid, tissue.cells[:count]))
    seconds: dict[str, list[float]] = {feed: [] for feed in FEEDS}
    waits: dict[str, list[float]] = {feed: [] for feed in FEEDS}
    for _ in range(rounds):
        for feed, ahead in FEEDS.items():
            slides = _SLIDES_A_STEP * (_WARM + 2 * ahead + steps + 1)
            shown = [examples[k % len(examples)] for k in range(slides)]
            changed = settings.with_values([f"training.read_ahead={ahead}"])
            with TileReader(plan.threads, plan.open) as reader, plan.computing_elsewhere():
                feeding = memory if feed == MEMORY else reader
                taken, waited = measure(shown, changed, feeding, plan.passes)
            seconds[feed] += taken[:steps]
            waits[feed] += waited[:steps]
    step = {feed: median(each) for feed, each in seconds.items()}
    return [
        {
            **asdict(plan),
            "passes": plan.passes,
            "feed": feed,
            "steps": len(seconds[feed]),
            "steps_per_s": 1 / each,
            "tiles_per_s": plan.tiles / each,
            "waited_ms": 1e3 * median(waits[feed]),
            "of_ceiling": step[MEMORY] / each,
            "hidden": (step[SLIDES] - each) / (step[SLIDES] - step[MEMORY]),
        }
        for feed, each in step.items()
    ]


def main() -> None:
    """Print the table and write it to ``read_ahead.csv``."""
    parser = command(__doc__, slides=True)
    parser.add_argument("--steps", type=int, default=10, help="of each feed in a round")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    paths = slides_to_train_on(options.slides, _SLIDES_A_STEP, _SIDE)
    rows = [
        {"case": case, **row}
        for case, plan in SLOW.items()
        for row in run(plan, paths, steps=options.steps, rounds=options.rounds)
    ]
    report("training fed in three ways", "read_ahead", rows, options.out, machine=True)


if __name__ == "__main__":
    main()
