"""Ink and lack of focus are found where they are, and tissue is not taken for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid
from wsi_ats.overview.overview import explain_exclusion, read_overview, read_region_overview, regions_of
from wsi_ats.overview.quality import find_artefacts, mark
from wsi_ats.overview.records import Quality
from wsi_ats.overview.tiles import grid_for, read_thumbnail
from wsi_ats.overview.tissue import find_tissue
from wsi_ats.settings import ARTEFACTS, Settings
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.resample import resample

INKS = {"black": (40, 40, 45), "blue": (30, 60, 160), "green": (45, 115, 100), "red": (190, 35, 50)}
STAINS = {
    "lymphoid": (90, 45, 120),
    "haematoxylin": (110, 80, 160),
    "pale eosin": (236, 206, 222),
    "eosin": (215, 110, 160),
    "bone": (220, 90, 110),
    "brown DAB": (120, 75, 45),
    "strong DAB": (85, 50, 30),
    "blue nuclei": (108, 143, 182),
    "fat": (240, 232, 236),
}
LIMIT = Settings().thumbnail.max_artefact
P, ROWS, COLUMNS = 8, 24, 24


def slide_of(colour, p=P, seed=0):
    """Tissue of one stain, uneven as tissue is, in the middle of glass."""
    generator = np.random.default_rng(seed)
    shape = (ROWS * p, COLUMNS * p)
    uneven = ndimage.gaussian_filter(generator.normal(0, 1, shape), 0.7)
    amount = (1 + 0.25 * uneven / uneven.std())[..., None]
    pixels = np.full((*shape, 3), 243.0)
    inside = slice(4 * p, -4 * p)
    pixels[inside, inside] = 245 * (np.array(colour) / 245) ** amount[inside, inside]
    return (pixels + generator.normal(0, 2, (*shape, 1))).clip(0, 255).astype(np.uint8)


def under_ink(pixels, ink, lines, p=P, width=2.5):
    """Draw translucent lines of ink, some cells wide; return the fraction of each cell covered."""
    large = 4
    height, breadth = pixels.shape[:2]
    drawn = Image.new("L", (breadth * large, height * large))
    for line in lines:
        places = [(x * p * large, y * p * large) for x, y in line]
        ImageDraw.Draw(drawn).line(places, fill=255, width=round(width * p * large))
    covered = np.asarray(drawn.resize((breadth, height), Image.Resampling.BOX)) / 255
    light = 1 - covered[..., None] * (1 - np.array(ink) / 250)
    return (pixels * light).astype(np.uint8), covered.reshape(ROWS, p, -1, p).mean((1, 3))


def judged(pixels, p=P, mpp=None):
    grid = Grid(pixels.shape[1], pixels.shape[0], p, p)
    tissue = find_tissue(pixels, grid, min_fraction=0.25)
    return find_artefacts(pixels, tissue, mpp=mpp), tissue


# --- ink ---

LINES = [[(1, 2), (22, 12)], [(12, 1), (9, 23)]]  # over glass and tissue


@pytest.mark.parametrize("p", [4, 8, 16])
@pytest.mark.parametrize("stain", ["lymphoid", "pale eosin", "brown DAB"])
@pytest.mark.parametrize("ink", INKS)
def test_ink_is_found_over_tissue_and_glass_and_nowhere_else(ink, stain, p):
    pixels, covered = under_ink(slide_of(STAINS[stain], p), INKS[ink], LINES, p)
    pen = judged(pixels, p)[0].pen
    wholly = covered > 0.9
    assert np.count_nonzero(wholly) > 30
    assert (pen[wholly] > LIMIT).mean() > 0.95
    assert not pen[covered == 0].any()


@pytest.mark.parametrize("ink", INKS)
def test_the_share_under_ink_is_the_share_that_was_drawn(ink):
    pixels, covered = under_ink(slide_of(STAINS["eosin"], 16), INKS[ink], LINES, 16)
    pen = judged(pixels, 16)[0].pen
    assert np.abs(pen - covered).mean() < 0.02
    assert (pen <= covered + 0.05).all()  # cells half under ink at the edge of a line do not count


@pytest.mark.parametrize("p", [4, 8, 16, 32])
@pytest.mark.parametrize("stain", STAINS)
def test_stains_are_not_taken_for_ink(stain, p):
    assert not judged(slide_of(STAINS[stain], p), p)[0].pen.any()


def test_a_speck_of_ink_colour_is_not_pen():
    pixels = slide_of(STAINS["eosin"])
    pixels[40:44, 80:84] = INKS["black"]
    pixels[100:105, 100:108] = INKS["blue"]
    assert not judged(pixels)[0].pen.any()


@settings_of_hypothesis(max_examples=15)
@given(seed=st.integers(0, 2**16), turns=st.integers(0, 3), mirror=st.booleans())
def test_turned_slides_have_turned_artefacts(seed, turns, mirror):
    generator = np.random.default_rng(seed)
    lines = generator.uniform(0, COLUMNS, (2, 2, 2)).tolist()
    ink = INKS[generator.choice(list(INKS))]
    pixels, _ = under_ink(slide_of(STAINS["eosin"], seed=seed), ink, lines)
    pixels[: len(pixels) // 2] = ndimage.gaussian_filter(pixels, (2, 2, 0))[: len(pixels) // 2]

    def turned(array):
        return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirror else array, turns))

    before, after = judged(pixels, mpp=2.0)[0], judged(turned(pixels), mpp=2.0)[0]
    np.testing.assert_allclose(after.pen, turned(before.pen), atol=1e-6)
    np.testing.assert_allclose(after.blur, turned(before.blur), atol=1e-4)


def test_the_same_slide_is_judged_the_same():
    pixels, _ = under_ink(slide_of(STAINS["eosin"]), INKS["green"], LINES)
    first, second = (judged(pixels, mpp=2.0)[0] for _ in range(2))
    np.testing.assert_array_equal(first.pen, second.pen)
    np.testing.assert_array_equal(first.blur, second.blur)


def test_cells_that_overlap_and_the_edge_of_the_slide_count_their_own_pixels():
    grid = Grid(1000, 1000, 256, 256, stride=128)
    rows, columns = grid.shape
    pixels = np.full((rows * P, columns * P, 3), 255, np.uint8)
    pixels[: round(1000 / 16), : round(1000 / 16)] = INKS["blue"]
    tissue = find_tissue(pixels, grid)
    pen = find_artefacts(pixels, tissue).pen
    assert pen[0, 0] == pytest.approx(1)
    assert 0.1 < pen[-1, -1] < 0.5
    np.testing.assert_allclose(pen, tissue.fraction, atol=0.01)  # ink counts as tissue until it is left out


# --- focus, on real tissue of two patients that no threshold was chosen by ---


def tissue_tiles(shared_data):
    paths = sorted((shared_data / "tiles" / "osteosarcoma_tcia").glob("*.jpg"))
    tiles = [np.asarray(Image.open(path)) for path in paths if "Case-4-" in path.name or "P9-" in path.name]
    return [tile for tile in tiles if tile.mean() < 225]


@pytest.mark.parametrize("p", [32, 64])
def test_only_the_blurred_half_is_found_out_of_focus(shared_data, p):
    found, called = [], []
    for tile in tissue_tiles(shared_data)[::4]:
        pixel = 128 / p  # of a tile of one micrometre per pixel
        tile = tile.astype(np.float32)
        tile[:512] = ndimage.gaussian_filter(tile[:512], (1.5 * pixel, 1.5 * pixel, 0))
        quality, tissue = judged(resample(tile.astype(np.uint8), 8 * p, 8 * p), p, mpp=pixel)
        # A cell is judged with its neighbours, so those at the border see both halves.
        found.append(quality.blur[:3][tissue.mask[:3]] > LIMIT)
        called.append(quality.blur[5:][tissue.mask[5:]] > LIMIT)
    assert np.concatenate(found).size > 80
    assert np.concatenate(found).mean() > 0.95
    assert np.concatenate(called).mean() < 0.03


def test_a_slide_that_is_out_of_focus_all_over_is_found(shared_data):
    for tile in tissue_tiles(shared_data)[:4]:
        soft = ndimage.gaussian_filter(tile, (6, 6, 0))
        quality, tissue = judged(resample(soft, 256, 256), 32, mpp=4.0)
        assert (quality.blur[tissue.mask] > LIMIT).mean() > 0.95


@pytest.mark.parametrize("mpp", [None, 4.01, 16.0])
def test_focus_is_not_judged_where_it_cannot_be_measured(mpp):
    quality, _ = judged(slide_of(STAINS["eosin"]), mpp=mpp)
    assert quality.blur is None
    assert quality.pen is not None


def test_glass_is_not_out_of_focus():
    quality, tissue = judged(slide_of(STAINS["eosin"]), mpp=2.0)
    assert not quality.blur[~tissue.mask].any()


# --- real slides and tiles ---


@pytest.mark.parametrize("name", ["aperio_cmu-1-small-region.svs", "tiff_slaid_patch.tif"])
@pytest.mark.parametrize("p", [8, 32])
def test_real_slides_are_neither_inked_nor_out_of_focus(shared_data, name, p):
    path = str(shared_data / "slides" / name)
    with open_slide(SlideRef(name, path, name, mpp=0.5)) as slide:
        grid = grid_for(slide, tile_size=256, mpp=0.5, tolerance=0.1)
        thumbnail = read_thumbnail(slide, grid, p)
    quality = find_artefacts(thumbnail, find_tissue(thumbnail, grid), mpp=128 / p)
    assert not quality.pen.any()
    assert quality.blur is None if p == 8 else (quality.blur <= LIMIT).all()


def test_quality_of_fluorescence_is_not_judged(shared_data):
    path = str(shared_data / "slides" / "hamamatsu_test3-DAPI.ndpi")
    settings = Settings().with_values(["tile.size=128", "thumbnail.exclude=pen"])
    with open_slide(SlideRef("dapi", path, "dapi")) as slide:
        view = read_overview(slide, settings)
    assert view.quality == Quality()
    assert view.artefact_shares == {"pen": None, "blur": None}
    np.testing.assert_array_equal(view.tissue.mask, view.all_tissue.mask)


def test_real_tiles_are_not_inked(shared_data):
    paths = sorted((shared_data / "tiles").glob("*/*.jpg"))[1::4]
    assert len(paths) > 120
    inked = []
    for path in paths:
        tile = np.asarray(Image.open(path).convert("RGB"))
        side = {1024: 8, 224: 2}[len(tile)]
        for p in (4, 8, 16):
            quality, _ = judged(resample(tile, side * p, side * p), p)
            inked += [(path.name, p)] if (quality.pen > LIMIT).any() else []
    assert not inked


# --- exclusion and records ---


def memory_slide(pixels, p=P):
    """The pixels as a slide of which they are the thumbnail: 64 pixels of 0.5 micrometres a cell."""
    return MemorySlide([pixels.repeat(64 // p, 0).repeat(64 // p, 1)], mpp=0.5)


def settings(*changes):
    return Settings().with_values(["tile.size=64", *changes])


def test_exclusion_changes_the_mask_alone():
    slide = memory_slide(under_ink(slide_of(STAINS["eosin"]), INKS["blue"], LINES)[0])
    whole = read_overview(slide, settings())
    thumbnail, everything = whole.thumbnail, whole.tissue
    view = read_overview(slide, settings("thumbnail.exclude=pen"))
    over = view.quality.pen > LIMIT
    assert np.count_nonzero(over & everything.mask) > 20
    np.testing.assert_array_equal(view.thumbnail, thumbnail)
    np.testing.assert_array_equal(view.all_tissue.mask, everything.mask)
    np.testing.assert_array_equal(view.tissue.mask, everything.mask & ~over)
    np.testing.assert_array_equal(view.tissue.fraction, everything.fraction)
    assert view.artefact_shares["pen"] == np.count_nonzero(over & everything.mask) / everything.mask.sum()
    assert explain_exclusion(view, settings()) is None
    strict = read_overview(slide, settings("thumbnail.exclude=pen", "thumbnail.max_artefact=0.9"))
    assert view.tissue.mask.sum() < strict.tissue.mask.sum() < everything.mask.sum()


def test_a_slide_with_everything_excluded_is_reported():
    pixels = slide_of(STAINS["eosin"])
    pixels[4 * P : -4 * P, 4 * P : -4 * P] = INKS["green"]
    view = read_overview(memory_slide(pixels), settings("thumbnail.exclude=pen"))
    assert not view.tissue.mask.any()
    assert len(view.all_tissue.cells) == 16 * 16
    reason = explain_exclusion(view, settings("thumbnail.exclude=pen"))
    assert reason.startswith("all 256 tissue cells were left out: pen 256; see thumbnail.exclude")
    glass = read_overview(memory_slide(np.full_like(pixels, 240)), settings("thumbnail.exclude=pen"))
    assert explain_exclusion(glass, settings()) is None
    assert glass.artefact_shares["pen"] is None


def test_two_levels_exclude_inked_regions_and_then_inked_cells():
    pixels = slide_of(STAINS["eosin"])
    pixels[:, : 10 * P] = INKS["blue"]  # two columns of regions, and half of the third
    two = settings(
        "thumbnail.levels=2", "thumbnail.cells_per_region=4", "thumbnail.pixels_per_region=16"
    ).with_values(["thumbnail.exclude=pen"])
    slide = memory_slide(pixels)
    view = read_overview(slide, two)
    assert view.all_tissue.mask[:, :2].all()
    assert not view.tissue.mask[:, :2].any()
    np.testing.assert_array_equal(view.tissue.mask[1:5, 2:], view.all_tissue.mask[1:5, 2:])
    np.testing.assert_array_equal(view.quality.pen[:, :2], 1)
    np.testing.assert_allclose(view.quality.pen[:, 2], 0.5)
    regions = regions_of(view.tissue, two)
    cells = read_region_overview(slide, view, regions, regions.window(2 * 6 + 2), two).tissue.mask
    assert not cells[:, :2].any()
    assert cells[:, 2:].all()
    wholly = read_region_overview(slide, view, regions, regions.window(2 * 6), two).tissue.mask
    assert wholly.all()  # attention that fell on it must fall on a cell


def test_frames_are_drawn_round_the_cells_that_are_named():
    thumbnail = np.full((16, 24, 3), 200, np.uint8)
    cells = np.zeros((2, 3), dtype=bool)
    cells[0, 1] = True
    marked = mark(thumbnail, {"pen": cells})
    changed = (marked != thumbnail).any(2)
    assert changed[:8, 8:16].sum() == changed.sum() == 4 * 7
    assert (marked[0, 8] == (0, 220, 255)).all()
    assert (thumbnail == 200).all()


def test_records_settings_and_code_list_the_same_artefacts():
    maps = {name: np.zeros((2, 2), np.float32) for name in ARTEFACTS}
    assert list(Quality(**maps).maps) == list(ARTEFACTS)


@pytest.mark.parametrize("values", [np.full((2, 2), 1.1), np.full((2, 2), np.nan), np.zeros(3)], ids=str)
def test_an_invalid_fraction_is_refused(values):
    with pytest.raises(SettingsError, match="a map of pen must have two axes"):
        Quality(pen=values.astype(np.float32))


def test_another_grids_thumbnail_is_refused():
    _, tissue = judged(slide_of(STAINS["eosin"]))
    with pytest.raises(SettingsError, match="24 x 24 cells must be uint8 of shape"):
        find_artefacts(np.zeros((10, 10, 3), np.uint8), tissue)
