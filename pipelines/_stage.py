"""One task for each slide: sent out, watched, and brought home one way or the other.

What crosses to a worker is a function, a reference to a slide, settings and paths; what comes back is a
small record. Pixels never travel: moving them costs as much as reading them again.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX, Timer
from typing import Any, Generic, TypeVar, cast

from distributed import CancelledError, Client, Event, Future, KilledWorker, Status, Worker, get_worker
from distributed.client import ClosedClientError
from distributed.utils import sync

from pipelines._cluster import tries_again
from wsi_ats.errors import ModelError, SettingsError, WsiAtsError
from wsi_ats.slides.base import SlideRef

Result = TypeVar("Result")

# Enough that no worker waits for the client, few enough that a stop is a stop.
_TASKS_PER_THREAD = 2
_LEAST_TASKS = 8

# Between looks at calls that take seconds.
_POLL_SECONDS = 0.05

# Clusters grow and shrink, but not so fast that it is worth asking for every slide.
_ASK_SECONDS = 1.0

# A worker that is about to stop itself says why; it takes milliseconds, and nothing else is done meanwhile.
_TELL_SECONDS = 1.0

# A record is small; one that takes longer is one whose worker has died with it.
_FETCH_SECONDS = 10.0


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
            if value is not None and not 0 < value <= TIMEOUT_MAX:
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
    again is to blame, however often the scheduler would have tried it. A slide that takes too long is not
    tried again.

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
    function: Callable[[], None],
    client: Client,
    *,
    resources: Mapping[str, float] | None = None,
    wait: float = 60.0,
) -> None:
    """Call a function once on each worker that is there now; its errors are raised here.

    Workers may die meanwhile, for whatever reason: then those that are there after them are called.

    Parameters
    ----------
    function
        What to call.
    client
        The cluster.
    resources
        Leave out workers that do not offer them.
    wait
        Seconds to wait for workers when some have died.

    Raises
    ------
    ModelError
        When workers die of it.
    SettingsError
        When no worker offers the resources.
    WsiAtsError
        When the scheduler or all workers are lost.
    """
    for attempt in range(2):
        errors, died = _called_on_each(function, client, resources)
        for error in errors:
            raise error
        if not died:
            return
        if attempt == 0:
            _wait_for_workers(client, wait)
    raise ModelError("workers died while they loaded the model, and died again; is there enough memory?")


def _called_on_each(
    function: Callable[[], None], client: Client, resources: Mapping[str, float] | None
) -> tuple[list[BaseException], bool]:
    """Call a function on each worker; returns errors, and whether any has died."""
    with _scheduler_there():
        able, there = _threads(client, resources), len(client.nthreads())
        if there and not able:
            raise SettingsError(
                f"none of {there} workers offers what --resources asks for ({_words(resources)}); start some "
                f'with `dask worker ADDRESS --resources "{next(iter(resources or ()))}=1"`, or leave '
                "--resources out"
            )
        calls = {address: client.submit(function, workers=[address], pure=False) for address in able}
        died = False
        while pending := {address for address, call in calls.items() if call.status == "pending"}:
            time.sleep(_POLL_SECONDS)
            # Dask would keep the call for a worker of that address until there is one again.
            for address in pending.difference(client.nthreads()):
                died = True
                client.cancel([calls.pop(address)])
        errors = [call.exception() for call in calls.values() if call.status == "error"]
        if any(call.status not in {"finished", "error"} for call in calls.values()):
            raise WsiAtsError(_LOST)
        foreseen = [error for error in errors if not isinstance(error, KilledWorker)]
        return foreseen, died or len(foreseen) < len(errors)


def _wait_for_workers(client: Client, seconds: float) -> None:
    with _scheduler_there():
        try:
            client.wait_for_workers(1, timeout=seconds)
        except TimeoutError as error:
            raise WsiAtsError(_no_workers(seconds, None)) from error


@contextmanager
def _scheduler_there() -> Iterator[None]:
    """Translate what Dask says when its scheduler is gone."""
    try:
        yield
    except (OSError, ClosedClientError, CancelledError) as error:
        raise WsiAtsError(_LOST) from error


def _threads(client: Client, resources: Mapping[str, float] | None) -> dict[str, int]:
    """Threads of each worker that offers the resources, by address."""
    if not resources:
        return dict(client.nthreads())
    return {
        address: worker["nthreads"]
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
        if all(worker["resources"].get(name, 0) >= share for name, share in resources.items())
    }


def _words(resources: Mapping[str, float] | None) -> str:
    return " ".join(f"{name}={share:g}" for name, share in (resources or {}).items())


def _no_workers(seconds: float, resources: Mapping[str, float] | None) -> str:
    which = f" that offer {_words(resources)}" if resources else ""
    return (
        f"there have been no Dask workers{which} for {seconds:g} s; start some, and the same command goes on "
        "where this one stopped (--wait allows more time)"
    )


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
    marks
        Whether the scheduler is asked to keep marks of what was begun, which costs some milliseconds a slide.

    Attributes
    ----------
    late
        Keys of the tasks that did.
    stuck
        Threads that will not come back, in workers that cannot be stopped.
    """

    def __init__(self, client: Client, limits: Limits, topic: str | None, *, marks: bool) -> None:
        self.client, self.limits, self.topic, self.marks = client, limits, topic, marks
        self.late: set[str] = set()
        self.stuck = 0
        self.running: dict[str, Future[Any]] = {}

    @classmethod
    @contextmanager
    def of(cls, client: Client, limits: Limits) -> Iterator[_Clock]:
        topic = None if limits.timeout is None else f"wsi-ats-{uuid.uuid4()}"
        with _scheduler_there():
            clock = cls(client, limits, topic, marks=tries_again(client))
        if topic is not None:
            client.subscribe_topic(topic, clock.note)
        try:
            yield clock
        finally:
            if topic is not None and client.status == "running":
                client.unsubscribe_topic(topic)

    async def note(self, event: tuple[float, tuple[str, bool]]) -> None:
        """Cancel a slide that took too long: its worker is about to die, and no other is to try it."""
        _, (key, dies) = event
        self.late.add(key)
        self.stuck += not dies
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
    watch = _Watch(limits.timeout, clock.topic, _this_process(), clock.marks)
    waiting = iter(refs)
    running: dict[str, tuple[Future[Outcome[Result] | None], SlideRef]] = {}
    marked: dict[str, Future[Outcome[Result] | None]] = {}
    ended: SimpleQueue[str] = SimpleQueue()
    threads, asked, seen = 0, -math.inf, time.monotonic()

    def ask() -> None:
        nonlocal threads, asked, seen
        now = time.monotonic()
        if now - asked > _ASK_SECONDS:
            threads, asked = sum(_threads(client, limits.resources).values()) - clock.stuck, now
            seen = now if threads > 0 else seen
            if now - seen > limits.wait:
                raise WsiAtsError(_no_workers(limits.wait, limits.resources))

    def tell(future: Future[Any]) -> None:
        future.add_done_callback(lambda done: ended.put(str(done.key)))

    def fill() -> None:
        ask()
        room = max(_TASKS_PER_THREAD * threads, _LEAST_TASKS if threads else 0) - len(running)
        for ref in islice(waiting, 0 if limits.stop() else max(room, 0 if running else 1)):
            resources = dict(limits.resources) if limits.resources else None
            future = client.submit(_attempt, function, ref, watch, pure=False, resources=resources)
            running[str(future.key)] = future, ref
            clock.running[str(future.key)] = future
            tell(future)

    def next_ended() -> list[str]:
        try:
            keys = {ended.get(timeout=_ASK_SECONDS)}
            while not ended.empty():
                keys.add(ended.get())
            return list(keys)
        except Empty:  # a task whose scheduler is lost ends without calling back
            ask()
            return [key for key, (future, _) in running.items() if future.status != "pending"]

    try:
        with _scheduler_there():
            fill()
        while running:
            with _scheduler_there():
                keys = [key for key in next_ended() if key in running]
                fetched = _fetched(client, [running[key][0] for key in keys])
            for key in keys:
                future, ref = running[key]
                with _scheduler_there():
                    brought = fetched[key] if key in fetched else _brought(future)
                    if not brought and future.status in {"pending", "lost", "finished"}:
                        tell(future)
                        continue
                    del running[key], clock.running[key]
                    if watch.marks and not (brought and brought[0]):
                        marked[key] = future
                error = future.exception() if future.status == "error" else None
                if brought and brought[0] is not None:
                    yield brought[0]
                elif key in clock.late:
                    yield clock.failed(ref)
                elif brought or isinstance(error, KilledWorker):
                    suspects.append(ref)
                elif error is None:
                    raise WsiAtsError(_LOST)
                else:
                    yield _unforeseen(ref, future, error)
            with _scheduler_there():
                fill()
        with _scheduler_there():
            # Not before all have ended: what a worker says of a slide that it did not begin may be lost with
            # it, and is then asked of another, which must see the mark.
            client.cancel(list(marked.values()))
            for key in marked:
                Event(_mark(key), client).clear()
    finally:
        if client.status == "running":
            client.cancel([future for future, _ in running.values()])
        for key in running:
            clock.running.pop(key, None)


