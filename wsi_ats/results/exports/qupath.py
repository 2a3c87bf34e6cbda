"""Scores for QuPath (0.4 and later): drawn tiles, attention and tissue as GeoJSON objects.

In QuPath run ``open_in_qupath.groovy`` to make a project of all slides, or drop a file on the open slide, or
use *File > Import objects from file*; then *Measure > Show measurement maps* colours the objects. QuPath
shows only the scanned part of a slide, so coordinates are level-0 pixels counted from the corner of the
bounds, which is (0, 0) for most formats.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.files import atomic, write_json
from wsi_ats.results.exports.format import Format
from wsi_ats.results.exports.outlines import outline, ring
from wsi_ats.results.records import AttentionMap, Selection
from wsi_ats.results.scores import ScoredSlide, Scores

# Names that identify the same tile of the same slide in every export; never change it.
_NAMESPACE = uuid.UUID("6f0f2a3e-6c1b-5c0e-9d39-0b6a3c1f7d52")

_TILE, _CELL, _TISSUE = (255, 128, 0), (68, 1, 84), (0, 158, 115)

_SCRIPT = files(__package__) / "open_in_qupath.groovy"


def write_qupath(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<slide_id>.geojson`` with the tiles and, for a model with attention, two more files.

    ``<slide_id>.attention.geojson`` has a detection for each tissue cell, and
    ``<slide_id>.tissue.geojson`` an annotation of the tissue.
    """
    selection, attention = slide.selection(), slide.attention()
    collections = {"": qupath_features(selection)}
    if attention is not None:
        corner = selection.bounds[:2]
        collections[".attention"] = _collection(_cells(attention, slide.id, corner))
        collections[".tissue"] = _collection([_tissue(attention, slide.id, corner)])
    written = [folder / f"{slide.id}{kind}.geojson" for kind in collections]
    for path, collection in zip(written, collections.values(), strict=True):
        with atomic(path) as temporary:
            # In ASCII, because QuPath reads GeoJSON in the machine's own encoding.
            temporary.write_text(json.dumps(collection, allow_nan=False) + "\n", encoding="ascii")
    return written


def write_project(folder: Path, scores: Scores, slides: Sequence[ScoredSlide]) -> list[Path]:  # noqa: ARG001
    """Write a script that makes a QuPath project of all slides, and the list of slides that it reads.

    See :class:`wsi_ats.results.exports.format.Format` for ``folder``, ``scores`` and ``slides``.
    """
    listed = folder / "slides.json"
    write_json(listed, {"slides": [{"name": each.id, "path": each.path} for each in slides]})
    script = folder / _SCRIPT.name
    here = json.dumps(str(folder)).replace("$", r"\$")  # Groovy's text with escapes, in ASCII
    with atomic(script) as temporary:
        text = _SCRIPT.read_text(encoding="utf-8").replace("@FOLDER@", here)
        temporary.write_text(text, encoding="utf-8")
    return [listed, script]


def qupath_features(selection: Selection) -> dict[str, Any]:
    """Describe a selection as a GeoJSON FeatureCollection.

    A tile of several independent draws is one object: ``draws`` is their number, and ``weight`` is the mean
    over *all* draws of the slide (0 for a draw without the tile), so the weights of all objects add up to
    those of the estimate. ``draw`` and ``order`` are those of the first draw with the tile.

    Parameters
    ----------
    selection
        The tiles of one slide.

    Returns
    -------
    dict
        The collection, in the order of cells; ids are UUIDs that do not change when the export is repeated.
    """
    shared = {re.sub("^prob_", "probability ", name): value for name, value in selection.scores.items()}
    tiles = selection.distinct()
    boxes = selection.grid.boxes(tiles.cells)
    boxes[:, :2] -= selection.bounds[:2]
    features = []
    for row, cell, draws, weight, box in zip(
        *(each.tolist() for each in (tiles.row, tiles.cells, tiles.draws, tiles.weight, boxes)), strict=True
    ):
        measurements = {
            "attention": float(selection.attention[row]),
            "weight": weight,
            "inclusion": float(selection.inclusion[row]),
            "draws": draws,
            "draw": int(selection.draw[row]),
            "order": int(selection.order[row]),
            **{
                f"evidence {name}": float(values[row])
                for name, values in selection.evidence.items()
                if np.isfinite(values[row])  # JSON has no NaN
            },
        }
        name = json.dumps([selection.slide_id, int(selection.draw[row]), cell])
        features.append(
            _feature(
                name,
                {"type": "Polygon", "coordinates": [ring(*box)]},
                objectType="tile",
                classification={"name": "Sampled tile", "color": list(_TILE)},
                measurements=measurements | shared,
            )
        )
    return _collection(features)


def _cells(attention: AttentionMap, slide_id: str, corner: Sequence[int]) -> list[dict[str, Any]]:
    """Return a detection for each tissue cell, with its attention relative to uniform attention."""
    cells = np.flatnonzero(attention.tissue)
    boxes = attention.grid.boxes(cells)
    boxes[:, :2] -= corner
    relative = (attention.attention.flat[cells] * len(cells)).tolist()
    return [
        _feature(
            json.dumps([slide_id, "cell", cell]),
            {"type": "Polygon", "coordinates": [ring(*box)]},
            objectType="detection",
            classification={"name": "Attention", "color": list(_CELL)},
            measurements={"attention (times uniform)": value},
        )
        for cell, box, value in zip(cells.tolist(), boxes.tolist(), relative, strict=True)
    ]


def _tissue(attention: AttentionMap, slide_id: str, corner: Sequence[int]) -> dict[str, Any]:
    return _feature(
        json.dumps([slide_id, "tissue"]),
        outline(attention.tissue, attention.grid, corner=(corner[0], corner[1])),
        objectType="annotation",
        classification={"name": "Tissue", "color": list(_TISSUE)},
        measurements={},
    )


def _feature(name: str, geometry: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, name)),
        "geometry": geometry,
        "properties": properties | {"isLocked": True},
    }


def _collection(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": features}


FORMAT = Format(
    "qupath",
    programs="QuPath 0.4 and later",
    contents="*.geojson of tiles, attention and tissue; open_in_qupath.groovy makes a project",
    slide=write_qupath,
    collection=write_project,
)
