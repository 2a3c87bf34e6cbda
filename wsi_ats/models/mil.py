"""Attention-based multiple-instance learning: read and encode all tissue tiles, pool them by attention.

Memory holds all features of a slide, but the pixels and feature maps of a few tiles only: in training, the
backward pass reads and encodes the tiles a second time.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wsi_ats.errors import ModelError
from wsi_ats.geometry import IntArray
from wsi_ats.models.base import DrawLogits, Kind, OneByOne, WeightedTiles, draw_seed, naming
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.calibration import calibrate, embed_in_parts, uniform_tiles, varied
from wsi_ats.models.drawing import top_share
from wsi_ats.models.encoding import TILES_AT_A_TIME, Embed
from wsi_ats.models.evidence import TileAttention
from wsi_ats.models.features import Features
from wsi_ats.nn import expectation
from wsi_ats.nn.encoder import build_encoder
from wsi_ats.nn.network import AttentionMIL
from wsi_ats.nn.precision import autocast
from wsi_ats.overview.records import Overview
from wsi_ats.settings import MilModel, Settings
from wsi_ats.slides.base import Pixels, Slide


@dataclass(frozen=True)
class MultipleInstanceLearning(OneByOne):
    """See :class:`wsi_ats.models.base.Method` and :class:`wsi_ats.models.base.OneByOne`.

    Parameters
    ----------
    model, settings, device
        As in the latter.
    at_a_time
        Number of tiles read together; at scoring, as many more may be waiting to be encoded.
    """

    model: AttentionMIL
    at_a_time: int = TILES_AT_A_TIME

    def check(self, training: Sequence[Example], validation: Sequence[Example]) -> None:
        """Accept all slides: only features grow with their size, 2 KB per tile for a resnet18."""

    def calibrate(self, examples: Sequence[Example], reader: Reader) -> None:
        """Measure the encoder's constants on tiles drawn uniformly from all slides."""
        tiles = uniform_tiles(examples, self.settings.training)
        calibrate(self.model.encoder, tiles, reader, device=self.device)

    def _compute(self, example: Example, reader: Reader, seed: int) -> tuple[Tensor, Tensor, int]:
        features, tiles = self._features(example, reader, seed)
        with naming(example.ref.id):
            output, _, mass = self._classify(features)
        return output, self._log_weight(mass), tiles

    @torch.inference_mode()
    def score(
        self,
        slide: Slide,
        overview: Overview,
        seeds: Iterable[int],  # noqa: ARG002  (nothing is drawn)
        embed: Embed,
    ) -> Generator[DrawLogits, None, None]:
        """Compute the logits of one slide from all its tiles, weighted by attention."""
        grid, cells = overview.tissue.grid, overview.tissue.cells
        with naming(slide.path):
            features, empty = embed(grid, cells)
            outputs, logits, log_mass = self._classify(features)
        attention = torch.softmax(logits, 0)
        attended = TileAttention(
            torch.log_softmax(logits, 0), log_mass, expectation.entropy(attention), top_share(attention)
        )
        inclusion = torch.ones(len(cells), dtype=torch.float64)
        yield DrawLogits(
            outputs.float().cpu(),
            WeightedTiles(grid, cells, attention, inclusion, attention, attended),
            new_tiles=len(cells),
            empty_tiles=empty,
            attention=attention,
            log_weight=self._log_weight(log_mass).item(),
        )

    def _classify(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs, attention logits (K,) and their logsumexp, from features (K, D) of all tiles."""
        logits = self.model.score_tiles(features)
        if not logits.isfinite().all():
            raise ModelError("attention is NaN or infinite; try lower learning rates")
        attention = torch.softmax(logits, 0)
        return self.model.classify(self.model.pool(attention, features)), logits, logits.logsumexp(0)

    def _log_weight(self, log_mass: Tensor) -> Tensor:
        """See :class:`wsi_ats.models.base.Estimates`."""
        return log_mass if self.settings.model.cases == "union" else torch.zeros_like(log_mass)

    def _features(self, example: Example, reader: Reader, seed: int) -> tuple[Tensor, int]:
        """Return features (K, D) of the tiles of a slide, and the number of tiles that are read for them.

        In training the tiles are a random subset if settings ask for one.
        """
        tissue = example.overview.tissue

        def read(cells: IntArray) -> Pixels | Features:
            [tiles] = reader.read([(example.ref, tissue.grid, cells)])
            return tiles.result()

        cells, encoder = tissue.cells, self.model.encoder
        most = self.settings.model_as(MilModel).mil_tiles
        if self.model.training and 0 < most < len(cells):
            generator = np.random.default_rng(draw_seed(seed, "subset", 0))
            cells = np.sort(generator.choice(cells, most, replace=False))
        twice = torch.is_grad_enabled() and any(each.requires_grad for each in encoder.parameters())
        vary_part = partial(self._vary, seed=seed) if self.model.training else None
        device = self.device or torch.device("cpu")
        with autocast(self.settings.training.precision, device, self.settings.tile.size):
            features = embed_in_parts(
                self.model.embed,
                read,
                cells,
                self.device,
                at_a_time=self.at_a_time,
                twice=twice,
                vary_part=vary_part,
            )
        return features, 2 * len(cells) if twice else len(cells)

    def _vary(self, tiles: Tensor, cells: IntArray, *, seed: int) -> Tensor:
        if tiles.ndim == 2:  # features, which cannot be varied
            return tiles
        # One seed per part, because the backward pass must vary the tiles in the same way.
        part = draw_seed(seed, "part", int(cells[0]))
        return varied(tiles, [len(cells)], [part], self.settings.augmentation)


def _build(settings: Settings, outputs: int, weights: bool) -> AttentionMIL:
    model = settings.model_as(MilModel)
    encoder = build_encoder(
        model.backbone,
        pretrained=model.pretrained and weights,
        checkpoint=model.checkpoint if weights else "",
        size=settings.tile.size,
    )
    network = AttentionMIL(encoder, classes=outputs, gated=model.mil_attention == "gated")
    network.dropout = settings.training.feature_dropout
    return network


MIL = Kind(AttentionMIL, _build, MultipleInstanceLearning)
"""Kind ``mil``: attention-based multiple-instance learning on all tiles."""
