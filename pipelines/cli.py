"""``wsi-ats``: one command for each stage. Each command imports its stage when it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelines._arguments import (
    EXECUTION,
    INPUT,
    MODEL,
    OUTPUT,
    By,
    LabelColumn,
    Labels,
    MovedSlides,
    Out,
    OutFile,
    Overwrite,
    Scores,
    Seed,
    Slides,
    Splits,
    Strict,
    flag,
    number,
    text,
)
from pipelines._command import PlainCommand, PlainGroup, Result, command
from pipelines._options import (
    ClusterOptions,
    CommonOptions,
    FolderOptions,
    SettingsOptions,
    SlideOptions,
    StageOptions,
    execution,
)
from pipelines._process import quick
from pipelines._stage_options import (
    DrawOptions,
    EvaluationOptions,
    FeatureOptions,
    FitOptions,
    FoldOptions,
    KeptOptions,
    LearningOptions,
    PictureOptions,
    RegionOptions,
    WatchOptions,
)

app = typer.Typer(
    name="wsi-ats",
    cls=PlainGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # commands report their errors themselves
    help="Attention sampling for whole slides: read only the tiles that matter.",
    epilog="Exit codes: 0 all done, 1 some slides failed, 2 wrong usage or settings, "
    "70 a bug (please report it), 130 interrupted.",
)


def _stage(body: Callable[..., Result]) -> Callable[..., None]:
    """Register a function as a command of its name."""
    return app.command(cls=PlainCommand)(command(body))


def _show_version(wanted: bool) -> None:
    if wanted:
        from pipelines._runs import versions

        typer.echo(f"wsi-ats {versions()['wsi-ats']}")
        raise typer.Exit


def _list_formats(wanted: bool) -> None:
    if wanted:
        from pipelines.export import list_formats

        typer.echo(list_formats())
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


@_stage
def info(slides: Slides, source: SlideOptions, chosen: SettingsOptions) -> Result:
    """Show the format, resolution and tissue of slides, and the cost of scoring them."""
    from pipelines.info import info

    settings = chosen.settings()
    return info(source.refs(slides), settings=settings)


@_stage
def prepare(
    slides: Slides,
    source: SlideOptions,
    areas: RegionOptions,
    chosen: SettingsOptions,
    out: Out,
    stage: StageOptions,
    common: CommonOptions,
) -> Result:
    """Read thumbnails, and find tissue and artefacts."""
    from pipelines.prepare import prepare

    settings, carried_out = chosen.settings(), execution(common, stage)
    refs = areas.named(source.refs(slides), carried_out.reporter)
    return prepare(refs, out, settings=settings, execution=carried_out)


@_stage
def convert(
    slides: Slides,
    source: SlideOptions,
    out: Out,
    stage: StageOptions,
    common: CommonOptions,
    codec: Annotated[
        str,
        text("--codec", "zstd|jpeg", "zstd keeps every pixel; jpeg is smaller but lossy.", panel=OUTPUT),
    ] = "zstd",
    quality: Annotated[
        int | None, number("--quality", "Quality of jpeg. Default: 90.", most=100, panel=OUTPUT)
    ] = None,
    to: Annotated[
        str | None,
        text(
            "--to",
            "FOLDER|URL",
            "Where to write the pyramids, if not to --out: a folder, or a URL such as s3://bucket/slides.",
            panel=OUTPUT,
        ),
    ] = None,
) -> Result:
    """Convert slides to OME-Zarr 0.5 pyramids."""
    from pipelines.convert import check_apart, convert

    check_apart(slides, out, to)
    refs = source.refs(slides)
    return convert(refs, out, codec=codec, quality=quality, to=to, execution=execution(common, stage))


@_stage
def embed(
    slides: Slides,
    source: SlideOptions,
    areas: RegionOptions,
    encoder: Annotated[
        str,
        text(
            "--encoder",
            "NAME",
            "The encoder; short for --set model.backbone. `wsi-ats encoders` lists foundation encoders, "
            "which also decide the size and resolution of tiles.",
            panel=MODEL,
        ),
    ],
    chosen: SettingsOptions,
    out: Out,
    stage: StageOptions,
    common: CommonOptions,
    tiles: Annotated[
        int | None,
        number(
            "--tiles", "Encode this many tiles of each slide, drawn uniformly. Default: all.", panel=MODEL
        ),
    ] = None,
    seed: Annotated[
        int | None, number("--seed", "With --tiles: random seed. Default: 0.", least=0, panel=EXECUTION)
    ] = None,
    dtype: Annotated[
        str,
        text(
            "--dtype", "float32|float16", "Type of stored features; float16 halves the files.", panel=OUTPUT
        ),
    ] = "float32",
) -> Result:
    """Encode the tissue tiles of slides, and keep their features."""
    from pipelines.embed import embed

    chosen.check_backbone("--encoder", encoder)
    settings = chosen.settings(changes={"model.backbone": encoder})
    carried_out = execution(common, stage)
    refs = areas.named(source.refs(slides), carried_out.reporter)
    return embed(refs, out, settings=settings, tiles=tiles, seed=seed, dtype=dtype, execution=carried_out)


@_stage
def train(
    slides: Slides,
    labels: Labels,
    learning: LearningOptions,
    fitting: FitOptions,
    out: Out,
    stage: StageOptions,
    common: CommonOptions,
    splits: Splits = None,
) -> Result:
    """Train a model from slides and their labels."""
    from pipelines.train import train

    carried_out = execution(common, stage)
    refs, settings = learning.of(slides, labels, carried_out.reporter, splits=splits)
    return train(refs, out, settings=settings, execution=carried_out, **vars(fitting))


@_stage
def score(
    slides: Slides,
    source: SlideOptions,
    stored: FeatureOptions,
    areas: RegionOptions,
    arriving: WatchOptions,
    model: Annotated[
        Path, text("--model", "FOLDER", "A trained model: the output folder of `train`.", panel=MODEL)
    ],
    chosen: SettingsOptions,
    drawing: DrawOptions,
    kept: KeptOptions,
    out: Out,
    stage: StageOptions,
    common: CommonOptions,
    seed: Seed = 0,
) -> Result:
    """Score slides with a model: predictions, and the tiles they are based on."""
    from pipelines._watch import stop_on_signals
    from pipelines.score import score
    from wsi_ats.errors import SettingsError
    from wsi_ats.models.card import read_card

    if arriving.watch and stored.features is not None:
        raise SettingsError(
            "--watch scores slides that have no features yet; leave out --features or --watch"
        )
    if arriving.watch and areas.regions is not None:
        raise SettingsError("--watch scores slides as they arrive, without annotations; leave out --regions")
    refs = None if arriving.watch else source.refs(slides)
    settings = chosen.settings(read_card(model).settings, changes=drawing.changes())
    scored = partial(
        score,
        model=model,
        out=out,
        settings=settings,
        seed=seed,
        keep_features=kept.keep_features,
        pictures=kept.pictures,
    )
    carried_out = execution(common, stage)
    if refs is not None:
        refs = areas.named(stored.named(refs, carried_out.reporter), carried_out.reporter)
        return scored(refs, execution=carried_out)
    with stop_on_signals() as stop:
        arrivals = arriving.arrivals(slides, source, stop.wait)
        return scored(arrivals, execution=replace(carried_out, stop=stop))


@_stage
def evaluate(
    scores: Scores,
    labels: Labels,
    out: Out,
    folder: FolderOptions,
    common: CommonOptions,
    chosen: EvaluationOptions,
) -> Result:
    """Compare scores with labels: metrics with confidence intervals, curves, calibration."""
    from pipelines.evaluate import evaluate

    return evaluate(scores, labels, out, execution=execution(common, folder), **chosen.arguments())


@_stage
def crossval(
    slides: Slides,
    labels: Labels,
    learning: LearningOptions,
    folding: FoldOptions,
    out: Out,
    stage: StageOptions,
    common: CommonOptions,
    by: By = "slide",
) -> Result:
    """Cross-validate: train, score and evaluate each fold, and all folds together."""
    from pipelines.crossval import crossval

    carried_out = execution(common, stage)
    refs, settings = learning.of(slides, labels, carried_out.reporter)
    return crossval(refs, out, by=by, settings=settings, execution=carried_out, **vars(folding))


@_stage
def plan(
    slides: Slides,
    labels: Labels,
    learning: LearningOptions,
    folding: FoldOptions,
    out: Out,
    stage: StageOptions,
    common: CommonOptions,
    tiles: Annotated[
        list[int] | None,
        number(
            "--tiles", "Tiles to draw from each slide; may be repeated. Default: 16, 64, 256.", panel=MODEL
        ),
    ] = None,
) -> Result:
    """Plan, from features and labels, how many tiles a slide needs and what they cost in accuracy."""
    from pipelines.plan import BUDGETS, plan

    carried_out = execution(common, stage)
    refs, settings = learning.of(slides, labels, carried_out.reporter)
    budgets = tiles or BUDGETS
    return plan(refs, out, budgets=budgets, settings=settings, execution=carried_out, **vars(folding))


@_stage
def export(
    scores: Scores,
    to: Annotated[
        list[str], text("--to", "FORMAT", "A format that --list shows; may be repeated.", panel=OUTPUT)
    ],
    out: Out,
    folder: FolderOptions,
    common: CommonOptions,
    drawn: PictureOptions,
    slides: MovedSlides = None,
    strict: Strict = False,
    formats: Annotated[  # noqa: ARG001  (it ends the command)
        bool,
        typer.Option(
            "--list",
            callback=_list_formats,
            is_eager=True,
            help="List the formats and the programs that open them.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> Result:
    """Export predictions and selected tiles for other programs."""
    from pipelines.export import export

    carried_out = replace(execution(common, folder), strict=strict)
    return export(scores, out, to=to, slides=slides, options=drawn.given(), execution=carried_out)


@_stage
def report(
    scores: Scores,
    out: OutFile,
    folder: FolderOptions,
    common: CommonOptions,
    labels: Annotated[
        Path | None,
        text("--labels", "FILE", "Table of labels (CSV) to compare the scores with.", panel=INPUT),
    ] = None,
    label_column: LabelColumn = None,
    by: By = "slide",
    slides: MovedSlides = None,
    no_pictures: Annotated[
        bool,
        flag(
            "--no-pictures",
            "Show no slides and tiles. Otherwise those that `score --pictures` kept, or drawn now.",
            OUTPUT,
        ),
    ] = False,
) -> Result:
    """Write a report of scores: one HTML file to read, print and hand on."""
    from pipelines.report import report
    from wsi_ats.errors import SettingsError

    if labels is None and (label_column is not None or by != "slide"):
        raise SettingsError(
            "--label-column and --by have no effect without --labels; give it, or leave them out"
        )
    return report(
        scores,
        out,
        labels=labels,
        label_column=label_column,
        by=by,
        slides=slides,
        pictures=not no_pictures,
        execution=execution(common, folder),
    )


@_stage
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


@_stage
def encoders() -> Result:
    """List the foundation encoders that model.backbone knows by name."""
    from pipelines.encoders import encoders

    return encoders()


@_stage
def doctor() -> Result:
    """Check the installation and say what to install."""
    from pipelines.doctor import doctor

    return doctor()


@_stage
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
