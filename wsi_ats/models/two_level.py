"""Two-level sampling: attend to regions, look closer at a few of them, draw tiles in those.

The model is

    Phi = sum_t A_t sum_s B_{s|t} f_ts

with attention A over the regions t of a coarse thumbnail and B(. | t) over the cells s of one region,
computed only for regions that are drawn. Compute, memory and bytes thus depend on what is drawn; only the
coarse thumbnail grows with the slide. See :func:`wsi_ats.nn.expectation.joint` for the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wsi_ats.errors import ModelError
from wsi_ats.geometry import IntArray
from wsi_ats.models.base import WeightedTiles, draw_seed
from wsi_ats.models.batches import Example, Reader, outcomes
from wsi_ats.models.calibration import calibrate_on, calibration_slides
from wsi_ats.models.evidence import Attended
from wsi_ats.models.sampling import AttentionSampling, Chosen, Plan, draw_by, top_share
from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import Draw
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.overview import look_closer, regions_of
from wsi_ats.overview.regions import RegionGrid
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Pixels, Slide

View = tuple[Pixels, TissueMask]
"""A closer look at one region: its thumbnail, and the tissue among its cells."""


@dataclass(frozen=True)
class DrawnRegions:
    """What one draw of regions, and of cells within each, gave.

    Parameters
    ----------
    regions
        Regions that were drawn, as places among those with tissue.
    numbers
        Their flat numbers, shape (r,).
    views
        A closer look at each.
    cells
        For each, the cells that were drawn in it, as places among its tissue cells.
    """

    regions: Draw
    numbers: Sequence[int]
    views: Sequence[View]
    cells: Sequence[Draw]


@dataclass(frozen=True)
class TwoLevelSampling(AttentionSampling):
    """See :class:`wsi_ats.models.base.Method`; slides are seen as regions.

    Parameters
    ----------
    model
        Its network, with attention to regions.
    settings
        Sections ``tile``, ``thumbnail``, ``sampling`` and ``training`` are used.
    device
        Where the network is; the CPU by default.
    turns
        See :class:`wsi_ats.models.sampling.AttentionSampling`; of the slide, and of every region.
    """

    def calibrate(self, examples: Sequence[Example], reader: Reader) -> None:
        """Measure the encoder's constants on tiles drawn uniformly from regions drawn uniformly."""
        training = self.settings.training
        generator = np.random.default_rng(draw_seed(training.seed, "calibration", 0))
        chosen, each = calibration_slides(examples, training.calibration_tiles, generator)
        sampling = replace(self.settings.sampling, design="uniform", tiles=each)
        uniform = replace(self, settings=replace(self.settings, sampling=sampling))
        seeds = [draw_seed(training.seed, example.ref.id, -2) for example in chosen]
        with torch.no_grad():
            plans, failed = uniform._plan(chosen, reader, seeds)
        wanted = [
            (example, plan.grid, plan.cells)
            for example, plan in zip(chosen, plans, strict=True)
            if plan is not None
        ]
        if not wanted:
            raise ModelError(f"no slide could be read for calibration: {'; '.join(failed.values())}")
        calibrate_on(self.model.encoder, wanted, reader, device=self.device)

    def _plan(
        self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]
    ) -> tuple[list[Plan | None], Mapping[str, str]]:
        """Draw regions, look closer at them, draw tiles within."""
        looks = [
            partial(self._logits, self.model.score_regions, each.thumbnail, each.tissue, each.ref.id)
            for each in examples
        ]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [
            self._draw_regions(torch.softmax(look(), 0), example.tissue, generator)
            for look, example, generator in zip(looks, examples, generators, strict=True)
        ]
        jobs = [
            (
                example.ref,
                partial(
                    views_of,
                    coarse=example.thumbnail,
                    regions=regions_of(example.tissue, self.settings),
                    numbers=_numbers(example.tissue, outer),
                    settings=self.settings,
                ),
            )
            for example, (_, outer) in zip(examples, drawn, strict=True)
        ]
        views, failed = outcomes(reader.run(jobs), examples)
        plans: list[Plan | None] = []
        for look, example, (attention, outer), seen, generator in zip(
            looks, examples, drawn, views, generators, strict=True
        ):
            if seen is None:
                plans.append(None)
                continue
            inner = self._draw_within(attention, outer, seen, generator, example.ref.id)
            both = DrawnRegions(outer, _numbers(example.tissue, outer), seen, inner)
            regions = regions_of(example.tissue, self.settings)
            plans.append(
                Plan(
                    regions.cells,
                    _cells(both, regions),
                    partial(self._weigh_by, look, both, regions, example.ref.id),
                )
            )
        return plans, failed

    def _draws(
        self, slide: Slide, thumbnail: Pixels, tissue: TissueMask, seeds: Iterable[int]
    ) -> Iterator[tuple[Tensor, Chosen]]:
        regions, views = regions_of(tissue, self.settings), dict[int, View]()
        logits = self._logits(self.model.score_regions, thumbnail, tissue, slide.path)
        attention = torch.softmax(logits, 0)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            _, outer = self._draw_regions(attention, tissue, generator)
            numbers = _numbers(tissue, outer)
            new = [number for number in numbers if number not in views]
            views.update(zip(new, views_of(slide, thumbnail, regions, new, self.settings), strict=True))
            seen = [views[number] for number in numbers]
            inner = self._draw_within(attention, outer, seen, generator, slide.path)
            both = DrawnRegions(outer, numbers, seen, inner)
            yield attention, self._weigh(logits, both, regions, slide.path)

    def _draw_regions(
        self, attention: Tensor, tissue: TissueMask, generator: torch.Generator
    ) -> tuple[Tensor, Draw]:
        sampling = self.settings.sampling
        n = min(sampling.regions, sampling.tiles)
        return attention, draw_by(attention, tissue, sampling, n, generator)

    def _draw_within(
        self,
        attention: Tensor,
        outer: Draw,
        views: Sequence[View],
        generator: torch.Generator,
        name: str,
    ) -> list[Draw]:
        """Draw the cells of the drawn regions; a region that weighs more gets more of the tiles."""
        weight = expectation.weights(attention, outer.to(attention.device))
        sampling, masks = self.settings.sampling, [mask for _, mask in views]
        counts = allocate(weight.tolist(), [len(mask.cells) for mask in masks], sampling.tiles)
        return [
            draw_by(torch.softmax(self._look_within(view, name), 0), view[1], sampling, count, generator)
            for view, count in zip(views, counts, strict=True)
        ]

    def _look_within(self, view: View, name: str) -> Tensor:
        return self._logits(self.model.score_cells, *view, name)

    def _weigh_by(
        self, look: Callable[[], Tensor], drawn: DrawnRegions, regions: RegionGrid, name: str
    ) -> Chosen:
        return self._weigh(look(), drawn, regions, name)

    def _weigh(self, logits: Tensor, drawn: DrawnRegions, regions: RegionGrid, name: str) -> Chosen:
        """Weigh the tiles of a draw by the attention to regions and, computed here, to cells within."""
        attention, here = torch.softmax(logits, 0), drawn.regions.to(logits.device)
        looks = [self._look_within(view, name) for view in drawn.views]
        inner = [torch.softmax(each, 0) for each in looks]
        draws = [draw.to(each.device) for draw, each in zip(drawn.cells, inner, strict=True)]
        outer = expectation.weights(attention, here)
        within = torch.stack([expectation.entropy(each) for each in inner])
        tiles = WeightedTiles(
            grid=regions.cells,
            cells=_cells(drawn, regions),
            attention=expectation.joint(
                attention[here.indices],
                [each[draw.indices] for each, draw in zip(inner, draws, strict=True)],
            ),
            inclusion=expectation.joint(drawn.regions.expected, [draw.expected for draw in drawn.cells]),
            weight=expectation.joint(
                outer, [expectation.weights(each, draw) for each, draw in zip(inner, draws, strict=True)]
            ),
        )
        # Entropy is that of the product of both, of which the second part is known of drawn regions only.
        attended = Attended(
            log_attention=torch.cat(
                [
                    region + torch.log_softmax(each, 0)[draw.indices]
                    for region, each, draw in zip(
                        torch.log_softmax(logits, 0)[here.indices], looks, draws, strict=True
                    )
                ]
            ),
            log_mass=torch.logsumexp(logits, 0),
            entropy=expectation.entropy(attention) + outer @ within,
            top_share=top_share(attention),
        )
        return Chosen(tiles, attended)


