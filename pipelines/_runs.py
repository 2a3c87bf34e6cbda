"""A run: how it is carried out, the folder that is its own, and what it leaves behind about itself."""

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
from typing import Any

from pipelines._reports import Reporter, Silent, duration
from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.files import digest_of, locked, read_json, write_json
from wsi_ats.results.records import Status
from wsi_ats.settings import Fixes, Settings

RUN_FILE = "run.json"

# Failures that the table at the end shows; with more of them the rest of it would be out of sight.
_FAILURES_SHOWN = 20

# A disk with less is full for any purpose here; it is better said before the work than after.
_LEAST_FREE_BYTES = 64 << 20

# What it sets for each of the processes that it starts.
_TORCHRUN = frozenset({"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"})

_PACKAGES = (
    *("wsi-ats", "dask", "distributed", "lifelines", "numpy", "openslide-bin", "openslide-python"),
    *("scikit-learn", "timm", "torch"),
)


@dataclass(frozen=True)
class Execution:
    """How a stage is carried out; nothing here changes its result.

    Parameters
    ----------
    scheduler
        ``"local"``, the address of a Dask scheduler, the file in which it says that (``*.json``), or a
        ``distributed.Client``.
    workers
        Processes of a local cluster; one for each core by default, or for each graphics processor where the
        stage computes on them.
    slides_at_once
        How many slides a process works on: one is read while another is computed. 2 by default, 4 where
        there are graphics processors, 1 where a model of kind ``image`` scores.
    timeout
        Seconds after which a slide's worker is stopped and the slide has failed; ``None`` for no limit.
    resources
        What a slide takes of a worker's abstract resources (Dask's), such as ``{"GPU": 0.25}``: only workers
        that offer them get slides, and only as many as share them.
    wait
        Seconds to wait for workers, at the start and when all of them are gone, and for a scheduler's file.
    stop
        Asked again and again; once it says so, no further slide is begun, those under way are finished.
    overwrite
        Delete what an earlier run left in the output folder.
    strict
        Stop at the first slide that fails.
    dry_run
        Say what would be done; write nothing.
    command
        Recorded in ``run.json``.
    reporter
        Told how it goes.
    clock
        Gives the time that ``run.json`` records.
    timer
        Gives seconds that only ever grow, to measure by: a computer's clock may be set while a run lasts.
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
    """What came of a run.

    Parameters
    ----------
    stage, out
        Which stage, and where its results are.
    counts
        Slides by status; for a dry run, slides ``to_do`` and ``finished``.
    failed
        Why slides failed, by slide.
    reused
        Slides that an earlier run had finished.
    dry_run
        Whether nothing was done.
    notes
        More that the stage has to say.
    table
        File in ``out`` that has a row for each slide, if there is one.
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
        """Say what would be done."""
        return cls(stage, out, {"to_do": to_do, "finished": finished}, dry_run=True, notes=notes or {})

    @property
    def exit_code(self) -> int:
        """0 when every slide is done, 1 when some failed."""
        return 1 if self.failed else 0

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """What a person reads."""
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
    """What makes a run this one: a folder holds results of one identity.

    Parameters
    ----------
    stage
        The stage.
    settings
        The settings that decide its results, as nested tables.
    digests
        Fingerprints of what goes in: the model, the labels.
    seed
        Of the draws.
    """

    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None

    @classmethod
    def of(
        cls, stage: str, settings: Settings, fixes: Fixes, *, seed: int | None = None, **digests: str
    ) -> Identity:
        """Take the settings that decide the results; their own digest is recorded too."""
        return cls(stage, settings.tables(fixes), {"settings": settings.digest(fixes), **digests}, seed)

    @property
    def digest(self) -> str:
        """One fingerprint of all."""
        return digest_of(
            self.stage, *(f"{name}={value}" for name, value in sorted(_flat(asdict(self)).items()))
        )

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Say how a run's record differs from this run; digests are named where nothing else explains."""
        there, here = _flat({name: recorded.get(name) for name in asdict(self)}), _flat(asdict(self))
        names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
        if any(name.startswith("settings.") for name in names):
            names.remove("digests.settings")
        there, here = ({k: "empty" if v == "" else v for k, v in each.items()} for each in (there, here))
        return [f"{name} is {there.get(name)} there and {here.get(name)} now" for name in names]


class Run:
    """An output folder that is held for a run.

    Attributes
    ----------
    previous
        The record of the same run's earlier attempt; ``None`` in a fresh folder.
    """

    def __init__(self, out: Path, identity: Identity, execution: Execution, previous: dict[str, Any] | None):
        self.out = out
        self.identity = identity
        self.previous = previous
        self._execution = execution
        self._start = execution.clock().isoformat()

    def begin(self) -> None:
        """Mark the folder as this run's, so that what is in it is known even if the run is killed."""
        self._write({}, None)

    def finish(self, counts: Mapping[str, int], **notes: Any) -> None:
        """Record the end; written last, so that its presence means that all is complete."""
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
    """Hold an output folder for a run.

    Parameters
    ----------
    out
        The folder.
    identity
        What the run is.
    execution
        With ``overwrite`` the results of an earlier run of the same stage are deleted; for a dry run
        the folder is looked at and neither made nor held.
    results
        Files and folders that the stage writes, by name within ``out``.

    Raises
    ------
    ArtifactError
        When the folder holds another run, cannot be written to, or its disk is full.
    LockedError
        When another run is at work in it.
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
        # Not with --overwrite either: it is meant for results like those that are about to be written.
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
    """Delete a stage's results and nothing else; the mark goes first, so that no half-emptied run stays."""
    for name in (RUN_FILE, *results):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of what a result may depend on; asked of the installation, nothing is imported."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_pixels(settings: Settings) -> None:
    """Refuse a model of features that are computed already, before any work.

    Raises
    ------
    SettingsError
        When ``model.backbone`` stands for such features.
    """
    if settings.model.takes_features:
        raise SettingsError(
            f"model.backbone is {settings.model.backbone}, but the commands do not read files of features "
            "yet; name a backbone, or train from Python (wsi_ats.training.fit.fit) with a reader of your "
            "features"
        )


def together() -> bool:
    """Whether ``torchrun`` has started this process, and others that do the same."""
    return os.environ.keys() >= _TORCHRUN


def check_together() -> None:
    """Refuse an environment that speaks of other processes, but does not say how to find them.

    Raises
    ------
    SettingsError
        When ``WORLD_SIZE`` is set and something else that ``torchrun`` sets is not.
    """
    missing = sorted(_TORCHRUN - os.environ.keys())
    if missing and "WORLD_SIZE" in os.environ:
        raise SettingsError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, as for several processes that train together, but "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; start with torchrun, or "
            "unset WORLD_SIZE to train in one process"
        )


def speaks() -> bool:
    """Whether this process is alone, or the one of several that speaks for all."""
    return not together() or os.environ["RANK"] == "0"


def count(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rows by status, every status named."""
    statuses = [str(row["status"]) for row in rows]
    return {status.value: statuses.count(status.value) for status in Status}


def rooted(path: str | Path) -> Path:
    """Return a path from the root without ``..``, so that one file has one name; links stay as they are."""
    plain = Path(path).absolute()
    if ".." not in plain.parts:
        return plain
    short = Path(os.path.normpath(plain))
    # Behind a link, ".." leads to somewhere else than the text says.
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
