"""Commands on scores; each imports its stage when it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipelines._app import stage
from pipelines._arguments import (
    INPUT,
    OUTPUT,
    By,
    LabelColumn,
    Labels,
    MovedSlides,
    Out,
    OutFile,
    Scores,
    Strict,
    flag,
    number,
    text,
)
from pipelines._command import Result
from pipelines._options import CommonOptions, FolderOptions, execution
from pipelines._stage_options import EvaluationOptions, PictureOptions


def _list_formats(wanted: bool) -> None:
    if wanted:
        from pipelines.export import list_formats

        typer.echo(list_formats())
        raise typer.Exit


@stage
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


@stage
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


@stage
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


@stage
def view(
    scores: Scores,
    common: CommonOptions,
    slides: MovedSlides = None,
    annotations: Annotated[
        Path | None,
        text(
            "--annotations",
            "FOLDER",
            "Outlines to show, a file for each slide: GeoJSON of QuPath, XML of ASAP or Aperio ImageScope.",
            panel=INPUT,
        ),
    ] = None,
    port: Annotated[
        int | None,
        number(
            "--port",
            "Port of 127.0.0.1. Default: a free one.",
            least=0,
            most=65535,
            panel=OUTPUT,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        text(
            "--export",
            "FOLDER",
            "Serve nothing, but write the page with all tiles as files for any web server.",
            panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Replace an earlier --export.", OUTPUT)] = False,
) -> Result:
    """Look at scored slides in a web page: attention, drawn tiles and annotations over all pixels."""
    from pipelines._console import reporter
    from pipelines.view import view

    return view(
        scores,
        slides=slides,
        annotations=annotations,
        port=port,
        export=export,
        overwrite=overwrite,
        reporter=reporter(debug=common.debug),
    )
