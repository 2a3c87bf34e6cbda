"""Drawn tiles as plain GeoJSON, for programs that know no more of tiles than their outlines."""

from __future__ import annotations

import json
from pathlib import Path

from wsi_ats.files import atomic
from wsi_ats.results.exports.format import Format
from wsi_ats.results.exports.outlines import ring
from wsi_ats.results.scores import ScoredSlide


def write_geojson(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<slide_id>.geojson``: a polygon for each distinct tile, in level-0 pixels of the whole slide.

    Its properties are the numbers of the selection. Pixels count from the slide's corner, also where only a
    part of it was scanned.
    """
    selection = slide.selection()
    tiles = selection.distinct()
    boxes = selection.grid.boxes(tiles.cells).tolist()
    numbers = {
        "attention": selection.attention[tiles.row].tolist(),
        "inclusion": selection.inclusion[tiles.row].tolist(),
        "weight": tiles.weight.tolist(),
        "draws": tiles.draws.tolist(),
        **{f"evidence_{name}": selection.evidence_of(name, tiles.row) for name in selection.evidence},
    }
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring(*box)]},
            "properties": {"slide_id": slide.id} | {name: values[i] for name, values in numbers.items()},
        }
        for i, box in enumerate(boxes)
    ]
    path = folder / f"{slide.id}.geojson"
    with atomic(path) as temporary:
        collection = {"type": "FeatureCollection", "features": features}
        temporary.write_text(json.dumps(collection, allow_nan=False) + "\n", encoding="utf-8")
    return [path]


FORMAT = Format(
    "geojson",
    programs="shapely, geopandas, QGIS",
    contents="*.geojson, a polygon for each tile in level-0 pixels",
    slide=write_geojson,
)
