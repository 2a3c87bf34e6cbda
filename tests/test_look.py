"""The first look at a slide that is large."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ats import look as module
from wsi_ats.config import Settings
from wsi_ats.look import inspect
from wsi_ats.slides import open_slide
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.testing.synthetic import write_collection


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    write_collection(folder, slides=1, width=6144, height=4096, tile_size=64, seed=3, variants=4)
    with open_slide(next(folder.glob("*.tif"))) as opened:
        yield opened


def seen(slide, monkeypatch, most, side):
    monkeypatch.setattr(module, "_TISSUE_PIXELS", most)
    settings = Settings().with_values(["tile.size=64", f"thumbnail.pixels_per_cell={side}"])
    return inspect(slide, settings)


@pytest.mark.parametrize("side", [8, 16])
def test_tissue_of_a_large_thumbnail_is_found_on_a_smaller_one(slide, monkeypatch, side):
    whole, halved = (seen(slide, monkeypatch, most, side) for most in (1 << 40, 1))
    assert np.array_equal(whole.thumbnail, halved.thumbnail)  # attention sees all of it
    different = np.count_nonzero(whole.found.mask != halved.found.mask)
    assert whole.found.mask.sum() > 0
    assert different <= 0.02 * whole.found.mask.sum()
    assert whole.found.grid == halved.found.grid


def test_four_pixels_a_cell_are_left(monkeypatch):
    slide = MemorySlide([np.full((512, 512, 3), 200, np.uint8)], mpp=0.5)
    sides = []
    real = module.find_tissue
    monkeypatch.setattr(
        module,
        "find_tissue",
        lambda pixels, grid, **how: sides.append(len(pixels)) or real(pixels, grid, **how),
    )
    for side in (4, 6, 8, 12, 16, 20):
        seen(slide, monkeypatch, 1, side)
    assert [each / 8 for each in sides] == [4, 6, 4, 6, 4, 5]


def test_fluorescence_is_looked_at_as_it_is(monkeypatch):
    nuclei = np.full((512, 512, 3), 3, np.uint8)
    nuclei[::16, ::16] = 250
    slide = MemorySlide([nuclei], mpp=0.5)
    whole, spared = (seen(slide, monkeypatch, most, 16) for most in (1 << 40, 1))
    np.testing.assert_array_equal(whole.found.fraction, spared.found.fraction)
