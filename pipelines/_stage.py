"""A stage over slides: its folder, dry run, records, tables and summary, written once for all stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines._carry_out import complete, report_left_out
from pipelines._records import SlideTask, pending
from pipelines._rounds import complete_arrivals
from pipelines._runs import Execution, Identity, Summary, count, open_run
from pipelines._watch import Arrivals
from wsi_ats.errors import SettingsError
from wsi_ats.slides.base import SlideRef


def run_stage(
    task: SlideTask,
    refs: Sequence[SlideRef] | Arrivals,
    identity: Identity,
    execution: Execution,
    *,
    refer: Callable[[Sequence[SlideRef]], list[SlideRef]],
    remove: Callable[[], None] = lambda: None,
    record: Mapping[str, Any] | None = None,
) -> Summary:
    """Carry out a stage on slides and write its tables.

    Parameters
    ----------
    task
        The declaration of the stage.
    refs
        The slides; or arrivals, which are processed as they are completed until ``execution.stop`` returns
        true.
    identity
        Distinguishes the run from others.
    execution
        Where and how it is carried out.
    refer
        Makes references that are valid on every machine.
    remove
        Deletes results of an earlier run outside the folder, for ``execution.overwrite``.
    record
        Further entries of ``run.json``.

    Raises
    ------
    SettingsError
        When no scheduler answers, or for a dry run of arrivals.
    ArtifactError
        When the output folder cannot be used.
    """
    if isinstance(refs, Arrivals) and execution.dry_run:
        raise SettingsError("--watch waits for slides that --dry-run cannot know; leave one of them out")
    with open_run(task.out, identity, execution, results=task.results) as run:
        if not isinstance(refs, Arrivals) and execution.dry_run:
            parts = pending(task, refer(refs))
            return Summary.of_dry_run(task.stage, task.out, *map(len, parts))
        if execution.overwrite:
            remove()
        run.begin()
        if isinstance(refs, Arrivals):
            results = complete_arrivals(task, refs, execution, refer=refer)
        else:
            results = complete(task, refer(refs), execution)
        counts = count(results.rows)
        report_left_out(results.rows, execution)
        if not results.stopped:
            task.write_tables(results.rows)
            run.finish(counts, **(record or {}))
    left_over = {"left_for_the_next_time": results.left} if results.left else {}
    return Summary(
        *(task.stage, task.out, counts, results.failed, results.reused),
        notes={**results.notes, **task.notes(results.rows), **left_over},
        table=None if results.stopped else f"{task.tables[0]}.csv",
    )
