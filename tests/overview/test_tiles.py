"""Grids, tiles and thumbnails: the right pixels at the right place and scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wsi_ats.errors import MppError, SettingsError, SlideReadError
from wsi_ats.geometry import Grid, Level
from wsi_ats.overview import tiles
from wsi_ats.overview.tiles import grid_for, level_for, read_thumbnail, read_tiles
from wsi_ats.slides import open_slide
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.resample import resample
from wsi_ats.slides.wrappers import CountingSlide

BACKGROUND = (250, 240, 230)


def noise(width, height, seed=0):
    """Rough at every scale, so that a shift or a wrong filter shows."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 200, (height // 16 + 1, width // 16 + 1, 3)), np.ones((16, 16, 1)))
    return (coarse[:height, :width] + rng.integers(0, 55, (height, width, 3))).astype(np.uint8)


def average(pixels, left, top, right, bottom):
    """Mean colour of a rectangle, pixels on its edge by the share inside; background outside."""

    def shares(low, high, first, count):
        each = np.arange(first, first + count)
        return np.clip(np.minimum(each + 1, high) - np.maximum(each, low), 0, 1)

    x, y = int(np.floor(left)), int(np.floor(top))
    columns, rows = int(np.ceil(right)) - x, int(np.ceil(bottom)) - y
    part = np.empty((rows, columns, 3))
    part[:] = BACKGROUND
    inside = pixels[max(0, y) : y + rows, max(0, x) : x + columns]
    part[max(0, -y) :, max(0, -x) :][: inside.shape[0], : inside.shape[1]] = inside
    weights = np.outer(shares(top, bottom, y, rows), shares(left, right, x, columns))
    return (part * weights[..., None]).sum(axis=(0, 1)) / weights.sum()


def averages(pixels, left, top, step, width, height):
    """Area averages on a raster: the definition of resampling, written down plainly."""
    return np.array(
        [
            [average(pixels, left + i * step, top + j * step, left + (i + 1) * step, top + (j + 1) * step)
             for i in range(width)]
            for j in range(height)
        ]
    )  # fmt: skip


def memory(*pyramid, mpp=0.5):
    return MemorySlide(pyramid, mpp=mpp, background=BACKGROUND)


# --- resampling ---


@pytest.mark.parametrize("scale", [1.0, 1.1, 1.5, 1.9, 2.0, 3.3, 7.77])
def test_resampling_is_the_area_average(scale):
    pixels = noise(70, 60)
    width, height = int(50 / scale), int(40 / scale)
    box = (3.25, 2.5, 3.25 + width * scale, 2.5 + height * scale)
    expected = averages(pixels, 3.25, 2.5, scale, width, height)
    assert abs(resample(pixels, width, height, box) - expected).max() <= 1


# --- the grid ---


def levels(*downsamples, width=20_000, height=10_000):
    sizes = [(round(width / d), round(height / d)) for d in downsamples]
    return tuple(Level(w, h, d) for (w, h), d in zip(sizes, downsamples, strict=True))


class Header(MemorySlide):
    """A slide of which only the description is known."""

    def __init__(self, *downsamples, mpp):
        super().__init__([np.zeros((1, 1, 3), np.uint8)], mpp=mpp, path="header.svs")
        self.info = replace(self.info, levels=levels(*downsamples))


@pytest.mark.parametrize(
    ("downsamples", "mpp", "cell"),
    [
        ((1.0, 4.0), 0.5, 256),  # level 0 as it is
        ((1.0, 4.0), 0.499, 256),  # ... within the tolerance
        ((1.0, 4.0), 0.4545, 256 * 0.5 / 0.4545),  # ... outside: resampled to exactly what was asked for
        ((1.0, 2.001), 0.25, 256 * 2.001),  # a level's own pixels, though not exactly twice
        ((1.0, 3.9997), 0.125, 256 * 3.9997),
        ((1.0, 4.0), 0.25, 512),  # between the levels
        ((1.0, 4.0), 0.51, 256),  # slightly coarser than wished, yet native
    ],
)
def test_a_tile_is_native_where_a_level_is_near_enough(downsamples, mpp, cell):
    grid = grid_for(Header(*downsamples, mpp=mpp), tile_size=256, mpp=0.5, tolerance=0.05)
    assert grid.cell == pytest.approx(cell, rel=1e-12)
    assert grid == Grid(20_000, 10_000, grid.cell, 256)


def test_of_two_levels_within_the_tolerance_the_nearest_is_taken():
    slide = Header(1.0, 1.9, 2.05, mpp=0.25)
    assert grid_for(slide, tile_size=256, mpp=0.5, tolerance=0.1).cell == 256 * 2.05


def test_a_slide_too_coarse_is_an_error_that_names_both_resolutions():
    with pytest.raises(MppError, match=r"level has 1.0 .* but tiles need 0.5; set tile.mpp to 1.0 or more"):
        grid_for(Header(1.0, mpp=1.0), tile_size=256, mpp=0.5, tolerance=0.1)


