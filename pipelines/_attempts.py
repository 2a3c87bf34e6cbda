"""Decide when each slide is tried, and which slide caused the death of a worker.

This module uses no Dask, clock or thread: events go in, actions come out. :mod:`pipelines._tasks` reports
what happens on the cluster and carries out the actions.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

# Enough that no worker waits for the client, and few enough that a run stops soon.
_SLIDES_PER_THREAD = 2
_LEAST_SLIDES = 8


class Ending(Enum):
    """The end of an attempt."""

    DONE = auto()
    FAILED = auto()
    DIED = auto()  # its worker died
    LOST = auto()  # for an unknown reason


class Verdict(Enum):
    """The outcome of a slide."""

    AS_RETURNED = auto()  # its result, or the error that it raised
    TIMED_OUT = auto()
    DEADLY = auto()  # its worker died, and died again while no other slide was running


@dataclass(frozen=True)
class Submit:
    """Submit a slide to the cluster."""

    slide: int


@dataclass(frozen=True)
class Cancel:
    """Cancel a slide on the cluster; the end of its attempt still follows."""

    slide: int


@dataclass(frozen=True)
class Report:
    """Report the outcome of a slide."""

    slide: int
    verdict: Verdict


class GiveUp(Enum):
    """End the run with an error for which no slide is to blame."""

    NO_WORKERS = auto()
    NO_SCHEDULER = auto()


@dataclass(frozen=True)
class End:
    """Cancel whatever is still running; nothing is left to do."""


Action = Submit | Cancel | Report | GiveUp | End


class Attempts:
    """The state of a run over slides, which are numbered in the order in which they are offered.

    A slide whose worker died waits until all others have ended. Then it is tried alone, and it is to blame if
    its worker dies again. A slide that took too long is not tried again. Each method for an event returns the
    actions that follow from it, in order.

    Parameters
    ----------
    wait
        Seconds without workers after which the run gives up.
    now
        Current time in seconds.
    strict
        End at the first failure.

    Examples
    --------
    >>> attempts = Attempts(wait=60, now=0.0)
    >>> attempts.workers(threads=4, now=0.1), attempts.room
    ([], 8)
    >>> attempts.offer(1, last=True)
    [Submit(slide=0)]
    >>> attempts.ended(0, Ending.DIED)
    [Submit(slide=0)]
    >>> attempts.ended(0, Ending.DIED)
    [Report(slide=0, verdict=<Verdict.DEADLY: 3>), End()]
    """

    def __init__(self, *, wait: float, now: float, strict: bool = False) -> None:
        self._wait, self._strict = wait, strict
        self._running: set[int] = set()
        self._suspects: deque[int] = deque()
        self._alone = False
        self._late: set[int] = set()
        self._offered = 0
        self._all_offered = self._stopping = self._over = False
        self._threads = self._stuck = 0
        self._workers_seen = now

    @property
    def room(self) -> int:
        """Number of slides that may be offered now."""
        if self._all_offered or self._over:
            return 0
        threads = self._threads - self._stuck
        most = max(_SLIDES_PER_THREAD * threads, _LEAST_SLIDES) if threads > 0 else 0
        # At least one: some clusters start workers only when there is work.
        return max(0, max(most, 1) - len(self._running))

    def offer(self, count: int, *, last: bool) -> list[Action]:
        """Offer more slides, at most as many as there is room for; ``last`` means that none will follow."""
        if count > self.room:
            raise ValueError(f"{count} slides were offered, but there is room for {self.room}")
        slides = range(self._offered, self._offered + count)
        self._offered += count
        self._running.update(slides)
        self._all_offered |= last
        return [*map(Submit, slides), *self._next()]

    def stop(self) -> list[Action]:
        """Begin no further attempt; those that are running may end."""
        self._all_offered = self._stopping = True
        self._suspects.clear()
        return self._next()

    def workers(self, threads: int, now: float) -> list[Action]:
        """Record the number of the workers' threads that suit the slides, at a time in seconds."""
        self._threads = threads
        if threads > self._stuck:
            self._workers_seen = now
        if now - self._workers_seen <= self._wait:
            return []
        self._over = True
        return [GiveUp.NO_WORKERS]

    def timed_out(self, slide: int, *, worker_dies: bool) -> list[Action]:
        """Handle a slide that took too long; its worker dies, or else loses a thread for good."""
        self._stuck += not worker_dies
        self._late.add(slide)
        if slide in self._suspects:  # the death of its worker was known before the reason
            self._suspects.remove(slide)
            return self._report(slide, Verdict.TIMED_OUT)
        return [Cancel(slide)] if slide in self._running else []

    def ended(self, slide: int, ending: Ending) -> list[Action]:
        """Handle the end of an attempt."""
        self._running.remove(slide)
        alone, self._alone = self._alone, False
        late = slide in self._late
        if ending in {Ending.DONE, Ending.FAILED}:  # its own answer, even if late
            return self._report(slide, Verdict.AS_RETURNED, failed=ending is Ending.FAILED)
        if late:
            return self._report(slide, Verdict.TIMED_OUT)
        if ending is Ending.LOST:
            self._over = True
            return [GiveUp.NO_SCHEDULER]
        if alone:
            return self._report(slide, Verdict.DEADLY)
        if not self._stopping:
            self._suspects.append(slide)
        return self._next()

    def _report(self, slide: int, verdict: Verdict, *, failed: bool = True) -> list[Action]:
        report = Report(slide, verdict)
        if failed and self._strict:
            self._over = True
            return [report, End()]
        return [report, *self._next()]

    def _next(self) -> list[Action]:
        """Try a suspect, or end, once nothing is running and no other slide will come."""
        if self._running or not self._all_offered or self._over:
            return []
        if self._suspects:
            slide = self._suspects.popleft()
            self._running.add(slide)
            self._alone = True
            return [Submit(slide)]
        self._over = True
        return [End()]
