"""from the reads that they begin; shared by benchmarks of speed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from wsi_ats.models.batches import Example, Reader
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Pixels
from wsi_ats.tasks.targets import Target
from wsi_ats.training.fit import fit

TARGET = Target("classification", ("negative", "positive"))

JOINT = ("training.epochs=0", "training.attention_epochs=0")
"""Joint training alone, the phase in which every part of the network computes; ``joint_epochs`` of it."""


class Clock(Reader):
    """A reader that notes when reads are begun and how long they are waited for; another reads.

    Steady steps begin one lot of reads each, so that the time between them is the time of a step, whatever is
    read ahead.

    Parameters
    ----------
    inner
        Who reads.
    on_begin
        Called with the number of each call, from 0, before anything is read.
    """

    def __init__(self, inner: Reader, on_begin: Callable[[int], None]) -> None:
        self._inner = inner
        self._on_begin = on_begin
        self.times: list[float] = []
        self.waits: list[float] = []

    def run(self, jobs: Sequence[Any]) -> list[Any]:
        """See :meth:`wsi_ats.models.batches.Reader.run`."""
        self._on_begin(len(self.times))
        self.times.append(time.perf_counter())
        self.waits.append(0.0)
        number = len(self.waits) - 1
        return [_Waited(future, self.waits, number) for future in self._inner.run(jobs)]


@dataclass(frozen=True)
class _Waited:
    """Adds how long its result is waited for to the number of its call."""

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
    """Gives tiles that lie ready in the host's memory, the same ones again and again: nothing is faster.

    Parameters
    ----------
    tiles
        uint8, shape (n, side, side, 3).
    """

    def __init__(self, tiles: Pixels) -> None:
        self._tiles = tiles

    def run(self, jobs: Sequence[Any]) -> list[Future[Any]]:
        """See :meth:`wsi_ats.models.batches.Reader.run`."""
        return [self._given(len(job.keywords["cells"])) for _, job in jobs]

    def _given(self, count: int) -> Future[Any]:
        given: Future[Any] = Future()
        enough = count <= len(self._tiles)  # then no pixel is copied
        given.set_result(self._tiles[:count] if enough else self._tiles[np.arange(count) % len(self._tiles)])
        return given


def train(
    training: Sequence[Example], settings: Settings, reader: Reader, device: torch.device
) -> list[Mapping[str, float | None]]:
    """Train in a folder that is deleted; returns the rows of ``metrics.csv``."""
    rows: list[Mapping[str, float | None]] = []
    with tempfile.TemporaryDirectory() as folder:
        fit(
            training,
            [],
            settings,
            target=TARGET,
            folder=Path(folder),
            device=device,
            on_epoch=rows.append,
            reader=reader,
        )
    return rows


@dataclass(frozen=True)
class Steps:
    """What was seen of steady steps.

    Parameters
    ----------
    seconds
        From one to the next.
    waits
        Of these, how long tiles were waited for.
    """

    seconds: Sequence[float]
    waits: Sequence[float]

    @property
    def typical(self) -> float:
        """Median of the seconds."""
        return median(self.seconds)


def measure(
    training: Sequence[Example],
    settings: Settings,
    reader: Reader,
    device: torch.device,
    *,
    passes: int = 1,
    warm: int = 2,
    on_step: Callable[[int], None] | None = None,
) -> Steps:
    """Take the time of each steady step of an epoch.

    Parameters
    ----------
    training
        The slides of the epoch, as many as go into its steps without remainder.
    settings
        With one epoch, of joint training.
    reader
        Reads the tiles.
    device
        Where to compute.
    passes
        Into how many a step is cut.
    warm
        Steps at the beginning that are not counted.
    on_step
        Called with the number of each step when its reads are begun.
    """

    def on_begin(number: int) -> None:
        # The first call is calibration's.
        if on_step and number and not (number - 1) % passes:
            on_step((number - 1) // passes)

    clock = Clock(reader, on_begin)
    train(training, settings, clock, device)
    ahead = settings.training.read_ahead
    begun, waits = np.array(clock.times[1::passes]), np.array(clock.waits[1:]).reshape(-1, passes).sum(1)
    # Reads of the first steps are begun at once, and the last steps begin none.
    seconds = np.diff(begun[warm + ahead :])
    return Steps(seconds.tolist(), waits[warm : warm + len(seconds)].tolist())


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of rows."""
    return {name: [row[name] for row in rows] for name in rows[0]}