@pytest.mark.parametrize("mpp", [0.5 * 1.1, 0.5 * 1.0999, 0.5 / 0.9])
def test_at_the_edge_of_the_tolerance_tiles_are_never_made_of_fewer_pixels(mpp):
    # whatever is accepted is either native or shrunk
    slide = Header(1.0, 4.0, mpp=mpp)
    try:
        grid = grid_for(slide, tile_size=256, mpp=0.5, tolerance=0.1)
    except MppError:
        assert mpp > 0.5 * 1.0999
    else:
        assert grid.cell >= 256


def test_the_stride_is_a_share_of_the_tile():
    grid = grid_for(Header(1.0, mpp=0.5), tile_size=256, mpp=0.5, tolerance=0.1, stride=0.5)
    assert (grid.cell, grid.pitch) == (256, 128)


def test_an_unknown_resolution_is_an_error():
    with pytest.raises(MppError, match="no mpp was given"):
        grid_for(Header(1.0, mpp=None), tile_size=256, mpp=0.5, tolerance=0.1)


@pytest.mark.parametrize(
    ("wanted", "level"),
    [(1, 0), (3.99, 0), (3.9997, 1), (4, 1), (4.001, 1), (15.9, 1), (16, 2), (500, 2), (0.5, 0)],
)
def test_the_coarsest_level_that_is_fine_enough(wanted, level):
    assert level_for(levels(1.0, 4.0, 16.0), wanted) == level


# --- tiles ---


def test_native_tiles_are_the_files_own_pixels_with_background_past_the_edge():
    pixels = noise(331, 217)
    slide, grid = memory(pixels), Grid(331, 217, 64, 64)
    padded = np.empty((4 * 64, 6 * 64, 3), np.uint8)
    padded[:] = BACKGROUND
    padded[:217, :331] = pixels
    got = read_tiles(slide, grid, np.arange(grid.size))
    for cell, tile in enumerate(got):
        row, column = divmod(cell, 6)
        np.testing.assert_array_equal(tile, padded[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64])


def test_native_tiles_of_a_level_of_downsample_3_9997_have_no_gap_and_no_overlap():
    level0, level1 = np.zeros((300, 3999, 3), np.uint8), noise(1000, 75)
    slide = memory(level0, level1, mpp=0.125)
    grid = grid_for(slide, tile_size=64, mpp=0.5, tolerance=0.05)
    assert grid.cell == 64 * slide.levels[1].downsample
    row = np.concatenate(list(read_tiles(slide, grid, np.arange(grid.shape[1]))), axis=1)
    np.testing.assert_array_equal(row[:, :1000], level1[:64])
    assert (row[:, 1000:] == BACKGROUND).all()


@pytest.mark.parametrize("cell", [64 * 1.3, 64 * 1.5, 64 * 2.0, 64 * 3.21])
def test_resampled_tiles_are_area_averages(cell):
    pixels = noise(700, 400)
    slide, grid = memory(pixels), Grid(700, 400, cell, 64)
    cells = [0, 1, grid.shape[1], grid.size - 1]
    for cell_number, tile in zip(cells, read_tiles(slide, grid, cells), strict=True):
        x, y, _, _ = grid.region(cell_number)
        expected = averages(pixels, x, y, cell / 64, 64, 64)
        assert abs(tile - expected).max() <= 1


def test_resampled_tiles_come_from_the_coarsest_level_that_is_fine_enough():
    slide = CountingSlide(memory(noise(1600, 800), noise(400, 200), noise(100, 50)))
    read_tiles(slide, Grid(1600, 800, 64 * 6.0, 64), [0, 1])
    assert {request.level for request in slide.requests} == {1}


def test_the_order_and_repeats_of_cells_are_kept():
    slide, grid = memory(noise(300, 200)), Grid(300, 200, 80, 64)
    some = read_tiles(slide, grid, [5, 0, 5])
    np.testing.assert_array_equal(some[0], some[2])
    np.testing.assert_array_equal(some[1], read_tiles(slide, grid, [0])[0])
    assert (some[0] != some[1]).any()


@pytest.mark.parametrize("cell", [64, 100])
def test_no_cells_are_no_tiles(cell):
    slide, grid = memory(noise(300, 200)), Grid(300, 200, cell, 64)
    assert read_tiles(slide, grid, []).shape == (0, 64, 64, 3)


def test_a_tile_larger_than_the_slide_is_slide_and_background():
    slide = memory(np.full((20, 30, 3), 9, np.uint8))
    [tile] = read_tiles(slide, Grid(30, 20, 64, 64), [0])
    assert (tile[:20, :30] == 9).all()
    assert (tile[20:] == BACKGROUND).all()
    assert (tile[:, 30:] == BACKGROUND).all()


