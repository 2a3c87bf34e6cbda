"""A run: its execution, its output folder, and the record in it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any

from pipelines._reports import Reporter, Silent, duration
from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.files import digest_of, locked, read_json, write_json
from wsi_ats.results.records import RUN_FILE, Status
from wsi_ats.settings import Fixes, Settings

# Failures shown in the final table; more would push the rest off the screen.
_FAILURES_SHOWN = 20

# A disk with less free space counts as full, which is reported before the work rather than after it.
_LEAST_FREE_BYTES = 64 << 20

# Variables that torchrun sets for each of its processes.
_TORCHRUN = frozenset({"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"})

_PACKAGES = (
    *("wsi-ats", "dask", "distributed", "lifelines", "numpy", "openslide-bin", "openslide-python"),
    *("scikit-learn", "timm", "torch"),
)


@dataclass(frozen=True)
class Execution:
    """The way a stage is carried out, which does not change its result.

    Parameters
    ----------
    scheduler
        ``"local"``, the address of a Dask scheduler, the file to which it writes its address (``*.json``), or
        a ``distributed.Client``.
    workers
        Processes of a local cluster; one for each core by default, for each four cores in ``embed``, or for
        each GPU where the stage computes on GPUs.
    slides_at_once
        Number of slides that a process works on: one is read while another is computed. 2 by default, 4 with
        GPUs or in ``embed`` unless ``workers`` is set, 1 for scoring with a model of kind ``image``.
    timeout
        Seconds after which the worker of a slide is stopped and the slide fails; ``None`` for no limit.
    resources
        Share of Dask's abstract resources that a slide takes, such as ``{"GPU": 0.25}``: only workers that
        offer them get slides, and only as many as their resources allow.
    wait
        Seconds to wait until a scheduler has answered and has a worker, and for workers when there are none.
    stop
        Once it returns true, no further slide is begun; running slides are finished.
    overwrite
        Delete the results of an earlier run in the output folder.
    strict
        Stop at the first slide that fails.
    dry_run
        Count the slides that would be done, and write nothing.
    command
        Recorded in ``run.json``.
    reporter
        Receives messages and progress.
    clock
        Returns the time that ``run.json`` records.
    timer
        Returns seconds of a monotonic clock.
    """

    scheduler: Any = "local"
    workers: int | None = None
    slides_at_once: int | None = None
    timeout: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    wait: float = 60.0
    stop: Callable[[], bool] = lambda: False
    overwrite: bool = False
    strict: bool = False
    dry_run: bool = False
    command: str = "called from Python"
    reporter: Reporter = field(default_factory=Silent)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    timer: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Summary:
    """The outcome of a run.

    Parameters
    ----------
    stage, out
        The stage, and the folder of its results.
    counts
        Slides by status; for a dry run, slides ``to_do`` and ``finished``.
    failed
        Reasons why slides failed, by slide.
    reused
        Number of slides that an earlier run had finished.
    dry_run
        Whether this is the summary of a dry run.
    notes
        Further lines of the stage.
    table
        File in ``out`` with a row for each slide, if there is one.
    """

    stage: str
    out: Path
    counts: Mapping[str, int]
    failed: Mapping[str, str] = field(default_factory=dict)
    reused: int = 0
    dry_run: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)
    table: str | None = None

    @classmethod
    def of_dry_run(
        cls, stage: str, out: Path, finished: int, to_do: int, *, notes: Mapping[str, Any] | None = None
    ) -> Summary:
        """Make the summary of a dry run."""
        return cls(stage, out, {"to_do": to_do, "finished": finished}, dry_run=True, notes=notes or {})

    @property
    def exit_code(self) -> int:
        """0 when every slide is done, 1 when some failed."""
        return 1 if self.failed else 0

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return the summary for people: titled lists of names and values."""
        lines = [(name.replace("_", " "), str(value)) for name, value in self.counts.items()]
        if self.reused:
            lines.append(("finished earlier", str(self.reused)))
        lines += [_line(name, value) for name, value in self.notes.items()]
        if not self.dry_run:
            lines.append(("results", str(self.out)))
        tables = [(f"{self.stage} (dry run)" if self.dry_run else self.stage, lines)]
        return [*tables, ("failed", self._failures())] if self.failed else tables

    def _failures(self) -> list[tuple[str, str]]:
        shown = list(self.failed.items())[:_FAILURES_SHOWN]
        more = len(self.failed) - len(shown)
        if not more:
            return shown
        everything = self.out / self.table if self.table else "the output of --json"
        return [*shown, (f"and {more} more", f"all of them are in {everything}")]

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self) | {"out": str(self.out), "exit_code": self.exit_code}


@dataclass(frozen=True)
class Identity:
    """Everything that distinguishes a run from others; a folder holds results of one identity.

    Parameters
    ----------
    stage
        The stage.
    settings
        The settings that decide its results, as nested tables.
    digests
        Fingerprints of the inputs, such as the model and the labels.
    seed
        Random seed of the draws.
    """

    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None

    @classmethod
    def of(
        cls, stage: str, settings: Settings, fixes: Fixes, *, seed: int | None = None, **digests: str
    ) -> Identity:
        """Make an identity from the settings that decide the results; their digest is recorded as well."""
        return cls(stage, settings.tables(fixes), {"settings": settings.digest(fixes), **digests}, seed)

    @property
    def digest(self) -> str:
        """Fingerprint of all fields."""
        return digest_of(
            self.stage, *(f"{name}={value}" for name, value in sorted(_flat(asdict(self)).items()))
        )

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """List the differences from a recorded run; name digests only if nothing else differs."""
        there, here = _flat({name: recorded.get(name) for name in asdict(self)}), _flat(asdict(self))
        names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
        if any(name.startswith("settings.") for name in names):
            names.remove("digests.settings")
        there, here = ({k: "empty" if v == "" else v for k, v in each.items()} for each in (there, here))
        return [f"{name} is {there.get(name)} there and {here.get(name)} now" for name in names]


