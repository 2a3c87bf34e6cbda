"""Features that were extracted before, in place of pixels, for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from wsi_ats.bags.matched import MatchedBag
from wsi_ats.models.batches import Reader, Wanted
from wsi_ats.models.features import Features
from wsi_ats.slides.base import Slide, SlideRef

T = TypeVar("T")


class StoredFeatures(Reader):
    """Reader of features that were extracted before; of each file only the drawn tiles are read.

    Parameters
    ----------
    inner
        Reader of the slides themselves.
    bags
        The features of each slide, by slide id.
    threads
        Number of threads that read.
    """

    def __init__(self, inner: Reader, bags: Mapping[str, MatchedBag], threads: int = 1) -> None:
        self._inner, self._bags = inner, bags
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="features")

    def read(self, wanted: Sequence[Wanted]) -> list[Future[Features]]:
        """See :meth:`wsi_ats.models.batches.Reader.read`; the results are features, shape (N, D)."""
        return [self._pool.submit(self._bags[ref.id].read, cells) for ref, _, cells in wanted]

    def run(self, jobs: Sequence[tuple[SlideRef, Callable[[Slide], T]]]) -> Any:
        """See :meth:`wsi_ats.models.batches.Reader.run`; the inner reader runs the jobs."""
        return self._inner.run(jobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
