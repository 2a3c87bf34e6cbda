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

from wsi_ats.batches import Example, TileReader, outcomes
from wsi_ats.config import Settings
from wsi_ats.errors import ModelError
from wsi_ats.look import look_closer, regions_of
from wsi_ats.methods.base import WeightedTiles, draw_seed
from wsi_ats.methods.sampling import AttentionSampling, Chosen, draw_by
from wsi_ats.methods.tiles import calibrate_on, calibration_slides
from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import Draw
from wsi_ats.regions import RegionGrid
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import Pixels, Slide

View = tuple[Pixels, TissueMask]
"""A closer look at one region: its thumbnail, and the tissue among its cells."""


@dataclass(frozen=True)
class DrawnRegions:
    """The regions of one draw.

    Parameters
    ----------
    attention
        Over the slide's tissue regions, shape (T,).
    drawn
        Places among these.
    numbers
        Flat numbers of the drawn regions, shape (r,).
    generator
        What the cells within are drawn with.
    """

    attention: Tensor
    drawn: Draw
    numbers: Sequence[int]
    generator: torch.Generator


@dataclass(frozen=True)
class TwoLevelSampling(AttentionSampling):
    """See :class:`wsi_ats.methods.base.Method`; slides are seen as regions.

    Parameters
    ----------
    model
        Its network, with attention to regions.
    settings
        Sections ``tile``, ``thumbnail``, ``sampling`` and ``training`` are used.
    device
        Where the network is; the CPU by default.
    """

    def calibrate(self, examples: Sequence[Example], reader: TileReader) -> None:
        """Measure the encoder's constants on tiles drawn uniformly from regions drawn uniformly."""
        training = self.settings.training
        generator = np.random.default_rng(draw_seed(training.seed, "calibration", 0))
        chosen, each = calibration_slides(examples, training.calibration_tiles, generator)
        sampling = replace(self.settings.sampling, design="uniform", tiles=each)
        uniform = replace(self, settings=replace(self.settings, sampling=sampling))
        with torch.no_grad():
            drawn, failed = uniform._choose(
                chosen, reader, lambda example: draw_seed(training.seed, example.ref.id, -2)
            )
        if not drawn:
            raise ModelError(f"no slide could be read for calibration: {'; '.join(failed.values())}")
        seen = [(example, drawn[example.ref.id].tiles) for example in chosen if example.ref.id in drawn]
        wanted = [(example, tiles.grid, tiles.cells) for example, tiles in seen]
        calibrate_on(self.model.encoder, wanted, reader, device=self.device)

    def _choose(
        self, examples: Sequence[Example], reader: TileReader, seed_of: Callable[[Example], int]
    ) -> tuple[dict[str, Chosen], Mapping[str, str]]:
        drawn = [
            self._draw_regions(
                self._attend(self.model.attend_to_regions, each.thumbnail, each.tissue, each.ref.id),
                each.tissue,
                seed_of(each),
            )
            for each in examples
        ]
        jobs = [
            (
                example.ref,
                partial(
                    views_of,
                    coarse=example.thumbnail,
                    regions=regions_of(example.tissue, self.settings),
                    numbers=each.numbers,
                    settings=self.settings,
                ),
            )
            for example, each in zip(examples, drawn, strict=True)
        ]
        views, failed = outcomes(reader.run(jobs), examples)
        chosen = {
            example.ref.id: self._draw_cells(
                each, seen, regions_of(example.tissue, self.settings), example.ref.id
            )
            for example, each, seen in zip(examples, drawn, views, strict=True)
            if seen is not None
        }
        return chosen, failed

    def _draws(
        self, slide: Slide, thumbnail: Pixels, tissue: TissueMask, seeds: Iterable[int]
    ) -> Iterator[tuple[Tensor, WeightedTiles]]:
        regions, views = regions_of(tissue, self.settings), dict[int, View]()
        attention = self._attend(self.model.attend_to_regions, thumbnail, tissue, slide.path)
        for seed in seeds:
            drawn = self._draw_regions(attention, tissue, seed)
            new = [number for number in drawn.numbers if number not in views]
            views.update(zip(new, views_of(slide, thumbnail, regions, new, self.settings), strict=True))
            seen = [views[number] for number in drawn.numbers]
            yield attention, self._draw_cells(drawn, seen, regions, slide.path).tiles

    def _draw_regions(self, attention: Tensor, tissue: TissueMask, seed: int) -> DrawnRegions:
        sampling, generator = self.settings.sampling, torch.Generator().manual_seed(seed)
        n = min(sampling.regions, sampling.tiles)
        drawn = draw_by(attention, tissue, sampling, n, generator)
        return DrawnRegions(attention, drawn, tissue.cells[drawn.indices.numpy()].tolist(), generator)

    def _draw_cells(
        self, outer: DrawnRegions, views: Sequence[View], regions: RegionGrid, name: str
    ) -> Chosen:
        """Draw the cells of the drawn regions; a region that weighs more gets more of the tiles."""
        here = outer.drawn.to(outer.attention.device)
        weight = expectation.weights(outer.attention, here)
        sampling, masks = self.settings.sampling, [mask for _, mask in views]
        counts = allocate(weight.tolist(), [len(mask.cells) for mask in masks], sampling.tiles)
        attentions = [self._attend(self.model.attend, *view, name) for view in views]
        draws = [
            draw_by(attention, mask, sampling, count, outer.generator)
            for attention, mask, count in zip(attentions, masks, counts, strict=True)
        ]
        inner = [
            expectation.weights(attention, one.to(attention.device))
            for attention, one in zip(attentions, draws, strict=True)
        ]
        cells = [
            regions.numbers(regions.window(number), mask.cells[one.indices.numpy()])
            for number, mask, one in zip(outer.numbers, masks, draws, strict=True)
        ]
        within = torch.stack([expectation.entropy(attention) for attention in attentions])
        tiles = WeightedTiles(
            grid=regions.cells,
            cells=np.concatenate(cells),
            attention=expectation.joint(
                outer.attention[here.indices],
                [each[one.indices.to(each.device)] for each, one in zip(attentions, draws, strict=True)],
            ),
            inclusion=expectation.joint(outer.drawn.expected, [one.expected for one in draws]),
            weight=expectation.joint(weight, inner),
        )
        # The entropy of the product of both, of which the second part is known of the drawn regions only.
        return Chosen(tiles, expectation.entropy(outer.attention) + weight @ within)


def views_of(
    slide: Slide, coarse: Pixels, regions: RegionGrid, numbers: Sequence[int], settings: Settings
) -> list[View]:
    """Look closer at some regions, given by their numbers; see :func:`wsi_ats.look.look_closer`."""
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
