"""Annotations become outlines with a colour for each class; what they cannot be is an error."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wsi_ats.errors import AnnotationError
from wsi_ats.geometry import Region
from wsi_ats.slides.base import SlideInfo
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.viewer.annotations import read_outlines

SQUARE = [[0, 0], [30, 0], [30, 30], [0, 30], [0, 0]]
HOLE = [[5, 5], [10, 5], [10, 10], [5, 10], [5, 5]]


def feature(kind, coordinates, name=""):
    properties = {"classification": {"name": name}} if name else {}
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


class Scanned(MemorySlide):
    """A slide of which a part was scanned."""

    def __init__(self):
        super().__init__([np.zeros((300, 400, 3), np.uint8)], mpp=0.5)
        values = {name: getattr(self.info, name) for name in SlideInfo.__slots__}
        self.info = SlideInfo(**values | {"scan": Region(100, 50, 200, 200)})


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "a.geojson"
        path.write_text(json.dumps(content))
        with Scanned() as slide:
            return read_outlines(path, slide)

    return read


def test_polygons_with_holes_and_several_parts_are_drawn_where_qupath_shows_them(read):
    found = read(
        [
            feature("Polygon", [SQUARE, HOLE], "Tumour"),
            feature("MultiPolygon", [[SQUARE], [[[x + 60, y] for x, y in SQUARE]]], "Stroma"),
        ]
    )
    assert [each.name for each in found] == ["Tumour", "Stroma", "Stroma"]
    assert found[1].colour == found[2].colour != found[0].colour
    assert [len(each.rings) for each in found] == [2, 1, 1]
    assert set(found[0].rings[0]) == {(x + 100, y + 50) for x, y in SQUARE}
    assert set(found[0].rings[1]) == {(x + 100, y + 50) for x, y in HOLE}


def test_a_slide_without_annotations_has_none(read):
    assert read([]) == []


def test_annotations_of_another_slide_are_refused(read):
    with pytest.raises(AnnotationError, match="lie outside"):
        read([feature("Polygon", [[[x + 5000, y] for x, y in SQUARE]])])
