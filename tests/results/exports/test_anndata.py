"""The table of anndata is read back by anndata."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from results import scored_folder
from results.scored_folder import GRID, write_scores
from wsi_ats.errors import ArtifactError, FeatureError
from wsi_ats.results.exports.registry import FORMATS

BOXES = GRID.boxes([0, 5, 7])


def written(folder, scores):
    (path,) = FORMATS["anndata"].collection(
        folder, scores, [each for each in scores.slides if each.reads_tiles]
    )
    return anndata.read_h5ad(path)


def test_each_distinct_tile_of_each_slide_is_a_row(tmp_path, scores):
    table = written(tmp_path, scores)
    assert (tmp_path / "tiles.h5ad").is_file()
    assert table.obs["slide_id"].tolist() == ["a"] * 3 + ["b"] * 3
    for name, column in zip(("x", "y", "width"), BOXES.T, strict=False):
        assert table.obs[name].tolist() == column.tolist() * 2
    assert table.obs["attention"].tolist() == [0.1, 0.4, 0.2] * 2
    assert table.obs["draws"].tolist() == [1, 2, 1] * 2
    np.testing.assert_allclose(table.obs["weight"], [0.25, 0.625, 0.125] * 2)
    np.testing.assert_array_equal(table.obs["evidence_tumour"], -table.obs["evidence_normal"])
    assert table.obs_names.is_unique


def test_squidpy_finds_centres_in_pixels_of_the_whole_slide(tmp_path, scores):
    table = written(tmp_path, scores)
    np.testing.assert_array_equal(table.obsm["spatial"][:3], BOXES[:, :2] + BOXES[:, 2:] / 2)


def test_kept_features_are_the_matrix(tmp_path, scores):
    table = written(tmp_path, scores)
    assert table.X.dtype == np.float32
    expected = [scored_folder.features("a"), scored_folder.features("b")]
    np.testing.assert_array_equal(table.X, np.concatenate(expected))


def test_without_features_the_matrix_is_empty(tmp_path):
    table = written(tmp_path, write_scores(tmp_path / "scores", "a", "b", kept=False))
    assert table.shape == (6, 0)


def test_evidence_that_is_not_known_is_nan(tmp_path):
    alone = scored_folder.selection("a")
    alone.evidence["tumour"][:] = np.nan
    scores = write_scores(tmp_path / "scores", "a")
    scored_folder.write_selection(tmp_path / "scores" / "selections" / "a.parquet", alone)
    assert np.isnan(written(tmp_path, scores).obs["evidence_tumour"]).all()


def test_classes_may_be_called_anything(tmp_path):
    """anndata takes a slash in a name for a folder, and spatialdata refuses spaces and case alone."""
    named = scored_folder.selection("a")
    values = named.evidence["tumour"].copy()
    named.evidence.clear()
    named.evidence.update({"HER2/neu": values, "HER2 neu": -values, "her2 NEU": 0 * values, "ärgste": values})
    scores = write_scores(tmp_path / "scores", "a")
    scored_folder.write_selection(tmp_path / "scores" / "selections" / "a.parquet", named)
    found = [name for name in written(tmp_path, scores).obs if name.startswith("evidence")]
    assert found == ["evidence_HER2_neu", "evidence_HER2_neu_1", "evidence_her2_NEU_2", "evidence_ärgste"]


def test_features_of_some_slides_only_are_refused(tmp_path):
    scores = write_scores(tmp_path / "scores", "a", "b")
    scores.by_id["b"].features_file.unlink()
    with pytest.raises(ArtifactError, match="0 features a tile of b and 6 of a"):
        written(tmp_path, scores)


def test_damaged_features_fail_with_their_slide(tmp_path):
    slide = write_scores(tmp_path / "scores", "a").slides[0]
    slide.features_file.write_bytes(b"damaged")
    with pytest.raises(FeatureError, match=r"features/a\.h5"):
        FORMATS["anndata"].slide(tmp_path, slide)


def test_no_slides_make_no_table(tmp_path, scores):
    assert FORMATS["anndata"].collection(tmp_path, scores, []) == []
