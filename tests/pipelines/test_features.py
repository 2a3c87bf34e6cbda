"""Training and scoring with features that were extracted before, through the command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SETTINGS, table

from wsi_ats.bags.writing import BagWriter
from wsi_ats.files import read_json
from wsi_ats.nn.backbone import create_backbone
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.slides import open_slide

# Without the backbone, which features replace.
CHANGES = (
    *("tile.size=64", "thumbnail.pixels_per_cell=4", "sampling.tiles=8"),
    *("training.epochs=2", "training.tiles=8", "training.attention_epochs=2", "training.attention_tiles=16"),
    *("training.slides_per_step=2", "training.validation=0.34", "training.calibration_tiles=16"),
)
SET = [word for change in CHANGES for word in ("--set", change)]


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone("test_vit", pretrained=False, size=64)


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(backbone.network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def features(slides, backbone, tmp_path_factory):
    """Features of all tissue tiles of all slides but the last, and of a slide that is not there."""
    folder = tmp_path_factory.mktemp("features") / "features_test_vit"
    encoder = TileEncoder(backbone, trained=True).eval()
    paths = sorted(slides.glob("*.tif"))[:-1]
    for path in paths:
        with open_slide(path) as slide:
            tissue = read_overview(slide, SETTINGS).tissue
            tiles = read_tiles(slide, tissue.grid, tissue.cells)
            corners = tissue.grid.boxes(tissue.cells)[:, :2]
            with torch.inference_mode():
                rows = encoder.raw(torch.from_numpy(tiles)).numpy()
            about = {"size": (slide.levels[0].width, slide.levels[0].height), "mpp": slide.mpp.value}
            for name in {path.stem, "elsewhere" if path == paths[0] else path.stem}:
                target = folder / f"{name}.h5"
                with BagWriter(target, name=name, side=tissue.grid.cell, width=backbone.width, **about) as writer:
                    writer.append(corners, rows)
    return folder


@pytest.fixture(scope="module")
def trained(run_module, slides, features, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    code, result = run_module("train", slides, "--labels", slides / "labels.csv", "--features", features, *SET, "--out", out)
    return code, result, out
