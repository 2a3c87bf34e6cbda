"""Which cells lie in annotations, and how much of each is annotated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from annotation_files import asap, feature, rectangle, write_qupath
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ats.annotations.opening import read_annotations
from wsi_ats.annotations.record import Annotations, Drawn, Frame
from wsi_ats.annotations.shapes import Outline
from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, Region

GRIDS = st.builds(
    lambda width, height, cell, stride: Grid(width, height, cell, 64, None if stride == 1 else cell * stride),
    st.integers(200, 3000),
    st.integers(200, 3000),
    st.sampled_from([64.0, 101.7, 256.0, 500.5]),
    st.sampled_from([1, 0.5, 0.75]),
)
SIDE = st.floats(0, 1, allow_subnormal=False)


def drawn_on(grid, *outlines):
    whole = Frame(grid.width, grid.height, Region(0, 0, grid.width, grid.height))
    made = [Outline(name, np.array(corners, dtype=float)) for name, corners in outlines]
    return Annotations.of(Path("a.xml"), Drawn("ASAP", made), whole)


@settings(max_examples=200, deadline=None)
@given(GRIDS, SIDE, SIDE, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_rectangle_holds_exactly_the_cells_whose_centre_is_in_it(grid, left, top, width, height):
    x, y = left * 0.9 * grid.width, top * 0.9 * grid.height
    right, bottom = x + width * (grid.width - x), y + height * (grid.height - y)
    found = drawn_on(grid, ("", rectangle(x, y, right - x, bottom - y)))
    right, bottom = found.area().bounds[2:]  # rounded
    rows, columns = np.divmod(np.arange(grid.size), grid.shape[1])
    down, across = rows * grid.pitch + grid.cell / 2, columns * grid.pitch + grid.cell / 2
    expected = (across >= x) & (across <= right) & (down >= y) & (down <= bottom)
    np.testing.assert_array_equal(found.inside(grid, np.arange(grid.size)), expected)
    some = np.flatnonzero(np.arange(grid.size) % 3 == 0)
    np.testing.assert_array_equal(found.inside(grid, some), expected[some])


@settings(max_examples=100, deadline=None)
@given(GRIDS, st.lists(st.tuples(SIDE, SIDE), min_size=3, max_size=9, unique=True))
def test_shares_of_cells_are_those_of_each_cell_by_itself(grid, corners):
    """Whatever the outline, even one that crosses itself."""
    found = drawn_on(grid, ("", [(x * grid.width, y * grid.height) for x, y in corners]))
    shares = found.shares(grid)
    rows, columns = np.indices(grid.shape)
    x, y = columns * grid.pitch, rows * grid.pitch
    boxes = shapely.box(x, y, x + grid.cell, y + grid.cell)
    expected = shapely.area(shapely.intersection(boxes, found.area())) / grid.cell**2
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    assert shares.max(initial=0) <= 1


def test_an_outline_that_crosses_itself_encloses_both_loops_and_is_reported():
    grid = Grid(100, 100, 10, 10)
    bow = drawn_on(grid, ("Tumor", [(0, 0), (20, 20), (20, 0), (0, 20)]))
    assert bow.shapes[0].area == 200
    assert bow.notes == ("outlines that cross themselves, and were repaired: 1",)
    # A loop that runs over its own beginning stays filled there.
    twice = drawn_on(
        grid, ("Tumor", [(0, 0), (40, 0), (40, 40), (10, 40), (10, -0.0), (30, 0), (30, 30), (0, 30)])
    )
    assert twice.inside(grid, np.array([11])).all()


def test_pieces_that_touch_in_a_point_are_one_area():
    grid = Grid(100, 100, 10, 10)
    bow = drawn_on(grid, ("", [(0, 0), (20, 20), (20, 0), (0, 20)]), ("", rectangle(23, 0, 10, 10)))
    assert sorted(shape.area for shape in bow.only([]).shapes) == [100, 200]
    assert [shape.area for shape in bow.only([], apart=3.5).shapes] == [300]


def test_annotations_that_overlap_count_once_and_those_that_touch_are_one_area():
    grid = Grid(100, 100, 10, 10)
    found = drawn_on(
        grid,
        ("A", rectangle(0, 0, 20, 10)),
        ("A", rectangle(10, 0, 20, 10)),
        ("B", rectangle(30, 0, 10, 10)),
        ("A", rectangle(60, 60, 10, 10)),
    )
    assert found.shares(grid).sum() == pytest.approx(5)
    assert sorted(shape.area for shape in found.only(["A"]).shapes) == [100, 300]
    assert sorted(shape.area for shape in found.only([]).shapes) == [100, 400]
    assert found.only(["C"]).shapes == ()
    assert not found.only(["C"]).inside(grid, np.arange(grid.size)).any()


def test_shapes_and_classes_are_equally_many():
    with pytest.raises(SettingsError, match="1 shapes need as many classes"):
        Annotations(Path("a"), "ASAP", (shapely.box(0, 0, 1, 1),), ())


def test_a_hole_is_not_inside(tmp_path):
    path = write_qupath(
        tmp_path / "a.geojson", [feature(rectangle(0, 0, 50, 50), holes=[rectangle(20, 20, 10, 10)])]
    )
    grid = Grid(100, 100, 10, 10)
    found = read_annotations(path, Frame(100, 100, Region(0, 0, 100, 100)))
    inside = found.inside(grid, np.arange(grid.size)).reshape(grid.shape)
    assert inside[:5, :5].sum() == inside.sum() == 24
    assert not inside[2, 2]
    assert found.shares(grid)[2, 2] == 0


@pytest.mark.parametrize("number", range(1, 10))
def test_lesions_of_camelyon_as_asap_writes_them(shared_data, tmp_path, number):
    """Outlines of thousands of points, drawn by pathologists, some of which cross themselves."""
    content = json.loads(
        (shared_data / "annotations" / "camelyon16" / f"Tumor_{number:03d}.json").read_text()
    )
    lesions = [("Polygon", "_0", each["vertices"]) for each in content["positive"]]
    lesions += [("Polygon", "_2", each["vertices"]) for each in content["negative"]]
    path = tmp_path / f"tumor_{number:03d}.xml"
    path.write_text(asap(lesions))
    width, height = 100_000, 225_000
    found = read_annotations(path, Frame(width, height, Region(0, 0, width, height)))
    assert len(found.shapes) + sum("no area" in note for note in found.notes) >= len(content["positive"])
    grid = Grid(width, height, 512, 256)
    tumour = found.only(["_0", "!_2"])
    covered = tumour.shares(grid)
    assert covered.sum() * 512**2 == pytest.approx(tumour.area().area, rel=1e-6)
    # By the shoelace formula, which is right for outlines that do not cross themselves.
    x, y = np.array(max((each for _, _, each in lesions), key=len), dtype=float).T
    largest = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert max(shape.area for shape in found.shapes) >= 0.99 * largest
