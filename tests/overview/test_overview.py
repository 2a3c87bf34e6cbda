"""Thumbnail and tissue of a large slide."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ats.geometry import Region
from wsi_ats.overview import overview as module
from wsi_ats.overview.overview import read_overview, read_region_overview, regions_of
from wsi_ats.settings import Settings
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
    return read_overview(slide, settings)


@pytest.mark.parametrize("side", [8, 16])
def test_tissue_of_a_large_thumbnail_is_found_on_a_smaller_one(slide, monkeypatch, side):
    whole, halved = (seen(slide, monkeypatch, most, side) for most in (1 << 40, 1))
    assert np.array_equal(whole.thumbnail, halved.thumbnail)  # attention sees all of it
    different = np.count_nonzero(whole.all_tissue.mask != halved.all_tissue.mask)
    assert whole.all_tissue.mask.sum() > 0
    assert different <= 0.02 * whole.all_tissue.mask.sum()
    assert whole.all_tissue.grid == halved.all_tissue.grid


def test_the_smaller_thumbnail_has_at_least_four_pixels_a_cell(monkeypatch):
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


def test_fluorescence_is_not_reduced(monkeypatch):
    nuclei = np.full((512, 512, 3), 3, np.uint8)
    nuclei[::16, ::16] = 250
    slide = MemorySlide([nuclei], mpp=0.5)
    whole, spared = (seen(slide, monkeypatch, most, 16) for most in (1 << 40, 1))
    np.testing.assert_array_equal(whole.all_tissue.fraction, spared.all_tissue.fraction)


class Margined(MemorySlide):
    """A slide in an unscanned margin whose colour resembles tissue."""

    bounds = Region(512, 256, 1024, 768)

    @staticmethod
    def pixels() -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, 6, (1280, 2048, 3))
        pixels = np.array([150, 110, 140]) + noise
        pixels[256:1024, 512:1536] = 240 + noise[256:1024, 512:1536] / 4
        pixels[512:768, 768:1152] -= (40, 120, 70)
        return pixels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("levels", [1, 2])
def test_a_black_margin_around_a_scan_of_any_shape_is_no_fluorescence(levels):
    """The scan does not fill a rectangle, but the bounds suffice."""
    pixels = Margined.pixels()
    scan = pixels[256:1024, 512:1536].copy()
    rows, columns = np.indices(scan.shape[:2])
    scan[rows / 768 + columns / 1024 > 1.37] = 0  # a fifth of it, off one corner
    pixels[:] = 0
    pixels[256:1024, 512:1536] = scan
    slide = Margined([pixels], mpp=0.5)
    settings = Settings().with_values(
        ["tile.size=64", f"thumbnail.levels={levels}", "thumbnail.cells_per_region=4"]
    )
    view = read_overview(slide, settings)
    forced = settings.with_values(["thumbnail.tissue=brightfield"])
    np.testing.assert_array_equal(view.all_tissue.mask, read_overview(slide, forced).all_tissue.mask)
    assert 0 < view.all_tissue.mask.sum() < view.all_tissue.mask.size / 4
    if levels == 2:
        regions = regions_of(view.tissue, settings)
        for number in view.tissue.cells:
            masks = [
                read_region_overview(slide, view, regions, regions.window(int(number)), each).tissue.mask
                for each in (settings, forced)
            ]
            np.testing.assert_array_equal(*masks)


def test_between_two_scanned_regions_nothing_is_a_candidate():
    class Apart(MemorySlide):
        scanned = (Region(0, 0, 512, 1024), Region(1536, 256, 512, 512))

    settings = Settings().with_values(["tile.size=256", "thumbnail.tissue=none"])
    found = read_overview(Apart([np.full((1024, 2048, 3), 150, np.uint8)], mpp=0.5), settings).tissue
    expected = np.zeros((4, 8), dtype=bool)
    expected[:, :2] = expected[1:3, 6:] = True
    np.testing.assert_array_equal(found.mask, expected)


@pytest.mark.parametrize("tissue", ["auto", "brightfield", "none"])
@pytest.mark.parametrize("levels", [1, 2])
def test_cells_outside_the_scan_are_no_candidates(tissue, levels):
    changes = ["tile.size=64", f"thumbnail.tissue={tissue}", f"thumbnail.levels={levels}"]
    settings = Settings().with_values([*changes, "thumbnail.cells_per_region=4"])
    slide = Margined([Margined.pixels()], mpp=0.5)
    found = read_overview(slide, settings).tissue
    x, y = found.grid.boxes(found.cells).T[:2]
    side = found.grid.cell
    assert len(found.cells) > 0
    assert ((x + side > 512) & (x < 1536) & (y + side > 256) & (y < 1024)).all()
    if levels == 1 and tissue != "none":
        assert len(found.cells) == 24  # of 64 pixels, in 384 x 256
    if levels == 2:
        view, regions = read_overview(slide, settings), regions_of(found, settings)
        for number in found.cells:
            window = regions.window(int(number))
            mask = read_region_overview(slide, view, regions, window, settings).tissue
            rows, columns = np.divmod(mask.cells, mask.grid.shape[1])
            assert (
                ((window.column + columns) * 64 + 64 > 512) & ((window.column + columns) * 64 < 1536)
            ).all()
            assert (((window.row + rows) * 64 + 64 > 256) & ((window.row + rows) * 64 < 1024)).all()
