"""``wsi-ats``: one command for each stage. What a command needs is imported when it runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines._options import Basic, DemoOut, Options, Out, Reading, Result, Running, Slides, command

app = typer.Typer(
    name="wsi-ats",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # commands say what went wrong by themselves
    help="Attention sampling for whole slides: read only the tiles that matter.",
    epilog="Exit codes: 0 all done, 1 some slides failed, 2 wrong usage or settings, "
    "70 a mistake of this program (please report it), 130 interrupted.",
)

_WATCHING = "Slides that arrive"
_Model = Annotated[Path, typer.Option("--model", help="Folder of a trained model (the output of train).")]


_LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column",
        help="Column of the labels, if not 'label'; several, joined by commas, as model.task needs them: "
        "time,event for survival, a column of 0 and 1 for each label of multilabel.",
    ),
]


@app.command()
@command
def info(slides: Slides, options: Reading) -> Result:
    """Show what is known of slides, and what scoring them would cost."""
    from pipelines.info import info

    settings = options.settings()
    return info(options.refs(slides), settings=settings)


@app.command()
@command
def prepare(slides: Slides, out: Out, options: Options) -> Result:
    """Read thumbnails and find tissue: one record for each slide."""
    from pipelines.prepare import prepare

    settings = options.settings()
    refs = options.refs(slides)
    return prepare(refs, out, settings=settings, execution=options.execution())


@app.command()
@command
def convert(
    slides: Slides,
    out: Out,
    options: Options,
    codec: Annotated[
        str,
        typer.Option(
            "--codec", metavar="zstd|jpeg", help="zstd keeps every pixel; jpeg is smaller and does not."
        ),
    ] = "zstd",
    quality: Annotated[
        int | None, typer.Option("--quality", min=1, max=100, help="Of jpeg; 90 by default.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FOLDER|URL",
            help="Where the pyramids go, if not to --out: a folder, or a URL such as s3://bucket/slides.",
        ),
    ] = None,
) -> Result:
    """Write slides as OME-Zarr 0.5 pyramids, one folder for each."""
    from pipelines.convert import check_apart, convert

    check_apart(slides, out, to)
    refs = options.refs(slides)
    return convert(refs, out, codec=codec, quality=quality, to=to, execution=options.execution())


@app.command()
@command
def train(
    slides: Slides,
    labels: Annotated[Path, typer.Option("--labels", help="Table of slide_id (or case_id) and label.")],
    out: Out,
    options: Options,
    label_column: _LabelColumn = None,
    splits: Annotated[
        Path | None, typer.Option("--splits", help="Table with columns train, val and test of slides.")
    ] = None,
    max_bad: Annotated[
        int | None,
        typer.Option(
            "--max-bad",
            min=0,
            help="Slides that may become unreadable while training goes on; no limit by default.",
        ),
    ] = None,
    readers: Annotated[
        str,
        typer.Option(
            "--readers",
            metavar="threads[:N]|dask",
            help="Who reads tiles: threads, one for each core by default, or the Dask workers of "
            "--scheduler, which send them as JPEG.",
        ),
    ] = "threads",
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write figures for TensorBoard, too, which must be installed."),
    ] = False,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts",
            min=1,
            help="Train so many times and keep the model with the least validation loss, of those whose "
            "attention found where to look.",
        ),
    ] = 1,
    retries: Annotated[
        int,
        typer.Option(
            "--retries",
            min=0,
            help="Train again from other weights, up to so often, while attention finds nothing.",
        ),
    ] = 1,
) -> Result:
    """Train a model from slides and the label of each."""
    from pipelines.train import train

    settings = options.settings()
    if options.seed is not None:
        settings = settings.with_values([f"training.seed={options.seed}"])
    refs = options.refs(
        slides, labels=labels, label_column=label_column, task=settings.model.task, splits=splits
    )
    execution = options.execution()
    return train(
        refs,
        out,
        settings=settings,
        max_bad=max_bad,
        execution=execution,
        readers=readers,
        tensorboard=tensorboard,
        restarts=restarts,
        retries=retries,
    )


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
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Add draws until the standard error (logit_se) is as small."),
    ] = None,
    max_tiles: Annotated[
        int | None,
        typer.Option("--max-tiles", help="Add draws until another might read more tiles of a slide."),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on and score slides as they arrive, until Ctrl-C or SIGTERM; again: at once.",
            rich_help_panel=_WATCHING,
        ),
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            metavar="SECONDS",
            help="How often to look for slides; 10 by default.",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            "--settle",
            metavar="SECONDS",
            help="How long a slide must not have changed to be complete; 30 by default.",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    marker: Annotated[
        str | None,
        typer.Option(
            "--marker",
            metavar="SUFFIX",
            help="A slide is complete when this file is beside it: case7.svs.done or case7.done for .done.",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
) -> Result:
    """Score slides with a model: probabilities or values, and the tiles they rest on."""
    from pipelines._watch import Arrivals, stop_on_signals
    from pipelines.score import score
    from wsi_ats.errors import SettingsError
    from wsi_ats.models.card import read_card

    refs = None if watch else options.refs(slides)
    settings = options.settings(read_card(model).settings)
    given = {"draws": draws, "tiles": tiles, "tolerance": tolerance, "max_tiles": max_tiles}
    changes = [f"sampling.{name}={value}" for name, value in given.items() if value is not None]
    settings = settings.with_values(changes)
    scored = partial(score, model=model, out=out, settings=settings, seed=options.seed or 0)
    execution = options.execution()
    waiting: dict[str, Any] = {"every": every, "settle": settle, "marker": marker}
    waiting = {name: value for name, value in waiting.items() if value is not None}
    if refs is not None:
        if waiting:
            raise SettingsError(f"--{next(iter(waiting))} says how to wait for slides; give --watch, too")
        return scored(refs, execution=execution)
    with stop_on_signals() as stop:
        arrivals = Arrivals(slides, options.mpp, options.reader, pause=stop.wait, **waiting)
        return scored(arrivals, execution=replace(execution, stop=stop))


_Labels = Annotated[
    Path, typer.Option("--labels", help="Table of slide_id (or case_id) and label; several columns too.")
]
_By = Annotated[str, typer.Option("--by", metavar="slide|case", help="What figures are of.")]
_Resamples = Annotated[
    int, typer.Option("--resamples", min=0, help="Samples of cases that intervals are taken from.")
]


@app.command()
@command
def evaluate(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Output folder of score.")],
    labels: _Labels,
    out: Out,
    options: Options,
    by: _By = "slide",
    label_column: _LabelColumn = None,
    splits: Annotated[
        Path | None,
        typer.Option("--splits", help="Table with columns train, val and test: evaluate its test slides."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="train|val|test", help="Evaluate slides of this split alone."),
    ] = None,
    resamples: _Resamples = 1000,
) -> Result:
    """Hold scores against labels: figures with intervals, curves, calibration; without workers."""
    from pipelines.evaluate import evaluate

    return evaluate(
        scores,
        labels,
        out,
        by=by,
        label_column=label_column,
        splits=splits,
        split=split,
        resamples=resamples,
        seed=options.seed or 0,
        execution=options.execution(),
    )


@app.command()
@command
def crossval(
    slides: Slides,
    labels: _Labels,
    out: Out,
    options: Options,
    folds: Annotated[
        int | None, typer.Option("--folds", min=2, help="How often to train and score; 5 by default.")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option("--splits", help="Folder of splits_0.csv, splits_1.csv ... to use instead.")
    ] = None,
    by: _By = "slide",
    label_column: _LabelColumn = None,
    resamples: _Resamples = 1000,
) -> Result:
    """Train on all folds but one, score that one, in turn; figures of each and of all together."""
    from pipelines.crossval import crossval

    settings = options.settings()
    if options.seed is not None:
        settings = settings.with_values([f"training.seed={options.seed}"])
    refs = options.refs(slides, labels=labels, label_column=label_column, task=settings.model.task)
    execution = options.execution()
    return crossval(
        refs,
        out,
        folds=folds,
        splits=splits,
        by=by,
        resamples=resamples,
        settings=settings,
        execution=execution,
    )


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
def demo(options: Running, out: DemoOut = Path("demo")) -> Result:
    """Make slides, train on them, score others, and show how it went."""
    from pipelines.demo import demo

    return demo(out, seed=options.seed or 0, execution=options.execution())


def main(stage: str | None = None) -> None:
    """Run the command line; with a stage, as if it had been named first."""
    if stage is not None:
        sys.argv.insert(1, stage)  # run.json records the command from here, too
    app(prog_name="wsi-ats")
