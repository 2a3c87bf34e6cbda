"""Records of finished slides, which decide what a restarted run still has to do.

Each finished slide leaves ``records/<slide_id>.json``: its row of the result table, and a fingerprint of
everything the row depends on. It is written after the slide's other files, whose presence alone proves
nothing. A run that is started again repeats the slides whose fingerprint is missing or differs, and writes
the tables from all rows, so that they are the same however often it was stopped.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pipelines._runs import rooted
from wsi_ats.errors import ArtifactError
from wsi_ats.files import atomic, digest_of, read_json, remove_partial, write_json
from wsi_ats.results.records import Status
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import slide_digest
from wsi_ats.tables.files import write_csv, write_parquet

Row = dict[str, Any]

# Number of records read at once; for slides in stores this includes a request for the fingerprint.
_READERS = 16


@dataclass(frozen=True)
class SlideTask(ABC):
    """The declaration of a stage: its work on one slide, its files and its columns.

    It is sent to the workers, so it holds only settings and paths.

    Parameters
    ----------
    out
        The run's folder.
    identity
        Fingerprint of everything that is the same for all slides of the run.
    """

    out: Path
    identity: str

    # Name of the stage, and names of its tables; the first table has a row for each slide.
    stage: ClassVar[str]
    tables: ClassVar[Sequence[str]]
    # Whether the work uses a GPU if there is one.
    on_gpu: ClassVar[bool] = False
    # Cores for each process on this machine, unless the user sets a number of processes.
    cores: ClassVar[int] = 1

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, str]:
        """Columns of the first table, in order, with Arrow's types."""

    @abstractmethod
    def files(self, slide_id: str) -> Sequence[Path]:
        """Return the files that a slide may have."""

    @abstractmethod
    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Do the work and write the slide's files; return its row and the files written."""

    @property
    def at_once(self) -> int | None:
        """Number of slides that a process works on at once; ``None`` for the default of the machine."""
        return None

    @property
    def known(self) -> Row:
        """Columns that are known for every slide, even one that failed."""
        return {}

    def facts(self, ref: SlideRef) -> Row:  # noqa: ARG002
        """Return further entries of a slide's record."""
        return {}

    def start(self) -> None:  # noqa: B027  (most stages need nothing)
        """Prepare a worker for its first slide; an error ends the run."""

    def is_whole(self, ref: SlideRef) -> bool:  # noqa: ARG002
        """Return whether results other than ``files`` are complete."""
        return True

    def other_tables(self, rows: Sequence[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:  # noqa: ARG002
        """Return rows and columns of further tables, by name."""
        return {}

    def notes(self, rows: Sequence[Row]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return further lines of the summary, from all rows."""
        return {}

    def __call__(self, ref: SlideRef) -> Row:
        """Do the work and record it."""
        if (done := self.finished(ref)) is not None:
            return done  # by a worker that died before it could report it
        key = self.key(ref)
        # Existing files belong to another slide or another attempt; if this one fails, they must not be taken
        # for its result. The record is deleted first, because it vouches for the others.
        for path in (self._record(ref.id), *self.files(ref.id)):
            path.unlink(missing_ok=True)
        row, written = self.work(ref)
        # List what was written, not what exists: a worker whose client was killed may still work on the same
        # slide, and either may delete what the other wrote.
        names = [_name(path) for path in written]
        record = {"key": key, "identity": self.identity, "files": names, "row": row, **self.facts(ref)}
        write_json(self._record(ref.id), record)
        return row

    def key(self, ref: SlideRef) -> str:
        """Return the fingerprint of everything that the row depends on."""
        facts = (ref.id, ref.case, ref.path, str(ref.mpp), ref.reader, str(ref.downsample))
        files = (ref.path, *ref.features)
        return digest_of(
            self.identity, *map(slide_digest, files), *facts, *ref.features, *_digest_of_regions(ref)
        )

    def failed(self, ref: SlideRef, error: str, seconds: float) -> Row:
        """Return the row of a slide that failed: the known columns and the reason."""
        facts: Row = {"slide_id": ref.id, "case_id": ref.case, "path": ref.path, **self.known}
        facts |= {"status": Status.FAILED.value, "seconds": seconds, "error": error}
        return {column: facts.get(column) for column in self.columns}

    def finished(self, ref: SlideRef) -> Row | None:
        """Return the row of a slide that is done already; ``None`` if it has to be done."""
        row = self._recorded_row(ref.id, "key", lambda: self.key(ref))
        return row if row is not None and self.is_whole(ref) else None

    def forget(self, ref: SlideRef) -> None:
        """Let a slide be done again, even if its fingerprint has not changed."""
        self._record(ref.id).unlink(missing_ok=True)

    def kept(self, names: Collection[str]) -> dict[str, Row]:
        """Return rows of slides that this run finished, whether or not the slides still exist."""
        # Other records are left from a run that was killed while its results were being deleted.
        rows = {name: self._recorded_row(name, "identity", lambda: self.identity) for name in names}
        return {name: row for name, row in rows.items() if row is not None}

    def recorded(self) -> set[str]:
        """Return the ids of slides that have a record in the folder."""
        names = (path.name for path in (self.out / "records").glob("*.json"))
        return {name.removesuffix(".json") for name in names if not name.startswith(".")}

    @property
    def results(self) -> list[str]:
        """Files and folders in ``out`` that the stage writes."""
        folders = dict.fromkeys(path.relative_to(self.out).parts[0] for path in self.files("any"))
        tables = [f"{table}.{ending}" for table in self.tables for ending in ("parquet", "csv")]
        return ["records", *folders, *tables]

    def clear(self) -> None:
        """Remove files that killed processes left incomplete."""
        for folder in {path.parent for path in (self._record("any"), *self.files("any"))}:
            remove_partial(folder)

    def write_tables(self, rows: Sequence[Row]) -> None:
        """Write each table as ``.parquet`` and ``.csv``."""
        tables = {self.tables[0]: (rows, self.columns), **self.other_tables(rows)}
        for name, (own, columns) in tables.items():
            _write_table(self.out, name, own, columns)

    def _record(self, slide_id: str) -> Path:
        return self.out / "records" / f"{slide_id}.json"

    def _recorded_row(self, slide_id: str, field: str, expected: Callable[[], str]) -> Row | None:
        """Return the row of a record whose field is as expected and whose files exist, else ``None``."""
        if not self._record(slide_id).exists():
            return None
        try:
            record = read_json(self._record(slide_id))
            there = [path for path in self.files(slide_id) if path.exists()]
            names = {
                name for path in there for name in (path.name, _name(path))
            }  # the first in older records
            valid = record[field] == expected() and names.issuperset(record["files"])
            return dict(record["row"]) if valid else None
        except (ArtifactError, KeyError, TypeError):
            return None  # damaged: the slide is done again


def _name(path: Path) -> str:
    """Return the name of a slide's file in its record; files in two folders may be called the same."""
    return f"{path.parent.name}/{path.name}"


def absolute(refs: Sequence[SlideRef]) -> list[SlideRef]:
    """Make paths of slides absolute: a worker on another machine has another current folder."""
    return [ref if "://" in ref.path else replace(ref, path=str(rooted(ref.path))) for ref in refs]


def settled(refs: Sequence[SlideRef], settings: Settings) -> list[SlideRef]:
    """Make paths of slides absolute, and set the colours and the channel that settings ask for."""
    tile = settings.tile
    return [replace(ref, colour=tile.colour, channel=tile.channel) for ref in absolute(refs)]


def digest_of_slides(refs: Sequence[SlideRef]) -> str:
    """Return a fingerprint of slides with their labels, splits, options, and the contents of their files."""
    return digest_of(
        *(
            str(
                (
                    *(ref.id, ref.case, ref.label, ref.split, ref.mpp, ref.reader, ref.downsample),
                    *map(slide_digest, (ref.path, *ref.features)),
                    *_digest_of_regions(ref),
                )
            )
            for ref in sorted(refs, key=lambda ref: ref.id)
        )
    )


def _digest_of_regions(ref: SlideRef) -> tuple[str, ...]:
    """Return fingerprints of the regions of a slide; empty without, as records of older runs have it."""
    return (slide_digest(ref.regions), ref.regions, *ref.region_classes) if ref.regions else ()


def pending(task: SlideTask, refs: Sequence[SlideRef]) -> tuple[dict[str, Row], list[SlideRef]]:
    """Split slides into rows of those that are done and references to those that are not."""
    with ThreadPoolExecutor(_READERS) as pool:  # each waits for a disk or a store
        found = list(pool.map(task.finished, refs))
    rows = {ref.id: row for ref, row in zip(refs, found, strict=True) if row is not None}
    return rows, [ref for ref in refs if ref.id not in rows]


def own_cores() -> int:
    """Return this worker's share of the cores.

    It is the number of threads that the environment allows torch's libraries, or one.
    :mod:`pipelines._cluster` sets it for its workers, and Dask's own command sets it to one.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(text)) if text.isdecimal() else 1


def _write_table(folder: Path, name: str, rows: Sequence[Row], types: Mapping[str, str]) -> None:
    columns = {column: [row.get(column) for row in rows] for column in types}
    with atomic(folder / f"{name}.parquet") as path:
        write_parquet(path, columns, types=types)
    with atomic(folder / f"{name}.csv") as path:
        write_csv(path, columns)
