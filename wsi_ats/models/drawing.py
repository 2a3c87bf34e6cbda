"""Draw tiles by attention to a thumbnail: from all cells of a slide, and what two levels share with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wsi_ats.errors import ModelError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.base import WeightedTiles, naming
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.calibration import ExampleTiles, uniform_tiles
from wsi_ats.models.evidence import TileAttention
from wsi_ats.nn import expectation
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.sampling import Draw, draw, explore
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.settings import SamplingSettings, Settings
from wsi_ats.slides.base import Slide


@dataclass(frozen=True)
class PlannedTiles:
    """Tiles of a slide to read.

    Parameters
    ----------
    grid
        The slide's grid of tiles.
    cells
        Flat numbers of the cells, shape (m,), distinct.
    weigh
        Function that weighs them by the attention at the time of the call.
    """

    grid: Grid
    cells: IntArray
    weigh: Callable[[], WeightedTiles]


class TileDraws(Protocol):
    """Strategy for drawing tiles: from all cells of a slide, or from regions that are drawn first."""

    def plan(
        self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]
    ) -> tuple[list[PlannedTiles | None], Mapping[str, str]]:
        """Draw the tiles of ``examples`` by ``seeds``; ``reader`` reads overviews of regions.

        The second value has a message for each slide that cannot be read.
        """
        ...

    def draws(
        self, slide: Slide, overview: Overview, seeds: Iterable[int]
    ) -> Iterator[tuple[Tensor, WeightedTiles]]:
        """Yield the attention (K,) to the tissue of an ``overview``, and the tiles, for each of ``seeds``.

        Overviews of regions are read from the ``slide``.
        """
        ...

    def calibration_tiles(self, examples: Sequence[Example], reader: Reader) -> list[ExampleTiles]:
        """Draw tiles uniformly from all slides, to measure the encoder's constants on."""
        ...


@dataclass(frozen=True)
class ThumbnailAttention:
    """Attention logits of thumbnails, by the network's weights at the time of the call.

    Parameters
    ----------
    model
        The network.
    device
        Device of the network; the CPU by default.
    turns
        Source of randomness, on the CPU, for turning and mirroring slides in training; ``None`` keeps their
        orientation.
    """

    model: AttentionSampler
    device: torch.device | None = None
    turns: torch.Generator | None = None

    def to_cells(self, overview: Overview) -> Tensor:
        """Return the logits (K,) of the tissue cells of a slide, or of one of its regions."""
        return self._logits(self.model.score_cells, overview)

    def to_regions(self, overview: Overview) -> Tensor:
        """Return the logits (T,) of the regions with tissue."""
        return self._logits(self.model.score_regions, overview)

    def _logits(self, score: Callable[..., Tensor], overview: Overview) -> Tensor:
        cells = torch.from_numpy(overview.tissue.cells).to(self.device)
        thumbnail = torch.from_numpy(overview.thumbnail).to(self.device)
        varied = self.turns is not None and self.model.training
        turn = int(torch.randint(8, (), generator=self.turns)) if varied else 0
        logits = score(thumbnail, cells, overview.tissue.grid.shape, turn=turn)
        if not logits.isfinite().all():
            raise ModelError("attention is NaN or infinite; try lower learning rates")
        return logits


def draw_by(
    attention: Tensor, tissue: TissueMask, sampling: SamplingSettings, n: int, generator: torch.Generator
) -> Draw:
    """Draw ``n`` of the ``tissue`` cells by ``attention`` over them, shape (K,), by settings ``sampling``.

    The draw runs on the CPU, whatever the attention's device; see :func:`wsi_ats.nn.sampling.draw` for the
    ``generator``.
    """
    return draw(
        sampling.design,
        explore(attention.cpu(), sampling.exploration),
        cells=torch.from_numpy(tissue.cells),
        shape=tissue.grid.shape,
        n=n,
        generator=generator,
    )


def top_share(attention: Tensor) -> float:
    """Return the total attention of the top hundredth of the cells, at least of one cell.

    ``attention`` has shape (K,).
    """
    largest = attention.detach().topk(-(-len(attention) // 100)).values
    return largest.sum().item()


@dataclass(frozen=True)
class CellDraws:
    """See :class:`TileDraws`: draws by ``attention`` to cells."""

    attention: ThumbnailAttention
    settings: Settings

    def plan(
        self,
        examples: Sequence[Example],
        reader: Reader,  # noqa: ARG002  (the thumbnail suffices)
        seeds: Sequence[int],
    ) -> tuple[list[PlannedTiles | None], Mapping[str, str]]:
        """Draw the tiles of ``examples`` by ``seeds``, without the ``reader``."""
        return [self._plan_one(*each) for each in zip(examples, seeds, strict=True)], {}

    def _plan_one(self, example: Example, seed: int) -> PlannedTiles:
        tissue = example.overview.tissue

        def attend() -> Tensor:
            with naming(example.ref.id):
                return self.attention.to_cells(example.overview)

        drawn = draw_cells(attend(), tissue, self.settings.sampling, seed)
        cells = tissue.cells[drawn.indices.numpy()]
        return PlannedTiles(tissue.grid, cells, lambda: weigh(attend(), tissue, drawn))

    def draws(
        self,
        slide: Slide,  # noqa: ARG002  (the thumbnail suffices)
        overview: Overview,
        seeds: Iterable[int],
    ) -> Iterator[tuple[Tensor, WeightedTiles]]:
        """Yield attention to the ``overview`` and tiles, for each of ``seeds``, without the ``slide``."""
        logits = self.attention.to_cells(overview)
        for seed in seeds:
            drawn = draw_cells(logits, overview.tissue, self.settings.sampling, seed)
            yield torch.softmax(logits, 0), weigh(logits, overview.tissue, drawn)

    def calibration_tiles(
        self,
        examples: Sequence[Example],
        reader: Reader,  # noqa: ARG002  (the tissue suffices)
    ) -> list[ExampleTiles]:
        """Draw tiles uniformly from all slides."""
        return uniform_tiles(examples, self.settings.training)


def draw_cells(logits: Tensor, tissue: TissueMask, sampling: SamplingSettings, seed: int) -> Draw:
    """Draw tiles of a slide.

    Parameters
    ----------
    logits
        Attention logits of the tissue cells, shape (K,).
    tissue
        The cells that may be drawn; at least one.
    sampling
        Design, number of tiles and exploration.
    seed
        Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    return draw_by(torch.softmax(logits, 0), tissue, sampling, sampling.tiles, generator)


def weigh(logits: Tensor, tissue: TissueMask, drawn: Draw) -> WeightedTiles:
    """Weigh drawn tiles by attention, which may differ from the attention that drew them.

    Parameters
    ----------
    logits
        Attention logits of the tissue cells, shape (K,), with gradient.
    tissue
        The tissue cells.
    drawn
        The draw, with indices into the tissue cells.
    """
    attention, here = torch.softmax(logits, 0), drawn.to(logits.device)
    return WeightedTiles(
        grid=tissue.grid,
        cells=tissue.cells[drawn.indices.numpy()],
        attention=attention[here.indices],
        inclusion=drawn.inclusion,
        weight=expectation.weights(attention, here),
        attended=TileAttention(
            log_attention=torch.log_softmax(logits, 0)[here.indices],
            log_mass=torch.logsumexp(logits, 0),
            entropy=expectation.entropy(attention),
            top_share=top_share(attention),
        ),
    )
