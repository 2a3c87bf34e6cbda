"""Options that commands share, written once, and the frame that every command runs in.

Nothing heavy is imported here: ``--help`` must answer at once.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, get_type_hints

import typer

if TYPE_CHECKING:
    from pipelines._runs import Execution
    from wsi_ats.settings import Settings
    from wsi_ats.slides.base import SlideRef

_SETTINGS = "Settings"
_RUNNING = "How it runs"

Slides = Annotated[
    list[str],
    typer.Argument(metavar="SLIDES...", help="Slides, folders, globs or tables of slides (CSV)."),
]


def _no_store(folder: Path) -> Path:
    """Refuse a URL, of which else a folder named ``s3:`` would be made here."""
    if re.match(r"[A-Za-z][\w+.-]+:/", str(folder)):
        raise typer.BadParameter(
            f"{folder} looks like a URL, and results are written to disks alone; name a folder, and copy it "
            "to the store when the run is over"
        )
    return folder


Out = Annotated[Path, typer.Option("--out", help="Folder for the results.", callback=_no_store)]
DemoOut = Annotated[
    Path,
    typer.Option("--out", help="Folder for slides, models, scores and the figure.", callback=_no_store),
]

INTERRUPTED = 130
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h


@dataclass(frozen=True)
class Basic:
    """Options of every command."""

    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, all else on stderr.")
    ] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show where errors come from.")] = False


@dataclass(frozen=True)
class Reading(Basic):
    """Options of commands that open slides."""

    config: Annotated[
        Path | None, typer.Option("--config", help="Settings file (TOML).", rich_help_panel=_SETTINGS)
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="section.name=value",
            help="Change one setting; may be repeated.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None
    qc: Annotated[
        str | None,
        typer.Option(
            "--qc",
            metavar="pen,blur",
            help="Leave out cells with these artefacts: --set thumbnail.exclude in short.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            help="Micrometres per pixel of slides whose table gives none; overrides files.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None

    reader: Annotated[
        str,
        typer.Option(
            "--reader",
            metavar="auto|direct|openslide|zarr",
            help="Who reads slides; `wsi-ats info` says which is chosen, and why.",
            rich_help_panel=_SETTINGS,
        ),
    ] = "auto"

    def refs(self, sources: Sequence[str], **tables: Any) -> list[SlideRef]:
        """List the slides of sources, to be opened as the options say.

        Parameters
        ----------
        sources
            As the command names them.
        **tables
            Further arguments of :func:`pipelines._sources.read_sources`.

        Raises
        ------
        ManifestError, SettingsError
            When slides cannot be listed, or there is no such reader.
        """
        from pipelines._sources import read_sources

        return [replace(ref, reader=self.reader) for ref in read_sources(sources, mpp=self.mpp, **tables)]

    def settings(self, base: Settings | None = None) -> Settings:
        """Settle the settings: ``base`` or the defaults, then ``--config``, then ``--qc`` and ``--set``.

        Raises
        ------
        SettingsError
            For a file that cannot be read or a setting that cannot work.
        """
        from wsi_ats.settings import Settings

        base = base or Settings()
        if self.config is not None:
            base = Settings.read(self.config, base)
        short = [] if self.qc is None else [f"thumbnail.exclude={self.qc}"]
        return base.with_values([*short, *(self.set or [])])


@dataclass(frozen=True)
class Running(Basic):
    """Options of commands that work on a cluster and write a folder."""

    scheduler: Annotated[
        str,
        typer.Option(
            "--scheduler",
            metavar="local|ADDRESS|FILE",
            rich_help_panel=_RUNNING,
            help="Where tasks run: this machine, or a Dask scheduler such as "
            "tcp://10.0.0.5:8786 whose workers see the same files; or the file "
            "in which a scheduler says its address (*.json).",
        ),
    ] = "local"
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            rich_help_panel=_RUNNING,
            help="Processes on this machine; one for each core by default, or for each graphics processor.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Of all randomness; 0 by default.", rich_help_panel=_RUNNING),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete an earlier run's results first.", rich_help_panel=_RUNNING),
    ] = False

    def execution(self) -> Execution:
        """How the command is to be carried out."""
        from pipelines._console import reporter
        from pipelines._runs import Execution
        from wsi_ats.errors import without_secrets

        return Execution(
            scheduler=self.scheduler,
            workers=self.workers,
            overwrite=self.overwrite,
            command=without_secrets(shlex.join(["wsi-ats", *sys.argv[1:]])),
            reporter=reporter(debug=self.debug),
        )


def _shares(given: Sequence[str]) -> dict[str, float]:
    """Understand ``--resources``."""
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
class Options(Reading, Running):
    """Options of every stage."""

    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done and write nothing.", rich_help_panel=_RUNNING),
    ] = False
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first slide that fails.", rich_help_panel=_RUNNING)
    ] = False
    slides_at_once: Annotated[
        int | None,
        typer.Option(
            "--slides-at-once",
            min=1,
            rich_help_panel=_RUNNING,
            help="Slides that a process works on; 2 by default, 4 with a graphics processor.",
        ),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            rich_help_panel=_RUNNING,
            help="Give up a slide that takes longer; no limit by default.",
        ),
    ] = None
    resources: Annotated[
        list[str] | None,
        typer.Option(
            "--resources",
            metavar="NAME=SHARE",
            rich_help_panel=_RUNNING,
            help="What a slide takes of a worker's resources, such as GPU=0.25; may be repeated.",
        ),
    ] = None
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            rich_help_panel=_RUNNING,
            help="How long to wait for workers, at the start and when all of them are gone.",
        ),
    ] = 60.0
    log_json: Annotated[
        Path | None,
        typer.Option(
            "--log-json",
            metavar="FILE",
            rich_help_panel=_RUNNING,
            help="Add a line of JSON to this file for each slide that workers finish, as it ends.",
        ),
    ] = None
    metrics: Annotated[
        Path | None,
        typer.Option(
            "--metrics",
            metavar="FILE.prom",
            rich_help_panel=_RUNNING,
            help="Keep figures of the run in this file for Prometheus' node exporter.",
        ),
    ] = None

    def execution(self) -> Execution:
        """How the stage is to be carried out.

        Raises
        ------
        SettingsError
            When ``--resources`` cannot be understood; when ``--log-json`` or ``--metrics`` cannot be written:
            before any work, not after it.
        """
        from pipelines._reports import Reporter, Several

        execution = replace(
            super().execution(),
            strict=self.strict,
            dry_run=self.dry_run,
            slides_at_once=self.slides_at_once,
            timeout=self.timeout,
            resources=_shares(self.resources or []),
            wait=self.wait,
        )
        if self.dry_run:
            return execution
        console = execution.reporter
        reporters: list[Reporter] = [console]
        if self.metrics is not None:  # first, because its check leaves nothing behind
            from pipelines._metrics import MetricsFile

            reporters.append(
                MetricsFile(
                    self.metrics,
                    complain=console.message,
                    clock=execution.clock,
                    timer=execution.timer,
                )
            )
        if self.log_json is not None:
            from pipelines._slide_log import SlideLog

            log = SlideLog(
                self.log_json,
                complain=console.message,
                command=execution.command,
                clock=execution.clock,
                timer=execution.timer,
            )
            reporters.append(log)
        return replace(execution, reporter=Several(reporters)) if reporters[1:] else execution


class Result(Protocol):
    """What a command gives back."""

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some slides failed."""
        ...

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        ...

    def sections(self) -> Sequence[tuple[str, Sequence[tuple[str, ...]]]]:
        """For people: titled lists of names and values."""
        ...


