"""What all methods that read tiles share: the encoder's constants, and encoding many tiles in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from wsi_ats.batches import Example, TileReader, outcomes
from wsi_ats.config import Settings
from wsi_ats.errors import ModelError
from wsi_ats.geometry import IntArray
from wsi_ats.methods.base import draw_seed
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.slides.base import Pixels

# Pixels and feature maps of more would cost memory and gain no speed.
TILES_AT_A_TIME = 64


def calibrate(
    encoder: TileEncoder,
    examples: Sequence[Example],
    reader: TileReader,
    settings: Settings,
    *,
    device: torch.device | None,
) -> None:
    """Measure the encoder's constants on tiles drawn uniformly from all slides.

    Parameters
    ----------
    encoder
        It is changed.
    examples
        The slides.
    reader
        Reads their tiles.
    settings
        The seed and the number of tiles are used.
    device
        Where the encoder is.

    Raises
    ------
    ModelError
        When no slide can be read.
    """
    generator = np.random.default_rng(draw_seed(settings.training.seed, "calibration", 0))
    wanted = settings.training.calibration_tiles
    chosen = [examples[i] for i in generator.permutation(len(examples))[:wanted]]
    each = -(-wanted // len(chosen))
    cells = [generator.choice(e.tissue.cells, min(each, len(e.tissue.cells)), replace=False) for e in chosen]
    tiles, failed = outcomes(reader.read(list(zip(chosen, cells, strict=True))), chosen)
    read = [each for each in tiles if each is not None]
    if not read or sum(len(each) for each in read) < 2:
        raise ModelError(f"no tiles could be read for calibration: {'; '.join(failed.values())}")
    encoder.calibrate(torch.from_numpy(np.concatenate(read)).to(device))


def embed_in_parts(
    embed: Callable[[Tensor], Tensor],
    read: Callable[[IntArray], Pixels],
    cells: IntArray,
    device: torch.device | None,
) -> Tensor:
    """Read and encode cells a few at a time, so that pixels of few tiles are in memory at once.

    Parameters
    ----------
    embed
        Tiles, uint8 (n, h, w, 3), to features (n, D).
    read
        Cells (n,) to tiles.
    cells
        Flat cell numbers, shape (N,).
    device
        Where tiles are encoded.

    Returns
    -------
    Tensor, shape (N, D)
    """
    parts = np.array_split(cells, -(-len(cells) // TILES_AT_A_TIME))
    return torch.cat([embed(torch.from_numpy(read(part)).to(device)) for part in parts])
