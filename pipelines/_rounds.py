"""Slides that arrive, done round by round: one cluster, one loaded model, and rows that stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from pipelines._records import Results, Row, SlideTask, carry_out, figures, pending, settled, workers_for
from pipelines._reports import Finished
from pipelines._runs import Execution
from pipelines._watch import Arrivals
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef

# A round ends in workers that wait for its last slide. This is long beside that, and short for whoever waits
# for tables, or for a slide that arrived after a thousand others.
_ROUND_SECONDS = 600.0


def complete_arrivals(
    task: SlideTask,
    arrivals: Arrivals,
    settings: Settings,
    execution: Execution,
    *,
    title: str,
    keep: Callable[[Sequence[Row]], None],
) -> Results:
    """Do slides as they are completed, until ``execution.stop`` says so or, if strict, one fails.

    Records of earlier slides are read at the start, also of those that are not there any more: scanners'
    folders are emptied, and their rows stay.

    Parameters
    ----------
    task, execution, title
        As in :func:`pipelines._records.complete`.
    arrivals
        What to wait for.
    settings
        Say in which colours slides are read.
    keep
        Given all rows, sorted by slide, after each round.

    Returns
    -------
    Results
        ``left`` is the number of slides that are there and were not done.
    """
    from pipelines._stage import check_connected

    task.clear()
    report = execution.reporter
    watch = arrivals.watch(report.message)
    watch.look()
    here = settled(watch.present, settings)
    rows, _ = pending(task, here)
    watch.take(rows)
    rows |= task.kept(task.recorded() - {ref.id for ref in here})
    reused = len(rows)
    if reused:
        report.message(f"{title}: {_slides(reused)} finished already")
        keep(_in_order(rows))
    failed: dict[str, str] = {}
    queued: set[str] = set()
    all_done: list[Finished] = []
    seconds = 0.0
    idle = False
    ending = _Ending(execution, title)
    with workers_for(task, execution) as (client, limits):
        while not ending.asked() and not (execution.strict and failed):
            check_connected(client)
            todo = settled(watch.look(), settings)
            if not todo:
                if not idle:
                    report.message(f"{title}: waiting for slides; Ctrl-C or SIGTERM ends it")
                idle = True
                arrivals.pause(arrivals.every)
                continue
            idle = False
            names = {ref.id for ref in todo}
            if new := names - queued:
                report.message(f"{title}: {_slides(len(new))} arrived")
            for ref in todo:
                if watch.changed(ref):  # its main file alone need not tell
                    task.forget(ref)
            done: dict[str, Row] = {}
            lost: dict[str, str] = {}
            begun: list[SlideRef] = []
            workers = nullcontext((client, replace(limits, stop=ending.of_round(begun, done))))
            first = execution.timer()
            all_done += carry_out(
                task,
                todo,
                workers,
                execution,
                title=title,
                rows=done,
                failed=lost,
                reused=reused,
                begin=partial(_begin, begun, _over(arrivals.clock)),
            )
            seconds += execution.timer() - first
            # Workers that were told to end, too, may have finished slides and not lived to say so.
            done |= pending(task, [ref for ref in begun if ref.id not in done])[0]
            watch.take(done, failed=lost)
            queued = names - done.keys()
            rows |= done
            failed = {name: error for name, error in failed.items() if name not in done} | lost
            keep(_in_order(rows))
    notes = figures(all_done, seconds)  # of the time that there was something to do
    return Results(
        _in_order(rows),
        dict(sorted(failed.items())),
        reused,
        stopped=False,
        notes=notes,
        left=len(watch.waiting),
    )


class _Ending:
    """Asks whether the watch is to end, or a round, and says so once."""

    def __init__(self, execution: Execution, title: str) -> None:
        self._execution = execution
        self._title = title
        self._said = False

    def asked(self, under_way: int = 0) -> bool:
        """Whether the watch is to end; some slides are under way."""
        asked = self._execution.stop()
        if asked and not self._said:
            first = f": {_slides(under_way)} to finish first; once more ends at once" if under_way else ""
            self._execution.reporter.message(f"{self._title}: stopping{first}")
            self._said = True
        return asked

    def of_round(self, begun: Sequence[SlideRef], done: Mapping[str, Row]) -> Callable[[], bool]:
        """Whether a round is to begin no more slides, for the watch is to end."""
        return lambda: self.asked(len(begun) - len(done))


def _begin(begun: list[SlideRef], over: Callable[[], bool], ref: SlideRef) -> bool:
    """Note a slide as begun, unless it is to wait for the next round."""
    if over():
        return False
    begun.append(ref)
    return True


def _over(clock: Callable[[], float]) -> Callable[[], bool]:
    """Whether the time to hand out slides is over, which begins with the first question.

    It does not end the round: slides that were on a worker that died are still tried alone, or one that
    kills its worker would do so in each round of a long queue.
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
