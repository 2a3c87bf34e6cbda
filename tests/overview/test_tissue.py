"""Tissue is found where it is, and only there."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid
from wsi_ats.overview.tiles import grid_for, read_thumbnail
from wsi_ats.overview.tissue import are_empty, find_tissue, tell_background
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.memory import MemorySlide

P = 16
GRID = Grid(20 * 256, 12 * 256, 256, 256)
PINK, PALE, GLASS = (200, 120, 170), (236, 206, 222), (240, 240, 238)


def picture(colour, grid=GRID, noise=3.0, seed=0, p=P):
    """A thumbnail of one colour as a scanner gives it: with noise, through JPEG."""
    rows, columns = grid.shape
    pixels = np.random.default_rng(seed).normal(colour, noise, (rows * p, columns * p, 3))
    return jpeg(pixels.clip(0, 255).astype(np.uint8))


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)).copy()


def paint(pixels, colour, rows, columns, p=P):
    """Paint cells ``rows`` x ``columns`` (fractions allowed) and compress again."""
    (top, bottom), (left, right) = ([int(v * p) for v in pair] for pair in (rows, columns))
    pixels = pixels.copy()
    noise = np.random.default_rng(1).normal(0, 3, (bottom - top, right - left, 3))
    pixels[top:bottom, left:right] = (np.array(colour) + noise).clip(0, 255)
    return jpeg(pixels)


def cells(rows, columns, grid=GRID):
    mask = np.zeros(grid.shape, dtype=bool)
    mask[rows, columns] = True
    return mask


# --- brightfield ---


@pytest.mark.parametrize("colour", [PINK, PALE, (150, 90, 60), (70, 50, 110), (205, 205, 225)], ids=str)
def test_stained_tissue_on_glass_is_found(colour):
    mask = find_tissue(paint(picture(GLASS), colour, (3, 7), (5, 12)), GRID).mask
    np.testing.assert_array_equal(mask, cells(slice(3, 7), slice(5, 12)))


def test_pale_tissue_is_kept_beside_dark_tissue():
    pixels = paint(picture(GLASS), (90, 40, 110), (1, 5), (1, 10))
    pixels = paint(pixels, PALE, (7, 11), (1, 10))
    expected = cells(slice(1, 5), slice(1, 10)) | cells(slice(7, 11), slice(1, 10))
    np.testing.assert_array_equal(find_tissue(pixels, GRID).mask, expected)


@pytest.mark.parametrize(
    "colour", [(255, 255, 255), (240, 241, 238), (212, 212, 209), (238, 232, 226)], ids=str
)
@pytest.mark.parametrize("noise", [0, 4])
def test_bare_glass_has_no_tissue(colour, noise):
    assert find_tissue(picture(colour, noise=noise), GRID).cells.size == 0


def test_uneven_illumination_is_not_tissue():
    light = np.linspace(-7, 7, 20 * P)[:, None]
    pixels = (picture(GLASS).astype(float) + light).clip(0, 255).astype(np.uint8)
    assert find_tissue(jpeg(pixels), GRID).cells.size == 0


@pytest.mark.parametrize("colour", [PINK, PALE, (90, 50, 130), (140, 90, 60)], ids=str)
def test_a_slide_full_of_tissue_is_all_tissue(colour):
    assert find_tissue(picture(colour, noise=10), GRID).mask.all()


def test_dark_and_pale_tissue_all_over_is_all_tissue():
    assert find_tissue(paint(picture(PALE), (90, 50, 130), (0, 6), (0, 20)), GRID).mask.all()


def test_dust_is_removed_and_small_holes_are_filled():
    pixels = paint(picture(GLASS), PINK, (3, 9), (3, 15))
    pixels = paint(pixels, (60, 60, 60), (1.2, 1.5), (1.2, 1.5))
    pixels = paint(pixels, GLASS, (5.1, 5.95), (6.05, 6.9))
    tissue = find_tissue(pixels, GRID)
    np.testing.assert_array_equal(tissue.mask, cells(slice(3, 9), slice(3, 15)))
    assert tissue.fraction[5, 6] == pytest.approx(1)


def test_a_large_hole_is_glass():
    pixels = paint(paint(picture(GLASS), PINK, (1, 11), (1, 19)), GLASS, (4, 7), (6, 12))
    expected = cells(slice(1, 11), slice(1, 19)) & ~cells(slice(4, 7), slice(6, 12))
    np.testing.assert_array_equal(find_tissue(pixels, GRID, min_fraction=0.2).mask, expected)


def test_black_unscanned_margins_are_not_tissue():
    pixels = paint(paint(picture(GLASS), (0, 0, 0), (0, 12), (0, 3)), PINK, (4, 8), (8, 12))
    mask = find_tissue(pixels, GRID).mask
    np.testing.assert_array_equal(mask[:, 4:], cells(slice(4, 8), slice(8, 12))[:, 4:])
    assert not mask[:, :2].any()


def test_the_share_of_tissue_in_a_cell_decides():
    pixels = paint(picture(GLASS), PINK, (3, 6), (4, 8.5))
    tissue = find_tissue(pixels, GRID, min_fraction=0.4)
    assert tissue.fraction[4, 8] == pytest.approx(0.5, abs=0.1)
    assert tissue.fraction[4, 6] == pytest.approx(1)
    assert tissue.mask[4, 8]
    assert not find_tissue(pixels, GRID, min_fraction=0.7).mask[4, 8]


@pytest.mark.parametrize("p", [8, 11, 32])
def test_the_mask_hardly_depends_on_the_thumbnails_resolution(p):
    masks = [find_tissue(paint(picture(GLASS, p=q), PINK, (3, 7), (5, 12), p=q), GRID).mask for q in (P, p)]
    np.testing.assert_array_equal(*masks)


# --- fluorescence ---


def test_bright_on_black_is_tissue():
    pixels = paint(picture((2, 2, 4), noise=1.5), (0, 0, 120), (3, 7), (5, 12))
    assert tell_background(pixels).method == "fluorescence"
    mask = find_tissue(pixels, GRID, min_fraction=0.2).mask  # light spills over into the next cells
    np.testing.assert_array_equal(mask, cells(slice(3, 7), slice(5, 12)))


@pytest.mark.parametrize(("level", "noise"), [(0, 0), (5, 2), (20, 3)])
def test_black_alone_has_no_tissue(level, noise):
    pixels = picture((level,) * 3, noise=noise)
    assert tell_background(pixels).method == "fluorescence"
    assert find_tissue(pixels, GRID).cells.size == 0


def test_white_padding_past_the_edge_of_a_dark_slide_is_not_tissue():
    grid = Grid(19 * 256 + 100, 11 * 256 + 100, 256, 256)
    pixels = picture((2, 2, 4), grid, noise=1)
    pixels[round(grid.height / 16) :], pixels[:, round(grid.width / 16) :] = 255, 255
    assert find_tissue(pixels, grid).cells.size == 0


def test_bright_nuclei_on_clean_black_are_fluorescence():
    pixels = np.zeros((192, 320, 3), np.uint8)
    place = np.random.default_rng(0)
    for y, x in zip(place.integers(0, 184, 400), place.integers(0, 312, 400), strict=True):
        pixels[y : y + 8, x : x + 8] = place.integers(60, 255)  # grey, a quarter of them overexposed
    assert tell_background(pixels).method == "fluorescence"
    assert find_tissue(pixels, GRID).mask.mean() > 0.5


def test_an_image_of_bright_and_dark_fields_is_marked_doubtful():
    pixels = paint(picture(GLASS), (2, 2, 4), (0, 12), (0, 9))
    found = tell_background(pixels)
    assert found.method == "brightfield"
    assert found.reason == "55% of it is bright, 45% dark"
    assert "set thumbnail.tissue" in found.doubt
    assert tell_background(paint(picture(GLASS), (2, 2, 4), (0, 12), (0, 3))).doubt == ""


def test_a_background_neither_bright_nor_dark_is_marked_doubtful():
    found = tell_background(paint(picture((40, 40, 40)), (120, 120, 120), (3, 7), (5, 12)))
    assert "no background" in found.doubt


@pytest.mark.parametrize("tone", [(0, 0, 0), (128, 128, 128), (240, 238, 241), (235, 225, 215)])
def test_a_tile_of_one_tone_is_empty_and_one_with_a_nucleus_is_not(tone):
    noise = np.random.default_rng(0).normal(0, 1.5, (3, 256, 256, 3))
    tiles = np.clip(np.array(tone) + noise, 0, 255).astype(np.uint8)
    tiles[1, 100:140, 100:140] = (110, 70, 150)
    tiles[2, 8:10, 8:10] = (20, 200, 20)  # dust
    assert are_empty(tiles).tolist() == [True, False, True]


def test_pale_tissue_of_one_tone_is_not_empty():
    assert are_empty(np.full((1, 64, 64, 3), PINK, np.uint8)).tolist() == [False]


def test_dim_tissue_in_fluorescence_is_not_empty():
    tiles = np.zeros((1, 64, 64, 3), np.uint8)
    tiles[0, :32, :, 2] = 12
    assert are_empty(tiles).tolist() == [False]


# --- unscanned areas ---


@pytest.mark.parametrize("tone", [0, 60, 128, 190])
@pytest.mark.parametrize("side", [2, 4, 6])  # of the scanned part, in cells, of 12 rows
def test_an_unscanned_field_is_not_tissue_and_hides_none(tone, side):
    pixels = picture(GLASS)
    pixels = paint(pixels, PINK, (5, 6), (5, 6))
    scanned = np.zeros(pixels.shape[:2], dtype=bool)
    scanned[(6 - side // 2) * P : (6 + side // 2) * P, (6 - side // 2) * P : (6 + side // 2) * P] = True
    pixels[~scanned] = tone
    assert tell_background(pixels).method == "brightfield"
    found = find_tissue(pixels, GRID)
    np.testing.assert_array_equal(found.mask, cells(5, 5))
    np.testing.assert_array_equal(find_tissue(pixels, GRID, scanned=scanned).mask, found.mask)


@pytest.mark.parametrize("tone", [(90, 140, 60), (128, 128, 128)])
def test_cells_known_to_be_unscanned_are_never_candidates(tone):
    pixels = paint(picture(tone, noise=8), GLASS, (2, 10), (2, 12))
    pixels = paint(pixels, PINK, (3, 7), (5, 9))
    scanned = np.zeros(pixels.shape[:2], dtype=bool)
    scanned[2 * P : 10 * P, 2 * P : 12 * P] = True
    assert find_tissue(pixels, GRID).mask[:, 12:].any()  # it resembles tissue
    found = find_tissue(pixels, GRID, scanned=scanned)
    np.testing.assert_array_equal(found.mask, cells(slice(3, 7), slice(5, 9)))
    every = find_tissue(pixels, GRID, method="none", scanned=scanned)
    np.testing.assert_array_equal(every.mask, cells(slice(2, 10), slice(2, 12)))
    nowhere = find_tissue(pixels, GRID, scanned=np.zeros_like(scanned))
    assert nowhere.cells.size == 0


# --- the edge of the slide ---


def test_a_cell_mostly_outside_the_slide_counts_only_what_is_inside():
    grid = Grid(19 * 256 + 12, 11 * 256 + 128, 256, 256)
    pixels = picture(PINK, grid)
    pixels[round(grid.height / 16) :], pixels[:, round(grid.width / 16) :] = 255, 255
    tissue = find_tissue(pixels, grid)
    assert tissue.mask[:, :19].all()
    assert not tissue.mask[:, 19].any()
    assert tissue.fraction[5, 19] == pytest.approx(12 / 256, abs=0.01)
    assert tissue.fraction[11, 5] == pytest.approx(0.5, abs=0.01)


def test_none_means_every_cell():
    grid = Grid(19 * 256 + 12, 11 * 256, 256, 256)
    tissue = find_tissue(picture(GLASS, grid), grid, method="none")
    assert tissue.mask.all()
    assert tissue.fraction[0, 19] == pytest.approx(12 / 256)
    assert tissue.fraction[0, 18] == 1


def test_a_slide_smaller_than_a_cell_can_be_tissue():
    grid = Grid(60, 50, 256, 256)
    pixels = np.full((P, P, 3), 255, np.uint8)
    pixels[:3, :4] = PINK
    assert find_tissue(pixels, grid).cells.tolist() == [0]
    pixels[:] = GLASS
    assert find_tissue(pixels, grid).cells.size == 0


def test_overlapping_cells_count_the_tissue_of_their_whole_tile():
    grid = Grid(2048, 2048, 256, 256, stride=128)
    pixels = paint(picture(GLASS, grid), PINK, (6, 8), (6, 8))  # pixels of 2 x 2 strides are one tile
    tissue = find_tissue(pixels, grid)
    assert tissue.fraction[6, 6] == pytest.approx(1, abs=0.02)
    assert tissue.fraction[5, 6] == pytest.approx(0.5, abs=0.1)
    assert tissue.fraction[5, 5] == pytest.approx(0.25, abs=0.1)
    np.testing.assert_array_equal(tissue.mask, cells(slice(5, 8), slice(5, 8), grid))


# --- real slides ---


@pytest.mark.parametrize(
    ("name", "mpp", "dark", "share", "tissue", "glass"),
    [
        ("aperio_cmu-1-small-region.svs", None, False, (0.35, 0.55), [(15, 9), (22, 11)], [(3, 2), (12, 16)]),
        ("hamamatsu_test3-DAPI.ndpi", None, True, (0.75, 0.95), [(14, 4), (3, 3)], [(0, 0), (18, 5)]),
        ("tiff_slaid_patch.tif", 0.5, False, (1, 1), [(0, 0)], []),
    ],
)
def test_real_slides_look_right(shared_data, name, mpp, dark, share, tissue, glass):
    path = str(shared_data / "slides" / name)
    with open_slide(SlideRef(name, path, name, mpp=mpp)) as slide:
        grid = grid_for(slide, tile_size=128, mpp=0.5, tolerance=0.1)
        thumbnail = read_thumbnail(slide, grid, 16)
    found = find_tissue(thumbnail, grid)
    method = "fluorescence" if dark else "brightfield"
    np.testing.assert_array_equal(found.mask, find_tissue(thumbnail, grid, method=method).mask)
    assert share[0] <= found.mask.mean() <= share[1]
    assert all(found.mask[place] for place in tissue)
    assert not any(found.mask[place] for place in glass)


def test_a_slide_without_tissue_has_an_empty_mask(no_tissue: MemorySlide):
    grid = grid_for(no_tissue, tile_size=64, mpp=0.5, tolerance=0.1)
    assert find_tissue(read_thumbnail(no_tissue, grid, 16), grid).cells.size == 0


# --- wrong use ---


@pytest.mark.parametrize(
    ("thumbnail", "options", "message"),
    [
        (np.zeros((12 * P, 20 * P + 1, 3), np.uint8), {}, "12 x 20 cells must be uint8 of shape"),
        (np.zeros((12 * P, 20 * P, 4), np.uint8), {}, "12 x 20 cells"),
        (np.zeros((5, 5, 3), np.uint8), {}, "12 x 20 cells"),
        (np.zeros((12 * P, 20 * P, 3), np.float32), {}, "not float32"),
        (picture(GLASS), {"method": "otsu"}, "tissue method is 'otsu', expected one of auto"),
        (picture(GLASS), {"min_fraction": 0}, r"min_fraction must be in \(0, 1\], not 0"),
        (picture(GLASS), {"min_fraction": 1.1}, "min_fraction"),
    ],
    ids=["columns", "RGBA", "too small", "float", "method", "zero", "above one"],
)
def test_invalid_arguments_are_refused(thumbnail, options, message):
    with pytest.raises(SettingsError, match=message):
        find_tissue(thumbnail, GRID, **options)
