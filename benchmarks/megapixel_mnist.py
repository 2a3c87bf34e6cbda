"""Megapixel MNIST, the reference's own experiment, by the training that users run.

Run ``python -m benchmarks.megapixel_mnist --data FOLDER`` with MNIST's four gz files in the folder. See
:mod:`benchmarks.mnist_canvas` for the data and :mod:`benchmarks.mnist_models` for the networks. Every cell of
a canvas is a candidate, and nothing is told of what is bright or dark. The reference's test error stays at
0.90 until about epoch 210 and ends near 0.20 after 500.

=========  ========================================================================================
arm        what it is
=========  ========================================================================================
attention  attention sampling, ten tiles of each canvas in each epoch
uniform    the same classifier, as many tiles drawn uniformly
mil        attention-based MIL on all tiles (Ilse et al. 2018), side by side
=========  ========================================================================================

A run takes one thread, and is timed by its processor time. The table ``megapixel_mnist.csv`` has a row for
every epoch of every seed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.mnist_canvas import DIGITS, PATCH, Canvases, make_canvases, read_digits
from benchmarks.mnist_models import network
from benchmarks.report import report
from wsi_ats.geometry import Grid
from wsi_ats.models.base import draw_seed
from wsi_ats.models.batches import Example, Reader, Wanted
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.records import Overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Pixels, SlideRef
from wsi_ats.tasks.targets import Target
from wsi_ats.training.diagnosis import Row
from wsi_ats.training.fit import fit

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
    "training.teaching=1",
    "training.evidence=1",
    "training.entropy=0.01",
    "training.warmup=0.02",
    "training.clip=5",
    "training.calibration_tiles=2048",  # one in twenty is not black
)
_FROM_THE_START = (
    "training.joint_epochs=0",
    "training.teaching=0",
    "training.epochs=10",
    "training.tiles=10",
)
ARMS: Mapping[str, Sequence[str]] = {
    "attention": (),
    "uniform": ("model.kind=uniform", *_FROM_THE_START),
    "mil": ("model.kind=mil", "tile.stride=1", *_FROM_THE_START),
}
_BLANK = 4  # pixels of black around MNIST's digits: a tile has all of a digit that has all but these


@dataclass(frozen=True)
class Epoch:
    """A line of the table: where a training stood."""

    arm: str
    seed: int
    epoch: int
    phase: str
    train_loss: float
    test_loss: float
    test_error: float
    effective_cells: float | None
    """Exponential of attention's entropy, on training canvases."""
    digits_seen: float
    """Of the five of a test canvas, how many lie wholly in a tile that was read."""
    tiles: float
    """Tiles that were read in training, mean over canvases."""
    seconds: float
    """Processor time of the epoch, without the test."""


class CanvasReader(Reader):
    """Renders tiles of canvases, whose numbers are the ids of slides; they are there at once.

    Attributes
    ----------
    digits : set of (int, int)
        Canvas and place of each digit that lay wholly in a tile.
    """

    def __init__(self, canvases: Canvases) -> None:
        self.digits: set[tuple[int, int]] = set()
        self._canvases = canvases

    def read(self, wanted: Sequence[Wanted]) -> list[Future[Pixels]]:
        """See :meth:`wsi_ats.models.batches.Reader.read`; tiles are grey, shape (N, 50, 50, 1)."""
        futures: list[Future[Pixels]] = []
        for ref, grid, cells in wanted:
            which, corners = np.full(len(cells), int(ref.id)), grid.boxes(cells)[:, 1::-1]
            digits = np.flatnonzero(holding(self._canvases, which, corners, grid.tile_size).any(0))
            self.digits |= {(int(ref.id), digit) for digit in digits.tolist()}
            futures.append(Future())
            futures[-1].set_result(self._canvases.tiles(which, corners, grid.tile_size)[..., None])
        return futures


