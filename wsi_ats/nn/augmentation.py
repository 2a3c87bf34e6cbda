"""Augment tiles: vary their stain, colour and orientation.

Tiles are varied on their own device. Random numbers are drawn on the CPU from a given generator, so the tiles
of a run are the same on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Optical densities of haematoxylin, eosin and DAB in red, green and blue (Ruifrok & Johnston 2001).
_STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64)
_BACKGROUND = 256.0  # intensity of optical density 0, for pixel values shifted to begin at 1


class Variation(NamedTuple):
    """Variations of n tiles.

    Examples
    --------
    >>> some = draw_variation(5, torch.Generator().manual_seed(0), turns=True, colour=0.1, stain=0.1)
    >>> vary(torch.full((5, 32, 32, 3), 180, dtype=torch.uint8), some).shape
    torch.Size([5, 32, 32, 3])
    """

    turn: Tensor
    """Number of one of the eight orientations of a square, shape (n,); 0 keeps the orientation."""
    stain: Tensor
    """Matrix from optical densities (red, green, blue) to varied ones, shape (n, 3, 3)."""
    density: Tensor
    """Summands of the varied optical densities, shape (n, 3)."""
    gain: Tensor
    """Contrast factors of the colours, around the middle of the range, shape (n, 3)."""
    offset: Tensor
    """Summands of the varied colours, as a share of the range, shape (n, 3)."""


def draw_variation(
    n: int, generator: torch.Generator, *, turns: bool, colour: float, stain: float
) -> Variation:
    """Draw the variations of ``n`` tiles.

    Parameters
    ----------
    n
        Number of tiles.
    generator
        Source of randomness, on the CPU.
    turns
        Turn tiles by right angles and mirror them: tissue has no orientation.
    colour
        Standard deviation of the contrast and, as a share of the range, brightness of each colour.
    stain
        Standard deviation of the amount of each stain: a share of it, plus a tenth of that in density ("HED"
        augmentation, Tellez et al. 2018).
    """
    turn = torch.randint(8, (n,), generator=generator) if turns else torch.zeros(n, dtype=torch.int64)
    scale, shift, gain, offset = torch.randn(4, n, 3, dtype=torch.float64, generator=generator)
    unmix = torch.linalg.inv(_STAINS)
    # Identity plus change: without a change, the matrix must be the identity despite rounding.
    stains = torch.eye(3, dtype=torch.float64) + unmix @ torch.diag_embed(stain * scale) @ _STAINS
    return Variation(
        turn,
        stains.float(),
        (0.1 * stain * shift @ _STAINS).float(),
        (1 + colour * gain).float(),
        (colour * offset).float(),
    )


def join(parts: Sequence[Variation]) -> Variation:
    """Join variations of several sets of tiles, in order."""
    return Variation(*(torch.cat(each) for each in zip(*parts, strict=True)))


def vary(tiles: Tensor, how: Variation) -> Tensor:
    """Vary tiles.

    Parameters
    ----------
    tiles
        RGB, uint8, shape (n, side, side, 3).
    how
        One variation per tile.

    Returns
    -------
    Tensor of uint8, shape (n, side, side, 3)
        On the tiles' device.
    """
    turned = _turn(tiles, how.turn)
    device, n = tiles.device, len(tiles)
    stained = bool((how.stain != torch.eye(3)).any() or (how.density != 0).any())
    coloured = bool((how.gain != 1).any() or (how.offset != 0).any())
    if not (stained or coloured):  # the default, in every step
        return turned
    pixels = turned.float()
    if stained:
        density = -((pixels + 1) / _BACKGROUND).log()
        varied = density.flatten(1, 2) @ how.stain.to(device) + how.density.to(device)[:, None]
        pixels = ((-varied).exp() * _BACKGROUND - 1).reshape(turned.shape)
    if coloured:
        gain, offset = (each.to(device).reshape(n, 1, 1, 3) for each in (how.gain, how.offset))
        pixels = (pixels - 127.5) * gain + 127.5 + 255 * offset
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _turn(tiles: Tensor, turn: Tensor) -> Tensor:
    turned = tiles.clone()
    for number in sorted(set(turn.tolist())):
        which = (turn == number).nonzero()[:, 0].to(tiles.device)
        some = torch.rot90(tiles[which], number % 4, dims=(1, 2))
        turned[which] = some.flip(2) if number >= 4 else some
    return turned
