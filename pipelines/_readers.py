"""Readers of the tiles of a training: threads of this process, or Dask workers near the slides.

Workers send tiles as JPEG (:mod:`wsi_ats.slides.jpeg`), a quarter of the bytes, which this process decodes.
This is the only lossy step of reading. Everything else, such as the thumbnails of regions that decide where
tiles are drawn, is sent as it is. Draws, and the order of tiles, are the same as with threads.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Lock
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import numpy as np
from dask.system import CPU_COUNT
from distributed import Client, KilledWorker, Worker, WorkerPlugin, get_worker
from distributed import Future as Read

from pipelines._cluster import connect
from pipelines._workers import LOST
from wsi_ats.errors import SettingsError, SlideReadError, WsiAtsError
from wsi_ats.models.batches import OpenSlides, Reader, TileReader
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.slides.jpeg import JpegTiles

T = TypeVar("T")

# Between checks of whether there are workers.
_ASK_SECONDS = 1.0

# A read that kills its worker takes other reads with it: each is tried again, one at a time.
_MORE_TRIES = 2

# Far more than the tiles of a slide need; a worker that died after its work never sends them.
_TRANSFER_SECONDS = 60.0

_DIED = (
    f"{1 + _MORE_TRIES} Dask workers that read it died or gave no answer, most likely because memory ran out "
    "or the file is damaged; try --readers threads"
)


def check_readers(readers: str) -> int | None:
    """Parse ``--readers``.

    Parameters
    ----------
    readers
        ``threads``, ``threads:N`` or ``dask``.

    Returns
    -------
    int or None
        The number of threads, as many as there are cores by default; ``None`` for Dask.

    Raises
    ------
    SettingsError
        For anything else.

    Examples
    --------
    >>> check_readers("threads:8"), check_readers("dask")
    (8, None)
    """
    if readers == "dask":
        return None
    known = re.fullmatch(r"threads(?::([1-9]\d*))?", readers)
    if known is None:
        raise SettingsError(f"--readers must be threads, threads:N or dask, not {readers!r}")
    return int(known[1] or CPU_COUNT)


class _NeverSentError(Exception):
    """A worker died before it sent what it had read."""


_DEATHS = (KilledWorker, TimeoutError, _NeverSentError)


@contextmanager
def open_reader(
    readers: str, scheduler: Any = "local", workers: int | None = None, wait: float = 60.0
) -> Iterator[Reader]:
    """Open the reader that ``--readers`` names.

    Parameters
    ----------
    readers
        See :func:`check_readers`.
    scheduler, workers, wait
        The cluster, for ``dask``; see :func:`pipelines._cluster.connect`.
    """
    threads = check_readers(readers)
    if threads is not None:
        with TileReader(threads) as local:
            yield local
        return
    with connect(scheduler, workers=workers, wait=wait) as client, DaskReader(client, wait=wait) as remote:
        yield remote


class DaskReader(Reader):
    """A reader of tiles on the workers of a cluster, each of which keeps recently used slides open.

    It replaces :class:`wsi_ats.models.batches.TileReader`. A read whose worker dies is tried again.

    Parameters
    ----------
    client
        The cluster; it is left open.
    opener
        Opens a slide on a worker; must be importable there.
    threads
        Number of threads that decode tiles; one for each core by default.
    wait
        Seconds to wait for workers when all of them are gone.
    """

    def __init__(
        self,
        client: Client,
        opener: Callable[[SlideRef], Slide] = open_slide,
        *,
        threads: int | None = None,
        wait: float = 60.0,
    ) -> None:
        self._client, self._wait = client, wait
        self._name = f"slides-{uuid.uuid4()}"  # several trainings may share the workers
        self._pool = ThreadPoolExecutor(threads or CPU_COUNT, thread_name_prefix="tiles")
        self._suspects = Lock()
        self._waiting: set[Read[Any]] = set()
        client.register_plugin(_Slides(opener), name=self._name)

    def run(self, jobs: Sequence[tuple[SlideRef, Callable[[Slide], T]]]) -> list[Future[T]]:
        """See :meth:`wsi_ats.models.batches.Reader.run`.

        Returns
        -------
        list of futures
            Each may raise :class:`~wsi_ats.errors.SlideError`, also when a slide kills its workers, or
            :class:`~wsi_ats.errors.WsiAtsError` when the scheduler or all workers are lost.
        """
        begun = [(ref, job, self._submit(ref, job)) for ref, job in jobs]
        return [self._pool.submit(self._receive, ref, job, read) for ref, job, read in begun]

    def _submit(self, ref: SlideRef, job: Callable[[Slide], Any]) -> Read[Any]:
        return self._client.submit(_read, self._name, ref, job, pure=False)

    def _receive(self, ref: SlideRef, job: Callable[[Slide], Any], read: Read[Any]) -> Any:
        """Wait for a read, and decode it."""
        try:
            return _unpacked(self._result(read))
        except _DEATHS:
            pass
        # One at a time, so that an innocent read does not run beside the one that kills workers.
        with self._suspects:
            for _ in range(_MORE_TRIES):
                try:
                    return _unpacked(self._result(self._submit(ref, job)))
                except _DEATHS as error:
                    died = error
        raise SlideReadError(ref.path, _DIED) from died

    def _result(self, read: Read[Any]) -> Any:
        """Return the answer of a worker, or raise its error; do not wait for workers that will not come."""
        ended, seen = Event(), time.monotonic()
        read.add_done_callback(lambda _: ended.set())
        self._waiting.add(read)
        try:
            # A read whose scheduler is lost ends without a callback.
            while not ended.wait(_ASK_SECONDS) and read.status == "pending":
                seen = self._seen(seen)
            if read.status == "error":
                raise cast(BaseException, read.exception())
            if read.status == "lost":  # with its worker, or with the scheduler
                self._seen(seen)
                raise _NeverSentError
            if read.status != "finished":
                raise WsiAtsError(LOST)
            return read.result(timeout=_TRANSFER_SECONDS)
        finally:
            self._waiting.discard(read)

    def _seen(self, before: float) -> float:
        """Return the time at which workers were last seen, given the previous one."""
        try:
            there = bool(self._client.nthreads())
        except OSError as error:
            raise WsiAtsError(LOST) from error
        now = time.monotonic()
        if not there and now - before > self._wait:
            raise WsiAtsError(
                f"the Dask workers that read tiles have been gone for {self._wait:g} s; start them again "
                "and run the same command to continue (--wait allows more time)"
            )
        return now if there else before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._client.status == "running":
            self._client.cancel(list(self._waiting))
            self._client.unregister_worker_plugin(self._name)
        self._pool.shutdown()


class _Slides(WorkerPlugin):
    """The slides that a worker keeps open."""

    def __init__(self, opener: Callable[[SlideRef], Slide]) -> None:
        self._opener = opener

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """Begin with none."""
        self.open = OpenSlides(self._opener)

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Close them."""
        self.open.close()


def _read(name: str, ref: SlideRef, job: Callable[[Slide], Any]) -> Any:
    """Run a job on this worker, and pack tiles as JPEG."""
    found = cast(_Slides, get_worker().plugins[name]).open.run(ref, job)
    tiles = isinstance(found, np.ndarray) and found.ndim == 4 and found.dtype == np.uint8
    return JpegTiles.of(found) if tiles else found


def _unpacked(found: Any) -> Any:
    return found.pixels() if isinstance(found, JpegTiles) else found
