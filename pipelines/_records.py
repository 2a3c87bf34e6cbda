"""What is done is known by what went into it, not by a file's presence.

Each finished slide leaves ``records/<slide_id>.json``: its row of the result table, and a fingerprint of
everything the row depends on. It is written after the slide's other files. A run that is started again
redoes the slides whose fingerprint is missing or differs, and writes the tables from all rows, so that
they are the same however often it was stopped.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines._reports import Finished
from pipelines._runs import Execution, rooted
from wsi_ats.errors import ArtifactError, without_secrets
from wsi_ats.files import atomic, digest_of, read_json, remove_partial, write_json
from wsi_ats.results.records import Status
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import slide_digest
from wsi_ats.tables.files import write_csv, write_parquet

if TYPE_CHECKING:  # Dask takes a while to import, and a command that finds nothing to do needs none
    from pipelines._stage import Limits, Outcome

Row = dict[str, Any]

# Records that are read at a time; slides in stores are asked for their fingerprints, too.
_READERS = 16

# Slides that a process works on, where the user does not say. One is read while another is computed; a
# graphics processor is fast enough to wait for several.
_AT_ONCE, _AT_ONCE_ON_GPU = 2, 4


@dataclass(frozen=True)
class SlideTask(ABC):
    """What a stage does to a slide; travels to the workers, so it holds settings and paths only.

    Parameters
    ----------
    out
        The run's folder.
    identity
        Fingerprint of all that is the same for every slide of the run.
    """

    out: Path
    identity: str

    # Whether work is computed on a graphics processor where there is one.
    on_gpu: ClassVar[bool] = False

    @property
    def at_once(self) -> int | None:
        """Slides that a process works on, where the user does not say; by default what suits the machine."""
        return None

    def start(self) -> None:  # noqa: B027  (most stages need nothing)
        """What each worker does before its first slide; an error of it ends the run."""

    @abstractmethod
    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Do the work, write the slide's files, return its row and those that it wrote."""

    @abstractmethod
    def files(self, slide_id: str) -> Sequence[Path]:
        """Files that may come of a slide."""

    @abstractmethod
    def failed(self, ref: SlideRef, error: str, seconds: float) -> Row:
        """Row of a slide that failed."""

    def key(self, ref: SlideRef) -> str:
        """Fingerprint of everything that the row depends on."""
        said = (ref.id, ref.case, ref.path, str(ref.mpp), ref.reader)
        return digest_of(self.identity, slide_digest(ref.path), *said)

    def __call__(self, ref: SlideRef) -> Row:
        """Do the work and record it."""
        if (done := self.finished(ref)) is not None:
            return done  # by a worker that died before it could say so
        key = self.key(ref)
        # What is there is of another slide or another attempt: should this one fail, it must not pass
        # for its result. The record goes first, because it vouches for the rest.
        for path in (self._record(ref), *self.files(ref.id)):
            path.unlink(missing_ok=True)
        row, written = self.work(ref)
        # Not what is there now: a worker elsewhere may be at the same slide, whose client was killed, and
        # one of the two have deleted what the other wrote.
        names = [path.name for path in written]
        record = {"key": key, "identity": self.identity, "files": names, "row": row}
        write_json(self._record(ref), record)
        return row

    def finished(self, ref: SlideRef) -> Row | None:
        """Row of a slide that is done already; ``None`` if it has to be done."""
        if not self._record(ref).exists():
            return None
        try:
            record = read_json(self._record(ref))
            names = {path.name for path in self.files(ref.id) if path.exists()}
            valid = record["key"] == self.key(ref) and names.issuperset(record["files"])
            return dict(record["row"]) if valid else None
        except (ArtifactError, KeyError, TypeError):
            return None  # damaged: it is made again

    def forget(self, ref: SlideRef) -> None:
        """Have a slide done again, even if its fingerprint does not tell that it changed."""
        self._record(ref).unlink(missing_ok=True)

    def kept(self, names: Collection[str]) -> dict[str, Row]:
        """Rows of slides that were finished by such a run, whether or not they are there still."""
        rows = {}
        for name in names:
            try:
                record = read_json(self.out / "records" / f"{name}.json")
                present = {path.name for path in self.files(name) if path.exists()}
                # Others are left of a run whose results were being deleted when the process was killed.
                if record["identity"] == self.identity and present.issuperset(record["files"]):
                    rows[name] = dict(record["row"])
            except (ArtifactError, KeyError, TypeError):  # damaged
                continue
        return rows

    def recorded(self) -> set[str]:
        """Slides that have a record in the folder."""
        names = (path.name for path in (self.out / "records").glob("*.json"))
        return {name.removesuffix(".json") for name in names if not name.startswith(".")}

    def clear(self) -> None:
        """Remove what processes left half-written that were killed."""
        for folder in {path.parent for path in (self.out / "records" / "any", *self.files("any"))}:
            remove_partial(folder)

    def _record(self, ref: SlideRef) -> Path:
        return self.out / "records" / f"{ref.id}.json"


