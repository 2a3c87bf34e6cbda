"""Scoring a small slide, by stage and relative to encoding all tissue."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import scoring
from benchmarks.synthetic import slide_of
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.tables.files import read_csv


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return slide_of(tmp_path_factory.mktemp("slides"), 4096)


def test_all_tables_are_written_and_their_ratios_are_of_the_numbers_beside_them(slide, tmp_path):
    scoring.main(
        [
            *("--sides", "4096", "--slides", str(slide.parent), "--out", str(tmp_path)),
            *("--rounds", "1", "--tiles", "16", "--set", "model.backbone=test_resnet", "sampling.tiles=4"),
        ]
    )

    def rows(name):
        columns = read_csv(tmp_path / f"scoring_{name}.csv")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    stages = {row["stage"]: row for row in rows("split")}
    assert all(float(row["seconds"]) > 0 for row in stages.values())
    assert [row["precision"] for row in rows("exhaustive")] == ["float32", "bfloat16"]
    corners, stored = scoring.all_tissue(slide, Settings())
    for row in rows("exhaustive"):
        assert (int(row["all_tiles"]), int(row["measured_tiles"])) == (len(corners), 16)
        whole = float(row["measured_s"]) * len(corners) / 16
        assert float(row["times"]) == pytest.approx(whole / float(row["scoring_s"]))
        read = sum(int(stage["bytes"]) for stage in stages.values() if stage["bytes"])
        assert read == int(row["scoring_bytes"]) <= int(row["scoring_bytes_asked"])
        assert int(row["all_bytes"]) == stored > read


def test_competitors_encode_the_tiles_that_they_read(slide):
    corners, _ = scoring.all_tissue(slide, Settings())
    seen = []

    class Network(torch.nn.Module):
        def forward(self, images):
            seen.append(images)

    scoring.encode_all(slide, corners[:3], 256, Network(), "float32")
    with open_slide(slide) as opened:
        tiles = opened.read_regions(0, corners[:3], 256, 256)
    (images,) = seen
    pixels = images * torch.tensor((0.229, 0.224, 0.225)).reshape(3, 1, 1)
    pixels = 255 * (pixels + torch.tensor((0.485, 0.456, 0.406)).reshape(3, 1, 1))
    assert np.array_equal(pixels.round().byte().permute(0, 2, 3, 1).numpy(), tiles)