class Run:
    """An output folder that is locked for a run.

    Attributes
    ----------
    previous
        The record of an earlier attempt at the same run; ``None`` in a new folder.
    """

    def __init__(self, out: Path, identity: Identity, execution: Execution, previous: dict[str, Any] | None):
        self.out = out
        self.identity = identity
        self.previous = previous
        self._execution = execution
        self._start = execution.clock().isoformat()

    def begin(self) -> None:
        """Mark the folder as belonging to this run, which identifies it even if the run is killed."""
        self._write({}, None)

    def finish(self, counts: Mapping[str, int], **notes: Any) -> None:
        """Record the end of the run; call this last, because it means that everything is complete."""
        self._write(counts, self._execution.clock().isoformat(), **notes)

    def _write(self, counts: Mapping[str, int], end: str | None, **notes: Any) -> None:
        record = {
            **asdict(self.identity),
            "command": self._execution.command,
            "versions": versions(),
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
            "start": self._start,
            "end": end,
            "counts": dict(counts),
        }
        write_json(self.out / RUN_FILE, record | notes)


@contextmanager
def open_run(out: Path, identity: Identity, execution: Execution, *, results: Sequence[str]) -> Iterator[Run]:
    """Lock an output folder for a run.

    Parameters
    ----------
    out
        The folder.
    identity
        Everything that distinguishes the run.
    execution
        With ``overwrite`` the results of an earlier run of the same stage are deleted; for a dry run the
        folder is inspected, but neither made nor locked.
    results
        Files and folders that the stage writes, by name within ``out``.

    Raises
    ------
    ArtifactError
        When the folder holds another run, cannot be written to, or its disk is full.
    LockedError
        When another run is using it.
    """
    if execution.dry_run:
        yield Run(out, identity, execution, _previous(out, identity, execution.overwrite))
        return
    with locked(out, execution.command):
        previous = _previous(out, identity, execution.overwrite)
        free = shutil.disk_usage(out).free
        if free < _LEAST_FREE_BYTES:
            raise ArtifactError(
                f"the disk of {out} is full ({free >> 20} MiB free); make room, or change --out"
            )
        if execution.overwrite and (out / RUN_FILE).exists():
            _delete(out, results)
        yield Run(out, identity, execution, previous)


def _previous(out: Path, identity: Identity, overwrite: bool) -> dict[str, Any] | None:
    if not (out / RUN_FILE).exists():
        return None
    recorded = read_json(out / RUN_FILE)
    if recorded.get("stage") != identity.stage:
        # Not even with --overwrite, which replaces results of the same stage only.
        raise ArtifactError(f"{out} holds the results of `{recorded.get('stage')}`; choose another --out")
    if overwrite:
        return None
    different = identity.differences(recorded)
    if different:
        raise ArtifactError(
            f"{out} holds the results of another run: {'; '.join(different)}. Choose another --out, or "
            "replace them with --overwrite"
        )
    return recorded


def _delete(out: Path, results: Sequence[str]) -> None:
    """Delete the results of a stage and nothing else; the mark first, so that no partial run keeps it."""
    for name in (RUN_FILE, *results):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Return the versions of packages that results may depend on, without importing them."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_seconds(name: str, value: float | None) -> None:
    """Refuse a time that is not a positive number of seconds; ``None`` is no limit.

    Raises
    ------
    SettingsError
        Names the option.
    """
    if value is not None and not 0 < value <= TIMEOUT_MAX:
        raise SettingsError(f"{name} must be a positive number of seconds, not {value}")


def together() -> bool:
    """Return whether ``torchrun`` has started this process, together with others."""
    return os.environ.keys() >= _TORCHRUN


def check_together() -> None:
    """Refuse an environment that announces several processes, but not how to reach them.

    Raises
    ------
    SettingsError
        When ``WORLD_SIZE`` is set and another variable of ``torchrun`` is not.
    """
    missing = sorted(_TORCHRUN - os.environ.keys())
    if missing and "WORLD_SIZE" in os.environ:
        raise SettingsError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, as for several processes that train together, but "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; start with torchrun, or "
            "unset WORLD_SIZE to train in one process"
        )


def speaks() -> bool:
    """Return whether this process reports: it is alone, or the first of several."""
    return not together() or os.environ["RANK"] == "0"


def count(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the rows of every status."""
    statuses = [str(row["status"]) for row in rows]
    return {status.value: statuses.count(status.value) for status in Status}


def rooted(path: str | Path) -> Path:
    """Return an absolute path without ``..``, so that a file has one name; links are not resolved."""
    plain = Path(path).absolute()
    if ".." not in plain.parts:
        return plain
    short = Path(os.path.normpath(plain))
    # Behind a link, ".." leads to another folder than the text suggests.
    elsewhere = plain.exists() and not (short.exists() and short.samefile(plain))
    return plain if elsewhere else short


def _line(name: str, value: Any) -> tuple[str, str]:
    if name == "seconds":
        return "wall time", duration(value)
    if name == "bytes_read":
        return "bytes read", f"{value / 1e6:.2f} MB"
    if isinstance(value, Mapping):
        value = ", ".join(f"{each} {number}" for each, number in value.items())
    return name.replace("_", " "), str(value)


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
