"""Interface of all kinds of models to slides, and the records that they return."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from wsi_ats.errors import ModelError, SlideError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.encoding import Embed
from wsi_ats.models.evidence import TileAttention
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.overview.records import Overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Slide


@dataclass(frozen=True)
class WeightedTiles:
    """Distinct tiles of one draw, in the order drawn, with their weights.

    Parameters
    ----------
    grid
        The slide's grid of tiles.
    cells
        Flat numbers of the cells, shape (m,).
    attention
        Attention of each cell, shape (m,), with gradient.
    inclusion
        Expected number of draws of each cell (pi), shape (m,).
    weight
        Weight of each tile in the estimate, shape (m,), with gradient.
    attended
        Logarithm of the attention to these cells, and the attention to the slide as a whole.
    """

    grid: Grid
    cells: IntArray
    attention: Tensor
    inclusion: Tensor
    weight: Tensor
    attended: TileAttention


@dataclass(frozen=True)
class Estimates:
    """Outputs of a batch of slides from one pass, without the slides that could not be read.

    Parameters
    ----------
    outputs
        Outputs of the network, shape (B, outputs).
    places
        Places of these slides in the batch, in order.
    failed
        Message for each slide that could not be read.
    log_weight
        Logarithm of each slide's weight among the slides of its case, shape (B,); see
        :func:`wsi_ats.nn.cases.pool_slides`.
    tiles
        Number of distinct tiles read; twice that if the backward pass reads them again.
    drawn
        The tiles of each slide; empty if none are drawn.
    features
        Features of these tiles, for each slide of shape (m, D), with gradient; empty if none are drawn.
    """

    outputs: Tensor
    places: Sequence[int]
    failed: Mapping[str, str]
    log_weight: Tensor
    tiles: int = 0
    drawn: Sequence[WeightedTiles] = ()
    features: Sequence[Tensor] = ()


@dataclass(frozen=True)
class DrawLogits:
    """Logits of one slide from one of several independent draws of tiles.

    Parameters
    ----------
    logits
        Shape (classes,), on the CPU.
    tiles
        The tiles of the draw; ``None`` if no tiles are read.
    new_tiles
        Number of tiles that no earlier draw had read.
    empty_tiles
        Number of those tiles that are empty; see :func:`wsi_ats.overview.tissue.are_empty`.
    attention
        Attention over the tissue cells, shape (K,), the same for every draw; ``None`` for models without it.
    pooled_logits
        Logits from the pooled tiles of this draw and all before it, shape (classes,). With
        ``gated`` pooling these are closer to the logits of all tiles than the mean of the draws: the bias of
        a ratio falls with the number of tiles. ``None`` for a model that does not sample.
    log_weight
        Logarithm of the slide's weight among the slides of its case, from the tiles of all draws so far.
    logits_without
        Function that returns :attr:`pooled_logits` without each of the distinct tiles so far, in the order of
        their cells, shape (tiles, classes), float64, on the CPU; ``None`` for a model that does not sample.
        NaN where no tile remains.
    """

    logits: Tensor
    tiles: WeightedTiles | None = None
    new_tiles: int = 0
    empty_tiles: int = 0
    attention: Tensor | None = None
    pooled_logits: Tensor | None = None
    log_weight: float = 0.0
    logits_without: Callable[[], Tensor] | None = None


Finish = Callable[[], Estimates]


class Method(Protocol):
    """Computation of logits from slides by one kind of model, with its network, settings and device."""

    def passes(self, slides: int) -> int:
        """Return the number of passes that split a step over this many slides so that it fits into memory."""
        ...

    def check(self, training: Sequence[Example], validation: Sequence[Example]) -> None:
        """Refuse slides that are too large to learn from or to score.

        Raises
        ------
        ModelError
            When a slide needs more memory than is free.
        """
        ...

    def calibrate(self, examples: Sequence[Example], reader: Reader) -> None:
        """Measure the constants of the network on slides, once before training."""
        ...

    def begin(self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]) -> Finish:
        """Choose tiles of some slides by the current weights, and begin to read them.

        The estimates use the weights at the time when the result is called. A tile that older attention drew
        is weighted by the current attention over the inclusion at the time of the draw, which keeps the
        estimate unbiased.

        Parameters
        ----------
        examples
            The slides.
        reader
            Reader of their tiles.
        seeds
            One seed for each slide, which determines all randomness.

        Returns
        -------
        function
            Function to call once. It waits for the reads and returns the :class:`Estimates` of the slides
            that could be read, possibly none, with gradients.

        Raises
        ------
        ModelError
            When an output of the network is NaN or infinite; the result may raise it too.
        """
        ...

    def score(
        self, slide: Slide, overview: Overview, seeds: Iterable[int], embed: Embed
    ) -> Generator[DrawLogits, None, None]:
        """Compute the logits of one slide, draw by draw.

        The tiles of a draw are read when that draw is requested, and no tile is read twice, so the caller can
        decide after each draw whether to continue.

        Parameters
        ----------
        slide
            The open slide.
        overview
            Its thumbnail and tissue; at least one tissue cell.
        seeds
            One seed for each independent draw; may be infinite.
        embed
            Source of the features of the slide's tiles, such as :func:`wsi_ats.models.encoding.embed_tiles`.

        Yields
        ------
        DrawLogits
            One for each seed; only one from a model that does not sample.

        Raises
        ------
        SlideError
            When a pixel that is needed cannot be read.
        """
        ...


@dataclass(frozen=True)
class OneByOne(ABC):
    """The parts of a :class:`Method` that are common to those with a single slide in memory.

    Parameters
    ----------
    model
        The network.
    settings
        All settings; each kind has its own section ``model``.
    device
        Device of the network; the CPU by default.
    """

    model: SlideNetwork
    settings: Settings
    device: torch.device | None = None

    def passes(self, slides: int) -> int:
        """Use one pass per slide."""
        return slides

    def begin(
        self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]
    ) -> Callable[[], Estimates]:
        """Defer all reads to the result."""
        return partial(self._estimate, examples, reader, seeds)

    def _estimate(self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]) -> Estimates:
        outputs, places, masses, failed, read = [], [], [], {}, 0
        for place, (example, seed) in enumerate(zip(examples, seeds, strict=True)):
            try:
                output, mass, tiles = self._compute(example, reader, seed)
            except SlideError as error:
                failed[example.ref.id] = str(error)
                continue
            outputs.append(output)
            masses.append(mass)
            places.append(place)
            read += tiles
        none = torch.zeros(0, self.model.head.out_features, device=self.device)
        return Estimates(
            outputs=torch.stack(outputs) if outputs else none,
            places=places,
            failed=failed,
            log_weight=torch.stack(masses) if masses else none[:, 0],
            tiles=read,
        )

    @abstractmethod
    def _compute(self, example: Example, reader: Reader, seed: int) -> tuple[Tensor, Tensor, int]:
        """Return outputs, ``log_weight`` and ``tiles`` of one slide, as in :class:`Estimates`.

        Raises
        ------
        SlideError
            When it cannot be read.
        """


@dataclass(frozen=True)
class Kind:
    """A kind of model: its network and its method.

    Parameters
    ----------
    network
        Class of its networks.
    build
        Builds a network from settings and the number of outputs; the last argument selects whether to load
        the weights that training starts from.
    method
        Builds the method from a network of that class, settings and the network's device.
    """

    network: type[SlideNetwork]
    build: Callable[[Settings, int, bool], SlideNetwork]
    method: Callable[[Any, Settings, torch.device | None], Method]


@contextmanager
def naming(slide: str) -> Iterator[None]:
    """Put the name of a slide before the message of a :class:`ModelError` that is raised inside.

    Examples
    --------
    >>> with naming("a.svs"):
    ...     raise ModelError("attention is NaN")
    Traceback (most recent call last):
    wsi_ats.errors.ModelError: a.svs: attention is NaN
    """
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{slide}: {error}") from error


def draw_seed(seed: int, slide_id: str, number: int) -> int:
    """Return the seed of one draw of one slide.

    It depends only on the arguments, so a slide gets the same tiles on any machine, with any number of
    workers and in any order.

    Parameters
    ----------
    seed
        Seed of the run.
    slide_id
        The slide.
    number
        Number of the draw, from 0.

    Examples
    --------
    >>> draw_seed(0, "case7", 0) == draw_seed(0, "case7", 0) != draw_seed(0, "case7", 1)
    True
    """
    key = f"{seed}\x00{slide_id}\x00{number}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
