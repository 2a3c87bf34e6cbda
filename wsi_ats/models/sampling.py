"""Attention sampling: attend to the thumbnail, draw a few tiles, read and encode them, estimate the slide.

A strategy (:class:`wsi_ats.models.drawing.TileDraws`) draws and weighs tiles; everything after that is the
same for one and two levels of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ats.errors import ModelError, SlideReadError
from wsi_ats.geometry import IntArray
from wsi_ats.models.base import DrawLogits, Estimates, Finish, WeightedTiles, naming
from wsi_ats.models.batches import Example, Reader, outcomes
from wsi_ats.models.calibration import calibrate, varied
from wsi_ats.models.drawing import CellDraws, PlannedTiles, ThumbnailAttention, TileDraws
from wsi_ats.models.encoding import TILES_AT_A_TIME, Embed, to_device
from wsi_ats.models.evidence import Evidence
from wsi_ats.models.features import Features
from wsi_ats.models.two_level import RegionDraws
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.precision import autocast
from wsi_ats.overview.records import Overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.tasks.registry import task_named

# Tile pixels in one pass, forward and backward: 64 tiles of 256 pixels hold about 2.5 GB in a resnet18.
_PIXELS_AT_A_TIME = 64 * 256**2


@dataclass(frozen=True)
class AttentionSampling:
    """See :class:`wsi_ats.models.base.Method`.

    Parameters
    ----------
    model
        The network.
    settings
        Sections ``model``, ``tile``, ``thumbnail``, ``sampling``, ``training``, ``augmentation`` and
        ``scoring`` are used.
    device
        Device of the network; the CPU by default.
    turns
        See :class:`wsi_ats.models.drawing.ThumbnailAttention`; with two levels, regions are turned as well.
    """

    model: AttentionSampler
    settings: Settings
    device: torch.device | None = None
    turns: torch.Generator | None = None

    @property
    def _tiles(self) -> TileDraws:
        attention = ThumbnailAttention(self.model, self.device, self.turns)
        levels = self.settings.thumbnail.levels
        return CellDraws(attention, self.settings) if levels == 1 else RegionDraws(attention, self.settings)

    def passes(self, slides: int) -> int:
        """Split a step so that the tiles of a pass fit into memory; gradients are summed."""
        tiles = self.settings.training.tiles_per_pass or _PIXELS_AT_A_TIME // self.settings.tile.size**2
        per_pass = max(1, tiles // self.settings.sampling.tiles)
        return -(-slides // per_pass)

    def check(self, training: Sequence[Example], validation: Sequence[Example]) -> None:
        """Accept all slides: the memory that is needed does not depend on their size."""

    def calibrate(self, examples: Sequence[Example], reader: Reader) -> None:
        """Measure the encoder's constants on tiles drawn uniformly from all slides."""
        tiles = self._tiles.calibration_tiles(examples, reader)
        calibrate(self.model.encoder, tiles, reader, device=self.device)

    def begin(self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]) -> Finish:
        """Draw the tiles of some slides, once each, and begin to read them.

        Gradients reach the whole model, except attention that settings freeze.

        Raises
        ------
        ModelError
            When attention is NaN or infinite.
        """
        with torch.no_grad():
            plans, unseen = self._tiles.plan(examples, reader, seeds)
        planned = [(place, plan) for place, plan in enumerate(plans) if plan is not None]
        futures = reader.read([(examples[place].ref, plan.grid, plan.cells) for place, plan in planned])

        def finish() -> Estimates:
            tiles, unread = outcomes(futures, [examples[place] for place, _ in planned])
            kept = [
                (*each, pixels) for each, pixels in zip(planned, tiles, strict=True) if pixels is not None
            ]
            return self._estimate(
                [place for place, _, _ in kept],
                [plan for _, plan, _ in kept],
                [pixels for _, _, pixels in kept],
                [seeds[place] for place, _, _ in kept],
                {**unseen, **unread},
            )

        return finish

    def _estimate(
        self,
        places: Sequence[int],
        plans: Sequence[PlannedTiles],
        pixels: Sequence[Pixels | Features],
        seeds: Sequence[int],
        failed: Mapping[str, str],
    ) -> Estimates:
        """Weigh the tiles of slides by the current attention, and encode and pool them."""
        if not plans:
            none = torch.zeros(0, device=self.device)
            outputs = torch.zeros(0, self.model.head.out_features, device=self.device)
            return Estimates(outputs, [], failed, none)
        drawn = [plan.weigh() for plan in plans]
        counts = [len(each) for each in pixels]
        features = torch.split(self._embed(np.concatenate(pixels), counts, seeds), counts)
        slides = list(zip(drawn, features, strict=True))
        pooled = [self.model.pool(tiles.weight, each) for tiles, each in slides]
        log_weight = [self._log_weight(tiles, tiles.weight, each) for tiles, each in slides]
        return Estimates(
            outputs=self.model.classify(torch.stack(pooled)),
            places=places,
            failed=failed,
            log_weight=torch.stack(log_weight),
            tiles=sum(counts),
            drawn=drawn,
            features=features,
        )

    def begin_survey(self, example: Example, reader: Reader, seed: int) -> Callable[[], Evidence]:
        """Draw tiles of a slide by the current attention, and begin to read them.

        Attention should be uniform, so that the tiles represent the slide.

        Parameters
        ----------
        example
            The slide.
        reader
            Reader of its tiles.
        seed
            Seed of the draw.

        Returns
        -------
        function
            Function to call once. It computes gate and outputs of each tile, without gradient, and may raise
            :class:`~wsi_ats.errors.SlideError`.
        """
        plan = self._plan_one(example, reader, seed)
        [tiles] = reader.read([(example.ref, plan.grid, plan.cells)])

        @torch.no_grad()
        def finish() -> Evidence:
            parts = np.array_split(pixels := tiles.result(), -(-len(pixels) // TILES_AT_A_TIME))
            features = torch.cat([self._embed(part, [len(part)], [seed]) for part in parts])
            tile_outputs = torch.cat(
                [self.model.gate_logits(features)[:, None], self.model.classify(features)], 1
            )
            if not tile_outputs.isfinite().all():
                raise ModelError(
                    f"{example.ref.id}: classifier outputs are NaN or infinite; try lower learning rates"
                )
            return self._evidence(plan, tile_outputs.double())

        return finish

    def recall(self, example: Example, reader: Reader, seed: int, tile_outputs: Tensor) -> Evidence:
        """Return the evidence of an earlier survey with the same seed, without reading its tiles again.

        Parameters
        ----------
        example, reader, seed
            See :meth:`begin_survey`.
        tile_outputs
            Gate and classifier outputs of each tile from that survey; see :class:`Evidence`.

        Raises
        ------
        SlideError
            When the overview of a drawn region cannot be read.
        """
        return self._evidence(self._plan_one(example, reader, seed), tile_outputs)

    @torch.no_grad()
    def _evidence(self, plan: PlannedTiles, tile_outputs: Tensor) -> Evidence:
        tiles = plan.weigh()
        return Evidence(
            attend=lambda: plan.weigh().attended,
            weight=tiles.weight,
            uniform=tiles.attended,
            tile_outputs=tile_outputs.to(tiles.weight.device),
            zero_outputs=None if self.model.pooling.divides else self.model.head.bias.double(),
            classes=task_named(self.settings.model.task).has_classes,
        )

    @torch.no_grad()
    def _plan_one(self, example: Example, reader: Reader, seed: int) -> PlannedTiles:
        [plan], failed = self._tiles.plan([example], reader, [seed])
        if plan is None:
            raise SlideReadError(example.ref.path, failed[example.ref.id])
        return plan

    def _embed(self, pixels: NDArray[Any], counts: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Return features (N, D) of the tiles of several slides, encoded together."""
        tiles = to_device(pixels, self.device)
        if self.model.training and tiles.ndim == 4:
            tiles = varied(tiles, counts, seeds, self.settings.augmentation)
        with autocast(self.settings.training.precision, tiles.device, self.settings.tile.size):
            return self.model.embed(tiles)

    def _log_weight(self, tiles: WeightedTiles, weight: Tensor, features: Tensor) -> Tensor:
        """See :class:`wsi_ats.models.base.Estimates`."""
        log_mass = tiles.attended.log_mass
        if self.settings.model.cases != "union":
            return log_mass.new_zeros(())
        return log_mass + self.model.log_mass(weight, features)

    @torch.inference_mode()
    def score(
        self, slide: Slide, overview: Overview, seeds: Iterable[int], embed: Embed
    ) -> Generator[DrawLogits, None, None]:
        """Estimate the logits of one slide, draw by draw; a tile of several draws is read once."""
        known: dict[int, Tensor] = {}
        cells: list[IntArray] = []
        weights: list[Tensor] = []
        features: list[Tensor] = []
        with naming(slide.path):
            for attention, tiles in self._tiles.draws(slide, overview, seeds):
                new = np.array(sorted(set(tiles.cells.tolist()) - known.keys()), dtype=np.int64)
                empty = 0
                if len(new):
                    encoded, empty = embed(tiles.grid, new)
                    known.update(zip(new.tolist(), encoded, strict=True))
                cells.append(tiles.cells)
                weights.append(tiles.weight)
                features.append(torch.stack([known[cell] for cell in tiles.cells.tolist()]))
                logits = self.model.classify(self.model.pool(weights[-1], features[-1]))
                weight, drawn = torch.cat(weights) / len(weights), torch.cat(features)
                yield DrawLogits(
                    logits.float().cpu(),
                    tiles,
                    new_tiles=len(new),
                    empty_tiles=empty,
                    attention=attention,
                    pooled_logits=self.model.classify(self.model.pool(weight, drawn)).float().cpu(),
                    log_weight=self._log_weight(tiles, weight, drawn).item(),
                    # Of all draws, only the last is asked, so none keeps a copy of the features before it.
                    logits_without=partial(self._logits_without, cells, weights, features, len(cells)),
                )

    @torch.inference_mode()
    def _logits_without(
        self, cells: Sequence[IntArray], weights: Sequence[Tensor], features: Sequence[Tensor], draws: int
    ) -> Tensor:
        """See :class:`wsi_ats.models.base.DrawLogits`; for the first so many draws."""
        _, group = np.unique(np.concatenate(cells[:draws]), return_inverse=True)
        weight, drawn = torch.cat(list(weights[:draws])) / draws, torch.cat(list(features[:draws]))
        pooled = self.model.pool_without(weight, drawn, torch.from_numpy(group).to(drawn.device))
        return self.model.classify(pooled.to(drawn.dtype)).double().cpu()
