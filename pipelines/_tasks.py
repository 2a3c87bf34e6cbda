"""One Dask task for each slide: submit it, follow it, and fetch its result.

A function, a reference to a slide, settings and paths are sent to a worker; a small record comes back.
Pixels are never sent: moving them costs as much as reading them again. :mod:`pipelines._attempts` decides
what to do.
"""

from __future__ import annotations

import math
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

from distributed import CancelledError, Client, Future, KilledWorker
from distributed.utils import sync

from pipelines._attempts import Action, Attempts, Cancel, End, Ending, GiveUp, Report, Submit, Verdict
from pipelines._cluster import tries_again
from pipelines._runs import check_seconds
from pipelines._work import Outcome, Terms, attempt, remove_mark, this_process
from pipelines._workers import LOST, check_connected, no_workers, scheduler_there, threads
from wsi_ats.errors import WsiAtsError
from wsi_ats.slides.base import SlideRef

Result = TypeVar("Result")

# Clusters grow and shrink, but not so fast that every slide has to ask for their size.
_ASK_SECONDS = 1.0

# A record is small. If it takes longer, its state is checked again: its worker may have died.
_FETCH_SECONDS = 10.0

_DIED = (
    "the process that worked on it died, and died again when it was tried alone, most likely because memory "
    "ran out or the file is damaged"
)


@dataclass(frozen=True)
class Limits:
    """Limits of a slide, and of waiting for a cluster.

    Parameters
    ----------
    timeout
        Seconds after which a slide is stopped, with its worker, which its nanny then restarts.
    resources
        Share of its worker's abstract resources that each slide takes.
    wait
        Seconds to wait for workers when all of them are gone.
    stop
        Once it returns true, no further slide is begun.
    """

    timeout: float | None = None
    resources: Mapping[str, float] | None = None
    wait: float = 60.0
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        for name, value in (("--timeout", self.timeout), ("--wait", self.wait)):
            check_seconds(name, value)


def for_each_slide(
    function: Callable[[SlideRef], Result],
    refs: Iterable[SlideRef],
    client: Client,
    *,
    on_result: Callable[[Outcome[Result]], None],
    strict: bool = False,
    limits: Limits | None = None,
) -> None:
    """Call a function for each slide on a cluster; a slide that fails does not affect the others.

    Errors of this library and unexpected ones both become the outcome of the slide. So does the death of a
    worker: every slide that was on it is tried again alone, and a slide whose worker dies again is to blame,
    however often the scheduler would have tried it. A slide that takes too long is not tried again.

    Only a few slides for each of the cluster's threads are submitted at a time.

    Parameters
    ----------
    function
        The function, which workers must be able to import; settings may be in a dataclass with
        ``__call__``, or in a ``functools.partial``.
    refs
        The slides.
    client
        The cluster.
    on_result
        Called in this process for each slide, in the order in which they end.
    strict
        Stop at the first failure.
    limits
        No limits by default.

    Raises
    ------
    WsiAtsError
        When the scheduler or all workers are lost; no slide has failed then.
    """
    limits = limits or Limits()
    check_connected(client)
    topic = f"wsi-ats-{uuid.uuid4()}"
    with scheduler_there():
        terms = Terms(limits.timeout, topic, this_process(), tries_again(client))
    attempts = Attempts(wait=limits.wait, now=time.monotonic(), strict=strict)
    tasks = _Tasks(function, iter(refs), client, on_result, limits, terms, attempts)
    if limits.timeout is not None:
        client.subscribe_topic(topic, tasks.note_late)
    try:
        tasks.run()
    finally:
        if client.status == "running":
            if limits.timeout is not None:
                client.unsubscribe_topic(topic)
            client.cancel([each.future for each in tasks.running.values()])


@dataclass(frozen=True)
class _Task(Generic[Result]):
    """A running attempt at a slide."""

    slide: int
    future: Future[Outcome[Result] | None]


@dataclass(frozen=True)
class _Late:
    """The event that a task took too long."""

    key: str
    worker_dies: bool


