"""``wsi-ats``: one command for each stage. What a command needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines._options import Basic, DemoOut, Options, Out, Reading, Result, Slides, command

app = typer.Typer(
    name="wsi-ats",
    no_args_is_help=True,
    add_completion=False,
    # A plain traceback can be searched for and sent; it appears for mistakes of ours only.
    pretty_exceptions_enable=False,
    help="Attention sampling for whole slides: read only the tiles that matter.",
    epilog="Exit codes: 0 all done, 1 some slides failed, 2 wrong usage or settings, 130 interrupted.",
)

_Model = Annotated[Path, typer.Option("--model", help="Folder of a trained model (the output of train).")]


@app.command()
@command
def info(
    slides: Annotated[
        list[str], typer.Argument(metavar="SLIDE...", help="Slides, folders, globs or tables.")
    ],
    options: Reading,
) -> Result:
    """Show what is known of slides, and what scoring them would cost."""
    from pipelines.info import info
    from wsi_ats.manifest import read_manifest

    settings = options.settings()
    refs = [ref for source in slides for ref in read_manifest(source, mpp=options.mpp)]
    return info(refs, settings=settings)


@app.command()
@command
def prepare(slides: Slides, out: Out, options: Options) -> Result:
    """Read thumbnails and find tissue: one record for each slide."""
    from pipelines.prepare import prepare
    from wsi_ats.manifest import read_manifest

    settings = options.settings()
    refs = read_manifest(slides, mpp=options.mpp)
    return prepare(refs, out, settings=settings, execution=options.execution())


@app.command()
@command
def train(
    slides: Slides,
    labels: Annotated[Path, typer.Option("--labels", help="Table of slide_id (or case_id) and label.")],
    out: Out,
    options: Options,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Column of the classes, if not 'label'.")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option("--splits", help="Table with columns train, val and test of slides.")
    ] = None,
) -> Result:
    """Train a model from slides and the class of each."""
    from pipelines.train import train
    from wsi_ats.manifest import read_manifest

    settings = options.settings()
    if options.seed is not None:
        settings = settings.with_values([f"training.seed={options.seed}"])
    refs = read_manifest(slides, labels=labels, label_column=label_column, splits=splits, mpp=options.mpp)
    return train(refs, out, settings=settings, execution=options.execution())


@app.command()
@command
def score(
    slides: Slides,
    model: _Model,
    out: Out,
    options: Options,
    draws: Annotated[
        int | None,
        typer.Option("--draws", min=1, help="Independent draws of tiles; from 2 on their error is known."),
    ] = None,
    tiles: Annotated[int | None, typer.Option("--tiles", min=1, help="Tiles in a draw.")] = None,
) -> Result:
    """Score slides with a model: probabilities, and the tiles they rest on."""
    from pipelines.score import score
    from wsi_ats.manifest import read_manifest
    from wsi_ats.model_card import read_card

    refs = read_manifest(slides, mpp=options.mpp)
    settings = options.settings(read_card(model).settings)
    given = {"sampling.draws": draws, "sampling.tiles": tiles}
    settings = settings.with_values([f"{name}={value}" for name, value in given.items() if value is not None])
    execution = options.execution()
    return score(refs, model, out, settings=settings, seed=options.seed or 0, execution=execution)


@app.command()
@command
def export(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Output folder of score.")],
    to: Annotated[str, typer.Option("--to", metavar="csv|parquet|qupath", help="The format.")],
    out: Out,
    options: Options,
) -> Result:
    """Write scores for other programs; takes milliseconds a slide and therefore no workers."""
    from pipelines.export import export

    return export(scores, out, to=to, execution=options.execution())


@app.command()
@command
def doctor(options: Basic) -> Result:  # noqa: ARG001  (how its result is shown)
    """Show what is installed, and what to install for what is missing."""
    from pipelines.doctor import doctor

    return doctor()


@app.command()
@command
def demo(options: Options, out: DemoOut = Path("demo")) -> Result:
    """Make slides, train on them, score others, and show how it went."""
    from pipelines.demo import demo

    return demo(out, seed=options.seed or 0, execution=options.execution())


def main(stage: str | None = None) -> None:
    """Run the command line; with a stage, as if it had been named first."""
    app(args=[stage, *sys.argv[1:]] if stage else None, prog_name="wsi-ats")


if __name__ == "__main__":
    main()
