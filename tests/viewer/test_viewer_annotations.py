"""Outlines from QuPath: shapes, holes, classes, frame, and files that are not GeoJSON."""

from __future__ import annotations

import json

import pytest

from wsi_ats.errors import ArtifactError
from wsi_ats.geometry import Region
from wsi_ats.viewer.annotations import Outline, read_outlines

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 0]]
HOLE = [[2, 1], [4, 1], [4, 2], [2, 1]]
WHOLE = Region(0, 0, 100, 100)


def feature(kind, coordinates, **properties):
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


@pytest.fixture
def read(tmp_path):
    def read(content, bounds=WHOLE):
        path = tmp_path / "a.geojson"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_outlines(path, bounds)

    return read


def test_polygons_with_holes_and_several_parts_are_read_with_their_class_and_colour(read):
    kind = {"name": "Tumour", "color": [1, 171, 255]}
    found = read(
        [
            feature("Polygon", [SQUARE, HOLE], classification=kind),
            feature("MultiPolygon", [[SQUARE], [HOLE]], classification={"name": "Stroma"}),
            feature("Point", [3, 4]),
        ]
    )
    tuples = [tuple(map(float, point)) for point in SQUARE], [tuple(map(float, point)) for point in HOLE]
    assert found[0] == Outline("Tumour", "#01abff", list(tuples))
    assert [each.name for each in found] == ["Tumour", "Stroma", "Stroma"]
    assert found[1].colour == found[2].colour != found[0].colour
    assert [each.rings for each in found[1:]] == [[tuples[0]], [tuples[1]]]


def test_a_collection_and_a_single_feature_are_the_same_as_a_list(read):
    one = feature("Polygon", [SQUARE])
    assert read([one]) == read({"type": "FeatureCollection", "features": [one]}) == read(one)
    assert read([one])[0].name == ""
    assert read([]) == []


def test_qupath_counts_from_the_corner_of_the_scan(read):
    [outline] = read([feature("Polygon", [SQUARE])], Region(1000, 200, 50, 50))
    assert outline.rings[0][:2] == [(1000, 200), (1010, 200)]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "null", "3", '{"features": 3}', '[{"type": "Feature"}]', "[[]]", '{"features": [null]}'),
        *('[{"geometry": {"type": "Polygon", "coordinates": [[[1]]]}}]',),
        *('[{"geometry": {"type": "Polygon", "coordinates": [[[1, NaN]]]}}]',),
        *('[{"geometry": {"type": "Polygon", "coordinates": [[["x", 1]]]}}]',),
        *(json.dumps([feature("Polygon", [SQUARE], classification={"name": "a", "color": "red"})]),),
        *(json.dumps([feature("Polygon", [SQUARE], classification="a")]),),
    ],
)
def test_other_contents_are_an_error_that_names_the_file(read, content):
    with pytest.raises(ArtifactError, match=r"a\.geojson cannot be read: .* expected GeoJSON"):
        read(content)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_outlines(tmp_path / "missing.geojson", WHOLE)