def holding(canvases: Canvases, which: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Whether tiles hold all of a digit, but for the black around it; bool, shape (T, 5).

    Parameters
    ----------
    canvases, which, corners, size
        See :meth:`benchmarks.mnist_canvas.Canvases.tiles`.
    """
    offsets = canvases.places[which, :DIGITS] - corners[:, None]
    return ((offsets >= -_BLANK) & (offsets <= size - PATCH + _BLANK)).all(2)


def examples(canvases: Canvases, settings: Settings) -> list[Example]:
    """Canvases as slides, numbered, of which every cell is a candidate."""
    size, pixels = settings.tile.size, settings.thumbnail.pixels_per_cell
    grid = Grid(canvases.side, canvases.side, size, size, size * settings.tile.stride)
    everywhere = TissueMask(grid, np.ones(grid.shape, np.float32), np.ones(grid.shape, np.bool_))
    shown, all_of_it = pixels * grid.shape[0], round(canvases.side / grid.pitch * pixels)
    found = []
    for number, label in enumerate(canvases.labels.tolist()):
        [view] = canvases.views(np.array([number]), all_of_it)
        grey = np.ascontiguousarray(view[:shown, :shown].round().astype(np.uint8))
        # Three colours in the memory of one.
        thumbnail = np.lib.stride_tricks.as_strided(grey, (shown, shown, 3), (shown, 1, 0))
        ref = SlideRef(str(number), "canvas", str(number))
        found.append(Example(ref, Overview(thumbnail, everywhere), (label,)))
    return found


def run(arm: str, seed: int, canvases: tuple[Canvases, Canvases], changes: Sequence[str] = ()) -> list[Epoch]:
    """Train on some canvases, and test on others after each epoch.

    Parameters
    ----------
    arm
        One of ``ARMS``.
    seed
        Of weights, order and draws.
    canvases
        For training and for the test, by which nothing is chosen.
    changes
        Of settings.
    """
    settings = Settings().with_values([*SETTINGS, f"training.seed={seed}", *ARMS[arm], *changes])
    training, test = (examples(each, settings) for each in canvases)
    epochs: list[Epoch] = []
    torch.manual_seed(seed)
    model = network(settings)
    began = time.process_time()

    def on_epoch(row: Row) -> None:
        nonlocal began
        seconds = time.process_time() - began
        error, loss, digits = tested(model, settings, test, CanvasReader(canvases[1]))
        epochs.append(
            Epoch(
                arm=arm,
                seed=seed,
                epoch=len(epochs) + 1,
                phase=str(row["phase"]),
                train_loss=row["loss"],
                test_loss=loss,
                test_error=error,
                effective_cells=row["effective_cells"],
                digits_seen=digits,
                tiles=row["tiles"] / len(training),
                seconds=seconds,
            )
        )
        print(
            f"{arm}, seed {seed}, epoch {len(epochs)} ({row['phase']}): test error {error:.3f}, "
            f"digits seen {digits:.2f}, {seconds:.0f} s",
            flush=True,
        )
        began = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        fit(
            training,
            [],
            settings,
            target=TARGET,
            folder=Path(folder),
            device=torch.device("cpu"),
            on_epoch=on_epoch,
            reader=CanvasReader(canvases[0]),
            network=lambda: model,
        )
    return epochs


@torch.inference_mode()
def tested(
    model: SlideNetwork, settings: Settings, test: Sequence[Example], reader: CanvasReader
) -> tuple[float, float, float]:
    """Error, cross-entropy and digits seen, by one draw of each canvas."""
    method, parts = method_for(model.eval(), settings), []
    for first in range(0, len(test), settings.training.slides_per_step):
        some = test[first : first + settings.training.slides_per_step]
        seeds = [draw_seed(settings.training.seed, example.ref.id, -1) for example in some]
        parts.append(method.begin(some, reader, seeds)().outputs)
    outputs, labels = torch.cat(parts), torch.tensor([int(example.target[0]) for example in test])
    wrong = int((outputs.argmax(1) != labels).sum()) / len(test)
    return wrong, F.cross_entropy(outputs, labels).item(), len(reader.digits) / len(test)


def make(data: Path, seed: int, *, train: int, test: int, held_out: bool) -> tuple[Canvases, Canvases]:
    """Make canvases for training and for the test, the latter of training digits where it is ``held_out``."""
    digits = read_digits(data, train=True)
    training = make_canvases(train, *digits, np.random.default_rng((seed, 0)))
    others = digits if held_out else read_digits(data, train=False)
    return training, make_canvases(test, *others, np.random.default_rng((seed, 1)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, and write the table after each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["attention"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104])
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--held-out", action="store_true", help="test on training digits, to choose settings")
    parser.add_argument("--set", nargs="+", default=[], metavar="SECTION.NAME=VALUE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    epochs: list[Epoch] = []
    for seed in options.seeds:
        canvases = make(options.data, seed, train=options.train, test=options.test, held_out=options.held_out)
        for arm in options.arms:
            epochs += run(arm, seed, canvases, options.set)
            columns = {each.name: [getattr(epoch, each.name) for epoch in epochs] for each in fields(Epoch)}
            report("Megapixel MNIST, ten tiles of each canvas", "megapixel_mnist", columns, options.out)


if __name__ == "__main__":
    main()
