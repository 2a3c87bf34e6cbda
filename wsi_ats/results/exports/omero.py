"""Drawn tiles for OMERO: rectangles for its tool that imports ROIs, and their numbers for OMERO.tables.

OMERO does not know a slide by its name here, so each of its images gets two files by its id. First the
rectangles, with the Galaxy tool *OMERO ROI Import* or its script; then the numbers, with ``omero metadata
populate Image:ID --file <slide_id>.csv``, which finds the rectangles by their names.

OMERO reads slides with Bio-Formats, which shows only the scanned part. So coordinates are level-0 pixels
counted from the corner of the bounds, which is (0, 0) for most formats. If a slide has several scanned areas,
Bio-Formats makes an image of each, and the files fit none of them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.files import atomic
from wsi_ats.results.exports.coordinates import tile_numbers
from wsi_ats.results.exports.format import Format
from wsi_ats.results.scores import ScoredSlide

_ORANGE, _CLEAR = "(255,128,0,255)", "(255,128,0,0)"  # red, green, blue, opacity


def write_omero(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<slide_id>.rois.tsv`` with the rectangles, and ``<slide_id>.csv`` with their numbers."""
    selection = slide.selection()
    numbers = tile_numbers(selection)
    numbers |= {"x": numbers["x"] - selection.bounds.x, "y": numbers["y"] - selection.bounds.y}
    names = [f"tile {x} {y}" for x, y in zip(numbers["x"], numbers["y"], strict=True)]
    shapes = {
        "shape": ["Rectangle"] * len(names),
        **{name: numbers[name].astype(float).tolist() for name in ("x", "y", "width", "height")},
        "label": [f"attention {each:.4g}" for each in numbers["attention"].tolist()],
        "fill_color": [_CLEAR] * len(names),
        "stroke_color": [_ORANGE] * len(names),
        "stroke_width": [2.0] * len(names),
        "roi_name": names,
    }
    # Named for their use in a table of an image: the tool looks for a ROI of each name.
    table = {"Roi Name": names} | {name: values.tolist() for name, values in numbers.items()}
    kinds = ["l" if np.issubdtype(values.dtype, np.integer) else "d" for values in numbers.values()]
    written = [folder / f"{slide.id}.rois.tsv", folder / f"{slide.id}.csv"]
    _write(written[0], [list(shapes), *zip(*shapes.values(), strict=True)], delimiter="\t")
    _write(written[1], [["# header s", *kinds], list(table), *zip(*table.values(), strict=True)])
    return written


def _write(path: Path, rows: Iterable[Iterable[Any]], *, delimiter: str = ",") -> None:
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


FORMAT = Format(
    "omero-csv",
    programs="OMERO (its ROI import, and omero-metadata)",
    contents="*.rois.tsv with a rectangle for each tile, and *.csv with their numbers",
    slide=write_omero,
)