def _fetched(client: Client, futures: Sequence[Future[Any]]) -> dict[str, list[Any]]:
    """Results of tasks by key, in one request; of those that need another look, nothing is said."""
    if any(future.status != "finished" for future in futures):
        return {}
    try:
        results = sync(
            cast(Any, client.loop),
            client.gather,
            list(futures),
            asynchronous=True,
            callback_timeout=_FETCH_SECONDS,
        )
    except (TimeoutError, KilledWorker, CancelledError):
        return {}
    return {str(future.key): [result] for future, result in zip(futures, results, strict=True)}


def _brought(future: Future[Result]) -> list[Result]:
    """The result of a task that is finished; none of others, nor where it died with its worker."""
    if future.status != "finished":
        return []
    try:
        return [future.result(timeout=_FETCH_SECONDS)]
    except (TimeoutError, KilledWorker, CancelledError):
        return []  # its state says more by now


@dataclass(frozen=True, slots=True)
class _Watch:
    """What a worker has to know of a slide's time.

    Parameters
    ----------
    timeout
        See :class:`Limits`.
    topic
        See :class:`_Clock`.
    client
        The process that waits for the results.
    marks
        Whether tasks are to be marked as begun: where the scheduler would try them again.
    """

    timeout: float | None
    topic: str | None
    client: str
    marks: bool


