"""The work on one slide on a worker: its outcome, the mark that it was begun, and its time limit."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from threading import Timer
from typing import Generic, TypeVar

from distributed import Client, Event, Status, Worker, get_worker
from distributed.utils import sync

from wsi_ats.errors import WsiAtsError
from wsi_ats.slides.base import SlideRef

Result = TypeVar("Result")

# A worker that is about to stop tells its scheduler why. A lost scheduler never answers.
_ANSWER_SECONDS = 60.0

# Other slides on the worker may end in this time; those that do not are tried again.
_GRACE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Result]):
    """The end of the work on one slide.

    Parameters
    ----------
    ref
        The slide.
    result
        Value that the function returned; ``None`` after a failure.
    error
        Reason of the failure.
    trace
        Traceback of the failure, for ``--debug``.
    seconds
        Wall time in the worker.
    worker
        Address of the worker's host and number of its process; empty if unknown.
    """

    ref: SlideRef
    result: Result | None = None
    error: str | None = None
    trace: str = ""
    seconds: float = 0.0
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """Facts that a worker needs to know besides the slide.

    Parameters
    ----------
    timeout
        Seconds after which a slide is stopped.
    topic
        Dask's topic under which workers name the slides that took too long.
    client
        The process that waits for the results.
    marks
        Whether a slide is marked as begun, which takes some milliseconds. It is needed if the scheduler gives
        the tasks of a dead worker to others, by default three times.
    """

    timeout: float | None
    topic: str
    client: str
    marks: bool


def this_process() -> str:
    """Name this host and process."""
    return f"{platform.node()} {os.getpid()}"


def attempt(function: Callable[[SlideRef], Result], ref: SlideRef, terms: Terms) -> Outcome[Result] | None:
    """Call a function for a slide on this worker.

    Returns
    -------
    Outcome or None
        The outcome, also for errors of this library; ``None`` if another worker began the same attempt and
        died.
    """
    begin = time.perf_counter()
    worker = get_worker()
    where = f"{worker.ip} {os.getpid()}"
    with _marked(worker) if terms.marks else nullcontext(False) as before:
        if before:
            return None
        try:
            with _limited(worker, terms):
                result = function(ref)
        except WsiAtsError as error:
            trace = "".join(traceback.format_exception(error))
            seconds = time.perf_counter() - begin
            return Outcome(ref, error=str(error), trace=trace, seconds=seconds, worker=where)
        return Outcome(ref, result, seconds=time.perf_counter() - begin, worker=where)


def remove_mark(key: str, client: Client) -> None:
    """Remove the mark of an attempt, which a dead worker leaves with the scheduler."""
    Event(_mark(key), client).clear()


def _mark(key: str) -> str:
    return f"{key} was begun"


@contextmanager
def _marked(worker: Worker) -> Iterator[bool]:
    """Mark a task as begun, and yield whether it was marked before; the scheduler outlives the workers."""
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
def _limited(worker: Worker, terms: Terms) -> Iterator[None]:
    """Stop this process when the context lasts too long: nothing else stops a thread that hangs."""
    if terms.timeout is None:
        yield
        return
    dies = this_process() != terms.client  # never stop the user's own process

    def give_up(key: str) -> None:
        if dies:  # accept no further tasks, which would die with it
            worker.loop.add_callback(setattr, worker, "status", Status.closing_gracefully)
        # The scheduler passes it on before it learns that the worker is dead.
        with suppress(OSError, TimeoutError):
            message = {"topic": terms.topic, "msg": (key, dies)}
            sync(worker.loop, worker.scheduler.log_event, **message, callback_timeout=_ANSWER_SECONDS)
        if dies:
            time.sleep(_GRACE_SECONDS)
            os._exit(1)

    timer = Timer(terms.timeout, give_up, [str(worker.get_current_task())])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
