"""Slides whose tiles' features are made here, so that a real training takes a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wsi_ats.geometry import Grid
from wsi_ats.models.batches import Example, Reader
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.targets import Target
from wsi_ats.training.fit import Trained, fit

TILE, PIXELS = 16, 2  # of a tile, and of a cell in the thumbnail
BACKGROUND, STANDING_OUT = (200, 130, 190), (140, 90, 170)


@dataclass(frozen=True)
class Bag:
    """A slide of which every cell is tissue.

    Parameters
    ----------
    name
        Of the slide.
    features
        Of each cell's tile, shape (side * side, D).
    stands_out
        Cells that differ in the thumbnail, shape (side, side).
    label
        As a table has it.
    """

    name: str
    features: np.ndarray
    stands_out: np.ndarray
    label: str

    def example(self, target: Target) -> Example:
        """The slide as training wants it."""
        side = len(self.stands_out)
        rng = np.random.default_rng([3, *self.name.encode()])
        shown = np.repeat(np.repeat(self.stands_out, PIXELS, 0), PIXELS, 1)[..., None]
        pixels = np.where(shown, STANDING_OUT, BACKGROUND) + rng.normal(0, 12, (*shown.shape[:2], 3))
        grid = Grid(side * TILE, side * TILE, TILE, TILE)
        tissue = TissueMask(grid, np.ones((side, side), dtype=np.float32), np.ones((side, side), dtype=bool))
        thumbnail = pixels.clip(0, 255).astype(np.uint8)
        overview = Overview(thumbnail, tissue)
        return Example(SlideRef(self.name, self.name, self.name), overview, target.encode(self.label))


class BagReader(Reader):
    """Gives features of tiles in place of their pixels."""

    def __init__(self, bags: Sequence[Bag]) -> None:
        self._features: Mapping[str, np.ndarray] = {bag.name: bag.features for bag in bags}

    def read(self, wanted) -> list[Future[np.ndarray]]:
        futures = []
        for ref, _, cells in wanted:
            future: Future[np.ndarray] = Future()
            future.set_result(self._features[ref.id][cells])
            futures.append(future)
        return futures


def features_of(here: np.ndarray, direction: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise, and a direction (D,) in the features of some cells (side, side); shape (side * side, D)."""
    noise = rng.normal(size=(here.size, len(direction)))
    return (noise + here.reshape(-1, 1) * direction).astype(np.float32)


def directions(number: int, width: int) -> np.ndarray:
    """Return patterns of tiles, as directions of their features, shape (number, width)."""
    return 0.7 * np.random.default_rng(9).normal(size=(number, width))


def blob(side: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """The cells that are nearest to a place, shape (side, side)."""
    y, x = rng.uniform(1, side - 1, 2)
    rows, columns = np.indices((side, side))
    distance = np.hypot(rows + 0.5 - y, columns + 0.5 - x) + rng.uniform(0, 1e-3, (side, side))
    return distance <= np.sort(distance, axis=None)[cells - 1]


def settings_of(width: int, *changes: str) -> Settings:
    """The defaults, but for what bags of so many features need."""
    return Settings().with_values(
        [
            f"tile.size={TILE}",
            f"thumbnail.pixels_per_cell={PIXELS}",
            f"model.backbone=features:{width}",
            "model.pretrained=false",
            "training.fine_tuning=frozen",
            "training.precision=float32",
            "training.checkpoint_steps=100000",
            "sampling.tiles=16",
            *changes,
        ]
    )


def train(
    training: Sequence[Bag],
    validation: Sequence[Bag],
    settings: Settings,
    target: Target,
    folder: Path,
    on_epoch: Callable = lambda row: None,
) -> Trained:
    """Train as users do, but for the tiles."""
    torch.set_num_threads(1)  # tiny networks: threads would only wait for one another
    return fit(
        [bag.example(target) for bag in training],
        [bag.example(target) for bag in validation],
        settings,
        target=target,
        folder=folder,
        device=torch.device("cpu"),
        on_epoch=on_epoch,
        reader=BagReader([*training, *validation]),
    )