def _this_process() -> str:
    return f"{platform.node()} {os.getpid()}"


def _attempt(function: Callable[[SlideRef], Result], ref: SlideRef, watch: _Watch) -> Outcome[Result] | None:
    """What a worker does: errors raised on purpose become the slide's outcome there and then.

    ``None`` says that a worker has begun it before, and died.
    """
    begin = time.perf_counter()
    worker = get_worker()
    where = f"{worker.ip} {os.getpid()}"
    with _marked(worker) if watch.marks else nullcontext(False) as before:
        if before:
            return None
        try:
            with _watched(worker, watch):
                result = function(ref)
        except WsiAtsError as error:
            trace = "".join(traceback.format_exception(error))
            seconds = time.perf_counter() - begin
            return Outcome(ref, error=str(error), trace=trace, seconds=seconds, worker=where)
        return Outcome(ref, result, seconds=time.perf_counter() - begin, worker=where)


def _mark(key: str) -> str:
    return f"{key} was begun"


@contextmanager
def _marked(worker: Worker) -> Iterator[bool]:
    """Mark a task as begun; tells whether it was before.

    A scheduler gives the tasks of a dead worker to the next, by default three times. Only it outlives the
    workers, so it keeps the mark.
    """
    name = _mark(str(worker.get_current_task()))
    before: bool = sync(worker.loop, worker.scheduler.event_is_set, name=name)
    if before:
        yield True
        return
    sync(worker.loop, worker.scheduler.event_set, name=name)
    try:
        yield False
    finally:
        sync(worker.loop, worker.scheduler.event_clear, name=name)


@contextmanager
def _watched(worker: Worker, watch: _Watch) -> Iterator[None]:
    """Stop this process when the context lasts too long: a thread that hangs is stopped in no other way."""
    timeout, topic = watch.timeout, watch.topic
    if timeout is None or topic is None:
        yield
        return
    dies = _this_process() != watch.client  # whose user's own process is not ours to stop

    def give_up(key: str) -> None:
        if dies:  # it is given nothing more, or that would die with it
            worker.loop.add_callback(setattr, worker, "status", Status.closing_gracefully)
        worker.log_event(topic, (key, dies))
        time.sleep(_TELL_SECONDS)
        if dies:
            os._exit(1)

    timer = Timer(timeout, give_up, [str(worker.get_current_task())])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _unforeseen(ref: SlideRef, future: Future[Any], error: BaseException) -> Outcome[Any]:
    """Outcome of a task that ended in an error nobody raised on purpose."""
    trace = "".join(traceback.format_exception(type(error), error, future.traceback()))
    text = f"{ref.path}: {type(error).__name__}: {error}"
    return Outcome(ref, error=" ".join(text.split()), trace=trace)