def _numbers(tissue: TissueMask, drawn: Draw) -> list[int]:
    numbers: list[int] = tissue.cells[drawn.indices.numpy()].tolist()
    return numbers


def _cells(drawn: DrawnRegions, regions: RegionGrid) -> IntArray:
    """Flat numbers of the drawn cells on the slide's grid."""
    parts = [
        regions.numbers(regions.window(number), mask.cells[draw.indices.numpy()])
        for number, (_, mask), draw in zip(drawn.numbers, drawn.views, drawn.cells, strict=True)
    ]
    return np.concatenate(parts)


def views_of(
    slide: Slide, coarse: Pixels, regions: RegionGrid, numbers: Sequence[int], settings: Settings
) -> list[View]:
    """Look closer at some regions, by number; see :func:`wsi_ats.overview.overview.look_closer`."""
    return [look_closer(slide, coarse, regions, regions.window(number), settings) for number in numbers]


def allocate(weights: Sequence[float], room: Sequence[int], n: int) -> list[int]:
    """Share out tiles among regions: one for each, the others in proportion to their weights.

    The variance within a region falls with its tiles and counts with its weight squared, so that shares
    in proportion to the weights are best where regions are equally varied (Neyman 1934). What a region
    has no room for goes to the others.

    Parameters
    ----------
    weights
        Of the regions, not negative.
    room
        Cells of each region, at least one.
    n
        Number of tiles, at least one for each region.

    Returns
    -------
    list of int
        Sum to ``n``, or to all the room there is; what is left by rounding goes to the largest remainders.

    Examples
    --------
    >>> allocate([0.7, 0.2, 0.1], [9, 9, 9], 8), allocate([0.7, 0.2, 0.1], [3, 9, 9], 8)
    ([5, 2, 1], [3, 3, 2])
    """
    weight, most = np.asarray(weights, dtype=np.float64), np.asarray(room)
    counts = np.ones(len(most), dtype=np.int64)
    while left := min(n, int(most.sum())) - int(counts.sum()):  # each pass fills a region or is the last
        due = np.where(counts < most, weight, 0)
        if not due.sum():  # no attention is left where there is room
            due = (counts < most).astype(np.float64)
        exact = due / due.sum() * left
        whole = np.floor(exact).astype(np.int64)
        whole[np.argsort(whole - exact, kind="stable")[: left - int(whole.sum())]] += 1
        counts = np.minimum(counts + whole, most)
    return [int(each) for each in counts]
