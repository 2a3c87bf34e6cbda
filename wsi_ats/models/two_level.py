"""Two levels of attention: draw regions of a slide, read their overviews, and draw tiles in them.

The model is

    Phi = sum_t A_t sum_s B_{s|t} f_ts

with attention A over the regions t of a coarse thumbnail and B(. | t) over the cells s of one region,
computed for the drawn regions only. Compute, memory and bytes thus depend on the draw; only the coarse
thumbnail grows with the slide. See :func:`wsi_ats.nn.expectation.joint` for the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wsi_ats.errors import ModelError
from wsi_ats.geometry import IntArray
from wsi_ats.models.base import WeightedTiles, draw_seed, naming
from wsi_ats.models.batches import Example, Reader, outcomes
from wsi_ats.models.calibration import ExampleTiles, calibration_slides
from wsi_ats.models.drawing import PlannedTiles, ThumbnailAttention, draw_by, top_share
from wsi_ats.models.evidence import TileAttention
from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import Draw
from wsi_ats.overview.overview import read_region_overview, regions_of
from wsi_ats.overview.records import Overview
from wsi_ats.overview.regions import RegionGrid
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Slide


@dataclass(frozen=True)
class _Drawn:
    """One draw of regions, and of cells in each of them."""

    grid: RegionGrid
    regions: Draw  # places among the regions with tissue
    numbers: Sequence[int]  # flat numbers of the drawn regions
    overviews: Sequence[Overview]
    cells: Sequence[Draw]  # places among the tissue cells of each

    def tiles(self) -> IntArray:
        """Return the flat numbers (m,) of the drawn cells on the slide's grid."""
        parts = [
            self.grid.numbers(self.grid.window(number), each.tissue.cells[drawn.indices.numpy()])
            for number, each, drawn in zip(self.numbers, self.overviews, self.cells, strict=True)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class RegionDraws:
    """See :class:`wsi_ats.models.drawing.TileDraws`: draws by ``attention`` to regions, then cells."""

    attention: ThumbnailAttention
    settings: Settings

    def plan(
        self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]
    ) -> tuple[list[PlannedTiles | None], Mapping[str, str]]:
        """Draw regions of ``examples`` by ``seeds``, read them by the ``reader``, and draw tiles in them."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        attention = [torch.softmax(self._attend(each), 0) for each in examples]
        regions = [
            self._draw_regions(*each)
            for each in zip(attention, [each.overview for each in examples], generators, strict=True)
        ]
        jobs = [
            (
                example.ref,
                partial(
                    read_regions,
                    overview=example.overview,
                    numbers=_numbers(example.overview, drawn),
                    settings=self.settings,
                ),
            )
            for example, drawn in zip(examples, regions, strict=True)
        ]
        overviews, failed = outcomes(reader.run(jobs), examples)
        begun = zip(examples, attention, regions, overviews, generators, strict=True)
        plans = [
            None if found is None else self._plan_one(example, outer, drawn, found, generator)
            for example, outer, drawn, found, generator in begun
        ]
        return plans, failed

    def _plan_one(
        self,
        example: Example,
        attention: Tensor,
        regions: Draw,
        overviews: Sequence[Overview],
        generator: torch.Generator,
    ) -> PlannedTiles:
        with naming(example.ref.id):
            drawn = self._draw_within(attention, example.overview, regions, overviews, generator)

        def weigh() -> WeightedTiles:
            logits = self._attend(example)
            with naming(example.ref.id):
                return self._weigh(logits, drawn)

        return PlannedTiles(drawn.grid.cells, drawn.tiles(), weigh)

    def _attend(self, example: Example) -> Tensor:
        with naming(example.ref.id):
            return self.attention.to_regions(example.overview)

    def draws(
        self, slide: Slide, overview: Overview, seeds: Iterable[int]
    ) -> Iterator[tuple[Tensor, WeightedTiles]]:
        """Yield the attention to the ``overview`` and the tiles, for each of ``seeds``.

        No region of the ``slide`` is read twice.
        """
        known = dict[int, Overview]()
        logits = self.attention.to_regions(overview)
        attention = torch.softmax(logits, 0)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            regions = self._draw_regions(attention, overview, generator)
            numbers = _numbers(overview, regions)
            new = [number for number in numbers if number not in known]
            known.update(zip(new, read_regions(slide, overview, new, self.settings), strict=True))
            own = [known[number] for number in numbers]
            drawn = self._draw_within(attention, overview, regions, own, generator)
            yield attention, self._weigh(logits, drawn)

    def calibration_tiles(self, examples: Sequence[Example], reader: Reader) -> list[ExampleTiles]:
        """Draw tiles uniformly from regions that are drawn uniformly.

        Raises
        ------
        ModelError
            When no slide can be read.
        """
        training = self.settings.training
        generator = np.random.default_rng(draw_seed(training.seed, "calibration", 0))
        chosen, each = calibration_slides(examples, training.calibration_tiles, generator)
        sampling = replace(self.settings.sampling, design="uniform", tiles=each)
        uniform = replace(self, settings=replace(self.settings, sampling=sampling))
        seeds = [draw_seed(training.seed, example.ref.id, -2) for example in chosen]
        with torch.no_grad():
            plans, failed = uniform.plan(chosen, reader, seeds)
        wanted = [
            (example, plan.grid, plan.cells)
            for example, plan in zip(chosen, plans, strict=True)
            if plan is not None
        ]
        if not wanted:
            raise ModelError(f"no slide could be read for calibration: {'; '.join(failed.values())}")
        return wanted

    def _draw_regions(self, attention: Tensor, overview: Overview, generator: torch.Generator) -> Draw:
        sampling = self.settings.sampling
        n = min(sampling.regions, sampling.tiles)
        return draw_by(attention, overview.tissue, sampling, n, generator)

    def _draw_within(
        self,
        attention: Tensor,
        overview: Overview,
        regions: Draw,
        overviews: Sequence[Overview],
        generator: torch.Generator,
    ) -> _Drawn:
        """Draw the cells of the drawn regions; regions of higher weight get more tiles."""
        weight = expectation.weights(attention, regions.to(attention.device))
        sampling, masks = self.settings.sampling, [each.tissue for each in overviews]
        counts = allocate(weight.tolist(), [len(mask.cells) for mask in masks], sampling.tiles)
        cells = [
            draw_by(torch.softmax(self.attention.to_cells(each), 0), each.tissue, sampling, count, generator)
            for each, count in zip(overviews, counts, strict=True)
        ]
        grid = regions_of(overview.tissue, self.settings)
        return _Drawn(grid, regions, _numbers(overview, regions), overviews, cells)

    def _weigh(self, logits: Tensor, drawn: _Drawn) -> WeightedTiles:
        """Weigh the tiles of a draw by the attention to regions and, computed here, to cells within."""
        attention, regions = torch.softmax(logits, 0), drawn.regions.to(logits.device)
        inner_logits = [self.attention.to_cells(each) for each in drawn.overviews]
        inner = [torch.softmax(each, 0) for each in inner_logits]
        cells = [each.to(logits.device) for each in drawn.cells]
        weight = expectation.weights(attention, regions)
        within = torch.stack([expectation.entropy(each) for each in inner])
        log_regions = torch.log_softmax(logits, 0)[regions.indices]
        log_cells = [torch.log_softmax(each, 0) for each in inner_logits]
        return WeightedTiles(
            grid=drawn.grid.cells,
            cells=drawn.tiles(),
            attention=expectation.joint(attention[regions.indices], _drawn_of(inner, cells)),
            inclusion=expectation.joint(drawn.regions.inclusion, [each.inclusion for each in drawn.cells]),
            weight=expectation.joint(
                weight, [expectation.weights(*each) for each in zip(inner, cells, strict=True)]
            ),
            attended=TileAttention(
                log_attention=torch.cat(
                    [own + each for own, each in zip(log_regions, _drawn_of(log_cells, cells), strict=True)]
                ),
                log_mass=torch.logsumexp(logits, 0),
                # Entropy of the product of both; the second term is estimated from the drawn regions.
                entropy=expectation.entropy(attention) + weight @ within,
                top_share=top_share(attention),
            ),
        )


def _drawn_of(values: Sequence[Tensor], cells: Sequence[Draw]) -> list[Tensor]:
    """Take the values (K,) of the drawn cells, for each region."""
    return [each[drawn.indices] for each, drawn in zip(values, cells, strict=True)]


def _numbers(overview: Overview, drawn: Draw) -> list[int]:
    """Return the flat numbers of drawn regions."""
    numbers: list[int] = overview.tissue.cells[drawn.indices.numpy()].tolist()
    return numbers


def read_regions(
    slide: Slide, overview: Overview, numbers: Sequence[int], settings: Settings
) -> list[Overview]:
    """Read the overviews of some regions, by flat ``numbers``.

    See :func:`wsi_ats.overview.overview.read_region_overview` for ``slide``, ``overview`` and ``settings``.
    """
    regions = regions_of(overview.tissue, settings)
    return [
        read_region_overview(slide, overview, regions, regions.window(number), settings) for number in numbers
    ]


def allocate(weights: Sequence[float], room: Sequence[int], n: int) -> list[int]:
    """Allocate tiles to regions: one to each, the others in proportion to the weights.

    The variance within a region falls with its number of tiles and counts with its squared weight, so
    allocation in proportion to the weights is optimal if all regions vary equally (Neyman 1934). Tiles for
    which a region has no room go to the others.

    Parameters
    ----------
    weights
        Weights of the regions, not negative.
    room
        Number of cells of each region, at least one.
    n
        Number of tiles, at least one for each region.

    Returns
    -------
    list of int
        Number of tiles of each region. They sum to ``n``, or to the total room if that is less; rounding
        favours the largest remainders.

    Examples
    --------
    >>> allocate([0.7, 0.2, 0.1], [9, 9, 9], 8), allocate([0.7, 0.2, 0.1], [3, 9, 9], 8)
    ([5, 2, 1], [3, 3, 2])
    """
    weight, most = np.asarray(weights, dtype=np.float64), np.asarray(room)
    counts = np.ones(len(most), dtype=np.int64)
    while left := min(n, int(most.sum())) - int(counts.sum()):  # each pass fills a region, or is the last
        due = np.where(counts < most, weight, 0)
        if not due.sum():  # regions with room have no attention
            due = (counts < most).astype(np.float64)
        exact = due / due.sum() * left
        whole = np.floor(exact).astype(np.int64)
        whole[np.argsort(whole - exact, kind="stable")[: left - int(whole.sum())]] += 1
        counts = np.minimum(counts + whole, most)
    return [int(each) for each in counts]