def test_a_damaged_tile_is_an_error_native_and_resampled(write_tiff, tmp_path):
    import tifffile

    path = write_tiff(tmp_path / "s.tif", [noise(256, 256)], tile=(64, 64))
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    with open_slide(path) as slide:
        for cell in (64, 80):
            grid = Grid(256, 256, cell, 64)
            with pytest.raises(SlideReadError):
                read_tiles(slide, grid, np.arange(grid.size))
            assert read_tiles(slide, grid, [grid.size - 1]).shape == (1, 64, 64, 3)
        with pytest.raises(SlideReadError):
            read_thumbnail(slide, Grid(256, 256, 64, 64), 16)


# --- thumbnails ---


@pytest.mark.parametrize(
    ("cell", "stride", "pixels_per_cell"),
    [(64, None, 16), (64, None, 13), (83.2, None, 16), (64, 32, 8), (51.3, None, 7), (16, None, 16)],
)
def test_the_thumbnail_is_the_area_average(cell, stride, pixels_per_cell):
    width, height = (331, 217) if cell > 16 else (91, 67)
    pixels = noise(width, height)
    slide, grid = memory(pixels), Grid(width, height, cell, 64, stride)
    thumbnail = read_thumbnail(slide, grid, pixels_per_cell)
    rows, columns = grid.shape
    assert thumbnail.shape == (rows * pixels_per_cell, columns * pixels_per_cell, 3)
    expected = averages(pixels, 0, 0, grid.pitch / pixels_per_cell, thumbnail.shape[1], thumbnail.shape[0])
    assert abs(thumbnail - expected).max() <= 1


@pytest.mark.parametrize("cell", [64, 83.2, 64 * 3.9997])
def test_the_thumbnail_does_not_depend_on_the_strips(monkeypatch, cell):
    slide, grid = memory(noise(900, 1200)), Grid(900, 1200, cell, 64)
    whole = read_thumbnail(slide, grid, 16)
    for pixels in (1, 200_000, 500_000):
        monkeypatch.setattr(tiles, "_STRIP_PIXELS", pixels)
        counted = CountingSlide(slide)
        np.testing.assert_array_equal(read_thumbnail(counted, grid, 16), whole)
        assert len(counted.requests) > 1


def test_strips_keep_memory_bounded(monkeypatch):
    monkeypatch.setattr(tiles, "_STRIP_PIXELS", 300_000)
    slide = CountingSlide(memory(noise(900, 1200)))
    read_thumbnail(slide, Grid(900, 1200, 64, 64), 16)
    assert max(request.pixels for request in slide.requests) <= 300_000


def test_the_thumbnail_is_read_once_from_the_coarsest_level_that_is_fine_enough():
    slide = CountingSlide(memory(noise(1600, 800), noise(400, 200), noise(100, 50)))
    read_thumbnail(slide, Grid(1600, 800, 64, 64), 16)
    assert [request.level for request in slide.requests] == [1]


@pytest.mark.parametrize("cell", [64, 83.2, 64 * 3.9997])
def test_the_average_of_a_tile_is_that_of_its_thumbnail_cell(cell):
    slide, grid = memory(noise(900, 700)), Grid(900, 700, cell, 64)
    rows, columns = grid.shape
    thumbnail = read_thumbnail(slide, grid, 16).reshape(rows, 16, columns, 16, 3).mean(axis=(1, 3))
    for cell_number, tile in enumerate(read_tiles(slide, grid, np.arange(grid.size))):
        difference = tile.mean(axis=(0, 1)) - thumbnail[divmod(cell_number, columns)]
        assert abs(difference).max() < 1.5


@pytest.mark.parametrize("name", ["aperio_cmu-1-small-region.svs", "hamamatsu_test3-DAPI.ndpi"])
def test_tiles_and_thumbnail_of_real_slides_agree_in_position(shared_data, name):
    with open_slide(shared_data / "slides" / name) as slide:
        grid = grid_for(slide, tile_size=128, mpp=0.5, tolerance=0.1)
        rows, columns = grid.shape
        thumbnail = read_thumbnail(slide, grid, 8).reshape(rows, 8, columns, 8, 3).mean(axis=(1, 3))
        cells = np.arange(0, grid.size, 7)
        means = read_tiles(slide, grid, cells).mean(axis=(1, 2))
    difference = abs(means - thumbnail.reshape(-1, 3)[cells])
    assert difference.mean() < 1.5
    assert difference.max() < 12


@pytest.mark.parametrize("pixels_per_cell", [0, -1, 65])
def test_a_thumbnail_finer_than_the_slide_is_refused(pixels_per_cell):
    with pytest.raises(SettingsError, match=r"pixels_per_cell must be in \[1, 64\]"):
        read_thumbnail(memory(noise(100, 100)), Grid(100, 100, 64, 64), pixels_per_cell)


def test_a_slide_without_tissue_gives_a_thumbnail_of_glass(no_tissue):
    thumbnail = read_thumbnail(no_tissue, Grid(900, 600, 64, 64), 8)
    assert thumbnail[:75, :112].min() > 230
