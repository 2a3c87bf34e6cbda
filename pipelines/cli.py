"""``wsi-ats``: one command for each stage. Each command imports its stage when it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pipelines import _commands_on_slides, _commands_with_scores
from pipelines._app import app, stage
from pipelines._arguments import OUTPUT, Out, Overwrite, Seed, flag, text
from pipelines._command import Result
from pipelines._options import ClusterOptions, CommonOptions, execution
from pipelines._process import quick

# Imported for the commands that they add, in this order.
__all__ = ["_commands_on_slides", "_commands_with_scores", "app", "main"]


@stage
def settings(
    write: Annotated[
        Path | None,
        text("--write", "FILE", "Write them to a settings file (TOML) with comments.", panel=OUTPUT),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Replace the file of --write.", OUTPUT)] = False,
    schema: Annotated[bool, flag("--schema", "Print a JSON Schema of settings files.", OUTPUT)] = False,
) -> Result:
    """List all settings with type, default and reason, or write a commented settings file."""
    from pipelines.settings import settings

    return settings(write, overwrite=overwrite, schema=schema)


@stage
def encoders() -> Result:
    """List the foundation encoders that model.backbone knows by name."""
    from pipelines.encoders import encoders

    return encoders()


@stage
def doctor() -> Result:
    """Check the installation and say what to install."""
    from pipelines.doctor import doctor

    return doctor()


@stage
def demo(
    cluster: ClusterOptions,
    common: CommonOptions,
    out: Out = Path("demo"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> Result:
    """Make synthetic slides, train on some, score others, and compare methods."""
    from pipelines.demo import demo

    carried_out = replace(execution(common, cluster), overwrite=overwrite)
    return demo(out, seed=seed, execution=carried_out)


def main() -> None:
    """Run the command line."""
    with quick():
        app(prog_name="wsi-ats")
