"""Selections for QuPath (0.4 and later): GeoJSON with one tile object for each tile that was read.

In QuPath drop the file on the open slide, or use *File > Import objects from file*, then *Measure > Show
measurement maps* to colour the tiles. QuPath shows only the scanned part of a slide, so coordinates are
level-0 pixels counted from the corner of the bounds, which is (0, 0) for most formats.
"""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.results.records import Selection

# Names that identify the same tile of the same slide in every export; never change it.
_NAMESPACE = uuid.UUID("6f0f2a3e-6c1b-5c0e-9d39-0b6a3c1f7d52")

_COLOUR = (255, 128, 0)


def write_qupath(path: str | Path, selection: Selection) -> None:
    """Write :func:`qupath_features` to a ``.geojson`` file."""
    text = json.dumps(qupath_features(selection), ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


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
    draws = len(np.unique(selection.draw))
    # By cell, then by draw: the first row of each cell is from the first draw with the tile.
    rows = np.lexsort((selection.draw, selection.cells))
    cells, first, counts = np.unique(selection.cells[rows], return_index=True, return_counts=True)
    boxes = selection.grid.boxes(cells)
    boxes[:, :2] -= selection.bounds[:2]
    features = []
    for cell, start, count, box in zip(cells, first, counts, boxes.tolist(), strict=True):
        one, every = rows[start], rows[start : start + count]
        measurements = {
            "attention": float(selection.attention[one]),
            "weight": float(selection.weight[every].sum() / draws),
            "inclusion": float(selection.inclusion[one]),
            "draws": int(count),
            "draw": int(selection.draw[one]),
            "order": int(selection.order[one]),
            **_evidence(selection, int(one)),
        }
        name = json.dumps([selection.slide_id, int(selection.draw[one]), int(cell)])
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, name)),
                "geometry": {"type": "Polygon", "coordinates": [_ring(*box)]},
                "properties": {
                    "objectType": "tile",
                    "classification": {"name": "Sampled tile", "color": list(_COLOUR)},
                    "isLocked": True,
                    "measurements": measurements | shared,
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _evidence(selection: Selection, row: int) -> dict[str, float]:
    each = {f"evidence {name}": float(values[row]) for name, values in selection.evidence.items()}
    return {name: value for name, value in each.items() if np.isfinite(value)}


def _ring(x: int, y: int, width: int, height: int) -> list[list[int]]:
    """Return a closed outline, counter-clockwise with y upwards, as GeoJSON requires of outer rings."""
    right, bottom = x + width, y + height
    return [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
