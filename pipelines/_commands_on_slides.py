"""Commands on slides; each imports its stage when it runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from pipelines._app import stage
from pipelines._arguments import (
    EXECUTION,
    MODEL,
    OUTPUT,
    By,
    Labels,
    Out,
    Seed,
    Slides,
    Splits,
    number,
    text,
)
from pipelines._command import Result
from pipelines._options import (
    CommonOptions,
    SettingsOptions,
    SlideOptions,
    StageOptions,
    execution,
)
from pipelines._stage_options import (
    DrawOptions,
    FeatureOptions,
    FitOptions,
    FoldOptions,
    KeptOptions,
    LearningOptions,
    RegionOptions,
    WatchOptions,
)


@stage
def info(slides: Slides, source: SlideOptions, chosen: SettingsOptions) -> Result:
    """Show the format, resolution and tissue of slides, and the cost of scoring them."""
    from pipelines.info import info

    settings = chosen.settings()
    return info(source.refs(slides), settings=settings)


@stage
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


@stage
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


@stage
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


@stage
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


@stage
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

    if arriving.watch and (stored.features or areas.regions):
        given = "features" if stored.features else "regions"
        raise SettingsError(f"--watch scores slides that have no {given} yet; leave out --{given} or --watch")
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


@stage
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


@stage
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
