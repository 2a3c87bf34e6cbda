"""What every kind of model can do with slides: the verbs, and the records that they give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.encoding import TileBatches
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.overview.masks import TissueMask
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Pixels, Slide


@dataclass(frozen=True)
class Estimates:
    """What one pass over a batch of slides gives; slides that could not be read are not in it.

    Parameters
    ----------
    outputs
        Of the network, shape (B, outputs).
    places
        Which of the batch's slides they are of, in order.
    failed
        Message for each slide that could not be read.
    tiles
        Distinct tiles that were read; twice as many where the backward pass reads them again.
    log_weight
        What each slide counts among the slides of its case, shape (B,); see
        :func:`wsi_ats.nn.cases.pool_slides`.
    drawn
        The tiles of each slide as the network saw them; empty where none are drawn.
    """

    outputs: Tensor
    places: Sequence[int]
    failed: Mapping[str, str]
    log_weight: Tensor
    tiles: int = 0
    drawn: Sequence[SeenTiles] = ()


@dataclass(frozen=True)
class SeenTiles:
    """The drawn tiles of one slide, once they have been read.

    Parameters
    ----------
    weight
        Weights in the estimate, shape (m,), with gradient.
    attention
        Attention of each tile's cell, shape (m,), with gradient.
    gate
        What each tile says of its own weight, shape (m,), with gradient; zeros with linear pooling.
    features
        Shape (m, D), with gradient.
    entropy
        Of the attention over the slide's cells, in nats, shape (), with gradient.
    top_share
        Attention of the hundredth of the cells that have most of it.
    """

    weight: Tensor
    attention: Tensor
    gate: Tensor
    features: Tensor
    entropy: Tensor
    top_share: float

    @property
    def effective(self) -> float:
        """Effective sample size: how many tiles of equal weight would vary as little.

        (Kong 1992.) All of them where they are drawn from the attention that weighs them and none is
        certain; fewer the more that attention has changed since.
        """
        weight = self.weight.detach().double()
        # Attention may have left all of them.
        return float(weight.sum() ** 2 / weight.square().sum()) if weight.any() else 0.0


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
    empty_tiles
        On how many of those nothing is to be seen; see :func:`wsi_ats.overview.tissue.are_empty`.
    attention
        Over the slide's tissue cells, shape (K,), the same for every draw; ``None`` where there is none.
    together
        Logits of this draw and all before it, their tiles pooled into one estimate, shape (classes,). With
        ``gated`` pooling that is closer to all tiles than the mean of the draws: the bias of a ratio falls
        with the tiles in it. ``None`` for a model that does not sample.
    log_weight
        What the slide counts among the slides of its case by these tiles, all draws together.
    """

    logits: Tensor
    tiles: WeightedTiles | None = None
    new_tiles: int = 0
    empty_tiles: int = 0
    attention: Tensor | None = None
    together: Tensor | None = None
    log_weight: float = 0.0


Finish = Callable[[], Estimates]


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

    def calibrate(self, examples: Sequence[Example], reader: Reader) -> None:
        """Measure the constants of the network on slides, once before training."""
        ...

    def begin(self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]) -> Finish:
        """Decide by the weights as they are what is to be read of some slides, and begin to read it.

        Whatever is called in between, the estimates are those of the weights as they are when the result is
        called: tiles that were drawn by an older attention weigh what the present one gives them, divided by
        how often the older one was expected to draw them, which keeps the estimate unbiased.

        Parameters
        ----------
        examples
            The slides.
        reader
            Reads their tiles.
        seeds
            One for each slide; all that is random follows from it.

        Returns
        -------
        function
            To be called once; waits for the reads and gives the :class:`Estimates` of the slides that could
            be read, with gradients. There may be none.

        Raises
        ------
        ModelError
            When the network no longer gives numbers; the result may raise it, too.
        """
        ...

    def score(
        self,
        slide: Slide,
        thumbnail: Pixels,
        tissue: TissueMask,
        seeds: Iterable[int],
        encoder: TileBatches | None = None,
    ) -> Generator[DrawLogits, None, None]:
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
        encoder
            The network's own, shared with other slides; by default one for this slide alone. The result is
            the same.

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


@dataclass(frozen=True)
class Kind:
    """A kind of model: its network, and the way from slides to logits with it.

    Parameters
    ----------
    network
        Class of its networks.
    build
        Makes a network from settings and the number of outputs; the last argument says whether to load the
        weights that training starts from.
    method
        Joins a network of that class, settings and its device.
    """

    network: type[SlideNetwork]
    build: Callable[[Settings, int, bool], SlideNetwork]
    method: Callable[[Any, Settings, torch.device | None], Method]


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
