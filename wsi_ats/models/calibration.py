"""What all methods that read tiles share: the encoder's constants, and encoding many tiles in parts."""

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
from wsi_ats.settings import AugmentationSettings, Settings
from wsi_ats.slides.base import Pixels

# Set apart from draws, which take the same seeds.
_VARIATION = "variation"


def calibrate(
    encoder: TileEncoder,
    examples: Sequence[Example],
    reader: Reader,
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
    chosen, each = calibration_slides(examples, settings.training.calibration_tiles, generator)
    cells = [generator.choice(e.tissue.cells, min(each, len(e.tissue.cells)), replace=False) for e in chosen]
    wanted = [(e, e.tissue.grid, part) for e, part in zip(chosen, cells, strict=True)]
    calibrate_on(encoder, wanted, reader, device=device)


def calibration_slides(
    examples: Sequence[Example], tiles: int, generator: np.random.Generator
) -> tuple[list[Example], int]:
    """Choose the slides that share a number of tiles, and say how many each gives.

    Parameters
    ----------
    examples
        The slides.
    tiles
        How many are wanted in all; where there are more slides, one each of as many.
    generator
        Which slides, and their order.
    """
    chosen = [examples[i] for i in generator.permutation(len(examples))[:tiles]]
    return chosen, -(-tiles // len(chosen))


def calibrate_on(
    encoder: TileEncoder,
    wanted: Sequence[tuple[Example, Grid, IntArray]],
    reader: Reader,
    *,
    device: torch.device | None,
) -> None:
    """Measure the encoder's constants on given tiles.

    Parameters
    ----------
    encoder
        It is changed.
    wanted
        Slides, each with its grid of tiles and flat numbers of cells on it.
    reader
        Reads the tiles.
    device
        Where the encoder is.

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


def varied(tiles: Tensor, counts: Sequence[int], seeds: Sequence[int], how: AugmentationSettings) -> Tensor:
    """Vary the tiles of some slides for training.

    Parameters
    ----------
    tiles
        Of all slides, uint8, shape (N, h, w, 3).
    counts, seeds
        How many tiles each slide has, and its seed: a slide's tiles are varied in the same way whatever
        slides they are together with.
    how
        By how much.
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
    """Read and encode cells a few at a time, so that pixels of few tiles are in memory at once.

    With gradients, pixels and feature maps of all tiles would be kept for the backward pass. With
    ``twice`` none are: the backward pass reads and encodes the tiles again, a few at a time
    (Chen et al. 2016, arXiv 1604.06174). Its gradients are the same.

    Parameters
    ----------
    embed
        Tiles, uint8 (n, h, w, 3), to features (n, D).
    read
        Cells (n,) to tiles, or to their features.
    cells
        Flat cell numbers, shape (N,).
    device
        Where tiles are encoded.
    at_a_time
        Most tiles in memory at once.
    twice
        Whether the backward pass is to read and encode again.
    vary_part
        Varies tiles (n, h, w, 3) of given cells (n,) before they are encoded; the same each time.

    Returns
    -------
    Tensor, shape (N, D)

    Raises
    ------
    SlideError
        When a tile cannot be read; with ``twice`` the backward pass may raise it, too.
    """

    def embed_part(part: IntArray) -> Tensor:
        tiles = to_device(read(part), device)
        return embed(tiles if vary_part is None else vary_part(tiles, part))

    parts = np.array_split(cells, -(-len(cells) // at_a_time))
    if not twice:
        return torch.cat([embed_part(part) for part in parts])
    # Without re-entrance, weights get their gradients although no input of a part has one.
    return torch.cat([checkpoint(embed_part, part, use_reentrant=False) for part in parts])
