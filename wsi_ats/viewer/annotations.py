"""Outlines that were drawn on a slide, from QuPath's GeoJSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_ats.errors import ArtifactError
from wsi_ats.geometry import Region

# The colour-blind safe colours of Okabe and Ito (2008), for classes without a colour of their own.
_COLOURS = ("#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2")

Ring = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Outline:
    """A polygon.

    Parameters
    ----------
    name
        Class of the annotation; empty without one.
    colour
        ``#rrggbb``.
    rings
        The outer ring, then holes; points (x, y) in level-0 pixels.
    """

    name: str
    colour: str
    rings: Sequence[Ring]


def read_outlines(path: Path, bounds: Region) -> list[Outline]:
    """Read the polygons of a GeoJSON file as QuPath writes it: a collection of features, or a list of them.

    Parameters
    ----------
    path
        The file.
    bounds
        Scanned part of the slide, from whose corner QuPath counts.

    Raises
    ------
    ArtifactError
        When the file is missing, damaged or not GeoJSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        features = found if isinstance(found, list) else found.get("features", [found])
        outlines: list[Outline] = []
        names: dict[str, str] = {}
        for feature in features:
            kind = (feature.get("properties") or {}).get("classification") or {}
            name = str(kind.get("name") or "")
            colour = names.setdefault(name, _colour(kind, len(names)))
            outlines += [Outline(name, colour, rings) for rings in _polygons(feature["geometry"], bounds)]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {type(error).__name__}: {error}; expected GeoJSON with polygons, as "
            "QuPath exports it"
        ) from error
    return outlines


def _colour(kind: Mapping[str, Any], number: int) -> str:
    if "color" not in kind:
        return _COLOURS[number % len(_COLOURS)]
    red, green, blue = (min(255, max(0, int(each))) for each in kind["color"])
    return f"#{red:02x}{green:02x}{blue:02x}"


def _polygons(geometry: Mapping[str, Any], bounds: Region) -> list[list[Ring]]:
    """Return the polygons of a geometry; points and lines have none."""
    places = geometry.get("coordinates", [])
    polygons = {"Polygon": [places], "MultiPolygon": places}.get(geometry["type"], [])
    return [[_ring(ring, bounds) for ring in polygon] for polygon in polygons]


def _ring(points: Sequence[Sequence[float]], bounds: Region) -> Ring:
    ring = [(float(point[0]) + bounds.x, float(point[1]) + bounds.y) for point in points]
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in ring):
        raise ValueError("a coordinate is not a finite number")
    return ring
