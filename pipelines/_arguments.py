"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

# Panels of the help pages.
INPUT = "Input"
MODEL = "Model"
OUTPUT = "Output"
EXECUTION = "Execution"


def flag(name: str, text: str, panel: str) -> Any:
    """Declare an option that is on or off."""
    return typer.Option(name, help=text, rich_help_panel=panel)


def number(name: str, text: str, *, panel: str, least: int = 1, most: int | None = None) -> Any:
    """Declare an option that takes a number."""
    return typer.Option(name, metavar="N", min=least, max=most, help=text, rich_help_panel=panel)


def text(name: str, metavar: str, text: str, *, panel: str) -> Any:
    """Declare an option that takes a word, a path or seconds."""
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=panel)


Slides = Annotated[
    list[str],
    typer.Argument(metavar="SLIDES", help="Slides, folders, globs, URLs or tables of slides (CSV)."),
]
Scores = Annotated[Path, typer.Argument(metavar="SCORES", help="Output folder of `score`.")]
MovedSlides = Annotated[
    str | None,  # a path would lose a slash of a URL
    text(
        "--slides",
        "FOLDER",
        "Where the slides are now, if they were moved after they were scored: a folder, glob, URL or table.",
        panel=INPUT,
    ),
]
Labels = Annotated[
    Path,
    text("--labels", "FILE", "Table of labels (CSV): a column slide_id or case_id, and label.", panel=INPUT),
]
LabelColumn = Annotated[
    str | None,
    text(
        "--label-column",
        "NAME[,NAME]",
        "Column of the labels, if it is not 'label'. Several columns, joined by commas, if model.task needs "
        "them: time,event for survival, a column of 0 and 1 for each label of multilabel.",
        panel=INPUT,
    ),
]
Splits = Annotated[
    Path | None, text("--splits", "FILE", "Table with the columns train, val and test.", panel=INPUT)
]
By = Annotated[str, text("--by", "slide|case", "Evaluate slides or cases.", panel=OUTPUT)]
Resamples = Annotated[
    int,
    number("--resamples", "Bootstrap samples of cases for the confidence intervals.", least=0, panel=OUTPUT),
]
TrainingSeed = Annotated[
    int | None, number("--seed", "Random seed; short for --set training.seed.", least=0, panel=MODEL)
]


def _no_store(folder: Path) -> Path:
    """Refuse a URL, for which a folder named ``s3:`` would be made."""
    if re.match(r"[A-Za-z][\w+.-]+:/", str(folder)):
        raise typer.BadParameter(
            f"{folder} looks like a URL, but results are written to disks only; name a folder, and copy it "
            "to the store after the run"
        )
    return folder


Out = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FOLDER", help="Output folder.", callback=_no_store, rich_help_panel=OUTPUT
    ),
]
OutFile = Annotated[
    Path,
    typer.Option("--out", metavar="FILE", help="Output file.", callback=_no_store, rich_help_panel=OUTPUT),
]
Overwrite = Annotated[bool, flag("--overwrite", "Delete the results of an earlier run first.", OUTPUT)]
Strict = Annotated[bool, flag("--strict", "Stop at the first slide that fails.", EXECUTION)]
Seed = Annotated[int, number("--seed", "Random seed.", least=0, panel=EXECUTION)]
