"""Carry out a stage on the slides that are left to do, on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines._records import Row, SlideTask, pending
from pipelines._reports import Finished
from pipelines._runs import Execution
from wsi_ats.errors import ManifestError, without_secrets
from wsi_ats.results.records import Status
from wsi_ats.slides.base import SlideRef

if TYPE_CHECKING:  # Dask takes a while to import, and a command that finds nothing to do needs none
    from pipelines._tasks import Limits
    from pipelines._work import Outcome

# Slides that a process works on at once unless the user sets a number. One is read while another is
# computed; a GPU computes fast enough for several. A process with several cores has a slide for each.
_AT_ONCE, _AT_ONCE_ON_GPU = 2, 4


@dataclass(frozen=True)
class Results:
    """The rows of a run.

    Parameters
    ----------
    rows
        Sorted by slide.
    failed
        Reasons why slides failed, by slide.
    reused
        Number of slides that an earlier run had finished.
    stopped
        Whether slides are missing because the run was stopped.
    notes
        Facts about this run, without the slides of an earlier one: ``seconds`` of wall time,
        ``slides_per_minute``, and, where they are counted, ``tiles_read`` and ``bytes_read`` of all slides
        together. Empty if nothing was done.
    left
        Number of slides that have arrived and were not done.
    """

    rows: Sequence[Row]
    failed: Mapping[str, str]
    reused: int
    stopped: bool
    notes: Mapping[str, Any] = field(default_factory=dict)
    left: int = 0

    def of(self, refs: Sequence[SlideRef]) -> Results:
        """Return the results of some of the slides."""
        names = {ref.id for ref in refs}
        rows = [row for row in self.rows if row["slide_id"] in names]
        failed = {name: why for name, why in self.failed.items() if name in names}
        return Results(rows, failed, len(rows) - len(failed), stopped=len(rows) < len(names))


def complete(task: SlideTask, refs: Sequence[SlideRef], execution: Execution) -> Results:
    """Work on the slides that are not finished yet.

    Parameters
    ----------
    task
        The stage.
    refs
        All slides of the run.
    execution
        Where and how it is carried out.

    Returns
    -------
    Results
        Rows sorted by slide; ``stopped`` if a failure ended the run early.

    Raises
    ------
    ManifestError
        When two slides have one id, and would write the same files.
    """
    _check_ids(refs)
    task.clear()
    rows, todo = pending(task, refs)
    reused, report = len(rows), execution.reporter
    if reused:
        report.message(f"{task.stage}: {reused} of {len(refs)} slides are finished already")
    others = task.recorded() - {ref.id for ref in refs}
    if others:
        report.message(
            f"{task.stage}: {len(others)} slides of an earlier command are not part of this one; they "
            "are left out of the tables, and their files stay"
        )
    failed: dict[str, str] = {}
    workers = workers_for(task, execution, tasks=len(refs), pending=len(todo))
    begin = execution.timer()
    done = carry_out(task, todo, workers, execution, rows=rows, failed=failed, reused=reused)
    notes = totals(done, execution.timer() - begin)
    in_order = [rows[name] for name in sorted(rows)]
    return Results(in_order, dict(sorted(failed.items())), reused, len(rows) < len(refs), notes)


def carry_out(
    task: SlideTask,
    todo: Sequence[SlideRef],
    workers: AbstractContextManager[tuple[Any, Limits]],
    execution: Execution,
    *,
    rows: dict[str, Row],
    failed: dict[str, str],
    reused: int = 0,
    begin: Callable[[SlideRef], bool] = lambda ref: True,  # noqa: ARG005
) -> list[Finished]:
    """Work on slides, and record the outcome of each as soon as it is known.

    Parameters
    ----------
    task, todo
        The stage, and the slides.
    workers
        See :func:`workers_for`; not entered when there is nothing to do.
    execution
        Where and how it is carried out.
    rows, failed
        Filled, by slide, with rows and with the reasons of failures.
    reused
        Number of slides that were done already, for the reporter.
    begin
        Called before a slide is submitted to the cluster; once it returns false, neither that slide nor a
        later one is submitted.

    Returns
    -------
    list of Finished
        The slides in the order in which they ended.
    """
    report = execution.reporter
    done: list[Finished] = []

    def handed() -> Iterator[SlideRef]:
        for ref in todo:
            if not begin(ref):
                return
            yield ref

    with report.slides(task.stage, len(todo), reused) as tell:

        def note(outcome: Outcome[Row]) -> None:
            row = outcome.result
            if row is None:
                error = without_secrets(outcome.error or "failed")
                failed[outcome.ref.id] = error
                row = task.failed(outcome.ref, error, outcome.seconds)
            rows[outcome.ref.id] = row
            done.append(_finished(row, outcome))
            tell(done[-1])
            report.debug(without_secrets(outcome.trace))

        if todo:
            from pipelines._tasks import for_each_slide

            with workers as (client, limits):
                for_each_slide(task, handed(), client, on_result=note, strict=execution.strict, limits=limits)
    return done


@contextmanager
def workers_for(
    task: SlideTask, execution: Execution, *, tasks: int | None = None, pending: int | None = None
) -> Iterator[tuple[Any, Limits]]:
    """Connect to the workers that suit a task, and start the task on each.

    Parameters
    ----------
    task, execution
        The stage, and how it is carried out.
    tasks, pending
        As in :func:`pipelines._cluster.connect`; unknown by default.

    Yields
    ------
    tuple
        The client and the limits of each slide.
    """
    from pipelines._cluster import connect, dashboard, visible_gpus
    from pipelines._tasks import Limits
    from pipelines._workers import on_each_worker

    local = execution.scheduler == "local"
    gpus = visible_gpus() if task.on_gpu and local else []
    cores = 1 if execution.workers else task.cores
    usual = _AT_ONCE_ON_GPU if gpus else max(_AT_ONCE, cores)
    at_once = execution.slides_at_once or task.at_once or usual
    resources = execution.resources or ({"GPU": 1 / at_once} if gpus else {})
    limits = Limits(execution.timeout, resources, execution.wait, execution.stop)
    with connect(
        execution.scheduler,
        workers=execution.workers,
        cores=cores,
        tasks=tasks,
        pending=pending,
        at_once=at_once,
        gpus=gpus,
        wait=execution.wait,
    ) as client:
        if client is not execution.scheduler:  # a caller who made the client knows its dashboard
            execution.reporter.message(dashboard(client))
        on_each_worker(task.start, client, resources=resources, wait=execution.wait)
        yield client, limits


def _check_ids(refs: Sequence[SlideRef]) -> None:
    """Refuse two slides with one id, which :func:`wsi_ats.tables.manifest.read_manifest` never returns."""
    first: dict[str, SlideRef] = {}
    for ref in refs:
        if ref.id in first:
            paths = without_secrets(f"{first[ref.id].path} and {ref.path}")
            raise ManifestError(
                f"two slides are called {ref.id!r}: {paths}; give each an id of its own, and name each once"
            )
        first[ref.id] = ref


def _finished(row: Row, outcome: Outcome[Row]) -> Finished:
    return Finished(
        slide_id=outcome.ref.id,
        status=str(row["status"]),
        seconds=outcome.seconds,
        worker=outcome.worker,
        error=row.get("error"),
        tiles_read=row.get("tiles_read"),
        bytes_read=row.get("bytes_read"),
    )


def totals(done: Sequence[Finished], seconds: float) -> dict[str, Any]:
    """Sum up slides that took so many seconds together; return an empty mapping for no slides."""
    if not done:
        return {}
    notes: dict[str, Any] = {"seconds": round(seconds, 3)}
    if seconds > 0:
        notes["slides_per_minute"] = float(f"{60 * len(done) / seconds:.3g}")
    for name in ("tiles_read", "bytes_read"):
        known = [value for value in (getattr(slide, name) for slide in done) if value is not None]
        notes |= {name: sum(known)} if known else {}
    return notes


def report_left_out(rows: Sequence[Row], execution: Execution) -> None:
    """Report slides that have tissue but nothing to read, or whose tissue is doubtful, with the reasons."""
    for row in rows:
        if row["status"] == Status.NO_TISSUE and row["error"]:
            execution.reporter.message(f"warning: {row['slide_id']} has nothing to read: {row['error']}")
        if row.get("warning"):
            execution.reporter.message(f"warning: {row['slide_id']}: {row['warning']}")
