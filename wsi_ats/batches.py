"""From prepared slides to training batches: what a slide gives to a step, and how its tiles are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from wsi_ats.errors import SettingsError, SlideError
from wsi_ats.geometry import IntArray
from wsi_ats.selection import TissueMask
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Pixels, Slide, SlideRef
from wsi_ats.tiles import read_tiles

T = TypeVar("T")

# Opening a slide costs as much as reading a few tiles, an open one some MB (see its reader's cache).
_OPEN_SLIDES = 128


@dataclass(frozen=True)
class Example:
    """A slide ready for training: what attention sees of it, and its class.

    Parameters
    ----------
    ref
        The slide; its tiles are read when they are drawn.
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3).
    tissue
        Tissue cells and their grid; at least one.
    target
        Number of the class.
    """

    ref: SlideRef
    thumbnail: Pixels
    tissue: TissueMask
    target: int

    def __post_init__(self) -> None:
        if not len(self.tissue.cells):
            raise SettingsError(f"{self.ref.id} has no tissue; leave it out of training")


class TileReader:
    """Reads the tiles of many slides in a few threads, keeping recently used slides open.

    The order in which threads finish has no influence on what is returned.

    Parameters
    ----------
    threads
        Number of threads; OpenSlide and the decoders release Python's lock.
    opener
        How a slide is opened.

    Examples
    --------
    >>> with TileReader(2) as reader:  # doctest: +SKIP
    ...     tiles = reader.read([(example, cells)])[0].result()
    """

    def __init__(self, threads: int, opener: Callable[[SlideRef], Slide] = open_slide) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._opener = opener
        self._open: dict[str, Slide] = {}

    def read(self, wanted: Sequence[tuple[Example, IntArray]]) -> list[Future[Pixels]]:
        """Begin to read the cells of each slide.

        Parameters
        ----------
        wanted
            Slides with the cells to read; see :meth:`run`.

        Returns
        -------
        list of futures of uint8 arrays, shape (N, tile_size, tile_size, 3)
            Each may raise :class:`~wsi_ats.errors.SlideError`.
        """
        return self.run(
            [
                (example.ref, partial(read_tiles, grid=example.tissue.grid, cells=cells))
                for example, cells in wanted
            ]
        )

    def run(self, jobs: Sequence[tuple[SlideRef, Callable[[Slide], T]]]) -> list[Future[T]]:
        """Begin to read something from each slide.

        Parameters
        ----------
        jobs
            Slides with what is to be done with each while it is open, at most one entry for each slide. All
            futures of an earlier call must be done: slides that are not in use may be closed.

        Returns
        -------
        list of futures
            Each may raise :class:`~wsi_ats.errors.SlideError`.
        """
        while len(self._open) > _OPEN_SLIDES:
            self._open.pop(next(iter(self._open))).close()
        return [self._pool.submit(self._run, ref, job) for ref, job in jobs]

    def _run(self, ref: SlideRef, job: Callable[[Slide], T]) -> T:
        slide = self._open.pop(ref.id, None) or self._opener(ref)
        try:
            return job(slide)
        finally:
            # Only a slide that is not in use can be closed, and the least recently used comes first.
            self._open[ref.id] = slide

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for slide in self._open.values():
            slide.close()


def epoch_batches(size: int, slides_per_step: int, seed: int) -> list[IntArray]:
    """Order of the slides in an epoch, in batches that differ in length by at most one.

    Parameters
    ----------
    size
        Number of slides.
    slides_per_step
        Largest batch.
    seed
        Decides the order.

    Examples
    --------
    >>> [len(batch) for batch in epoch_batches(10, 4, seed=0)]
    [4, 3, 3]
    """
    order = np.random.default_rng(seed).permutation(size)
    return np.array_split(order, -(-size // slides_per_step))


def outcomes(
    futures: Sequence[Future[T]], examples: Sequence[Example]
) -> tuple[list[T | None], Mapping[str, str]]:
    """Wait for reads; a slide that failed gives ``None`` and a message under its id."""
    tiles: list[T | None] = []
    failed: dict[str, str] = {}
    for future, example in zip(futures, examples, strict=True):
        try:
            tiles.append(future.result())
        except SlideError as error:
            tiles.append(None)
            failed[example.ref.id] = str(error)
    return tiles, failed
