"""The same answers on a graphics processor as on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import DESIGNS, draw
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.targets import Target
from wsi_ats.training.fit import fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SETTINGS = Settings().with_values(
    [
        *("tile.size=64", "thumbnail.pixels_per_cell=4", "thumbnail.tissue=none"),
        *("model.backbone=test_resnet", "model.pretrained=false", "sampling.tiles=8", "sampling.draws=2"),
        *("training.epochs=1", "training.attention_epochs=1", "training.joint_epochs=1", "training.tiles=8"),
        *("training.attention_tiles=16", "training.feature_dropout=0.0", "training.validation=0"),
        "training.calibration_tiles=64",
    ]
)
TARGET = Target("classification", ("pale", "dark"))


def slide(ref: SlideRef) -> MemorySlide:
    rng = np.random.default_rng(int(ref.id))
    low = 40 if ref.label == "dark" else 120
    pixels = rng.integers(low, low + 120, (640, 512, 3), dtype=np.uint8)
    return MemorySlide([pixels], mpp=0.5, path=ref.path)


def examples() -> list[Example]:
    refs = [SlideRef(str(i), f"memory{i}", str(i), TARGET.names[i % 2]) for i in range(8)]
    return [Example(ref, read_overview(slide(ref), SETTINGS), TARGET.encode(str(ref.label))) for ref in refs]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_cells_are_drawn_on_both(design, dtype):
    logits = 3 * torch.randn(40 * 50, generator=torch.Generator().manual_seed(0))
    attention = torch.softmax(logits, 0).to(dtype)
    cells = torch.arange(40 * 50)[::2]
    for seed in range(5):
        drawn = [
            draw(
                design,
                attention[::2].to(device),
                cells=cells.to(device),
                shape=(40, 50),
                n=32,
                generator=torch.Generator().manual_seed(seed),
            )
            for device in ("cuda", "cpu")
        ]
        assert drawn[0].indices.device.type == "cuda"
        assert drawn[0].indices.tolist() == drawn[1].indices.tolist()
        torch.testing.assert_close(drawn[0].inclusion.cpu(), drawn[1].inclusion)
        weight = expectation.weights(attention[::2].to("cuda"), drawn[0])
        assert weight.device.type == "cuda"


def trained(device: str, folder: Path) -> torch.nn.Module:
    with TileReader(2, slide) as reader:
        return fit(
            examples(),
            [],
            SETTINGS,
            target=TARGET,
            folder=folder,
            device=torch.device(device),
            on_epoch=lambda row: None,
            reader=reader,
        ).model


def test_scores_agree_between_devices(tmp_path):
    model = trained("cuda", tmp_path)
    for example in examples():
        scores = []
        for device in ("cuda", "cpu"):
            loaded = LoadedModel(model.to(device), SETTINGS, TARGET, "")
            scores.append(loaded.score(slide(example.ref), ref=example.ref))
        assert np.array_equal(scores[0].selection.cells, scores[1].selection.cells)
        assert scores[0].prediction.scores == pytest.approx(scores[1].prediction.scores, abs=1e-2)


def test_training_agrees_between_devices(tmp_path):
    on_gpu, on_cpu = trained("cuda", tmp_path / "gpu"), trained("cpu", tmp_path / "cpu")
    for (name, one), other in zip(on_gpu.state_dict().items(), on_cpu.state_dict().values(), strict=True):
        assert torch.allclose(one.cpu(), other, atol=5e-2), name
