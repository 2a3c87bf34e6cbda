"""Cells and regions: exact, without gap, overlap or drift."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, Level, Region

sizes = st.integers(1, 1500)


@st.composite
def grids(draw, overlapping=False):
    cell = draw(st.floats(20, 700)) if draw(st.booleans()) else draw(st.sampled_from([256.0, 256 * 3.9997]))
    stride = cell * draw(st.floats(0.2, 1)) if overlapping else None
    return Grid(draw(sizes), draw(sizes), cell, 64, stride)


def all_boxes(grid):
    return grid.boxes(np.arange(grid.size))


@given(grid=grids())
def test_regions_tile_the_grid_without_gap_or_overlap(grid):
    rows, columns = grid.shape
    boxes = all_boxes(grid).reshape(rows, columns, 4)
    x, y, width, height = np.moveaxis(boxes, -1, 0)
    assert (x[:, 0] == 0).all()
    assert (y[0] == 0).all()
    np.testing.assert_array_equal(x[:, 1:], (x + width)[:, :-1])
    np.testing.assert_array_equal(y[1:], (y + height)[:-1])
    assert (y == y[:, :1]).all()
    assert (x == x[:1]).all()


@given(grid=grids(overlapping=True))
def test_the_slide_is_covered_by_the_fewest_cells(grid):
    x, y, width, height = all_boxes(grid).T
    # half a pixel: the last edge is rounded
    assert (x + width).max() >= grid.width - 0.5
    assert (y + height).max() >= grid.height - 0.5
    assert x.max() < grid.width or grid.shape[1] == 1
    assert y.max() < grid.height or grid.shape[0] == 1
    rows, columns = grid.shape
    assert columns == 1 or (columns - 2) * grid.pitch + grid.cell < grid.width + 1e-3
    assert rows == 1 or (rows - 2) * grid.pitch + grid.cell < grid.height + 1e-3


@pytest.mark.parametrize("cell", [256 * 3.9997, 64 * 2.001, 1000 / 3, 8.1])
def test_nothing_drifts_over_100_000_cells(cell):
    count = 100_000
    grid = Grid(int(cell * count), 5, cell, 64)
    cells = np.array([1, 2, 3, 999, 50_000, count - 2, count - 1])
    exact = Fraction(round(cell * 2**20), 2**20)
    assert abs(exact - Fraction(cell)) * count < Fraction(1, 10)
    for (x, _, width, _), number in zip(grid.boxes(cells).tolist(), cells.tolist(), strict=True):
        assert x == math.floor(exact * number + Fraction(1, 2))
        assert x + width == math.floor(exact * (number + 1) + Fraction(1, 2))
        assert abs(x - Fraction(cell) * number) <= Fraction(6, 10)


def test_widths_differ_by_no_more_than_one_pixel():
    widths = all_boxes(Grid(100_000, 3, 64 * 3.9997, 64))[:, 2]
    assert set(widths.tolist()) <= {255, 256}


def test_half_a_stride_gives_twice_the_columns():
    grid = Grid(1024, 256, 256, 256, stride=128)
    assert grid.shape == (1, 7)
    assert grid.region(1) == Region(128, 0, 256, 256)


def test_a_slide_smaller_than_a_cell_has_one():
    grid = Grid(10, 3000, 256, 256)
    assert grid.shape == (12, 1)
    assert Grid(1, 1, 256, 256).region(0) == Region(0, 0, 256, 256)


def test_a_slide_of_whole_cells_has_no_extra_one():
    assert Grid(512, 768, 256, 256).shape == (3, 2)
    assert Grid(513, 769, 256, 256).shape == (4, 3)


def test_regions_and_boxes_agree_and_keep_the_order():
    grid = Grid(1000, 600, 256, 256)
    assert [tuple(box) for box in grid.boxes([7, 0, 7]).tolist()] == grid.regions([7, 0, 7])
    assert grid.boxes([]).shape == (0, 4)
    assert all(isinstance(value, int) for value in grid.region(3))


@given(width=st.integers(1, 10**6), downsample=st.floats(1, 300), position=st.integers(-(10**6), 10**6))
def test_a_level_0_position_is_rounded_once_to_the_nearest_pixel_edge(width, downsample, position):
    level = Level(width, 10, downsample)
    assert abs(level.from_level0(position) * downsample - position) <= downsample / 2 * (1 + 1e-9)


def test_positions_on_a_level_of_downsample_3_9997_are_neighbours():
    level = Level(25_000, 25_000, 3.9997)
    grid = Grid(99_992, 1000, 256 * 3.9997, 256)
    starts = [level.from_level0(x) for x, *_ in all_boxes(grid)[: grid.shape[1]].tolist()]
    assert starts == [256 * i for i in range(len(starts))]


@pytest.mark.parametrize(
    "values",
    [
        {"width": 0},
        {"height": -1},
        {"cell": 0.5},
        {"cell": math.nan},
        {"cell": math.inf},
        {"cell": 2.0**20},
        {"tile_size": 0},
        {"stride": 0},
        {"stride": 300},
        {"stride": -5},
        {"stride": math.nan},
    ],
    ids=str,
)
def test_an_invalid_grid_is_refused(values):
    with pytest.raises(SettingsError, match=r"not (-|\d|nan|inf)"):
        Grid(**({"width": 1000, "height": 600, "cell": 256, "tile_size": 256} | values))


@pytest.mark.parametrize("values", [(0, 5, 1.0), (5, 0, 1.0), (5, 5, 0.99), (5, 5, math.nan)])
def test_an_invalid_level_is_refused(values):
    with pytest.raises(SettingsError, match="downsample >= 1"):
        Level(*values)


@pytest.mark.parametrize("cell", [-1, 12, 10**12])
def test_a_cell_outside_the_grid_is_refused(cell):
    with pytest.raises(SettingsError, match=f"cell {cell} is not among the grid's 12 cells"):
        Grid(1000, 600, 256, 256).boxes([0, cell])
