"""From a slide's pixels and a lab's file to the cells that may be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from bag_files import numbers, stamp

from wsi_ats.bags.matching import match, restrict
from wsi_ats.bags.opening import open_bag
from wsi_ats.errors import FeatureError
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides.memory import MemorySlide

MPP = 0.5


@pytest.fixture(scope="module")
def slide() -> MemorySlide:
    """Stained tissue with texture on glass, (900, 700) to (2100, 1900)."""
    generator = np.random.default_rng(0)
    pixels = generator.normal(240, 2, (2400, 3000, 3))
    pixels[700:1900, 900:2100] = generator.normal((170, 90, 150), 25, (1200, 1200, 3))
    full = pixels.clip(0, 255).astype(np.uint8)
    return MemorySlide([full, full[::4, ::4]], mpp=MPP)


def corners_on_tissue(step: int) -> np.ndarray:
    return np.array([(x, y) for x in range(900, 2100, step) for y in range(700, 1900, step)])


def test_tiles_of_a_lab_become_the_tissue_of_an_overview(slide, tmp_path):
    settings = Settings().with_values(["tile.size=112", f"tile.mpp={MPP}"])
    overview = read_overview(slide, settings)
    grid = overview.tissue.grid
    corners = corners_on_tissue(112)  # from the corner of the tissue, not from that of the slide
    values = numbers(len(corners))
    attributes = {"unit": "um", "tile_size_um": 56.0}
    bag = open_bag(stamp(tmp_path / "a.h5", corners, values, mpp=MPP, attributes=attributes), mpp=MPP)
    found = match(
        bag,
        grid,
        overview.all_tissue,
        mpp=MPP,
        bounds=slide.bounds,
        downsamples=[each.downsample for each in slide.levels],
    )
    assert (found.used, found.away, found.crowded) == (len(corners), 0, 0)
    assert found.without_tile <= 4 * 12  # cells at the border that are tissue in part
    restricted = restrict(overview, found)
    np.testing.assert_array_equal(restricted.tissue.cells, found.cells)
    drawn = restricted.tissue.cells[[3, 50, 3]]
    np.testing.assert_array_equal(bag.read(found.rows_of(drawn)), values[found.rows_of(drawn)])
    boxes = grid.boxes(drawn)
    middle = bag.corners[found.rows_of(drawn)] + bag.side / 2
    assert ((middle >= boxes[:, :2]) & (middle <= boxes[:, :2] + boxes[:, 2:])).all()


def test_coordinates_of_its_smaller_level_are_refused(slide, tmp_path):
    settings = Settings().with_values(["tile.size=112", f"tile.mpp={MPP}"])
    overview = read_overview(slide, settings)
    corners = corners_on_tissue(112) / 4
    attributes = {"unit": "um", "tile_size_um": 56.0}
    bag = open_bag(
        stamp(tmp_path / "a.h5", corners, numbers(len(corners)), mpp=MPP, attributes=attributes), mpp=MPP
    )
    with pytest.raises(FeatureError, match="pixels of the level with downsample 4 instead of level 0"):
        match(
            bag,
            overview.tissue.grid,
            overview.all_tissue,
            mpp=MPP,
            bounds=slide.bounds,
            downsamples=[each.downsample for each in slide.levels],
        )
