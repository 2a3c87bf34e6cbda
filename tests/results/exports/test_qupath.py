"""GeoJSON that QuPath reads: valid polygons at the right place, one object for each tile."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from wsi_ats.geometry import Grid, Region
from wsi_ats.results.exports.qupath import qupath_features
from wsi_ats.results.records import Selection


@pytest.fixture
def selection():
    """Cells 5, 0 in draw 0 and 5, 7 in draw 1, of 4 columns."""
    return Selection(
        slide_id="s1",
        path="s1.svs",
        grid=Grid(1000, 600, 256, 256),
        level=0,
        mpp=0.25,
        bounds=Region(0, 0, 1000, 600),
        cells=np.array([5, 0, 5, 7]),
        attention=np.array([0.4, 0.1, 0.4, 0.2]),
        inclusion=np.array([0.8, 0.3, 0.8, 0.5]),
        weight=np.array([0.5, 0.5, 0.75, 0.25]),
        draw=np.array([0, 0, 1, 1]),
        order=np.array([0, 1, 1, 0]),
        scores={"prob_tumour": 0.9, "prob_normal": 0.1},
        evidence={"tumour": np.array([1.5, np.nan, 1.5, -0.5])},
    )


def by_corner(collection):
    return {tuple(f["geometry"]["coordinates"][0][0]): f for f in collection["features"]}


def test_each_object_is_a_valid_closed_square_where_the_grid_says(selection):
    collection = qupath_features(selection)
    assert collection["type"] == "FeatureCollection"
    assert "crs" not in collection
    boxes = {shapely.box(x, y, x + w, y + h).normalize() for x, y, w, h in selection.grid.boxes([0, 5, 7])}
    found = [shape(feature["geometry"]) for feature in collection["features"]]
    assert {polygon.normalize() for polygon in found} == boxes
    for polygon, feature in zip(found, collection["features"], strict=True):
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        ring = feature["geometry"]["coordinates"][0]
        assert len(ring) == 5
        assert ring[0] == ring[-1]


def test_coordinates_count_from_the_corner_of_the_bounds(selection):
    bounded = replace(selection, bounds=Region(100, 37, 800, 500))
    moved = sorted((x - 100, y - 37) for x, y in by_corner(qupath_features(selection)))
    assert sorted(by_corner(qupath_features(bounded))) == moved
    assert (256 - 100, 256 - 37) in moved


def test_properties_are_those_that_qupath_knows(selection):
    for feature in qupath_features(selection)["features"]:
        properties = feature["properties"]
        assert feature["type"] == "Feature"
        assert properties["objectType"] == "tile"
        assert properties["isLocked"] is True
        assert len(properties["classification"]["color"]) == 3
        assert all(isinstance(value, int | float) for value in properties["measurements"].values())
        assert uuid.UUID(feature["id"]).version == 5


def test_measurements_say_why_the_tile_was_read(selection):
    measurements = by_corner(qupath_features(selection))[768, 256]["properties"]["measurements"]
    assert measurements == {
        "attention": 0.2,
        "weight": 0.125,  # one of two draws
        "inclusion": 0.5,
        "draws": 1,
        "draw": 1,
        "order": 0,
        "probability tumour": 0.9,
        "probability normal": 0.1,
        "evidence tumour": -0.5,
    }
    without = by_corner(qupath_features(selection))[0, 0]["properties"]["measurements"]
    assert "evidence tumour" not in without  # it is NaN, which JSON lacks


def test_a_tile_of_several_draws_is_one_object_with_their_number_and_mean_weight(selection):
    features = qupath_features(selection)["features"]
    assert len(features) == 3
    measurements = by_corner(qupath_features(selection))[256, 256]["properties"]["measurements"]
    assert measurements["draws"] == 2
    assert measurements["weight"] == pytest.approx((0.5 + 0.75) / 2)
    assert (measurements["draw"], measurements["order"]) == (0, 0)


def test_weights_of_all_objects_add_up_to_the_mean_of_the_draws(selection):
    total = sum(f["properties"]["measurements"]["weight"] for f in qupath_features(selection)["features"])
    assert total == pytest.approx(selection.weight.sum() / 2)


def test_ids_stay_the_same_and_differ_between_tiles_and_slides(selection):
    first = [f["id"] for f in qupath_features(selection)["features"]]
    again = [f["id"] for f in qupath_features(selection)["features"]]
    other = [f["id"] for f in qupath_features(replace(selection, slide_id="s2"))["features"]]
    assert first == again
    assert len(set(first + other)) == 6


def test_no_tiles_are_an_empty_collection(selection):
    none = {
        name: getattr(selection, name)[:0]
        for name in ("cells", "attention", "inclusion", "weight", "draw", "order")
    }
    empty = replace(selection, **none, evidence={})
    assert qupath_features(empty) == {"type": "FeatureCollection", "features": []}
