"""Stores of spatialdata are opened by spatialdata, and by the package that LazySlide opens slides with.

spatialdata 0.7 needs an older Dask than this project is tested with, so these run in an environment of their
own: ``pip install -e '.[spatialdata]' wsidata pytest hypothesis``.
"""

from __future__ import annotations

import numpy as np
import pytest

from results import scored_folder
from results.scored_folder import GRID, write_scores
from wsi_ats.geometry import Grid
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.exports.registry import FORMATS
from wsi_ats.slides.opening import open_slide

spatialdata = pytest.importorskip("spatialdata", reason="needs a Dask of its own; see docs/how-to/exports.md")
pytestmark = pytest.mark.filterwarnings("default")  # of spatialdata and what it imports

CELLS = [0, 5, 7]


@pytest.fixture
def store(scores, tmp_path):
    FORMATS["spatialdata"].slide(tmp_path, scores.by_id["a"])
    return spatialdata.read_zarr(tmp_path / "a.zarr")


def test_tiles_are_polygons_and_points_in_pixels_of_the_whole_slide(store):
    boxes = GRID.boxes(CELLS)
    bounds = store["tiles"].geometry.bounds.to_numpy()
    np.testing.assert_array_equal(bounds, np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))
    centres = store["centres"].compute()[["x", "y"]].to_numpy()
    np.testing.assert_array_equal(centres, boxes[:, :2] + boxes[:, 2:] / 2)
    assert store.coordinate_systems == ["global"]


def test_the_table_annotates_the_tiles(store):
    tiles, table = spatialdata.join_spatialelement_table(
        sdata=store, spatial_element_names="tiles", table_name="wsi_ats_tiles"
    )
    assert len(tiles["tiles"]) == 3
    assert table.obs["attention"].tolist() == [0.1, 0.4, 0.2]
    np.testing.assert_array_equal(table.X, scored_folder.features("a"))
    near = spatialdata.bounding_box_query(
        store,
        axes=("x", "y"),
        min_coordinate=[0, 0],
        max_coordinate=[300, 300],
        target_coordinate_system="global",
    )
    assert near["wsi_ats_tiles"].obs["x"].tolist() == [0, 256]


def test_the_attention_of_tissue_cells_is_there(store):
    attention = scored_folder.attention()
    assert len(store["attention"]) == attention.tissue.sum()
    np.testing.assert_array_equal(store["attention"]["attention"], attention.attention[attention.tissue])


def test_a_store_is_replaced_whole(tmp_path):
    scores = write_scores(tmp_path / "scores", "a", kept=False)
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "left").write_text("")
    files = FORMATS["spatialdata"].slide(tmp_path, scores.by_id["a"])
    assert not (tmp_path / "a.zarr" / "left").exists()
    assert sorted(files) == sorted(each for each in (tmp_path / "a.zarr").rglob("*") if each.is_file())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.zarr", "scores"]
    assert spatialdata.read_zarr(tmp_path / "a.zarr")["wsi_ats_tiles"].shape == (3, 0)


def test_classes_may_be_called_anything(tmp_path):
    named = scored_folder.selection("a")
    named.evidence["HER2/neu 3+"] = named.evidence["HER2_NEU_3_"] = named.evidence["tumour"]
    scores = write_scores(tmp_path / "scores", "a")
    scored_folder.write_selection(tmp_path / "scores" / "selections" / "a.parquet", named)
    FORMATS["spatialdata"].slide(tmp_path, scores.by_id["a"])
    obs = spatialdata.read_zarr(tmp_path / "a.zarr")["wsi_ats_tiles"].obs
    assert {"evidence_HER2_neu_3_", "evidence_HER2_NEU_3__3"} <= set(obs.columns)


def test_lazyslide_finds_tiles_features_and_pixels(tmp_path, scores):
    """Within the slide, its tiles have the pixels of ours: coordinates, size and resolution are the same."""
    wsidata = pytest.importorskip("wsidata")
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 256, (GRID.height, GRID.width, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), resolution=(40000, 40000), resolutionunit=3)
    FORMATS["spatialdata"].slide(tmp_path / "stores", scores.by_id["a"])
    slide = wsidata.open_wsi(tmp_path / "a.tif", store=str(tmp_path / "stores"))
    features = slide.fetch.features_anndata("wsi_ats", "tiles", tile_graph=False)
    np.testing.assert_array_equal(features.X, scored_folder.features("a"))
    spec = slide.tile_spec("tiles")
    assert (spec.width, spec.base_width, spec.mpp) == (128, 256, 0.5)
    with open_slide(tmp_path / "a.tif") as ours:
        whole = read_tiles(ours, Grid(GRID.width, GRID.height, 256, 256), CELLS)
    for tile, expected in zip(slide.iter.tile_images("tiles"), whole, strict=True):
        assert tile.image.shape == (128, 128, 3)
        reduced = expected.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        inside = (GRID.width - tile.x) // 2  # LazySlide fills the area outside the slide with black
        np.testing.assert_allclose(tile.image[:, :inside], reduced[:, :inside], atol=0.5)
