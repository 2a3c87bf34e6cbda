"""Regions hold every cell once, and a grid of regions knows its cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid
from wsi_ats.overview.regions import RegionGrid, Window

GRIDS = st.builds(
    lambda width, height, tile, downsample, stride: Grid(
        width, height, tile * downsample, tile, None if stride == 1 else tile * downsample * stride
    ),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from([32, 50, 64, 224]),
    st.sampled_from([1.0, 1.7, 2.001, 3.9997, 4.0]),
    st.sampled_from([1.0, 0.5, 0.75]),
)


@settings(max_examples=200)
@given(GRIDS, st.integers(1, 20))
def test_every_cell_is_in_exactly_one_region(cells, side):
    regions = RegionGrid(cells, side)
    windows = [regions.window(number) for number in range(regions.grid.size)]
    assert all(window.rows >= 1 and window.columns >= 1 for window in windows)
    numbers = np.concatenate([regions.numbers(w, np.arange(w.rows * w.columns)) for w in windows])
    assert sorted(numbers.tolist()) == list(range(cells.size))


@settings(max_examples=200)
@given(GRIDS, st.integers(1, 20))
def test_a_grid_of_regions_knows_where_its_cells_are(cells, side):
    stride = cells.pitch / cells.cell
    found = RegionGrid.around(
        RegionGrid(cells, side).grid, side=side, tile_size=cells.tile_size, stride=stride
    )
    assert found.cells.shape == cells.shape
    everywhere = np.arange(cells.size)
    np.testing.assert_array_equal(found.cells.boxes(everywhere), cells.boxes(everywhere))


@settings(max_examples=100)
@given(GRIDS, st.integers(1, 20))
def test_a_regions_cells_begin_inside_it(cells, side):
    regions = RegionGrid(cells, side)
    for number in range(min(regions.grid.size, 20)):
        window = regions.window(number)
        x, y, width, height = regions.grid.region(number)
        boxes = cells.boxes(regions.numbers(window, np.arange(window.rows * window.columns)))
        assert (boxes[:, 0] >= x - 1).all()
        assert (boxes[:, 1] >= y - 1).all()
        assert (boxes[:, 0] < x + width + 1).all()
        assert (boxes[:, 1] < y + height + 1).all()


def test_a_region_that_does_not_exist_and_an_empty_one_are_refused():
    regions = RegionGrid(Grid(1000, 600, cell=64, tile_size=64), side=4)
    for number in (-1, 12):
        with pytest.raises(SettingsError, match=f"region {number} is not one of the grid's 12 regions"):
            regions.window(number)
    with pytest.raises(SettingsError, match="at least 1 cell a side, not 0"):
        RegionGrid(regions.cells, 0)


def test_numbers_count_along_the_rows_of_the_slide():
    regions = RegionGrid(Grid(1000, 600, cell=100, tile_size=64), side=4)  # 6 rows of 10 cells
    window = regions.window(4)
    assert window == Window(4, 4, 2, 4)
    assert regions.numbers(window, np.array([0, 3, 4])).tolist() == [44, 47, 54]