@dataclass(frozen=True)
class Results:
    """Rows of a run, and what the run owes to an earlier one.

    Parameters
    ----------
    rows
        Sorted by slide.
    failed
        Why slides failed, by slide.
    reused
        Slides that an earlier run had finished.
    stopped
        Whether slides are missing.
    notes
        What this run did, those slides left out: ``seconds`` of wall time, ``slides_per_minute``, and, where
        they are counted, ``tiles_read`` and ``bytes_read`` of all slides together. Empty if it did nothing.
    """

    rows: Sequence[Row]
    failed: Mapping[str, str]
    reused: int
    stopped: bool
    notes: Mapping[str, Any] = field(default_factory=dict)
    left: int = 0


def absolute(refs: Sequence[SlideRef]) -> list[SlideRef]:
    """Refer to slides from the root: a worker on another machine has another current folder."""
    return [ref if "://" in ref.path else replace(ref, path=str(rooted(ref.path))) for ref in refs]


def settled(refs: Sequence[SlideRef], settings: Settings) -> list[SlideRef]:
    """Refer to slides from the root, in the colours and the channel that settings ask for."""
    tile = settings.tile
    return [replace(ref, colour=tile.colour, channel=tile.channel) for ref in absolute(refs)]


def pending(task: SlideTask, refs: Sequence[SlideRef]) -> tuple[dict[str, Row], list[SlideRef]]:
    """Part slides into rows of those that are done and references of those that are not."""
    with ThreadPoolExecutor(_READERS) as pool:  # each waits for a disk or a store
        found = list(pool.map(task.finished, refs))
    rows = {ref.id: row for ref, row in zip(refs, found, strict=True) if row is not None}
    return rows, [ref for ref in refs if ref.id not in rows]


def complete(task: SlideTask, refs: Sequence[SlideRef], execution: Execution, *, title: str) -> Results:
    """Do what is left to do.

    Parameters
    ----------
    task
        What to do.
    refs
        All slides of the run.
    execution
        How.
    title
        What it is called while it goes on.

    Returns
    -------
    Results
        Rows sorted by slide; ``stopped`` if a failure ended the run early.
    """
    task.clear()
    rows, todo = pending(task, refs)
    reused, report = len(rows), execution.reporter
    if reused:
        report.message(f"{title}: {reused} of {len(refs)} slides are finished already")
    others = task.recorded() - {ref.id for ref in refs}
    if others:
        report.message(
            f"{title}: {len(others)} slides of an earlier command are not named in this one and left out of "
            "its tables; their files stay"
        )
    failed: dict[str, str] = {}
    workers = workers_for(task, execution, tasks=len(refs), pending=len(todo))
    begin = execution.timer()
    done = carry_out(task, todo, workers, execution, title=title, rows=rows, failed=failed, reused=reused)
    notes = figures(done, execution.timer() - begin)
    in_order = [rows[name] for name in sorted(rows)]
    return Results(in_order, dict(sorted(failed.items())), reused, len(rows) < len(refs), notes)