@dataclass
class _Tasks(Generic[Result]):
    """The tasks of a run: report events to :class:`~pipelines._attempts.Attempts`, and carry out its actions.

    Parameters
    ----------
    function, refs, client, on_result, limits
        See :func:`for_each_slide`.
    terms
        Facts that workers need to know.
    attempts
        The state machine that decides.

    Attributes
    ----------
    running
        Running tasks, by key.
    """

    function: Callable[[SlideRef], Result]
    refs: Iterator[SlideRef]
    client: Client
    on_result: Callable[[Outcome[Result]], None]
    limits: Limits
    terms: Terms
    attempts: Attempts

    def __post_init__(self) -> None:
        self.running: dict[str, _Task[Result]] = {}
        self._slides: list[SlideRef] = []
        self._keys: dict[str, int] = {}
        self._marked: list[Future[Outcome[Result] | None]] = []
        self._outcomes: dict[int, Outcome[Result]] = {}
        self._events: SimpleQueue[str | _Late] = SimpleQueue()
        self._asked = -math.inf
        self._over = False

    def note_late(self, event: tuple[float, tuple[str, bool]]) -> None:
        """Receive, in Dask's thread, a worker's report that a task took too long."""
        self._events.put(_Late(*event[1]))

    def run(self) -> None:
        """Run until all slides have ended, or until the run is stopped."""
        while not self._over:
            self._ask()
            self._offer()
            if not self._over:
                self._handle(self._next_events())
        with scheduler_there():
            # Only after all have ended: if a worker refuses a slide and dies before it can report that,
            # another worker is asked, and must see the mark.
            self.client.cancel(self._marked)
            for future in self._marked:
                remove_mark(str(future.key), self.client)

    def _ask(self) -> None:
        """Count the threads of the cluster, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._asked > _ASK_SECONDS:
            self._asked = now
            with scheduler_there():
                there = sum(threads(self.client, self.limits.resources).values())
            self._obey(self.attempts.workers(there, now))

    def _offer(self) -> None:
        if self.limits.stop():
            self._obey(self.attempts.stop())
        if room := self.attempts.room:
            refs = list(islice(self.refs, room))
            self._slides += refs
            self._obey(self.attempts.offer(len(refs), last=len(refs) < room))

    def _next_events(self) -> list[str | _Late]:
        try:
            events = [self._events.get(timeout=_ASK_SECONDS)]
            while not self._events.empty():
                events.append(self._events.get())
        except Empty:  # a task whose scheduler is lost ends without a callback
            return [key for key, task in self.running.items() if task.future.status != "pending"]
        return events

    def _handle(self, events: Sequence[str | _Late]) -> None:
        ended = {each for each in events if isinstance(each, str) and each in self.running}
        with scheduler_there():
            fetched = _fetched(self.client, [self.running[key].future for key in ended])
        for event in dict.fromkeys(events):
            if self._over:
                return
            if isinstance(event, _Late):
                if event.key in self._keys:
                    slide, dies = self._keys[event.key], event.worker_dies
                    self._obey(self.attempts.timed_out(slide, worker_dies=dies))
            elif event in self.running:
                self._end(event, fetched)

    def _end(self, key: str, fetched: Mapping[str, Outcome[Result] | None]) -> None:
        """Report the end of a task, if it has ended."""
        task = self.running[key]
        status = task.future.status
        if key not in fetched and status in {"pending", "lost", "finished"}:
            self._call_back(task.future)
            return
        del self.running[key]
        outcome = fetched.get(key)
        if self.terms.marks and outcome is None:
            self._marked.append(task.future)
        error = task.future.exception() if status == "error" else None
        if outcome is None and error is not None and not isinstance(error, KilledWorker):
            outcome = _unforeseen(self._slides[task.slide], task.future, error)
        if outcome is not None:
            self._outcomes[task.slide] = outcome
            ending = Ending.DONE if outcome.error is None else Ending.FAILED
        else:
            ending = Ending.DIED if key in fetched or error is not None else Ending.LOST
        self._obey(self.attempts.ended(task.slide, ending))

    def _obey(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Submit(slide):
                    self._submit(slide)
                case Cancel(slide):
                    with scheduler_there():
                        futures = [each.future for each in self.running.values() if each.slide == slide]
                        self.client.cancel(futures)
                case Report(slide, verdict):
                    self.on_result(self._outcome(slide, verdict))
                case GiveUp.NO_WORKERS:
                    raise no_workers(self.limits.wait, self.limits.resources)
                case GiveUp.NO_SCHEDULER:
                    raise WsiAtsError(LOST)
                case End():
                    self._over = True

    def _submit(self, slide: int) -> None:
        ref = self._slides[slide]
        resources = dict(self.limits.resources) if self.limits.resources else None
        with scheduler_there():
            future = self.client.submit(
                attempt, self.function, ref, self.terms, pure=False, resources=resources
            )
        self._keys[str(future.key)] = slide
        self.running[str(future.key)] = _Task(slide, future)
        self._call_back(future)

    def _call_back(self, future: Future[Any]) -> None:
        future.add_done_callback(lambda done: self._events.put(str(done.key)))

    def _outcome(self, slide: int, verdict: Verdict) -> Outcome[Result]:
        ref = self._slides[slide]
        if verdict is Verdict.AS_RETURNED:
            return self._outcomes.pop(slide)
        if verdict is Verdict.DEADLY:
            return Outcome(ref, error=f"{ref.path}: {_DIED}")
        seconds = self.limits.timeout or 0.0
        text = (
            f"{ref.path}: it took longer than {seconds:g} s and was stopped; allow more time with --timeout"
        )
        return Outcome(ref, error=text, seconds=seconds)


def _fetched(client: Client, futures: Sequence[Future[Result]]) -> dict[str, Result]:
    """Fetch results by key, in one request if possible; leave out those that must be checked again."""
    futures = [each for each in futures if each.status == "finished"]
    if not futures:
        return {}
    gather = {"asynchronous": True, "callback_timeout": _FETCH_SECONDS}
    try:
        results = sync(cast(Any, client.loop), client.gather, futures, **gather)
    except (TimeoutError, KilledWorker, CancelledError):  # the state of each future tells more by now
        alone = [_fetched(client, [each]) for each in futures] if len(futures) > 1 else []
        return {key: result for each in alone for key, result in each.items()}
    return {str(future.key): result for future, result in zip(futures, results, strict=True)}


def _unforeseen(ref: SlideRef, future: Future[Any], error: BaseException) -> Outcome[Any]:
    """Return the outcome of a task that ended in an unexpected error."""
    trace = "".join(traceback.format_exception(type(error), error, future.traceback()))
    text = f"{ref.path}: {type(error).__name__}: {error}"
    return Outcome(ref, error=" ".join(text.split()), trace=trace)
