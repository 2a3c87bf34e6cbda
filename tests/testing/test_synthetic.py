"""Synthetic slides: files that OpenSlide reads, true truth, and a task only full resolution solves."""

import csv
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from wsi_ats.errors import SettingsError
from wsi_ats.testing import synthetic, textures
from wsi_ats.testing.bank import TileBank, make_tile_bank
from wsi_ats.testing.layout import Kind, choose_lesions, draw_layout
from wsi_ats.testing.outlines import INSIDE, crossings
from wsi_ats.testing.synthetic import write_collection, write_slide


@pytest.fixture(scope="module")
def bank() -> TileBank:
    return make_tile_bank(64, seed=0, variants=8, palettes=2)


def write(path: Path, bank: TileBank, seed: int = 0, **settings: Any) -> synthetic.SyntheticSlide:
    sizes = {"width": 2500, "height": 3333, "positive": True}
    return write_slide(path, bank=bank, rng=np.random.default_rng(seed), **(sizes | settings))


def read_level(slide: openslide.OpenSlide, level: int) -> np.ndarray:
    image = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return np.asarray(image.convert("RGB")).astype(np.float64)


def averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width = (side // factor for side in pixels.shape[:2])
    cropped = pixels[: height * factor, : width * factor]
    return cropped.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile_size", "width", "height"), [(64, 2500, 3333), (80, 3000, 2100), (128, 4501, 2300)]
)
def test_levels_are_area_averages(tmp_path: Path, tile_size: int, width: int, height: int) -> None:
    bank = make_tile_bank(tile_size, seed=1, variants=2, palettes=1)
    written = write(tmp_path / "a.tif", bank, width=width, height=height, mpp=0.25)
    with openslide.OpenSlide(written.path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25)
        assert slide.dimensions == (width, height)
        assert slide.level_dimensions[1] == (width // 4, height // 4)
        assert max(slide.level_dimensions[-1]) <= synthetic.SMALLEST_LEVEL
        full = read_level(slide, 0)
        for level in range(1, slide.level_count):
            error = read_level(slide, level) - averaged(full, 4**level)
            assert np.abs(error).max() < 8  # the lower levels are JPEG too
            assert np.abs(error).mean() < 0.5
    for row, column in np.argwhere(written.kinds == Kind.BACKGROUND):
        tile = full[row * tile_size :, column * tile_size :][:tile_size, :tile_size]
        assert np.median(tile) > 235


def test_deep_pyramid_of_a_long_slide(tmp_path: Path, bank: TileBank) -> None:
    written = write(tmp_path / "long.tif", bank, width=17000, height=2100)
    with openslide.OpenSlide(written.path) as slide:
        assert slide.level_dimensions == ((17000, 2100), (4250, 525), (1062, 131), (265, 32))
        for level in (2, 3):
            expected = averaged(read_level(slide, 1), 4 ** (level - 1))
            assert np.abs(read_level(slide, level) - expected).mean() < 0.5


def test_memory_does_not_grow_to_the_image(tmp_path: Path, bank: TileBank) -> None:
    tracemalloc.start()
    written = write(tmp_path / "large.tif", bank, width=8000, height=6000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.05 * 3 * written.width * written.height


def test_failed_write_leaves_nothing(tmp_path: Path, bank: TileBank, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "encode", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "a.tif", bank)
    assert list(tmp_path.iterdir()) == []


# --- the truth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_polygons_agree_with_kinds(tmp_path: Path, bank: TileBank, seed: int) -> None:
    written = write(tmp_path / "a.tif", bank, seed)
    features = written.truth_geojson()["features"]
    for kind, name in ((Kind.LESION, "Lesion"), (Kind.LOOKALIKE, "Look-alike")):
        polygons = [
            shapely.geometry.shape(feature["geometry"])
            for feature in features
            if feature["properties"]["classification"]["name"] == name
        ]
        assert all(polygon.is_valid for polygon in polygons)
        area = shapely.union_all(polygons)
        rows, columns = np.indices(written.kinds.shape)
        tiles = shapely.box(columns * 64, rows * 64, columns * 64 + 64, rows * 64 + 64)
        part = shapely.area(shapely.intersection(tiles, area)) / 64**2
        assert np.array_equal(written.kinds == kind, part >= 0.5 - 1e-9)


def test_kinds_agree_with_pixels(tmp_path: Path, bank: TileBank) -> None:
    written = write(tmp_path / "a.tif", bank)
    with openslide.OpenSlide(written.path) as slide:
        means = averaged(read_level(slide, 0), 64)
    kinds = written.kinds[: means.shape[0], : means.shape[1]]
    whole = ndimage.minimum_filter(kinds, 3) == ndimage.maximum_filter(kinds, 3)
    green = {kind: means[..., 1][whole & (kinds == kind)] for kind in Kind}
    assert green[Kind.BACKGROUND].min() > 238
    assert 140 < green[Kind.STROMA].min() < green[Kind.STROMA].max() < 190
    regions = means[..., 1][whole & (kinds >= Kind.LOOKALIKE)]
    assert regions.max() < green[Kind.STROMA].min()


def test_label_changes_nothing_but_the_kind_of_regions(tmp_path: Path, bank: TileBank) -> None:
    """Number, area and place of regions and tissue are drawn independently of the label."""
    for seed in range(10):
        positive = write(tmp_path / "p.tif", bank, seed, positive=True)
        negative = write(tmp_path / "n.tif", bank, seed, positive=False)
        assert np.array_equal(
            np.minimum(positive.kinds, Kind.LOOKALIKE), np.minimum(negative.kinds, Kind.LOOKALIKE)
        )
        assert len(positive.regions) == len(negative.regions)
        assert negative.lesion_fraction == 0 < positive.lesion_fraction


def test_fractions_are_met_on_average() -> None:
    layouts = [draw_layout(64, 64, np.random.default_rng(seed)) for seed in range(60)]
    tissue = [layout.tissue_area / 64**2 for layout in layouts]
    regions = [layout.region_areas.sum() / layout.tissue_area for layout in layouts]
    lesions = [
        layout.region_areas[choose_lesions(layout, 0.05)].sum() / layout.tissue_area for layout in layouts
    ]
    counts = [len(layout.region_areas) for layout in layouts]
    assert np.mean(tissue) == pytest.approx(0.3, abs=0.03)
    assert np.mean(regions) == pytest.approx(0.10, abs=0.015)
    assert np.mean(lesions) == pytest.approx(0.05, abs=0.005)
    assert len(set(counts)) >= 4
    assert np.std(regions) > 0.005


def test_crossings_cover_the_stated_area() -> None:
    for crossing in crossings().values():
        assert crossing.cover(64, np.zeros((64, 64))).mean() == pytest.approx(crossing.area, abs=0.01)


# --- the task -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Look-alike and lesion tiles (n, 64, 64, 3), as decoded; equal index means equal bank pair."""
    variants = 150
    bank = make_tile_bank(64, seed=3, variants=variants, palettes=1)
    lookalikes, lesions = (
        np.stack([bank.pixels(bank.number(0, kind, INSIDE, v)) for v in range(variants)])
        for kind in (Kind.LOOKALIKE, Kind.LESION)
    )
    return lookalikes.astype(np.float64), lesions.astype(np.float64)


def held_out_auc(lookalikes: np.ndarray, lesions: np.ndarray) -> float:
    """AUC of a forest on features (n, ...), no pair of the bank being in both folds."""
    features = np.concatenate([lookalikes, lesions]).reshape(2 * len(lesions), -1)
    labels = np.repeat([0, 1], len(lesions))
    pairs = np.tile(np.arange(len(lesions)), 2)
    forest = RandomForestClassifier(100, min_samples_leaf=2, random_state=0)
    scores = cross_val_predict(
        forest, features, labels, groups=pairs, cv=GroupKFold(5), method="predict_proba"
    )
    return float(roc_auc_score(labels, scores[:, 1]))


def colour_statistics(tiles: np.ndarray) -> np.ndarray:
    return np.concatenate([tiles.mean(axis=(1, 2)), tiles.std(axis=(1, 2))], axis=1)


def thumbnail(tiles: np.ndarray, pixels: int) -> np.ndarray:
    side = tiles.shape[1] // pixels
    return tiles.reshape(len(tiles), pixels, side, pixels, side, 3).mean(axis=(2, 4))


def nuclear_shape(tiles: np.ndarray) -> np.ndarray:
    """Return the coherence of edge directions, from the structure tensor; the same for any turn or flip."""
    y, x = np.gradient(tiles[..., 0], axis=(1, 2))
    yy, xx, xy = (ndimage.gaussian_filter(a, (0, 1, 1)) for a in (y * y, x * x, x * y))
    strength = yy + xx + 1e-6
    coherence = np.hypot(xx - yy, 2 * xy) / strength
    weighted = (coherence * strength).sum(axis=(1, 2)) / strength.sum(axis=(1, 2))
    return np.stack([weighted, coherence.mean(axis=(1, 2)), strength.mean(axis=(1, 2))], axis=1)


def test_tile_colour_does_not_reveal_the_label(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert abs(held_out_auc(*map(colour_statistics, pair)) - 0.5) < 0.08


@pytest.mark.parametrize("pixels", [4, 8])
def test_the_thumbnail_does_not_reveal_the_label(pair: tuple[np.ndarray, np.ndarray], pixels: int) -> None:
    lookalikes, lesions = (thumbnail(tiles, pixels) for tiles in pair)
    assert np.sqrt(np.mean((lookalikes - lesions) ** 2)) < 0.5  # grey levels of 255
    assert abs(held_out_auc(lookalikes, lesions) - 0.5) < 0.08


def test_full_resolution_reveals_the_label(pair: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    turned = [
        np.stack([np.rot90(tile, rng.integers(4))[:: rng.choice([-1, 1])] for tile in tiles])
        for tiles in pair
    ]
    assert held_out_auc(*map(nuclear_shape, turned)) > 0.97


def test_invisible_regions_have_the_block_means_of_stroma() -> None:
    bank = make_tile_bank(128, seed=0, variants=4, palettes=1, visibility=0)
    stroma, lookalike, lesion = (
        thumbnail(np.stack([bank.pixels(bank.number(0, k, INSIDE, 1))]).astype(float), 8)
        for k in (Kind.STROMA, Kind.LOOKALIKE, Kind.LESION)
    )
    assert np.abs(stroma - lookalike).max() < 3
    assert np.abs(stroma - lesion).max() < 3


def test_smooth_field_has_the_wanted_means() -> None:
    means = np.random.default_rng(0).normal(size=(textures.BLOCKS, textures.BLOCKS))
    field = textures.smooth_field(means, 96)
    assert np.allclose(textures.block_means(field), means)
    assert np.abs(np.diff(field, axis=0)).max() < 0.5 * np.ptp(means)


# --- collections and settings ---------------------------------------------------------------------


def test_collection(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "slides": 4,
        "width": 2100,
        "height": 2300,
        "tile_size": 64,
        "variants": 2,
        "palettes": 2,
    }
    written = write_collection(tmp_path / "a", seed=5, **settings)
    with (tmp_path / "a" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == [f"slide_{k:03d}" for k in range(4)]
    assert len({row["case_id"] for row in rows}) == 4
    assert [row["label"] for row in rows] == [slide.label for slide in written]
    assert sorted(row["label"] for row in rows) == 2 * ["negative"] + 2 * ["positive"]
    for row, slide in zip(rows, written, strict=True):
        assert (tmp_path / "a" / row["path"]).is_file()
        truth = tmp_path / "a" / "truth" / f"{slide.slide_id}"
        assert truth.with_suffix(".geojson").is_file()
        with np.load(truth.with_suffix(".npz")) as arrays:
            assert np.array_equal(arrays["kinds"], slide.kinds)
    again = write_collection(tmp_path / "b", seed=5, **settings)
    assert [s.path.read_bytes() for s in again] == [s.path.read_bytes() for s in written]


@pytest.mark.parametrize(
    "settings",
    [
        {"tile_size": 60},
        {"tile_size": 48},
        {"tile_size": 528},
        {"tile_size": 64, "variants": 0},
        {"tile_size": 64, "palettes": 0},
        {"tile_size": 64, "visibility": 1.5},
    ],
)
def test_bank_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        make_tile_bank(seed=0, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"tissue_fraction": 0.0},
        {"tissue_fraction": 0.9},
        {"region_fraction": 0.5},
        {"lesion_fraction": 0.2},
        {"lesion_fraction": 0.0},
        {"mpp": 0.0},
        {"width": 200, "height": 200},
        {"width": 0},
    ],
)
def test_slide_settings_are_checked(tmp_path: Path, bank: TileBank, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        write(tmp_path / "a.tif", bank, **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_large_slide(tmp_path: Path) -> None:
    bank = make_tile_bank(256, seed=0)
    written = write(tmp_path / "a.tif", bank, width=100_000, height=80_000)
    with openslide.OpenSlide(written.path) as slide:
        assert slide.dimensions == (100_000, 80_000)
        assert slide.level_count == 5
