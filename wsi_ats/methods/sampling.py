"""Attention sampling: attend to the thumbnail, draw a few tiles, read and encode those, estimate all.

:func:`choose` says which tiles are read and with which weights; what is then done with their pixels is
the same for training and scoring, and does not depend on how they were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wsi_ats.batches import Example, TileReader, outcomes
from wsi_ats.config import SamplingSettings, Settings
from wsi_ats.errors import ModelError
from wsi_ats.methods.base import DrawLogits, Estimates, WeightedTiles
from wsi_ats.methods.tiles import calibrate, embed_in_parts
from wsi_ats.nn import expectation
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.sampling import Draw, draw, explore
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.tiles import read_tiles

# Tile pixels in one pass, forward and backward: 64 tiles of 256 pixels hold about 2.5 GB in a resnet18.
_PIXELS_AT_A_TIME = 64 * 256**2

Looker = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
"""From a thumbnail, candidate cells and the grid's shape to attention over the cells."""


@dataclass(frozen=True)
class AttentionSampling:
    """See :class:`wsi_ats.methods.base.Method`.

    Parameters
    ----------
    model
        Its network.
    settings
        Sections ``tile``, ``sampling`` and ``training`` are used.
    device
        Where the network is; the CPU by default.
    """

    model: AttentionSampler
    settings: Settings
    device: torch.device | None = None

    def passes(self, slides: int) -> int:
        """Into how many passes a step is cut, so that its tiles fit into memory; gradients are summed."""
        pixels = slides * self.settings.sampling.tiles * self.settings.tile.size**2
        return min(slides, -(-pixels // _PIXELS_AT_A_TIME))

    def check(self, training: Sequence[Example], validation: Sequence[Example]) -> None:
        """All slides will do: what is held in memory does not depend on their size."""

    def calibrate(self, examples: Sequence[Example], reader: TileReader) -> None:
        """Measure the encoder's constants on tiles drawn uniformly from all slides."""
        calibrate(self.model.encoder, examples, reader, self.settings, device=self.device)

    def estimate(
        self, examples: Sequence[Example], reader: TileReader, seed_of: Callable[[Example], int]
    ) -> Estimates:
        """Estimate the logits of some slides, each from one draw of its tiles.

        Gradients flow into all of the model, but not into its attention if settings freeze that.

        Raises
        ------
        ModelError
            When attention is no longer a number.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.training.freeze_attention):
            chosen, unseen = self._choose(examples, reader, seed_of)
        seen = [example for example in examples if example.ref.id in chosen]
        wanted = [chosen[example.ref.id].tiles for example in seen]
        jobs = [
            (example.ref, partial(read_tiles, grid=tiles.grid, cells=tiles.cells))
            for example, tiles in zip(seen, wanted, strict=True)
        ]
        tiles, unread = outcomes(reader.run(jobs), seen)
        kept = [example for example, each in zip(seen, tiles, strict=True) if each is not None]
        read: list[Pixels] = [each for each in tiles if each is not None]
        weights = [chosen[example.ref.id].tiles.weight for example in kept]
        entropies = [chosen[example.ref.id].entropy for example in kept]
        return Estimates(
            logits=self._logits(weights, read),
            targets=torch.tensor([each.target for each in kept], dtype=torch.int64, device=self.device),
            failed={**unseen, **unread},
            tiles=sum(len(each) for each in read),
            entropy=torch.stack(entropies) if entropies else torch.zeros(0, device=self.device),
        )

    @torch.inference_mode()
    def score(
        self, slide: Slide, thumbnail: Pixels, tissue: TissueMask, seeds: Iterable[int]
    ) -> Iterator[DrawLogits]:
        """Estimate the logits of one slide, draw by draw; a tile of several draws is read once."""
        features: dict[int, Tensor] = {}
        weights: list[Tensor] = []
        drawn: list[Tensor] = []
        for attention, chosen in self._draws(slide, thumbnail, tissue, seeds):
            read = partial(read_tiles, slide, chosen.grid)
            new = np.array(sorted(set(chosen.cells.tolist()) - features.keys()), dtype=np.int64)
            if len(new):
                encoded = embed_in_parts(self.model.embed, read, new, self.device)
                features.update(zip(new.tolist(), encoded, strict=True))
            weights.append(chosen.weight)
            drawn.append(torch.stack([features[cell] for cell in chosen.cells.tolist()]))
            logits = self.model.classify(self.model.pool(weights[-1], drawn[-1]))
            pooled = self.model.pool(torch.cat(weights) / len(weights), torch.cat(drawn))
            together = self.model.classify(pooled).float().cpu()
            yield DrawLogits(logits.float().cpu(), chosen, len(new), attention, together)

    def _attend(self, network: Looker, thumbnail: Pixels, tissue: TissueMask, name: str) -> Tensor:
        """Attention (K,) of a network over the tissue cells; the slide's name is for the error."""
        cells = torch.from_numpy(tissue.cells).to(self.device)
        attention = network(torch.from_numpy(thumbnail).to(self.device), cells, tissue.grid.shape)
        if not attention.isfinite().all():
            raise ModelError(f"the attention of {name} is no number; try lower learning rates")
        return attention

    def _choose(
        self, examples: Sequence[Example], reader: TileReader, seed_of: Callable[[Example], int]
    ) -> tuple[dict[str, Chosen], Mapping[str, str]]:
        """Choose the tiles of some slides; by slide, with the messages of those that cannot be read."""
        del reader  # the thumbnail is all there is to see
        chosen = {}
        for example in examples:
            attention = self._attend(self.model.attend, example.thumbnail, example.tissue, example.ref.id)
            tiles = choose(attention, example.tissue, self.settings, seed_of(example))
            chosen[example.ref.id] = Chosen(tiles, expectation.entropy(attention))
        return chosen, {}

    def _draws(
        self, slide: Slide, thumbnail: Pixels, tissue: TissueMask, seeds: Iterable[int]
    ) -> Iterator[tuple[Tensor, WeightedTiles]]:
        """Attention over the tissue mask, and the tiles of each draw."""
        attention = self._attend(self.model.attend, thumbnail, tissue, slide.path)
        for seed in seeds:
            yield attention, choose(attention, tissue, self.settings, seed)

    def _logits(self, weights: Sequence[Tensor], tiles: Sequence[Pixels]) -> Tensor:
        """Logits (B, classes) of slides from the weights and pixels of their tiles; all encoded at once."""
        if not tiles:
            return self.model.classify(torch.zeros(0, self.model.encoder.width, device=self.device))
        features = self.model.embed(torch.from_numpy(np.concatenate(tiles)).to(self.device))
        parts = torch.split(features, [len(each) for each in tiles])
        pooled = [self.model.pool(weight, part) for weight, part in zip(weights, parts, strict=True)]
        return self.model.classify(torch.stack(pooled))


@dataclass(frozen=True)
class Chosen:
    """Which tiles of a slide are to be read.

    Parameters
    ----------
    tiles
        Those of one draw.
    entropy
        Of the attention that they were drawn by, in nats.
    """

    tiles: WeightedTiles
    entropy: Tensor


def choose(attention: Tensor, tissue: TissueMask, settings: Settings, seed: int) -> WeightedTiles:
    """Draw the tiles of a slide once.

    Parameters
    ----------
    attention
        Over the tissue cells, shape (K,), with gradient.
    tissue
        The cells that may be drawn; at least one.
    settings
        Section ``sampling`` is used.
    seed
        Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_by(attention, tissue, settings.sampling, settings.sampling.tiles, generator)
    here = drawn.to(attention.device)
    return WeightedTiles(
        grid=tissue.grid,
        cells=tissue.cells[drawn.indices.numpy()],
        attention=attention[here.indices],
        inclusion=drawn.expected,
        weight=expectation.weights(attention, here),
    )


def draw_by(
    attention: Tensor, tissue: TissueMask, sampling: SamplingSettings, n: int, generator: torch.Generator
) -> Draw:
    """Draw ``n`` of the ``tissue`` cells by ``attention`` over them, shape (K,), as ``sampling`` says.

    On the CPU, wherever the attention is; see :func:`wsi_ats.nn.sampling.draw` for the ``generator``.
    """
    return draw(
        sampling.design,
        explore(attention.cpu(), sampling.exploration),
        cells=torch.from_numpy(tissue.cells),
        shape=tissue.grid.shape,
        n=n,
        generator=generator,
    )
