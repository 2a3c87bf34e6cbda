"""Features come back as they were, and only those that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ats.errors import ArtifactError
from wsi_ats.features import FeatureFolder
from wsi_ats.geometry import Grid
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import SlideRef

GRID = Grid(64, 48, cell=16, tile_size=16)
REF = SlideRef("case7", "nowhere.svs", "patient")
FEATURES = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


def tissue(grid: Grid = GRID, *without: int) -> TissueMask:
    mask = np.ones(grid.shape, dtype=bool)
    mask.flat[list(without)] = False
    return TissueMask(grid, mask.astype(np.float32), mask)


def test_features_are_found_by_slide_tiles_and_encoder(tmp_path):
    folder = FeatureFolder(tmp_path / "features", "one")
    assert folder.load(REF, tissue()) is None
    folder.save(REF, tissue(), FEATURES)
    np.testing.assert_array_equal(folder.load(REF, tissue()), FEATURES)
    assert FeatureFolder(tmp_path / "features", "other").load(REF, tissue()) is None
    assert folder.load(SlideRef("case8", "nowhere.svs", "patient"), tissue()) is None
    assert folder.load(REF, tissue(GRID, 3)) is None
    assert folder.load(REF, tissue(Grid(64, 48, cell=16, tile_size=8))) is None


def test_a_slide_that_was_replaced_has_no_features(tmp_path):
    path = tmp_path / "slide.svs"
    ref, folder = SlideRef("a", str(path), "a"), FeatureFolder(tmp_path / "features", "one")
    path.write_bytes(b"first")
    folder.save(ref, tissue(), FEATURES)
    path.write_bytes(b"second")
    assert folder.load(ref, tissue()) is None


def test_damage_is_an_error_that_says_what_to_do(tmp_path):
    folder = FeatureFolder(tmp_path, "one")
    folder.save(REF, tissue(), FEATURES)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=rf"{path.name} is damaged: .*delete it"):
        folder.load(REF, tissue())
