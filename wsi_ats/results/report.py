"""A report of scores as HTML that needs nothing else: no network, no other file, no JavaScript to be read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from wsi_ats.files import atomic

_FOLDER = files(__package__)

_STATUS = 2  # column of the table of slides that can be filtered


@dataclass(frozen=True)
class Picture:
    """A picture in a report.

    Parameters
    ----------
    data
        The picture as a ``data:`` URL.
    text
        Caption, which also describes it to people who do not see it.
    """

    data: str
    text: str


@dataclass(frozen=True)
class SlidePart:
    """The part of a report on one slide.

    Parameters
    ----------
    number
        Number of the slide, from 1.
    id, status, error
        The slide, and the reason why it has no score; empty for a slide with one.
    facts
        Names and values to show.
    pictures
        Pictures of the slide and its tiles.
    without_picture
        The reason why there are none; empty otherwise.
    tile_columns, tiles, tiles_caption
        Table of the tiles that matter most.
    """

    number: int
    id: str
    status: str
    error: str
    facts: Sequence[tuple[str, str]]
    pictures: Sequence[Picture] = ()
    without_picture: str = ""
    tile_columns: Sequence[str] = ()
    tiles: Sequence[Sequence[str]] = ()
    tiles_caption: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table of slides."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """A value in the table of slides: its text, and the number by which it is sorted, if it is one."""

    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Report:
    """All of a report but the parts on single slides.

    Parameters
    ----------
    title, subtitle, footer
        Lines at the top and the bottom.
    counts
        Large numbers, with their names first.
    not_done
        Slide, status and reason of each slide without a score.
    run, settings
        Names and values that describe the run.
    columns, rows
        The table of slides; the first three columns are slide, case and status.
    metrics
        Rows of ``metrics.csv``; empty without labels.
    compared, resamples
        Sentence on the slides that were compared with labels, and the number of bootstrap samples.
    plots
        Curves of the comparison; ``None`` without labels.
    """

    title: str
    subtitle: str
    footer: str
    counts: Sequence[tuple[str, str]]
    not_done: Sequence[tuple[str, str, str]]
    run: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    metrics: Sequence[dict[str, Any]] = ()
    compared: str = ""
    resamples: int = 0
    plots: Picture | None = None


def write_report(
    path: Path, report: Report, slides: Iterable[SlidePart], *, slides_a_page: int
) -> list[Path]:
    """Write a report on pages of so many slides; each page is one file.

    Parts on slides are taken one at a time, so memory does not grow with their number.

    Parameters
    ----------
    path
        File of the first page, which has the summary and the table of all slides. Further pages are beside
        it: ``report-2.html`` for ``report.html``.
    report
        The summary.
    slides
        The parts on slides, in the order of ``report.rows``.
    slides_a_page
        Number of slides on a page.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ArtifactError
        When a file cannot be written.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    environment.filters["count_of"] = count_of
    template = environment.from_string((_FOLDER / "report.html.jinja").read_text(encoding="utf-8"))
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages = max(1, -(-len(report.rows) // slides_a_page))
    paths = [path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, pages + 1))]
    parts = iter(slides)
    for number, own in enumerate(paths, 1):
        page = {
            "number": number,
            "top": path.name if number > 1 else "",
            "first": (number - 1) * slides_a_page + 1,
            "last": min(number * slides_a_page, len(report.rows)),
            "links": [(place, each.name) for place, each in enumerate(paths, 1)],
            "slides": (part for _, part in zip(range(slides_a_page), parts, strict=False)),
        }
        with atomic(own) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(
                template.generate(
                    report=report,
                    page=page,
                    rows=_rows(report, paths, slides_a_page) if number == 1 else (),
                    statuses=list(dict.fromkeys(row[_STATUS].text for row in report.rows)),
                    script=script,
                    script_digest=digest,
                )
            )
    return paths


def _rows(report: Report, paths: Sequence[Path], slides_a_page: int) -> list[dict[str, Any]]:
    rows = []
    for place, cells in enumerate(report.rows):
        page = paths[place // slides_a_page]
        link = f"{page.name if page != paths[0] else ''}#slide-{place + 1}"
        rows.append({"link": link, "cells": list(zip(cells, report.columns, strict=True))})
    return rows


def count_of(number: int, name: str) -> str:
    """Return a number of things as text.

    Examples
    --------
    >>> count_of(1, "slide"), count_of(1200, "slide")
    ('1 slide', '1,200 slides')
    """
    return f"{number:,} {name}{'s' * (number != 1)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
