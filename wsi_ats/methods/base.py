"""What every kind of model can do with slides: the verbs, and the records that they give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from wsi_ats.batches import Example, TileReader
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import Pixels, Slide


@dataclass(frozen=True)
class Estimates:
    """What one pass over a batch of slides gives; slides that could not be read are not in it.

    Parameters
    ----------
    logits
        Shape (B, classes).
    targets
        Shape (B,).
    failed
        Message for each slide that could not be read.
    tiles
        Distinct tiles that were read; twice as many where the backward pass reads them again.
    entropy
        Of the attention that each slide's tiles were drawn by, in nats, shape (B,); ``None`` where none are
        drawn.
    """

    logits: Tensor
    targets: Tensor
    failed: Mapping[str, str]
    tiles: int = 0
    entropy: Tensor | None = None


@dataclass(frozen=True)
class WeightedTiles:
    """Tiles that stand for a slide, and why they do: distinct cells of one draw, in its order.

    Parameters
    ----------
    grid
        The slide's grid of tiles.
    cells
        Flat numbers on it, shape (m,).
    attention
        Attention of each cell, shape (m,).
    inclusion
        Expected number of draws of each cell (pi), shape (m,).
    weight
        Weight of each tile in the estimate, shape (m,), with gradient.
    """

    grid: Grid
    cells: IntArray
    attention: Tensor
    inclusion: Tensor
    weight: Tensor


@dataclass(frozen=True)
class DrawLogits:
    """What a model says of one slide by one of several independent draws of tiles.

    Parameters
    ----------
    logits
        Shape (classes,), on the CPU.
    tiles
        The tiles of the draw; ``None`` where no tiles are read.
    new_tiles
        How many of them no earlier draw had read.
    attention
        Over the slide's tissue cells, shape (K,), the same for every draw; ``None`` where there is none.
    together
        Logits of this draw and all before it, their tiles pooled into one estimate, shape (classes,). With
        ``gated`` pooling that is closer to all tiles than the mean of the draws: the bias of a ratio falls
        with the tiles in it. ``None`` for a model that does not sample.
    """

    logits: Tensor
    tiles: WeightedTiles | None = None
    new_tiles: int = 0
    attention: Tensor | None = None
    together: Tensor | None = None


class Method(Protocol):
    """A kind of model together with its way from slides to logits: network, settings and device in one."""

    def passes(self, slides: int) -> int:
        """Into how many passes a step over so many slides is cut to fit into memory."""
        ...

    def check(self, training: Sequence[Example], validation: Sequence[Example]) -> None:
        """Refuse slides that cannot be trained on or watched.

        Raises
        ------
        ModelError
            When a slide needs more memory than there is.
        """
        ...

    def calibrate(self, examples: Sequence[Example], reader: TileReader) -> None:
        """Measure the constants of the network on slides, once before training."""
        ...

    def estimate(
        self, examples: Sequence[Example], reader: TileReader, seed_of: Callable[[Example], int]
    ) -> Estimates:
        """Compute the logits of some slides, with gradients.

        Parameters
        ----------
        examples
            The slides.
        reader
            Reads their tiles.
        seed_of
            Seed of a slide's draw.

        Returns
        -------
        Estimates
            Of the slides that could be read; there may be none.

        Raises
        ------
        ModelError
            When the network no longer gives numbers.
        """
        ...

    def score(
        self, slide: Slide, thumbnail: Pixels, tissue: TissueMask, seeds: Iterable[int]
    ) -> Iterator[DrawLogits]:
        """Compute the logits of one slide, one draw of tiles after the other.

        Lazy: what only a later draw needs is not read before that draw is asked for, and nothing is read
        twice, so whoever iterates decides when it is enough.

        Parameters
        ----------
        slide
            The open slide.
        thumbnail
            RGB, uint8, shape (rows * p, columns * p, 3).
        tissue
            Its tissue cells; at least one.
        seeds
            One for each independent draw; there may be no end of them.

        Yields
        ------
        DrawLogits
            One for each seed. A model that does not sample, whose every draw would be the same, gives one
            and ends.

        Raises
        ------
        SlideError
            When a pixel that is needed cannot be read.
        """
        ...


def draw_seed(seed: int, slide_id: str, number: int) -> int:
    """Seed of one draw of one slide.

    A function of its arguments alone, so that a slide gets the same tiles on any machine, with any
    number of workers and in any order.

    Parameters
    ----------
    seed
        Of the run.
    slide_id
        The slide.
    number
        Of the draw, from 0.

    Examples
    --------
    >>> draw_seed(0, "case7", 0) == draw_seed(0, "case7", 0) != draw_seed(0, "case7", 1)
    True
    """
    key = f"{seed}\x00{slide_id}\x00{number}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
