"""Options that commands share, in small groups: a command declares the groups that it uses.

Each group checks its values when it is made, so that every command refuses a wrong option, in a dry run as
well. Nothing heavy is imported at the top: ``--help`` must answer at once.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pipelines._arguments import EXECUTION, INPUT, MODEL, OUTPUT, Overwrite, Strict, flag, number, text

if TYPE_CHECKING:
    from pipelines._reports import Reporter
    from pipelines._runs import Execution
    from wsi_ats.settings import Settings
    from wsi_ats.slides.base import SlideRef


class Group(Protocol):
    """A group of options that changes the execution of a command."""

    def applied(self, execution: Execution) -> Execution:
        """Return the execution with the options of this group."""
        ...


@dataclass(frozen=True)
class CommonOptions:
    """Options of every command."""

    json: Annotated[
        bool, flag("--json", "Print the result as JSON on stdout, everything else on stderr.", OUTPUT)
    ] = False
    debug: Annotated[bool, flag("--debug", "Show the traceback of an error.", EXECUTION)] = False


@dataclass(frozen=True)
class SlideOptions:
    """Options of commands that open slides."""

    mpp: Annotated[
        float | None,
        text(
            "--mpp",
            "UM",
            "Micrometres per pixel of slides without one in their table; takes precedence over the files.",
            panel=INPUT,
        ),
    ] = None
    reader: Annotated[
        str,
        text(
            "--reader",
            "auto|direct|openslide|zarr",
            "Library that reads the slides; `wsi-ats info` shows which one auto chooses, and why.",
            panel=INPUT,
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        from wsi_ats.errors import SettingsError
        from wsi_ats.slides.base import READERS, Mpp

        if self.reader not in READERS:
            raise SettingsError(f"--reader is {self.reader!r}, expected one of {', '.join(READERS)}")
        if self.mpp is not None:
            try:
                Mpp(self.mpp, "--mpp")
            except ValueError as error:
                raise SettingsError(str(error)) from error

    def refs(self, sources: Sequence[str], **tables: Any) -> list[SlideRef]:
        """List the slides of sources, with the reader and the resolution of these options.

        Parameters
        ----------
        sources
            The sources as given to the command.
        **tables
            Further arguments of :func:`wsi_ats.tables.manifest.read_manifest`.

        Raises
        ------
        ManifestError
            When the slides cannot be listed.
        """
        from wsi_ats.tables.manifest import read_manifest

        return [replace(ref, reader=self.reader) for ref in read_manifest(sources, mpp=self.mpp, **tables)]


@dataclass(frozen=True)
class SettingsOptions:
    """Options of commands that use settings."""

    config: Annotated[
        Path | None,
        text(
            "--config",
            "FILE",
            "Settings file (TOML); `wsi-ats settings --write FILE` writes one.",
            panel=MODEL,
        ),
    ] = None
    set: Annotated[
        list[str] | None,
        text(
            "--set",
            "section.name=value",
            "Change one setting; may be repeated. `wsi-ats settings` lists them all.",
            panel=MODEL,
        ),
    ] = None
    qc: Annotated[
        str | None,
        text(
            "--qc",
            "pen,blur",
            "Leave out tiles with these artefacts; short for --set thumbnail.exclude.",
            panel=MODEL,
        ),
    ] = None

    def settings(
        self, base: Settings | None = None, *, changes: Mapping[str, float | str | None] | None = None
    ) -> Settings:
        """Return the settings that result from ``--config``, then ``--qc`` and ``--set``, then ``changes``.

        Parameters
        ----------
        base
            Settings to change; the defaults unless given.
        changes
            Values of settings that have their own options; ``None`` where not given.

        Raises
        ------
        SettingsError
            For a file that cannot be read, or an impossible setting.
        """
        from wsi_ats.settings import Settings

        own = [f"{name}={value}" for name, value in (changes or {}).items() if value is not None]
        settings = self._applied(base or Settings(), own)
        # A trained model has the tiles that it was trained with.
        if base is None and (unsuited := settings.unsuited_tiles):
            from pipelines._console import reporter
            from pipelines._runs import speaks

            if speaks():
                reporter(debug=False).message(
                    f"warning: model.backbone is {settings.model.backbone}, and {unsuited}"
                )
        return settings

    def _applied(self, start: Settings, own: Sequence[str] = ()) -> Settings:
        artefacts = [] if self.qc is None else [f"thumbnail.exclude={self.qc}"]
        single = [*artefacts, *(self.set or []), *own]
        return start.with_values(single) if self.config is None else start.read(self.config, start, single)

    def check_backbone(self, option: str, name: str) -> None:
        """Raise a ``SettingsError`` if ``--config`` or ``--set`` give another backbone than an ``option``."""
        from wsi_ats.errors import SettingsError
        from wsi_ats.settings import Settings

        found = self._applied(Settings().with_tables({"model": {"backbone": name}})).model.backbone
        if found != name:
            raise SettingsError(
                f"{option} is {name}, but model.backbone is {found} in --config or --set; leave one out"
            )


@dataclass(frozen=True)
class FolderOptions:
    """Options of commands that write an output folder."""

    overwrite: Overwrite = False
    dry_run: Annotated[
        bool,
        flag("--dry-run", "Check everything and count the slides to process, but write nothing.", EXECUTION),
    ] = False

    def applied(self, execution: Execution) -> Execution:
        """See :class:`Group`."""
        return replace(execution, overwrite=self.overwrite, dry_run=self.dry_run)


@dataclass(frozen=True)
class ClusterOptions:
    """Options of commands that distribute work over processes or machines."""

    scheduler: Annotated[
        str,
        text(
            "--scheduler",
            "local|ADDRESS|FILE",
            "Where to work: on this machine, or on a Dask cluster, given by an address such as "
            "tcp://10.0.0.5:8786 or by its scheduler file (*.json). Its workers must see the same files.",
            panel=EXECUTION,
        ),
    ] = "local"
    workers: Annotated[
        int | None,
        number(
            "--workers",
            "Processes on this machine. Default: one for each GPU, or for each core (`embed`: four cores).",
            panel=EXECUTION,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.scheduler != "local":
            from wsi_ats.errors import SettingsError

            raise SettingsError(
                f"--workers is {self.workers}, but the cluster at {self.scheduler} has its own workers; "
                "leave out --workers or --scheduler"
            )

    def applied(self, execution: Execution) -> Execution:
        """See :class:`Group`."""
        return replace(execution, scheduler=self.scheduler, workers=self.workers)


def _shares(given: Sequence[str]) -> dict[str, float]:
    """Parse ``--resources``."""
    from wsi_ats.errors import SettingsError

    shares: dict[str, float] = {}
    for each in given:
        name, _, share = each.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            shares[name] = 0.0
        if not (name and 0 < shares[name] < math.inf):
            raise SettingsError(f"--resources is {each!r}, expected a name and a share such as GPU=0.25")
    return shares


@dataclass(frozen=True)
class TaskOptions:
    """Options of commands that work on many slides, any of which may fail alone."""

    slides_at_once: Annotated[
        int | None,
        number(
            "--slides-at-once",
            "Slides that each process on this machine works on at once. Default: 2; 4 with a GPU or `embed`.",
            panel=EXECUTION,
        ),
    ] = None
    timeout: Annotated[
        float | None,
        text(
            "--timeout",
            "SECONDS",
            "Stop a slide that takes longer; it counts as failed. Default: no limit.",
            panel=EXECUTION,
        ),
    ] = None
    resources: Annotated[
        list[str] | None,
        text(
            "--resources",
            "NAME=SHARE",
            "Share of a Dask worker's resource that a slide takes, such as GPU=0.25; may be repeated.",
            panel=EXECUTION,
        ),
    ] = None
    wait: Annotated[
        float,
        text(
            "--wait",
            "SECONDS",
            "How long to wait until a scheduler has answered and has a worker.",
            panel=EXECUTION,
        ),
    ] = 60.0
    strict: Strict = False

    def __post_init__(self) -> None:
        from pipelines._runs import check_seconds

        check_seconds("--timeout", self.timeout)
        check_seconds("--wait", self.wait)
        _shares(self.resources or [])

    def applied(self, execution: Execution) -> Execution:
        """See :class:`Group`; comes after :class:`ClusterOptions`."""
        from wsi_ats.errors import SettingsError

        if self.slides_at_once is not None and execution.scheduler != "local":
            raise SettingsError(
                f"--slides-at-once is {self.slides_at_once}, but the workers at {execution.scheduler} take "
                "one slide for each of their threads; leave it out and set `dask worker --nthreads`"
            )
        return replace(
            execution,
            slides_at_once=self.slides_at_once,
            timeout=self.timeout,
            resources=_shares(self.resources or []),
            wait=self.wait,
            strict=self.strict,
        )


@dataclass(frozen=True)
class ReportOptions:
    """Options of commands that report each slide to other programs."""

    log_json: Annotated[
        Path | None,
        text(
            "--log-json",
            "FILE",
            "Append a line of JSON to this file for each slide as it ends.",
            panel=OUTPUT,
        ),
    ] = None
    metrics: Annotated[
        Path | None,
        text(
            "--metrics",
            "FILE.prom",
            "Keep metrics of the run in this file, for the node exporter of Prometheus.",
            panel=OUTPUT,
        ),
    ] = None

    def applied(self, execution: Execution) -> Execution:
        """See :class:`Group`; a dry run writes neither file.

        Raises
        ------
        SettingsError
            When a file cannot be written; this is checked before any work.
        """
        from pipelines._reports import Several

        reporters = [execution.reporter]
        if self.metrics is not None:  # first, because its check leaves nothing behind
            reporters += _metrics_file(self.metrics, execution)
        if self.log_json is not None and not execution.dry_run:
            from pipelines._slide_log import SlideLog

            log = SlideLog(
                self.log_json,
                complain=execution.reporter.message,
                command=execution.command,
                clock=execution.clock,
                timer=execution.timer,
            )
            reporters.append(log)
        return replace(execution, reporter=Several(reporters)) if reporters[1:] else execution


def _metrics_file(path: Path, execution: Execution) -> list[Reporter]:
    from pipelines._metrics import MetricsFile  # refuses at once where its library is missing

    if execution.dry_run:
        return []
    report = execution.reporter.message
    return [MetricsFile(path, complain=report, clock=execution.clock, timer=execution.timer)]


@dataclass(frozen=True)
class StageOptions:
    """Options of commands that work on many slides and write a folder."""

    folder: FolderOptions
    cluster: ClusterOptions
    tasks: TaskOptions
    reports: ReportOptions

    def applied(self, execution: Execution) -> Execution:
        """See :class:`Group`; a group sees what those before it have set."""
        for group in (self.folder, self.cluster, self.tasks, self.reports):
            execution = group.applied(execution)
        return execution


def execution(common: CommonOptions, options: Group) -> Execution:
    """Build the execution that a group of options asks for."""
    from pipelines._console import reporter
    from pipelines._runs import Execution
    from wsi_ats.errors import without_secrets

    command = without_secrets(shlex.join(["wsi-ats", *sys.argv[1:]]))
    return options.applied(Execution(command=command, reporter=reporter(debug=common.debug)))