def command(body: Callable[..., Result]) -> Callable[..., None]:
    """Make a command of a function: its parameter ``options`` becomes the options that its type lists.

    The command shows what the function returns and ends with the exit code that goes with it. An
    error raised on purpose becomes one line on stderr and exit code 2, Ctrl-C exit code 130, and a mistake
    of ours one line and exit code 70.
    """
    signature = inspect.signature(body, eval_str=True)
    kind = signature.parameters["options"].annotation
    hints = get_type_hints(kind, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [each.replace(kind=keyword) for name, each in signature.parameters.items() if name != "options"]
    shared = [
        inspect.Parameter(each.name, keyword, default=each.default, annotation=hints[each.name])
        for each in fields(kind)
    ]

    @functools.wraps(body)
    def run(**values: Any) -> None:
        options = kind(**{each.name: values.pop(each.name) for each in fields(kind)})
        raise typer.Exit(_run(functools.partial(body, **values, options=options), options))

    expanded = inspect.Signature([*own, *shared])
    run.__signature__ = expanded  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {name: each.annotation for name, each in expanded.parameters.items()}
    return run


def _run(body: Callable[[], Result], options: Basic) -> int:
    from pipelines import _console
    from pipelines._runs import speaks
    from wsi_ats.errors import WsiAtsError

    try:
        with _console.warnings_shown():
            result = body()
        if speaks():
            _console.show(result, as_json=options.json)
    except WsiAtsError as error:
        _console.complain(f"error: {error}", trace=options.debug)
        return 2
    except KeyboardInterrupt:
        _console.complain("interrupted; the same command goes on where this one stopped", trace=options.debug)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  (the outermost point: whoever sees it can only report it)
        advice = (
            "please report it"
            if options.debug
            else "run again with --debug for its origin, and please report it"
        )
        _console.complain(f"unexpected {type(error).__name__}: {error}; {advice}", trace=options.debug)
        return UNEXPECTED
    return result.exit_code
