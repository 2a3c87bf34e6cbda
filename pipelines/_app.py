"""The command line without its commands, which other files add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from pipelines._command import PlainCommand, PlainGroup, Result, command

app = typer.Typer(
    name="wsi-ats",
    cls=PlainGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # commands report their errors themselves
    help="Attention sampling for whole slides: read only the tiles that matter.",
    epilog="Exit codes: 0 all done, 1 some slides failed, 2 wrong usage or settings, "
    "70 a bug (please report it), 130 interrupted.",
)


def stage(body: Callable[..., Result]) -> Callable[..., None]:
    """Register a function as a command of its name."""
    return app.command(cls=PlainCommand)(command(body))


def _show_version(wanted: bool) -> None:
    if wanted:
        from pipelines._runs import versions

        typer.echo(f"wsi-ats {versions()['wsi-ats']}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...
