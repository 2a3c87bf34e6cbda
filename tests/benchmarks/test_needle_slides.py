"""Needle slides are of real tissue, and nothing but the tissue of some regions differs between classes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import needle_slides
from benchmarks.needle_slides import CELL, REGIONS, TILE, Kind, Material, Truth
from wsi_ats.config import Settings
from wsi_ats.errors import ManifestError
from wsi_ats.look import look
from wsi_ats.manifest import read_manifest
from wsi_ats.slides import open_slide
from wsi_ats.testing.layout import choose_lesions
from wsi_ats.tiles import read_tiles


@pytest.fixture
def data(shared_data):
    if not (shared_data / "tiles" / "crc_val_he_7k").is_dir():
        pytest.skip(f"images of tissue are not there: {shared_data}")
    return shared_data


SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.sqrt(np.pi) / 2  # of area pi


def material(seed: int = 0) -> Material:
    """Noise of one colour for each kind of tissue: stroma is pink, both kinds of regions are darker."""
    rng = np.random.default_rng(seed)
    colours = {Kind.STROMA: (210, 150, 190), Kind.LOOKALIKE: (130, 90, 150), Kind.LESION: (120, 80, 160)}
    return Material(
        {
            kind: [
                (f"{kind}", np.clip(rng.normal(colour, 12, (448, 448, 3)), 0, 255).astype(np.uint8))
                for _ in range(2)
            ]
            for kind, colour in colours.items()
        },
        [SQUARE],
    )


def test_distance_to_an_outline_is_positive_inside():
    points = np.array([[0, 0], [2, 0], [0.5, 0], [0, -3]])
    half = np.sqrt(np.pi) / 2
    found = needle_slides.signed_distance(points, SQUARE)
    np.testing.assert_allclose(found, [half, half - 2, half - 0.5, half - 3])


@pytest.mark.parametrize("lesion", REGIONS)
def test_regions_have_their_share_and_lesions_theirs(lesion):
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(6):
        share = rng.uniform(*REGIONS[lesion])
        layout = needle_slides.draw_slide([SQUARE], rng, region_fraction=share)
        truth = Truth.of(layout, choose_lesions(layout, lesion))
        assert truth.region.sum() / truth.tissue.sum() == pytest.approx(share, rel=0.35)
        assert (truth.lesion <= truth.region).all()
        assert (truth.region <= truth.tissue + 1e-9).all()
        assert 800 < truth.tissue.sum() < 1700
        shares.append(truth.lesion_fraction)
    assert np.mean(shares) == pytest.approx(lesion, rel=0.25)


def test_what_is_drawn_does_not_depend_on_the_label():
    layouts = [
        needle_slides.draw_slide([SQUARE], np.random.default_rng(2), region_fraction=0.1) for _ in range(2)
    ]
    negative = Truth.of(layouts[0], [])
    positive = Truth.of(layouts[1], choose_lesions(layouts[1], 0.05))
    np.testing.assert_array_equal(negative.region, positive.region)
    np.testing.assert_array_equal(negative.tissue, positive.tissue)
    assert negative.lesion_fraction == 0 < positive.lesion_fraction


@pytest.fixture(scope="module")
def banks():
    return {
        visible: needle_slides.make_bank(material().alike(), np.random.default_rng(3), visible=visible)
        for visible in (True, False)
    }


def mean_colours(bank, kind):
    numbers = bank.number(0, kind, 1, np.arange(0, bank.variants, 7))
    return np.mean([bank.pixels(int(number)).mean((0, 1)) for number in numbers], axis=0)


def test_regions_stand_out_and_look_alike_or_do_not_stand_out(banks):
    stroma, lookalike, lesion = (mean_colours(banks[True], kind) for kind in list(Kind)[1:])
    assert (stroma - lesion > 30).all()
    np.testing.assert_allclose(lookalike, lesion, atol=4)
    stroma, lookalike, lesion = (mean_colours(banks[False], kind) for kind in list(Kind)[1:])
    np.testing.assert_allclose(lesion, stroma, atol=2)
    np.testing.assert_allclose(lookalike, stroma, atol=2)


def test_a_hidden_tile_has_the_blocks_of_the_stroma_in_its_place(banks):
    bank = banks[False]
    for form in (1, 30):  # all of it region, and crossed by an outline
        tiles = [bank.pixels(int(bank.number(0, kind, form, 5))).astype(float) for kind in (2, 3)]
        means = [tile.reshape(4, 32, 4, 32, 3).mean((1, 3)) for tile in tiles]
        np.testing.assert_allclose(means[0], means[1], atol=3)


def test_both_kinds_of_regions_have_the_same_feathered_border(banks):
    bank = banks[True]
    form = 30
    tiles = {kind: bank.pixels(int(bank.number(0, kind, form, 0))).astype(float) for kind in (2, 3)}
    stroma, lesion = mean_colours(bank, Kind.STROMA), mean_colours(bank, Kind.LESION)
    covers = [(stroma - tile).mean(-1) / (stroma - lesion).mean() for tile in tiles.values()]
    np.testing.assert_allclose(covers[0].mean(), covers[1].mean(), atol=0.05)


def test_tiles_of_a_cell_are_neighbours_in_their_image(banks):
    bank, rng = banks[True], np.random.default_rng(4)
    layout = needle_slides.draw_slide([SQUARE], rng, region_fraction=0.1, side=8192)
    numbers = needle_slides.references(layout, [], bank, rng)
    inside = (layout.tissue == 1) & (layout.regions == 0)
    variant = (numbers - 1 - (Kind.STROMA - 1)) // 3
    n = CELL // TILE
    blocks, whole = (
        part.reshape(part.shape[0] // n, n, part.shape[1] // n, n).transpose(0, 2, 1, 3).reshape(-1, n * n)
        for part in (variant, inside)
    )
    for corner, right, below, _ in blocks[whole.all(axis=1)]:
        assert (right - corner, below - corner) == (1, 3)


def test_pairs_of_slides_are_written_once_and_read_by_the_library(tmp_path):
    folder, side = tmp_path / "slides", 8192
    for _ in range(2):
        needle_slides.write_slides(
            folder,
            material(),
            pairs=1,
            lesion_fraction=0.2,
            rng=np.random.default_rng(5),
            side=side,
        )
    refs = read_manifest(folder / "labels.csv")
    assert sorted(str(ref.label) for ref in refs) == ["negative", "positive"]
    settings = Settings().with_values(["tile.size=64", "tile.mpp=1.0", "thumbnail.pixels_per_cell=4"])
    for ref in refs:
        truth = needle_slides.read_truth(folder, ref.id)
        assert (truth.lesion_fraction > 0.1) == (ref.label == "positive")
        with open_slide(ref) as slide:
            assert slide.levels[0].width == side
            _, tissue = look(slide, settings)
            assert tissue.grid.shape == truth.tissue.shape
            agree = tissue.mask == (truth.tissue >= settings.thumbnail.min_tissue)
            assert agree.mean() > 0.98
            dark = read_tiles(slide, tissue.grid, np.flatnonzero(truth.region == 1)).mean()
            assert (
                dark < read_tiles(slide, tissue.grid, np.flatnonzero(truth.tissue - truth.region == 1)).mean()
            )


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="give --data"):
        needle_slides.read_material(tmp_path, 0)


def test_no_image_is_in_two_splits_and_seeds_have_other_test_images(data):
    seen = []
    for seed in (3, 4):
        splits = needle_slides.read_material(data, seed)
        names = {
            split: {name for members in part.images.values() for name, _ in members}
            for split, part in splits.items()
        }
        assert {split: len(found) for split, found in names.items()} == {"train": 20, "val": 8, "test": 12}
        assert len(set.union(*names.values())) == 40
        assert all(name.startswith("TUM") for name, _ in splits["test"].images[Kind.LESION])
        seen.append(names["test"])
    assert not seen[0] & seen[1]


def test_outlines_are_of_area_pi_around_their_middle(data):
    outlines = needle_slides.read_outlines(data / "annotations" / "camelyon16")
    assert len(outlines) > 30
    for x, y in (outline.T for outline in outlines):
        assert abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 == pytest.approx(np.pi)
        assert np.hypot(x, y).max() <= 2.2
