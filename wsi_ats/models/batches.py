"""Training batches: slides with labels, and readers of their tiles."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError, SlideError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.features import Features
from wsi_ats.overview.records import Overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Pixels, Slide, SlideRef
from wsi_ats.tables.labels import check_cases

T = TypeVar("T")
U = TypeVar("U")
_T_co = TypeVar("_T_co", covariant=True)

Wanted = tuple[SlideRef, Grid, IntArray]
"""A slide, its grid of tiles, and the flat numbers (N,) of the cells to read."""


class Pending(Protocol[_T_co]):
    """A result that is being computed, such as a :class:`concurrent.futures.Future`."""

    def result(self) -> _T_co:
        """Wait for the result, or raise the error."""
        ...


# Opening a slide costs as much as reading a few tiles; an open slide takes some MB (its reader's cache).
_OPEN_SLIDES = 128


@dataclass(frozen=True)
class Example:
    """A slide ready for training: its overview and its label.

    Parameters
    ----------
    ref
        The slide; its tiles are read when they are drawn.
    overview
        Thumbnail and tissue; at least one tissue cell.
    target
        The label as numbers; see :meth:`wsi_ats.tasks.targets.Target.encode`.
    """

    ref: SlideRef
    overview: Overview
    target: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.overview.tissue.cells):
            raise SettingsError(f"{self.ref.id} has no tissue; leave it out of training")


class Reader(Protocol):
    """Reader of slides in the background, with threads or with workers near the slides.

    Results do not depend on the order in which reads finish.
    """

    def read(self, wanted: Sequence[Wanted]) -> Sequence[Pending[Pixels | Features]]:
        """Begin to read cells of some slides, as pixels or as features that were computed before.

        Parameters
        ----------
        wanted
            Slides with the cells to read; see :meth:`run`.

        Returns
        -------
        results, one for each slide
            uint8, shape (N, tile_size, tile_size, 3), or float32, shape (N, D). Each may raise
            :class:`~wsi_ats.errors.SlideError`.
        """
        return self.run([(ref, partial(read_tiles, grid=grid, cells=cells)) for ref, grid, cells in wanted])

    def run(self, jobs: Sequence[tuple[SlideRef, Callable[[Slide], T]]]) -> list[Future[T]]:
        """Begin to read something from each slide.

        Parameters
        ----------
        jobs
            Slides, each with a function to call while it is open. Earlier reads continue; a slide in use is
            opened a second time.

        Returns
        -------
        list of futures
            Each may raise :class:`~wsi_ats.errors.SlideError`.
        """
        ...


class OpenSlides:
    """Recently used slides, kept open for several threads.

    Parameters
    ----------
    opener
        Function that opens a slide.
    """

    def __init__(self, opener: Callable[[SlideRef], Slide] = open_slide) -> None:
        self._opener = opener
        self._idle: dict[str, Slide] = {}
        self._guard = Lock()
        self._closed = False

    def run(self, ref: SlideRef, job: Callable[[Slide], T]) -> T:
        """Call a function with a slide, which is opened if no idle one is open.

        Raises
        ------
        SlideError
            When it cannot be opened, or the job raises it.
        """
        with self._guard:
            slide = self._idle.pop(ref.id, None)
        slide = slide or self._opener(ref)
        try:
            return job(slide)
        finally:
            self._put_back(ref.id, slide)

    def _put_back(self, name: str, slide: Slide) -> None:
        """Keep a slide open, and close the least recently used if there are too many."""
        with self._guard:
            surplus = [self._idle.pop(name)] if name in self._idle else []
            self._idle[name] = slide
            while len(self._idle) > (0 if self._closed else _OPEN_SLIDES):
                surplus.append(self._idle.pop(next(iter(self._idle))))
        for each in surplus:
            each.close()

    def close(self) -> None:
        """Close all slides; slides in use are closed when they are put back."""
        with self._guard:
            idle, self._idle, self._closed = self._idle, {}, True
        for slide in idle.values():
            slide.close()


class TileReader(Reader):
    """Reader of tiles of many slides in a few threads, which keeps recently used slides open.

    Parameters
    ----------
    threads
        Number of threads; OpenSlide and the decoders release Python's lock.
    opener
        Function that opens a slide.

    Examples
    --------
    >>> with TileReader(2) as reader:  # doctest: +SKIP
    ...     tiles = reader.read([(ref, grid, cells)])[0].result()
    """

    def __init__(self, threads: int, opener: Callable[[SlideRef], Slide] = open_slide) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._slides = OpenSlides(opener)

    def run(self, jobs: Sequence[tuple[SlideRef, Callable[[Slide], T]]]) -> list[Future[T]]:
        """See :meth:`Reader.run`."""
        return [self._pool.submit(self._slides.run, ref, job) for ref, job in jobs]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._slides.close()


def epoch_batches(
    size: int, per_step: int, seed: int, *, classes: Sequence[float] | None = None
) -> list[IntArray]:
    """Shuffle the slides, or cases, of an epoch into batches that differ in length by at most one.

    Parameters
    ----------
    size
        Number of slides.
    per_step
        Largest size of a batch.
    seed
        Seed of the order.
    classes
        Class of each slide, to balance the classes: an epoch keeps its length, but repeats slides of rare
        classes and omits some of the others.

    Examples
    --------
    >>> [len(batch) for batch in epoch_batches(10, 4, seed=0)]
    [4, 3, 3]
    >>> shown = np.concatenate(epoch_batches(8, 4, seed=0, classes=[0, 0, 0, 0, 0, 0, 1, 1]))
    >>> sum(shown < 6), sum(shown >= 6)
    (np.int64(4), np.int64(4))
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(size)
    if classes is not None:
        order = generator.permutation(_balanced(order, np.asarray(classes)))
    return np.array_split(order, -(-size // per_step))


def _balanced(order: IntArray, classes: npt.NDArray[np.float64]) -> IntArray:
    """Return equal numbers of each class, plus or minus one, repeating each class in its given order."""
    known = np.unique(classes)
    quotas = [len(part) for part in np.array_split(order, len(known))]
    parts = [np.resize(order[classes[order] == each], n) for each, n in zip(known, quotas, strict=True)]
    return np.concatenate(parts)


def units(examples: Sequence[Example], *, by_case: bool) -> list[list[int]]:
    """Group slides into units with one output each: slides, or cases.

    Parameters
    ----------
    examples
        The slides.
    by_case
        Whether the slides of a case are pooled.

    Returns
    -------
    list of list of int
        Places of the slides of each unit, in order of first appearance.

    Raises
    ------
    ManifestError
        When slides of one case have different labels.
    """
    if not by_case:
        return [[place] for place in range(len(examples))]
    # As text, because NaN differs from itself.
    check_cases([each.ref for each in examples], [repr(each.target) for each in examples])
    grouped: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        grouped.setdefault(example.ref.case, []).append(place)
    return list(grouped.values())


def ahead(items: Iterable[T], begin: Callable[[T], U], steps: int) -> Iterator[tuple[T, U]]:
    """Begin items some steps before they are yielded.

    Parameters
    ----------
    items
        Items, in order.
    begin
        Function called once for each item.
    steps
        Number of items begun ahead; 0 begins each when its turn comes.

    Yields
    ------
    item, and the result of ``begin``

    Examples
    --------
    >>> for item, _ in ahead("abc", lambda item: print("begin", item), 1):
    ...     print(item)
    begin a
    begin b
    a
    begin c
    b
    c
    """
    waiting: deque[tuple[T, U]] = deque()
    for item in items:
        waiting.append((item, begin(item)))
        if len(waiting) > steps:
            yield waiting.popleft()
    yield from waiting


def outcomes(
    futures: Sequence[Pending[T]], examples: Sequence[Example]
) -> tuple[list[T | None], Mapping[str, str]]:
    """Wait for reads; a slide that cannot be read gives ``None`` and, by its id, a message."""
    tiles: list[T | None] = []
    failed: dict[str, str] = {}
    for future, example in zip(futures, examples, strict=True):
        try:
            tiles.append(future.result())
        except SlideError as error:
            tiles.append(None)
            failed[example.ref.id] = str(error)
    return tiles, failed


def balancing(classes: Sequence[float]) -> list[float]:
    """Return the weight of each slide, or case, that balances the classes; the mean is 1.

    Examples
    --------
    >>> balancing([0, 0, 1])
    [0.75, 0.75, 1.5]
    """
    counts = Counter(classes)
    return [len(classes) / (len(counts) * counts[each]) for each in classes]
