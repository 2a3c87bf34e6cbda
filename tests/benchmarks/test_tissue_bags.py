"""Bags of real tissue differ between classes by lesions alone, and are the same slides as files."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from benchmarks import tissue_features
from benchmarks.tissue import (
    MPP,
    OTHERS,
    BagReader,
    Layout,
    collect,
    jpeg8_decode,
    seen_at,
    write_features,
    write_slides,
)
from benchmarks.tissue_features import CROPS, SIDE, STAINS, make_table, read_images, shared_out, with_means_of
from pipelines._features import starting_settings, with_features
from pipelines._reports import Silent
from wsi_ats.bags.matched import match_features
from wsi_ats.errors import ManifestError, SettingsError
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.testing.layout import Kind

DENSITY = {Kind.STROMA: 0.4, Kind.LOOKALIKE: 0.8, Kind.LESION: 0.8}


def features(crops):
    """Mean colours of the quarters of a crop: small, and different for every crop."""
    half = SIDE // 2
    return crops.reshape(-1, 2, half, 2, half, 3).mean((2, 4), dtype=np.float32).reshape(-1, 12)


@pytest.fixture(scope="module")
def images():
    """Ten images of each kind: noise, coarse in lesions and fine in the others."""
    rng = np.random.default_rng(0)
    made = {}
    for kind, density in DENSITY.items():
        noise = rng.normal(0, 0.15, (10, 128, 128, 3))
        if kind == Kind.LESION:
            noise = 4 * ndimage.gaussian_filter(noise, (0, 2, 2, 0))
        made[kind] = [list(np.clip(density + noise, 0.01, None).astype(np.float32))]
    return made


@pytest.fixture(scope="module")
def table(images):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tissue_features, "CROPS", {kind: count // 20 for kind, count in CROPS.items()})
        return make_table(images, 0, features)


@pytest.fixture(scope="module", params=[True, False], ids=["visible", "hidden"])
def collection(request, table):
    return collect(table, lesion=0.05, visible=request.param, slides=(8, 4, 6), seed=3)


def test_images_are_in_one_split_of_each_fold_and_tested_in_one_fold(images):
    tests = []
    for fold in range(tissue_features.FOLDS):
        splits = shared_out(images, fold)
        for kind in DENSITY:
            found = [id(each) for split in splits.values() for each in split[kind]]
            assert sorted(found) == sorted(id(each) for each in images[kind][0])
            assert [len(split[kind]) for split in splits.values()] == [5, 2, 3]
        tests += [id(each) for each in splits["test"][Kind.LESION]]
    assert len(set(tests)) == 10


def test_crops_get_the_means_of_others_and_keep_the_rest():
    rng = np.random.default_rng(1)
    dark, pale = (
        np.clip(rng.normal(mean, 10, (5, SIDE, SIDE, 3)), 0, 255).astype(np.float32) for mean in (120, 200)
    )
    made = with_means_of(dark, pale)
    means = [each.reshape(5, 8, 12, 8, 12, 3).mean((2, 4)) for each in (made, pale)]
    np.testing.assert_allclose(*means, atol=0.5)
    inside = [each - ndimage.uniform_filter(each, (0, 12, 12, 0)) for each in (made, dark)]
    assert np.corrcoef(inside[0].ravel(), inside[1].ravel())[0, 1] > 0.95


def test_a_table_has_all_sorts_of_crops_and_their_thumbnails(table):
    assert len(table.rows("train", 0, Kind.STROMA)) == CROPS[Kind.STROMA] // 20
    assert len(table.rows("val", 1, Kind.LESION, hidden=True)) == CROPS[Kind.LESION] // 40
    row = int(table.rows("test", STAINS - 1, Kind.LOOKALIKE)[2])
    crop = jpeg8_decode(table.jpeg(row))
    np.testing.assert_array_equal(features(crop[None])[0], table.features[row])
    np.testing.assert_allclose(
        crop.reshape(8, 12, 8, 12, 3).mean((1, 3)), table.thumbnails[row], atol=0.5 + 1e-4
    )


def test_a_table_is_made_once(images, table, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(tissue_features, "read_images", lambda material, data: images)
    monkeypatch.setattr(tissue_features, "make_table", lambda *_: made.append(None) or table)
    (tmp_path / "tf_efficientnet_lite0.safetensors").touch()
    monkeypatch.setattr(tissue_features, "create_backbone", lambda *_, **__: SimpleNamespace(network=None))
    for _ in range(2):
        found = tissue_features.crop_table("colon", 2, cache=tmp_path, data=tmp_path)
        np.testing.assert_array_equal(found.features, table.features)
        assert found.jpeg(7) == table.jpeg(7)
    assert len(made) == 1


@pytest.mark.parametrize("lesion", OTHERS)
def test_lesions_have_their_share_in_connected_regions(lesion):
    rng = np.random.default_rng(4)
    for _ in range(4):
        layout = Layout.draw(lesion, rng)
        area = layout.tissue.sum()
        assert 1000 < area < 1300
        assert layout.lesion.sum() == round(lesion * area)
        others = (layout.owner >= 0).sum() - layout.lesion.sum()
        assert OTHERS[lesion][0] * area - 1 <= others <= OTHERS[lesion][1] * area + 1
        assert layout.tissue[layout.owner >= 0].all()
        assert ndimage.label(layout.owner >= 0)[1] == len(layout.chosen) == layout.owner.max() + 1


def test_half_of_the_slides_have_lesions_and_all_have_regions(collection):
    for bags in (collection.train, collection.validation, collection.test):
        assert 2 * sum(bag.positive for bag in bags) == len(bags)
        for bag in bags:
            share = (bag.kinds == Kind.LESION).mean()
            assert share == pytest.approx(0.05 if bag.positive else 0, abs=0.001)
            assert (bag.kinds != Kind.STROMA).mean() > 0.07
            assert (collection.table.kind[bag.crops] == bag.kinds).all()
            assert len({*collection.table.stain[bag.crops]}) == 1


def test_thumbnails_show_regions_but_not_their_kind(collection):
    hidden = bool(collection.table.hidden[np.concatenate([bag.crops for bag in collection.bags])].any())
    shown: dict[Kind, list[np.ndarray]] = {kind: [] for kind in DENSITY}
    for bag in collection.train:
        cells = bag.thumbnail.reshape(40, 8, 40, 8, 3).swapaxes(1, 2)[bag.tissue.mask]
        for kind, each in shown.items():
            each.append(cells[bag.kinds == kind])
    darkness = {kind: np.concatenate(each).mean() for kind, each in shown.items()}
    assert darkness[Kind.LESION] == pytest.approx(darkness[Kind.LOOKALIKE], abs=2)
    difference = darkness[Kind.STROMA] - darkness[Kind.LESION]
    assert difference < 3 if hidden else difference > 30


def test_a_reader_gives_features_and_counts_each_tile_once(collection):
    reader = BagReader(collection)
    one, other = collection.train[:2]
    wanted = [(bag.ref, bag.tissue.grid, bag.tissue.cells[[5, 2, 5]]) for bag in (one, other, one)]
    found = [future.result() for future in reader.read(wanted)]
    np.testing.assert_array_equal(found[0], collection.features[one.crops[[5, 2, 5]]])
    assert [reader.tiles_read[bag.ref.id] for bag in collection.train[:3]] == [2, 2, 0]
    with pytest.raises(SettingsError, match="no tissue"):
        reader.read([(one.ref, one.tissue.grid, np.flatnonzero(~one.tissue.mask)[:1])])


def test_files_are_the_same_slides(collection, tmp_path):
    few = replace(
        collection, train=collection.train[:1], validation=collection.validation[:1], test=collection.test[:1]
    )
    write_slides(few, tmp_path)
    settings = Settings().with_values([f"tile.size={SIDE}", f"tile.mpp={MPP}"])
    refs = read_manifest(tmp_path / "labels.csv")
    assert [(ref.id, ref.label, ref.split) for ref in refs] == [
        (bag.ref.id, bag.ref.label, bag.ref.split) for bag in few.bags
    ]
    for ref, bag in zip(refs, few.bags, strict=True):
        with open_slide(ref) as slide:
            view = read_overview(slide, settings)
            tiles = read_tiles(slide, bag.tissue.grid, bag.tissue.cells)
        np.testing.assert_array_equal(view.tissue.mask, bag.tissue.mask)
        assert np.abs(view.thumbnail.astype(int) - bag.thumbnail).max() <= 3
        np.testing.assert_array_equal(features(tiles), few.features[bag.crops])


@pytest.mark.parametrize("pixels", [4, 24])
def test_the_same_slides_are_seen_at_another_resolution(collection, pixels):
    assert seen_at(collection, 8) is collection
    others = seen_at(collection, pixels)
    for one, other in zip(collection.bags, others.bags, strict=True):
        assert other.ref == one.ref
        assert other.thumbnail.shape == (40 * pixels, 40 * pixels, 3)
        pair = sorted((one.thumbnail, other.thumbnail), key=len)
        factor = len(pair[1]) // len(pair[0])
        finer = pair[1].reshape(len(pair[0]), factor, len(pair[0]), factor, 3).mean((1, 3))
        assert np.abs(finer - pair[0]).max() <= 1  # both are rounded


def test_wrong_choices_are_refused(table, tmp_path):
    with pytest.raises(SettingsError, match=r"lesion is 0\.7"):
        collect(table, lesion=0.7, visible=True, slides=(2, 2, 2), seed=0)
    with pytest.raises(SettingsError, match="colon, oral"):
        read_images("lung", tmp_path)
    with pytest.raises(ManifestError, match="MUS"):
        read_images("colon", tmp_path)


def test_images_of_regions_have_one_mean_density(shared_data):
    if not (shared_data / "tiles" / "crc_val_he_7k").is_dir():
        pytest.skip(f"images of tissue are not there: {shared_data}")
    found = read_images("colon", shared_data)
    means = [each.mean((0, 1)) for kind in (Kind.LOOKALIKE, Kind.LESION) for each in found[kind][0]]
    np.testing.assert_allclose(means, means[:1] * 20, rtol=1e-3)
    assert all(each.mean() < means[0].mean() for one in found[Kind.STROMA] for each in one)


def test_thumbnails_and_features_as_files_are_those_of_the_bags(collection, tmp_path):
    write_features(collection, tmp_path)
    table = tmp_path / "slides.csv"
    refs = with_features(read_manifest(table, labels=table), tmp_path / "features", Silent())
    settings = starting_settings(refs)
    assert settings.model.backbone == f"features:{collection.features.shape[1]}"
    assert (settings.tile.size, settings.tile.mpp) == (SIDE, MPP)
    for bag, ref in zip(collection.bags, refs, strict=True):
        assert (ref.id, ref.label) == (bag.ref.id, bag.ref.label)
        with open_slide(ref) as slide:
            overview, found = match_features(ref, slide, read_overview(slide, settings), settings.model)
        np.testing.assert_array_equal(overview.thumbnail, bag.thumbnail)
        np.testing.assert_array_equal(overview.tissue.cells, bag.tissue.cells)
        np.testing.assert_array_equal(found.read(bag.tissue.cells), collection.features[bag.crops])
