"""Work on slides that arrive, round by round: one cluster, one loaded model, rows that stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines._carry_out import Results, carry_out, totals, workers_for
from pipelines._records import Row, SlideTask, pending
from pipelines._reports import Finished
from pipelines._runs import Execution
from pipelines._watch import Arrivals
from wsi_ats.slides.base import SlideRef

if TYPE_CHECKING:  # Dask takes a while to import
    from pipelines._tasks import Limits

# At the end of a round, workers wait for its last slide. A round is long compared with this wait, and short
# for a user who waits for the tables, or for a slide that arrived after a thousand others.
_ROUND_SECONDS = 600.0


def complete_arrivals(
    task: SlideTask,
    arrivals: Arrivals,
    execution: Execution,
    *,
    refer: Callable[[Sequence[SlideRef]], list[SlideRef]],
) -> Results:
    """Work on slides as they are completed, until ``execution.stop`` returns true or, if strict, one fails.

    Records of earlier slides are read at the start, also of those that no longer exist: folders of scanners
    are emptied, but the rows stay. The tables are written after each round.

    Parameters
    ----------
    task, execution
        See :func:`pipelines._carry_out.complete`.
    arrivals
        The slides to wait for.
    refer
        See :func:`pipelines._stage.run_stage`.

    Returns
    -------
    Results
        ``left`` is the number of slides that are present and were not done.
    """
    from pipelines._workers import check_connected

    rounds = _Rounds(task, arrivals, execution, refer)
    with workers_for(task, execution) as (client, limits):
        while not rounds.over:
            check_connected(client)
            if todo := refer(rounds.watch.check()):
                rounds.do(todo, client, limits)
            else:
                rounds.wait()
    return rounds.results()


class _Rounds:
    """The state of a watch from one round to the next.

    Parameters
    ----------
    task, arrivals, execution, refer
        See :func:`complete_arrivals`.

    Attributes
    ----------
    watch
        Lists the slides of the next round.
    """

    def __init__(
        self,
        task: SlideTask,
        arrivals: Arrivals,
        execution: Execution,
        refer: Callable[[Sequence[SlideRef]], list[SlideRef]],
    ) -> None:
        self._task, self._arrivals, self._execution = task, arrivals, execution
        self.watch = arrivals.watch(execution.reporter.message)
        self._failed: dict[str, str] = {}
        self._queued: set[str] = set()
        self._done: list[Finished] = []
        self._seconds = 0.0
        self._idle = self._stopping = False
        task.clear()
        self.watch.check()
        here = refer(self.watch.present)
        self._rows, _ = pending(task, here)
        self.watch.take(self._rows)
        self._rows |= task.kept(task.recorded() - {ref.id for ref in here})
        self._reused = len(self._rows)
        if self._reused:
            self._message(f"{_slides(self._reused)} finished already")
            task.write_tables(_in_order(self._rows))

    @property
    def over(self) -> bool:
        """Return whether no further round is to begin."""
        return self._stop_asked() or bool(self._execution.strict and self._failed)

    def wait(self) -> None:
        """Pause until the next check for slides."""
        if not self._idle:
            self._message("waiting for slides; stop with Ctrl-C or SIGTERM")
        self._idle = True
        self._arrivals.pause(self._arrivals.every)

    def do(self, todo: Sequence[SlideRef], client: Any, limits: Limits) -> None:
        """Work on as many slides as a round has time for, and write the tables."""
        self._idle = False
        names = {ref.id for ref in todo}
        if new := names - self._queued:
            self._message(f"{_slides(len(new))} arrived")
        for ref in todo:
            if self.watch.changed(ref):  # its main file alone may be unchanged
                self._task.forget(ref)
        done: dict[str, Row] = {}
        failed: dict[str, str] = {}
        begun: list[SlideRef] = []
        stop = partial(self._stop_asked, begun, done)
        first = self._execution.timer()
        self._done += carry_out(
            self._task,
            todo,
            nullcontext((client, replace(limits, stop=stop))),
            self._execution,
            rows=done,
            failed=failed,
            reused=self._reused,
            begin=partial(_begin, begun, _over(self._arrivals.clock)),
        )
        self._seconds += self._execution.timer() - first
        # Workers that were stopped may have finished slides without reporting them.
        done |= pending(self._task, [ref for ref in begun if ref.id not in done])[0]
        self.watch.take(done, failed=failed)
        self._queued = names - done.keys()
        self._rows |= done
        self._failed = {name: error for name, error in self._failed.items() if name not in done} | failed
        self._task.write_tables(_in_order(self._rows))

    def results(self) -> Results:
        """Return all rows; times exclude waiting for slides."""
        return Results(
            _in_order(self._rows),
            dict(sorted(self._failed.items())),
            self._reused,
            stopped=False,
            notes=totals(self._done, self._seconds),
            left=len(self.watch.waiting),
        )

    def _stop_asked(self, begun: Sequence[SlideRef] = (), done: Collection[str] = ()) -> bool:
        """Return whether the watch is to end; report it once, with the number of slides under way."""
        asked = self._execution.stop()
        if asked and not self._stopping:
            under_way = len(begun) - len(done)
            first = f": {_slides(under_way)} to finish first; stop again to end at once" if under_way else ""
            self._message(f"stopping{first}")
            self._stopping = True
        return asked

    def _message(self, text: str) -> None:
        self._execution.reporter.message(f"{self._task.stage}: {text}")


def _begin(begun: list[SlideRef], over: Callable[[], bool], ref: SlideRef) -> bool:
    """Record a slide as begun, unless it has to wait for the next round."""
    if over():
        return False
    begun.append(ref)
    return True


def _over(clock: Callable[[], float]) -> Callable[[], bool]:
    """Return a function that says whether the time to submit slides is over; it starts with the first call.

    The round goes on: slides of a worker that died are still tried alone. Otherwise a slide that kills its
    worker would do so in each round of a long queue.
    """
    first: float | None = None

    def over() -> bool:
        nonlocal first
        now = clock()
        first = now if first is None else first
        return now - first > _ROUND_SECONDS

    return over


def _slides(number: int) -> str:
    return f"{number} slide" if number == 1 else f"{number} slides"


def _in_order(rows: Mapping[str, Row]) -> list[Row]:
    return [rows[name] for name in sorted(rows)]
