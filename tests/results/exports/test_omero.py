"""Files for OMERO are read as its tools' sources read them.

``rois`` follows the Galaxy tool *OMERO ROI Import* (omero_roi_upload.py, with ezomero), and ``table`` follows
``omero metadata populate`` (omero_metadata/populate.py). Neither runs without a server.
"""

from __future__ import annotations

import csv
import math

import pandas as pd

from results import scored_folder
from results.scored_folder import BOUNDS, GRID, write_scores
from wsi_ats.results.exports.registry import FORMATS

READ = {"s": str, "l": int, "d": float}
BOXES = [
    (x - BOUNDS.x, y - BOUNDS.y, width, height) for x, y, width, height in GRID.boxes([0, 5, 7]).tolist()
]


def rois(path):
    return pd.read_csv(path, sep="\t").to_dict("records")


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        kinds, names, *rows = csv.reader(file)
    kinds[0] = kinds[0].removeprefix("# header ")
    assert len(kinds) == len(names)
    return [
        {name: READ[kind](value) for kind, name, value in zip(kinds, names, row, strict=True)} for row in rows
    ]


def test_rectangles_are_where_bio_formats_shows_the_tiles(exported):
    """It shows the scanned part only, so pixels count from the corner of the bounds."""
    folder, _ = exported("omero-csv")
    found = rois(folder / "a.rois.tsv")
    assert {each["shape"] for each in found} == {"Rectangle"}
    assert [tuple(each[name] for name in ("x", "y", "width", "height")) for each in found] == BOXES
    assert found[1]["label"] == "attention 0.4"
    assert found[1]["stroke_color"] == "(255,128,0,255)"


def test_numbers_are_of_the_rectangles_with_these_names(exported):
    folder, _ = exported("omero-csv")
    found = table(folder / "b.csv")
    names = [each["Roi Name"] for each in found]
    assert names == [each["roi_name"] for each in rois(folder / "b.rois.tsv")]
    assert len(set(names)) == 3
    assert [tuple(each[name] for name in ("x", "y", "width", "height")) for each in found] == BOXES
    assert [each["attention"] for each in found] == [0.1, 0.4, 0.2]
    assert [each["draws"] for each in found] == [1, 2, 1]
    assert [each["evidence_tumour"] for each in found] == [-each["evidence_normal"] for each in found]


def test_a_missing_number_is_one_that_populate_accepts(tmp_path):
    slide = write_scores(tmp_path / "scores", "a").slides[0]
    alone = scored_folder.selection("a")
    alone.evidence["tumour"][:] = math.nan
    scored_folder.write_selection(tmp_path / "scores" / "selections" / "a.parquet", alone)
    FORMATS["omero-csv"].slide(tmp_path, slide)
    assert all(math.isnan(each["evidence_tumour"]) for each in table(tmp_path / "a.csv"))