def carry_out(
    task: SlideTask,
    todo: Sequence[SlideRef],
    workers: AbstractContextManager[tuple[Any, Limits]],
    execution: Execution,
    *,
    title: str,
    rows: dict[str, Row],
    failed: dict[str, str],
    reused: int = 0,
    begin: Callable[[SlideRef], bool] = lambda ref: True,  # noqa: ARG005
) -> list[Finished]:
    """Do slides, and note what came of each as soon as it is known.

    Parameters
    ----------
    task, todo
        What to do, and to which slides.
    workers
        As :func:`workers_for` gives them; not entered when there is nothing to do.
    execution, title
        How, and what it is called.
    rows, failed
        Where rows, and why slides failed, are put by slide.
    reused
        Slides that were done already; told to whoever is told how it goes.
    begin
        Asked as a slide is about to be handed to the cluster; once it says no, neither that slide nor a
        further one is.

    Returns
    -------
    list of Finished
        In the order in which they ended.
    """
    report = execution.reporter
    done: list[Finished] = []

    def handed() -> Iterator[SlideRef]:
        for ref in todo:
            if not begin(ref):
                return
            yield ref

    with report.slides(title, len(todo), reused) as tell:

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
            from pipelines._stage import for_each_slide

            with workers as (client, limits):
                for_each_slide(task, handed(), client, on_result=note, strict=execution.strict, limits=limits)
    return done


@contextmanager
def workers_for(
    task: SlideTask, execution: Execution, *, tasks: int | None = None, pending: int | None = None
) -> Iterator[tuple[Any, Limits]]:
    """Connect to the workers that suit a task, and have each make its start.

    Parameters
    ----------
    task, execution
        What is to be done, and how.
    tasks, pending
        As in :func:`pipelines._cluster.connect`; not known by default.

    Yields
    ------
    tuple
        The client, and what is asked of it.
    """
    from pipelines._cluster import connect, dashboard, graphics_processors
    from pipelines._stage import Limits, on_each_worker

    local = execution.scheduler == "local"
    gpus = graphics_processors() if task.on_gpu and local else []
    at_once = execution.slides_at_once or task.at_once or (_AT_ONCE_ON_GPU if gpus else _AT_ONCE)
    resources = execution.resources or ({"GPU": 1 / at_once} if gpus else {})
    limits = Limits(execution.timeout, resources, execution.wait, execution.stop)
    with connect(
        execution.scheduler,
        workers=execution.workers,
        tasks=tasks,
        pending=pending,
        at_once=at_once,
        gpus=gpus,
        wait=execution.wait,
    ) as client:
        if client is not execution.scheduler:  # else whoever made the client has been told, or has no need
            execution.reporter.message(dashboard(client))
        on_each_worker(task.start, client, resources=resources, wait=execution.wait)
        yield client, limits


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


def figures(done: Sequence[Finished], seconds: float) -> dict[str, Any]:
    """What slides that took so many seconds together amount to; nothing for none."""
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
    """Name slides that have tissue of which nothing is left to read, or whose tissue is in doubt, and why."""
    for row in rows:
        if row["status"] == Status.NO_TISSUE and row["error"]:
            execution.reporter.message(f"warning: {row['slide_id']} has nothing to read: {row['error']}")
        if row.get("warning"):
            execution.reporter.message(f"warning: {row['slide_id']}: {row['warning']}")


def own_cores() -> int:
    """Cores that are this worker's share: what the libraries under torch are told by its environment, or one.

    :mod:`pipelines._cluster` tells its workers, and Dask's own command says one.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(text)) if text.isdecimal() else 1


def write_table(folder: Path, name: str, rows: Sequence[Row], types: Mapping[str, str]) -> None:
    """Write rows as ``<name>.parquet`` and ``<name>.csv``, each whole or not at all.

    Parameters
    ----------
    folder, name
        Where.
    rows
        The rows.
    types
        Arrow's type of each column; their order is the table's.
    """
    columns = {column: [row.get(column) for row in rows] for column in types}
    with atomic(folder / f"{name}.parquet") as path:
        write_parquet(path, columns, types=types)
    with atomic(folder / f"{name}.csv") as path:
        write_csv(path, columns)
