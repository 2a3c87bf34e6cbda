"""Tiles find their cells, and tiles of another place are refused with the cause."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.bags.matching import match, restrict
from wsi_ats.bags.record import Bag, PlainRows, Stamp
from wsi_ats.errors import FeatureError, SettingsError
from wsi_ats.geometry import Grid, Region
from wsi_ats.overview.records import Overview, TissueMask

GRID = Grid(width=20_480, height=10_240, cell=512, tile_size=256)  # 20 x 40 cells
MPP = 0.25


def bag_of(corners, side=512.0) -> Bag:
    corners = np.asarray(corners, np.int64).reshape(-1, 2)
    stored = PlainRows(Path("a.h5"), "<f4", 4, np.arange(len(corners)), Stamp(0, 0))
    return Bag(Path("a.h5"), corners, side, stored)


def tissue_of(mask=None, grid=GRID) -> TissueMask:
    mask = np.ones(grid.shape, bool) if mask is None else mask
    return TissueMask(grid, mask.astype(np.float32), mask)


def blob(grid=GRID) -> np.ndarray:
    """Tissue in the lower right of the slide."""
    mask = np.zeros(grid.shape, bool)
    mask[10:18, 24:38] = True
    return mask


def corners_of(mask, grid=GRID) -> np.ndarray:
    return grid.boxes(np.flatnonzero(mask))[:, :2]


def test_tiles_of_the_same_grid_match_cell_by_cell():
    found = match(bag_of(corners_of(blob())), GRID, tissue_of(blob()), mpp=MPP)
    np.testing.assert_array_equal(found.cells, np.flatnonzero(blob()))
    np.testing.assert_array_equal(found.rows, np.arange(blob().sum()))
    assert (found.tiles, found.used) == (blob().sum(), blob().sum())
    assert (found.crowded, found.duplicates, found.without_tile, found.away) == (0, 0, 0, 0)


def test_the_order_of_tiles_does_not_matter():
    order = np.random.default_rng(0).permutation(blob().sum())
    found = match(bag_of(corners_of(blob())[order]), GRID, tissue_of(blob()), mpp=MPP)
    np.testing.assert_array_equal(found.cells, np.flatnonzero(blob()))
    np.testing.assert_array_equal(order[found.rows], np.arange(blob().sum()))


def test_the_bag_decides_which_cells_may_be_drawn():
    """Its segmentation differs from ours at the border; differences are counted."""
    theirs = blob()
    theirs[10] = False  # tissue to us alone
    theirs[18, 24:27] = True  # beside our tissue
    theirs[2, 2] = True  # away from our tissue
    found = match(bag_of(corners_of(theirs)), GRID, tissue_of(blob()), mpp=MPP)
    np.testing.assert_array_equal(found.cells, np.flatnonzero(theirs))
    assert (found.without_tile, found.away) == (14, 1)


def test_duplicates_are_counted_and_the_first_is_used():
    corners = corners_of(blob())
    found = match(bag_of(np.concatenate([corners, corners[:3]])), GRID, tissue_of(blob()), mpp=MPP)
    np.testing.assert_array_equal(found.rows, np.arange(len(corners)))
    assert (found.duplicates, found.crowded) == (3, 3)


def test_overlapping_tiles_leave_one_in_each_cell():
    corners = corners_of(blob())
    shifted = [corners + np.array([dx, dy]) for dx in (256, 0) for dy in (256, 0)]
    found = match(bag_of(np.concatenate(shifted)), GRID, tissue_of(blob()), mpp=MPP, downsamples=(1, 2, 4))
    rows = found.rows[np.isin(found.cells, np.flatnonzero(blob()))]
    assert (rows >= 3 * len(corners)).all()  # those without a shift are nearest
    assert found.duplicates == 0


def test_tiles_outside_the_slide_are_away():
    corners = np.concatenate([corners_of(blob()), [[-2000, 0], [0, 50_000]]])
    found = match(bag_of(corners), GRID, tissue_of(blob()), mpp=MPP)
    assert found.used == blob().sum()
    assert found.away == 2


def test_a_bag_without_tiles_matches_no_cell():
    found = match(bag_of([], side=1.0), GRID, tissue_of(blob()), mpp=MPP, downsamples=(1, 4))
    assert (found.used, found.tiles, found.without_tile) == (0, 0, blob().sum())
    assert found.rows_of([]).size == 0


def test_tissue_may_be_given_on_a_coarser_grid():
    regions = Grid(GRID.width, GRID.height, cell=4096, tile_size=2048)
    mask = np.zeros(regions.shape, bool)
    mask[1:, 3:] = True
    found = match(bag_of(corners_of(blob())), GRID, tissue_of(mask, regions), mpp=MPP)
    assert (found.used, found.away, found.without_tile) == (blob().sum(), 0, 0)


grids = st.builds(
    lambda width, height, cell, share: Grid(
        width, height, cell, 64, None if share == 1 else max(1.0, cell * share)
    ),
    st.integers(300, 3000),
    st.integers(300, 3000),
    st.floats(40, 150),
    st.sampled_from([1, 0.5, 0.7]),
)


@given(grids, st.data())
def test_each_used_tile_is_in_its_cell_and_none_is_nearer(grid, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    count = data.draw(st.integers(1, 200))
    generator = np.random.default_rng(seed)
    corners = generator.integers([0, 0], [grid.width - 100, grid.height - 100], (count, 2))
    bag = bag_of(corners, side=grid.cell)
    found = match(bag, grid, tissue_of(grid=grid), mpp=MPP)
    centres = corners + bag.side / 2
    rows, columns = np.divmod(found.cells, grid.shape[1])
    middle = np.stack([columns, rows], 1) * grid.pitch + grid.cell / 2
    offsets = centres[found.rows] - middle
    assert (np.abs(offsets) <= grid.cell / 2 + 1e-6).all()
    assert (np.diff(found.cells) > 0).all()
    assert len(np.unique(found.rows)) == len(found.rows)
    mine = np.square(offsets).sum(1)
    everything = np.square(middle[:, None] - centres[None]).sum(2)  # cells x tiles
    own = everything.argmin(0)  # of each tile, over the cells that have one
    if grid.stride is None:
        for cell in range(len(found.cells)):
            # A tile that is nearest to this cell's centre and in this cell is no nearer than the one used.
            inside = (np.abs(centres - middle[cell]) < grid.cell / 2).all(1) & (own == cell)
            assert not inside.any() or mine[cell] <= everything[cell, inside].min() + 1e-6


@given(
    st.integers(-255, 255), st.integers(-255, 255), st.sampled_from([470.0, 512.0, 550.0]), st.integers(0, 99)
)
def test_a_grid_shifted_by_less_than_half_a_cell_matches_nearly_all(dx, dy, side, seed):
    mask = np.random.default_rng(seed).random(GRID.shape) < 0.5
    mask[[0, -1]] = mask[:, [0, -1]] = False
    corners = corners_of(mask) + (512 - side) / 2 + np.array([dx, dy])
    found = match(bag_of(corners.astype(np.int64), side), GRID, tissue_of(mask), mpp=MPP)
    np.testing.assert_array_equal(found.cells, np.flatnonzero(mask))
    assert found.crowded == 0


@given(st.lists(st.integers(0, GRID.size - 1), max_size=20))
def test_rows_of_cells_in_any_order(cells):
    mask = np.ones(GRID.shape, bool)
    found = match(bag_of(corners_of(mask)[::-1]), GRID, tissue_of(), mpp=MPP)
    np.testing.assert_array_equal(found.rows_of(cells), GRID.size - 1 - np.array(cells, dtype=np.int64))


def test_a_cell_without_a_tile_has_no_row():
    found = match(bag_of(corners_of(blob())), GRID, tissue_of(blob()), mpp=MPP)
    for cell in (0, GRID.size - 1):
        with pytest.raises(SettingsError, match=f"cell {cell} has no tile"):
            found.rows_of([found.cells[0], cell])


@pytest.mark.parametrize(
    ("side", "advice"),
    [
        (1024.0, r"1024 level-0 pixels \(256 um\).*512 \(128 um\); set tile.size=256 and tile.mpp=1,"),
        (448.0, r"448 level-0 pixels \(112 um\).*set tile.size=256 and tile.mpp=0.4375,"),
        (128.0, r"128 level-0 pixels \(32 um\).*set tile.size=128 and tile.mpp=0.25,"),
    ],
)
def test_tiles_of_another_size_are_refused_with_the_settings_that_fit(side, advice):
    with pytest.raises(FeatureError, match=advice):
        match(bag_of(corners_of(blob()), side), GRID, tissue_of(blob()), mpp=MPP)


def test_a_size_within_ten_percent_is_accepted():
    assert match(bag_of(corners_of(blob()), 500.0), GRID, tissue_of(blob()), mpp=MPP).used == blob().sum()


BOUNDS = Region(4096, 3072, 12_288, 6144)


def test_coordinates_that_count_from_the_scanned_bounds_are_named():
    corners = corners_of(blob()) - np.array([BOUNDS.x, BOUNDS.y])
    with pytest.raises(FeatureError, match=r"100% if they count from the corner of the scan, \(4096"):
        match(bag_of(corners), GRID, tissue_of(blob()), mpp=MPP, bounds=BOUNDS)


def test_bounds_added_twice_are_named():
    mask = np.roll(blob(), (-9, -20), (0, 1))
    corners = corners_of(mask) + np.array([BOUNDS.x, BOUNDS.y])
    with pytest.raises(FeatureError, match="was added to them twice"):
        match(bag_of(corners), GRID, tissue_of(mask), mpp=MPP, bounds=BOUNDS)


@pytest.mark.parametrize("downsample", [2, 4.0003, 16])
def test_coordinates_of_another_level_are_named(downsample):
    corners = corners_of(blob()) // downsample
    with pytest.raises(FeatureError, match=f"pixels of the level with downsample {downsample:g} instead"):
        match(bag_of(corners), GRID, tissue_of(blob()), mpp=MPP, downsamples=(1, 2, 4.0003, 16))


@pytest.mark.parametrize("downsample", [2, 4, 16])
def test_coordinates_of_another_level_are_noticed_where_all_is_tissue(downsample):
    """They lie in the upper left, which is tissue too, but crowd there."""
    corners = corners_of(np.ones(GRID.shape, bool)) // downsample
    with pytest.raises(FeatureError, match=f"if their coordinates are pixels.* downsample {downsample};"):
        match(bag_of(corners), GRID, tissue_of(), mpp=MPP, downsamples=(1, downsample))


@pytest.mark.parametrize("downsample", [4, 16])
def test_of_several_levels_that_may_explain_crowded_tiles_the_one_that_fits_is_named(downsample):
    corners = corners_of(np.ones(GRID.shape, bool)) // downsample
    with pytest.raises(FeatureError, match=f"are pixels of the level with downsample {downsample};"):
        match(bag_of(corners), GRID, tissue_of(), mpp=MPP, downsamples=(1, 2, 4, 8, 16))


@pytest.mark.parametrize("downsample", [4, 16])
@pytest.mark.parametrize("edge", [0, 2])
def test_a_level_that_the_slide_no_longer_has_is_named(downsample, edge):
    """Twice as large coordinates, too, would lie on tissue, but in a quarter of the slide."""
    mask = np.zeros(GRID.shape, bool)
    mask[edge:, edge:] = True
    corners = corners_of(mask) // downsample
    with pytest.raises(FeatureError, match=f"pixels of a level with downsample {downsample}[; ]"):
        match(bag_of(corners), GRID, tissue_of(mask), mpp=MPP, downsamples=(1, 64))


def test_overlapping_tiles_in_one_corner_of_a_slide_full_of_tissue_are_accepted():
    corners = np.stack(np.divmod(np.arange(256), 16), axis=1) * 256
    assert match(bag_of(corners), GRID, tissue_of(), mpp=MPP, downsamples=(1, 4, 16)).tiles == 256


def test_tiles_in_one_corner_of_a_slide_full_of_tissue_are_accepted():
    mask = np.zeros(GRID.shape, bool)
    mask[:4, :8] = True
    found = match(bag_of(corners_of(mask)), GRID, tissue_of(), mpp=MPP, downsamples=(1, 2, 4, 16))
    assert (found.used, found.without_tile) == (32, GRID.size - 32)


@pytest.mark.parametrize("ratio", [0.5, 2, 4])
def test_coordinates_of_another_resolution_are_named(ratio):
    """Micrometres were divided by a wrong resolution, as were the sides of tiles and cells."""
    mask = np.roll(blob(), (-8, -22), (0, 1)) if ratio < 1 else blob()
    grid = replace(GRID, cell=512 / ratio)
    bag = bag_of(corners_of(mask) / ratio, side=512 / ratio)
    with pytest.raises(FeatureError, match=f"100% if their places are multiplied by {ratio:g}.*mpp of 0.25"):
        match(bag, grid, tissue_of(mask), mpp=MPP)


def test_tiles_of_another_slide_are_refused_without_a_guess():
    theirs = np.zeros(GRID.shape, bool)
    theirs[:3] = theirs[:, :3] = True
    with pytest.raises(FeatureError, match=r"only 0 of 171 .*112 of 800 cells have tissue.*belong together"):
        match(
            bag_of(corners_of(theirs)),
            GRID,
            tissue_of(blob()),
            mpp=MPP,
            bounds=Region(0, 0, 20_480, 10_240),
            downsamples=(1,),
        )


def overview_of(mask, **others) -> Overview:
    return Overview(np.zeros((GRID.shape[0], GRID.shape[1], 3), np.uint8), tissue_of(mask), **others)


def test_restricting_makes_the_matched_cells_the_tissue():
    theirs = np.roll(blob(), 1, axis=0)
    overview = overview_of(blob())
    found = match(bag_of(corners_of(theirs)), GRID, overview.tissue, mpp=MPP)
    restricted = restrict(overview, found)
    np.testing.assert_array_equal(restricted.tissue.cells, found.cells)
    np.testing.assert_array_equal(restricted.tissue.fraction, overview.tissue.fraction)
    assert restricted.thumbnail is overview.thumbnail
    assert restricted.excluded is None


def test_restricting_keeps_cells_with_artefacts_excluded():
    pen = np.zeros(GRID.shape, bool)
    pen[9:12, 24:38] = True
    overview = overview_of(blob() & ~pen, artefacts={"pen": pen & blob()}, excluded=pen & blob())
    theirs = np.roll(blob(), 1, axis=0)  # has no tile in row 10
    found = match(bag_of(corners_of(theirs)), GRID, overview.all_tissue, mpp=MPP)
    restricted = restrict(overview, found)
    np.testing.assert_array_equal(restricted.tissue.mask, theirs & ~(pen & blob()))
    np.testing.assert_array_equal(restricted.excluded, pen & blob() & theirs)
    np.testing.assert_array_equal(restricted.artefacts["pen"], restricted.excluded)
    np.testing.assert_array_equal(restricted.all_tissue.mask, theirs)


def test_an_overview_of_regions_cannot_be_restricted():
    found = match(bag_of(corners_of(blob())), GRID, tissue_of(blob()), mpp=MPP)
    with pytest.raises(SettingsError, match=r"thumbnail\.levels=1"):
        restrict(overview_of(blob()), replace(found, grid=replace(GRID, cell=4096)))
