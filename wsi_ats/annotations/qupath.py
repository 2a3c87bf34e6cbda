"""GeoJSON as QuPath writes it: a FeatureCollection, an array of features, or a single feature.

QuPath shows only the scanned bounds of a slide, so coordinates count from their corner. Objects of all types
(annotations, detections, cells, tiles) count as annotations; those in other objects are found as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wsi_ats.annotations.record import Drawn
from wsi_ats.annotations.shapes import FloatArray, Outline

PROGRAM = "QuPath"


def read_qupath(content: Any) -> Drawn:
    """Read the outlines of a GeoJSON document.

    Parameters
    ----------
    content
        The parsed document.

    Raises
    ------
    KeyError, TypeError, ValueError
        When the document does not have QuPath's form.
    """
    outlines: list[Outline] = []
    features, others = _features(content), 0
    for feature in features:  # which grows
        properties = feature.get("properties") or {}
        name = _name(properties.get("classification"))
        polygons = _polygons(feature["geometry"] or {})
        outlines += [_outline(name, rings) for rings in polygons]
        others += not polygons
        features += properties.get("childObjects") or []
    return Drawn(PROGRAM, outlines, others, from_bounds=True)


def _features(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, list):
        return [*content]
    if content.get("type") == "Feature":
        return [content]
    if content.get("type") != "FeatureCollection":
        raise ValueError(f"it has the type {content.get('type')!r}, expected FeatureCollection")
    return [*content["features"]]


def _polygons(geometry: dict[str, Any]) -> list[Any]:
    """Return the rings of each polygon of a geometry; empty polygons, points and lines have none."""
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        return [polygon for each in geometry["geometries"] for polygon in _polygons(each)]
    if kind not in {"Polygon", "MultiPolygon"}:
        return []
    coordinates = geometry["coordinates"]
    return [polygon for polygon in ([coordinates] if kind == "Polygon" else coordinates) if polygon]


def _name(found: Any) -> str:
    """Return the name of a class; that of a subclass is ``Tumor: Positive``, as QuPath shows it."""
    if not found or isinstance(found, str):
        return found or ""
    if "names" in found:
        return ": ".join(map(str, found["names"]))
    name = str(found.get("name") or "")
    parent = _name(found.get("parentClass"))  # before QuPath 0.4
    return f"{parent}: {name}" if parent else name


def _outline(name: str, rings: Any) -> Outline:
    shell, *holes = map(_ring, rings)
    return Outline(name, shell, tuple(holes))


def _ring(corners: Any) -> FloatArray:
    return np.array([(x, y) for x, y, *_ in corners], dtype=np.float64).reshape(-1, 2)
