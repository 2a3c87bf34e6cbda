"""Measure the encoder's constants, vary tiles for training, and encode many tiles in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wsi_ats.errors import ModelError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.base import draw_seed
from wsi_ats.models.batches import Example, Reader, outcomes
from wsi_ats.models.encoding import TILES_AT_A_TIME, to_device
from wsi_ats.models.features import Features
from wsi_ats.nn.augmentation import draw_variation, join, vary
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.settings import AugmentationSettings, TrainingSettings
from wsi_ats.slides.base import Pixels

# Distinguishes these seeds from those of draws.
_VARIATION = "variation"


ExampleTiles = tuple[Example, Grid, IntArray]
"""A slide, its grid of tiles, and flat numbers (N,) of cells on it."""


def calibrate(
    encoder: TileEncoder, wanted: Sequence[ExampleTiles], reader: Reader, *, device: torch.device | None
) -> None:
    """Measure the encoder's constants on some tiles.

    Parameters
    ----------
    encoder
        The encoder, which is changed.
    wanted
        Tiles from all the tissue that will be encoded.
    reader
        Reader of the tiles.
    device
        Device of the encoder.

    Raises
    ------
    ModelError
        When no slide can be read.
    """
    tiles, failed = outcomes(
        reader.read([(example.ref, grid, cells) for example, grid, cells in wanted]),
        [example for example, _, _ in wanted],
    )
    read = [each for each in tiles if each is not None]
    if sum(len(each) for each in read) < 2:
        raise ModelError(f"no tiles could be read for calibration: {'; '.join(failed.values())}")
    encoder.calibrate(to_device(np.concatenate(read), device))


def uniform_tiles(examples: Sequence[Example], training: TrainingSettings) -> list[ExampleTiles]:
    """Draw ``training.calibration_tiles`` tiles uniformly from slides, with the seed of ``training``."""
    generator = np.random.default_rng(draw_seed(training.seed, "calibration", 0))
    chosen, each = calibration_slides(examples, training.calibration_tiles, generator)
    masks = [example.overview.tissue for example in chosen]
    cells = [generator.choice(mask.cells, min(each, len(mask.cells)), replace=False) for mask in masks]
    return [(example, mask.grid, part) for example, mask, part in zip(chosen, masks, cells, strict=True)]


def calibration_slides(
    examples: Sequence[Example], tiles: int, generator: np.random.Generator
) -> tuple[list[Example], int]:
    """Choose slides for a total number of tiles, and return them with the number of tiles of each.

    Parameters
    ----------
    examples
        The slides.
    tiles
        Total number of tiles; if there are more slides, this many of them give one tile each.
    generator
        Source of randomness for the choice of slides and their order.
    """
    chosen = [examples[i] for i in generator.permutation(len(examples))[:tiles]]
    return chosen, -(-tiles // len(chosen))


def varied(tiles: Tensor, counts: Sequence[int], seeds: Sequence[int], how: AugmentationSettings) -> Tensor:
    """Vary the tiles of some slides for training.

    Parameters
    ----------
    tiles
        Tiles of all slides, uint8, shape (N, h, w, 3).
    counts, seeds
        Number of tiles of each slide, and its seed: the variation of a slide's tiles does not depend on the
        other slides of the batch.
    how
        Kinds and amounts of variation.
    """
    if not (how.turns or how.colour or how.stain):
        return tiles
    parts = [
        draw_variation(
            count,
            torch.Generator().manual_seed(draw_seed(seed, _VARIATION, 0)),
            turns=how.turns,
            colour=how.colour,
            stain=how.stain,
        )
        for count, seed in zip(counts, seeds, strict=True)
    ]
    return vary(tiles, join(parts))


def embed_in_parts(
    embed: Callable[[Tensor], Tensor],
    read: Callable[[IntArray], Pixels | Features],
    cells: IntArray,
    device: torch.device | None,
    *,
    at_a_time: int = TILES_AT_A_TIME,
    twice: bool = False,
    vary_part: Callable[[Tensor, IntArray], Tensor] | None = None,
) -> Tensor:
    """Read and encode cells a few at a time, so that few pixels are in memory at once.

    With gradients, pixels and feature maps of all tiles would be kept for the backward pass. With
    ``twice`` none are kept: the backward pass reads and encodes the tiles again, a few at a time, and gives
    the same gradients (Chen et al. 2016, arXiv 1604.06174).

    Parameters
    ----------
    embed
        Function from tiles, uint8 (n, h, w, 3), to features (n, D).
    read
        Function from cells (n,) to tiles, or to their features.
    cells
        Flat cell numbers, shape (N,).
    device
        Device that encodes tiles.
    at_a_time
        Largest number of tiles in memory at once.
    twice
        Whether to read and encode again in the backward pass.
    vary_part
        Varies tiles (n, h, w, 3) of given cells (n,) before they are encoded, in the same way each time.

    Returns
    -------
    Tensor, shape (N, D)

    Raises
    ------
    SlideError
        When a tile cannot be read; with ``twice`` the backward pass may raise it too.
    """

    def embed_part(part: IntArray) -> Tensor:
        tiles = to_device(read(part), device)
        return embed(tiles if vary_part is None else vary_part(tiles, part))

    parts = np.array_split(cells, -(-len(cells) // at_a_time))
    if not twice:
        return torch.cat([embed_part(part) for part in parts])
    # Non-reentrant: weights then get gradients although no input of a part has one.
    return torch.cat([checkpoint(embed_part, part, use_reentrant=False) for part in parts])
