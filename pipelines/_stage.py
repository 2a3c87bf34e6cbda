"""One task for each slide: sent out, watched, and brought home one way or the other.

What crosses to a worker is a function, a reference to a slide, settings and paths; what comes back is a
small record. Pixels never travel: moving them costs as much as reading them again.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Timer
from typing import Any, Generic, TypeVar

from distributed import Client, Future, KilledWorker, Worker, get_worker
from distributed.comm.core import CommClosedError

from wsi_ats.errors import ModelError, SettingsError, WsiAtsError
from wsi_ats.slides.base import SlideRef

Result = TypeVar("Result")

# Enough that no worker waits for the client, few enough that a stop is a stop.
_TASKS_PER_THREAD = 2

# Clusters grow and shrink, but not so fast that it is worth asking for every slide.
_ASK_SECONDS = 1.0

# A worker that is about to stop itself says why; it takes milliseconds, and nothing else is done meanwhile.
_TELL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Result]):
    """How it ended for one slide.

    Parameters
    ----------
    ref
        The slide.
    result
        What the function returned; ``None`` after a failure.
    error
        Why it failed.
    trace
        Where it failed, for ``--debug``.
    seconds
        Wall time in the worker.
    worker
        Name of the worker's host and its process, as far as known.
    """

    ref: SlideRef
    result: Result | None = None
    error: str | None = None
    trace: str = ""
    seconds: float = 0.0
    worker: str = ""


@dataclass(frozen=True)
class Limits:
    """What is asked of a cluster, and how long.

    Parameters
    ----------
    timeout
        Seconds after which a slide is given up and its worker stopped, to be started anew by its nanny.
    resources
        What each slide takes of its worker's abstract resources.
    wait
        Seconds to wait for workers when all of them are gone.
    stop
        Once it says so, no further slide is begun.
    """

    timeout: float | None = None
    resources: Mapping[str, float] | None = None
    wait: float = 60.0
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        for name, value in (("--timeout", self.timeout), ("--wait", self.wait)):
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} must be a positive number of seconds, not {value}")


def for_each_slide(
    function: Callable[[SlideRef], Result],
    refs: Iterable[SlideRef],
    client: Client,
    *,
    on_result: Callable[[Outcome[Result]], None],
    strict: bool = False,
    limits: Limits | None = None,
) -> None:
    """Call a function for each slide on a cluster; a slide that fails fails alone.

    Errors of this library and unforeseen ones both become the slide's outcome. So does the death of a
    worker: every slide that was on it is tried again with nothing beside it, and one whose worker dies
    again is to blame. A slide that takes too long is not tried again.

    A few slides for each of the cluster's threads are under way at a time, however many there are.

    Parameters
    ----------
    function
        Importable by the workers; a dataclass with ``__call__`` or a ``functools.partial`` carries
        settings along.
    refs
        The slides.
    client
        The cluster.
    on_result
        Called in this process for each slide, in the order in which they end.
    strict
        Stop at the first failure.
    limits
        None by default.

    Raises
    ------
    WsiAtsError
        When the scheduler or all workers are lost: no slide is to blame, so none is said to have failed.
    """
    check_connected(client)
    with _Clock.of(client, limits or Limits()) as clock, closing(_blamed(function, refs, clock)) as outcomes:
        for outcome in outcomes:
            on_result(outcome)
            if strict and outcome.error is not None:
                return


def check_connected(client: Client) -> None:
    """Check that a client has not given up its scheduler.

    Raises
    ------
    WsiAtsError
        When it has.
    """
    if client.status in {"closing", "closed"}:
        raise WsiAtsError(_LOST)


def on_each_worker(
    function: Callable[[], None], client: Client, *, resources: Mapping[str, float] | None = None
) -> None:
    """Call a function once on each worker that is there now; its errors are raised here.

    Parameters
    ----------
    function
        What to call.
    client
        The cluster.
    resources
        Leave out workers that do not offer them.

    Raises
    ------
    ModelError
        When a worker dies of it.
    SettingsError
        When no worker offers the resources.
    """
    wanted = resources or {}
    there = client.scheduler_info()["workers"]
    able = [
        address
        for address, worker in there.items()
        if all(worker["resources"].get(name, 0) >= share for name, share in wanted.items())
    ]
    if there and not able:
        needed = " ".join(f"{name}={share:g}" for name, share in wanted.items())
        raise SettingsError(
            f"none of {len(there)} workers offers what --resources asks for ({needed}); start some with "
            f'`dask worker ADDRESS --resources "{next(iter(wanted))}=1"`, or leave --resources out'
        )
    for call in [client.submit(function, workers=[address], pure=False) for address in able]:
        error = call.exception()
        if isinstance(error, KilledWorker):
            raise ModelError("a worker died while it loaded the model; is there enough memory?") from error
        if error is not None:
            raise error


_LOST = "the connection to the Dask scheduler was lost; the same command goes on where this one stopped"

_DIED = (
    "the process that worked on it died, and died again when it was tried alone, most likely for want of "
    "memory or because of a damaged file"
)


class _Clock:
    """A client, and the slides that it was told took too long.

    Parameters
    ----------
    client
        The cluster.
    limits
        What is asked of it.
    topic
        Under which workers say what took too long; none without a limit.
    """

    def __init__(self, client: Client, limits: Limits, topic: str | None) -> None:
        self.client, self.limits, self.topic = client, limits, topic
        self.late: set[str] = set()
        self.running: dict[str, Future[Any]] = {}

    @classmethod
    @contextmanager
    def of(cls, client: Client, limits: Limits) -> Iterator[_Clock]:
        topic = None if limits.timeout is None else f"wsi-ats-{uuid.uuid4()}"
        clock = cls(client, limits, topic)
        if topic is not None:
            client.subscribe_topic(topic, clock.note)
        try:
            yield clock
        finally:
            if topic is not None and client.status == "running":
                client.unsubscribe_topic(topic)

    async def note(self, event: tuple[float, str]) -> None:
        """Cancel a slide that took too long: its worker is about to die, and no other is to try it."""
        _, key = event
        self.late.add(key)
        if key in self.running:
            await asyncio.ensure_future(self.client.cancel([self.running[key]], asynchronous=True))

    def failed(self, ref: SlideRef) -> Outcome[Any]:
        seconds = self.limits.timeout or 0.0
        text = f"{ref.path}: it took longer than {seconds:g} s and was given up; allow more with --timeout"
        return Outcome(ref, error=text, seconds=seconds)


def _blamed(
    function: Callable[[SlideRef], Result], refs: Iterable[SlideRef], clock: _Clock
) -> Generator[Outcome[Result], None, None]:
    """Bring all home; for the death of a worker, find the slide that is to blame."""
    suspects: list[SlideRef] = []
    yield from _outcomes(function, refs, clock, suspects)
    for ref in suspects:
        died: list[SlideRef] = []
        yield from _outcomes(function, [ref], clock, died)
        if died:
            yield Outcome(ref, error=f"{ref.path}: {_DIED}")


def _outcomes(
    function: Callable[[SlideRef], Result],
    refs: Iterable[SlideRef],
    clock: _Clock,
    suspects: list[SlideRef],
) -> Generator[Outcome[Result], None, None]:
    """Keep a few tasks under way; slides whose worker died go to ``suspects``."""
    client, limits = clock.client, clock.limits
    waiting = iter(refs)
    running: dict[str, tuple[Future[Outcome[Result]], SlideRef]] = {}
    ended: SimpleQueue[str] = SimpleQueue()
    threads, asked, seen = 0, -math.inf, time.monotonic()

    def ask() -> None:
        nonlocal threads, asked, seen
        now = time.monotonic()
        if now - asked > _ASK_SECONDS:
            threads, asked = sum(client.nthreads().values()), now
            seen = now if threads else seen
            if now - seen > limits.wait:
                raise WsiAtsError(
                    f"there have been no Dask workers for {limits.wait:g} s; start some, and the same "
                    "command goes on where this one stopped (--wait allows more time)"
                )

    def fill() -> None:
        ask()
        room = _TASKS_PER_THREAD * threads - len(running)
        for ref in islice(waiting, 0 if limits.stop() else max(room, 0 if running else 1)):
            future = client.submit(
                _attempt,
                function,
                ref,
                limits.timeout,
                clock.topic,
                pure=False,
                resources=dict(limits.resources) if limits.resources else None,
            )
            running[str(future.key)] = future, ref
            clock.running[str(future.key)] = future
            future.add_done_callback(lambda done: ended.put(str(done.key)))

    try:
        fill()
        while running:
            try:
                keys = [ended.get(timeout=_ASK_SECONDS)]
            except Empty:  # a task whose scheduler is lost ends without calling back
                ask()
                keys = [key for key, (future, _) in running.items() if future.status != "pending"]
            for key in keys:
                if key not in running:
                    continue
                future, ref = running.pop(key)
                del clock.running[key]
                error = future.exception() if future.status == "error" else None
                if future.status == "finished":
                    yield future.result()
                elif key in clock.late:
                    yield clock.failed(ref)
                elif error is None:
                    raise WsiAtsError(_LOST)
                elif isinstance(error, KilledWorker):
                    suspects.append(ref)
                else:
                    yield _unforeseen(ref, future, error)
            fill()
    except (CommClosedError, OSError) as error:
        raise WsiAtsError(_LOST) from error
    finally:
        if client.status == "running":
            client.cancel([future for future, _ in running.values()])
        for key in running:
            clock.running.pop(key, None)


def _attempt(
    function: Callable[[SlideRef], Any], ref: SlideRef, timeout: float | None, topic: str | None
) -> Outcome[Any]:
    """What a worker does: errors raised on purpose become the slide's outcome there and then."""
    begin = time.perf_counter()
    worker = get_worker()
    where = f"{worker.ip} {os.getpid()}"
    try:
        with _watched(worker, timeout, topic):
            result = function(ref)
    except WsiAtsError as error:
        trace = "".join(traceback.format_exception(error))
        seconds = time.perf_counter() - begin
        return Outcome(ref, error=str(error), trace=trace, seconds=seconds, worker=where)
    return Outcome(ref, result, seconds=time.perf_counter() - begin, worker=where)


@contextmanager
def _watched(worker: Worker, timeout: float | None, topic: str | None) -> Iterator[None]:
    """Stop this process when the context lasts too long: a thread that hangs is stopped in no other way."""
    if timeout is None or topic is None:
        yield
        return

    def give_up(key: str) -> None:
        worker.log_event(topic, key)
        time.sleep(_TELL_SECONDS)
        if worker.nanny is not None:  # else it would never be there again
            os._exit(1)

    timer = Timer(timeout, give_up, [str(worker.get_current_task())])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _unforeseen(ref: SlideRef, future: Future[Outcome[Any]], error: BaseException) -> Outcome[Any]:
    """Outcome of a task that ended in an error nobody raised on purpose."""
    trace = "".join(traceback.format_exception(type(error), error, future.traceback()))
    text = f"{ref.path}: {type(error).__name__}: {error}"
    return Outcome(ref, error=" ".join(text.split()), trace=trace)
