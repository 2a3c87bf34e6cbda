"""Megapixel MNIST, the experiment of the paper, with the library's own training.

Run ``python -m benchmarks.megapixel_mnist --data FOLDER`` with MNIST's four gz files in the folder. Attention
sampling reads ten tiles of each canvas in each epoch; every cell is a candidate, bright or dark. The test
error of the authors' code stays at 0.90 until about epoch 210 and ends near 0.20 after 500. A run uses one
thread, and its time is CPU time. The table has a row for every epoch of every seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.engine import outputs, ready, train
from benchmarks.mnist_canvas import CLASSES, Canvases, make_canvases, read_digits, smaller
from benchmarks.report import Rows, command, report
from wsi_ats.geometry import Grid
from wsi_ats.models.batches import Example, Reader, Wanted
from wsi_ats.nn.backbone import Backbone
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.records import Overview
from wsi_ats.settings import DrawingModel, Settings
from wsi_ats.slides.base import Pixels, SlideRef
from wsi_ats.tasks.targets import Target
from wsi_ats.training.diagnosis import Row

_CHANNELS, _FEATURES = 16, 48
TARGET = Target("classification", tuple("0123456789"))
SETTINGS = (
    "tile.size=50",
    "tile.stride=0.5",  # a digit is about as large as a tile
    "thumbnail.pixels_per_cell=3",
    "sampling.tiles=10",
    "sampling.exploration=0",  # one draw of ten is too many
    "augmentation.turns=false",  # a six is no nine
    "training.epochs=0",
    "training.attention_epochs=0",
    "training.joint_epochs=20",  # after 10 two of four seeds were above 0.08
    "training.slides_per_step=16",
    "training.learning_rate=5e-4",  # the tile network starts from nothing; at 2e-3 it learned nothing either
    "training.head_learning_rate=2e-3",
    "training.gate_learning_rate=2e-3",
    "training.supervision=1",
    "training.evidence=1",
    "training.entropy=0.01",
    "training.warmup=0.02",
    "training.clip=5",
    "training.calibration_tiles=2048",  # one in twenty is not black
)


class AttentionNetwork(nn.Module):
    """A network that gives every cell a logit, from its tile at low resolution and from its neighbours."""

    def __init__(self, pixels_per_cell: int) -> None:
        super().__init__()
        self.beyond = pixels_per_cell  # tiles of the last row and column reach past the view
        self.cell = nn.Conv2d(1, _CHANNELS, 2 * pixels_per_cell, stride=pixels_per_cell)
        self.around = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, padding_mode="reflect")
        self.logit = nn.Conv2d(_CHANNELS, 1, 1, bias=False)
        nn.init.zeros_(self.logit.weight)  # training starts from uniform attention

    def forward(self, thumbnail: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002  (all cells are candidates)
        """Score the cells of a grey thumbnail; see :meth:`wsi_ats.nn.attention.SmallAttention.forward`."""
        view = F.pad(thumbnail[None, None, :, :, 0] / 64, (0, self.beyond, 0, self.beyond))
        logits: Tensor = self.logit(F.relu(self.around(F.relu(self.cell(view)))))
        return logits[0, 0]


class TileNetwork(nn.Module):
    """A network of three convolutions and a maximum: features (N, 48) of grey images (N, 3, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 5, stride=2)
        self.second = nn.Conv2d(16, 32, 3)
        self.third = nn.Conv2d(32, _FEATURES, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (16, 32, _FEATURES))
        for layer in (self.first, self.second, self.third):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Encode images, from 0 to 1."""
        one, two, three = self.norms
        x = images[:, :1].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            x = F.max_pool2d(F.relu(one(self.first(x))), 2)
            x = F.relu(two(self.second(x)))
            return F.relu(three(self.third(x))).amax((2, 3)).float()


def network(settings: Settings) -> AttentionSampler:
    """Make the network."""
    backbone = Backbone(TileNetwork(), _FEATURES, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    encoder = TileEncoder(backbone, trained=False)
    attention = AttentionNetwork(settings.thumbnail.pixels_per_cell)
    return AttentionSampler(attention, encoder, classes=CLASSES, pool=settings.model_as(DrawingModel).pool)


class CanvasReader(Reader):
    """A reader of tiles of canvases; the numbers of canvases are the ids of slides."""

    def __init__(self, canvases: Canvases) -> None:
        self._canvases = canvases

    def read(self, wanted: Sequence[Wanted]) -> list[Future[Pixels]]:
        """Return grey tiles, (N, 50, 50, 1); see :meth:`wsi_ats.models.batches.Reader.read`."""
        return [
            ready(self._canvases.tiles(int(ref.id), grid.boxes(cells)[:, 1::-1], grid.tile_size)[..., None])
            for ref, grid, cells in wanted
        ]


def examples(canvases: Canvases, settings: Settings) -> list[Example]:
    """Return canvases as numbered slides in which every cell is a candidate."""
    size, pixels = settings.tile.size, settings.thumbnail.pixels_per_cell
    grid = Grid(canvases.side, canvases.side, size, size, size * settings.tile.stride)
    everywhere = TissueMask(grid, np.ones(grid.shape, np.float32), np.ones(grid.shape, np.bool_))
    shown, whole = pixels * grid.shape[0], round(canvases.side / grid.pitch * pixels)
    found = []
    for number, label in enumerate(canvases.labels.tolist()):
        view = smaller(canvases.paint(number), whole)[:shown, :shown]
        grey = np.ascontiguousarray(view.round().astype(np.uint8))
        # Three colours in the memory of one.
        thumbnail = np.lib.stride_tricks.as_strided(grey, (shown, shown, 3), (shown, 1, 0))
        ref = SlideRef(str(number), "canvas", str(number))
        found.append(Example(ref, Overview(thumbnail, everywhere), (label,)))
    return found


def run(seed: int, canvases: tuple[Canvases, Canvases], changes: Sequence[str] = ()) -> Rows:
    """Train on some canvases, and test on others after each epoch; the test chooses nothing."""
    settings = Settings().with_values([*SETTINGS, f"training.seed={seed}", *changes])
    training, test = (examples(each, settings) for each in canvases)
    labels = torch.tensor([int(example.target[0]) for example in test])
    epochs: Rows = []
    torch.manual_seed(seed)
    model = network(settings)
    began = time.process_time()

    def on_epoch(row: Row) -> None:
        nonlocal began
        seconds = time.process_time() - began
        logits = outputs(model, settings, test, CanvasReader(canvases[1]), draw=-1)
        epochs.append(
            {
                "arm": "attention",
                "seed": seed,
                "epoch": len(epochs) + 1,
                "phase": str(row["phase"]),
                "train_loss": row["loss"],
                "test_loss": F.cross_entropy(logits, labels).item(),
                "test_error": (logits.argmax(1) != labels).double().mean().item(),
                "effective_cells": row["effective_cells"],
                "tiles": row["tiles"] / len(training),
                "seconds": seconds,
            }
        )
        print(epochs[-1], flush=True)
        began = time.process_time()

    reader = CanvasReader(canvases[0])
    train(training, [], settings, reader, target=TARGET, on_epoch=on_epoch, network=lambda: model)
    return epochs


def make(data: Path, seed: int, *, train: int, test: int, held_out: bool) -> tuple[Canvases, Canvases]:
    """Make canvases for training and testing; with ``held_out``, test canvases have training digits too."""
    digits = read_digits(data, train=True)
    training = make_canvases(train, *digits, np.random.default_rng((seed, 0)))
    others = digits if held_out else read_digits(data, train=False)
    return training, make_canvases(test, *others, np.random.default_rng((seed, 1)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all seeds, and write the table after each."""
    parser = command(__doc__, settings=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104])
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--held-out", action="store_true", help="test on training digits, to choose settings")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    epochs: Rows = []
    for seed in options.seeds:
        canvases = make(options.data, seed, train=options.train, test=options.test, held_out=options.held_out)
        epochs += run(seed, canvases, options.changes)
        report("Megapixel MNIST, ten tiles of each canvas", "megapixel_mnist", epochs, options.out)


if __name__ == "__main__":
    main()
