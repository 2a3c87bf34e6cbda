"""One level of attention: draw tiles from all tissue cells of a slide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsi_ats.models.base import WeightedTiles, naming
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.calibration import ExampleTiles, uniform_tiles
from wsi_ats.models.drawing import PlannedTiles, ThumbnailAttention, draw_by, top_share
from wsi_ats.models.evidence import TileAttention
from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import Draw
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.settings import SamplingSettings, Settings
from wsi_ats.slides.base import Slide


@dataclass(frozen=True)
class CellDraws:
    """See :class:`wsi_ats.models.drawing.TileDraws`: draws by ``attention`` to cells."""

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
