"""Attention sampling: attend to the thumbnail, draw a few tiles, read and encode those, estimate all.

:func:`choose` says which tiles are read and with which weights; what is then done with their pixels is
the same for training and scoring, and does not depend on how they were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wsi_ats.batches import Example, TileReader, outcomes
from wsi_ats.config import Settings
from wsi_ats.errors import ModelError
from wsi_ats.methods.base import DrawLogits, Estimates, WeightedTiles
from wsi_ats.methods.tiles import calibrate, embed_in_parts
from wsi_ats.nn import expectation
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.sampling import draw, explore
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.tiles import read_tiles

# Tile pixels in one pass, forward and backward: 64 tiles of 256 pixels hold about 2.5 GB in a resnet18.
_PIXELS_AT_A_TIME = 64 * 256**2


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
        chosen = [self._choose(example, seed_of(example)) for example in examples]
        wanted = [(e, each.tiles.cells) for e, each in zip(examples, chosen, strict=True)]
        tiles, failed = outcomes(reader.read(wanted), examples)
        kept = [i for i, each in enumerate(tiles) if each is not None]
        read: list[Pixels] = [each for each in tiles if each is not None]
        entropies = [chosen[i].entropy for i in kept]
        return Estimates(
            logits=self._logits([chosen[i].tiles.weight for i in kept], read),
            targets=torch.tensor([examples[i].target for i in kept], dtype=torch.int64, device=self.device),
            entropy=torch.stack(entropies) if entropies else torch.zeros(0, device=self.device),
            tiles=sum(len(each) for each in read),
            failed=failed,
        )

    @torch.inference_mode()
    def score(
        self, slide: Slide, thumbnail: Pixels, tissue: TissueMask, seeds: Iterable[int]
    ) -> Iterator[DrawLogits]:
        """Estimate the logits of one slide, draw by draw; a tile of several draws is read once."""
        attention = self._attend(thumbnail, tissue, slide.path)
        read, features = partial(read_tiles, slide, tissue.grid), dict[int, Tensor]()
        for seed in seeds:
            chosen = choose(attention, tissue, self.settings, seed)
            new = np.array(sorted(set(chosen.cells.tolist()) - features.keys()), dtype=np.int64)
            if len(new):
                encoded = embed_in_parts(self.model.embed, read, new, self.device)
                features.update(zip(new.tolist(), encoded, strict=True))
            drawn = torch.stack([features[cell] for cell in chosen.cells.tolist()])
            logits = self.model.classify(self.model.pool(chosen.weight, drawn))
            yield DrawLogits(logits.float().cpu(), chosen, len(new), attention)

    def _attend(self, thumbnail: Pixels, tissue: TissueMask, name: str) -> Tensor:
        """Attention (K,) over a slide's tissue cells; the slide's name is for the error."""
        cells = torch.from_numpy(tissue.cells).to(self.device)
        seen = torch.from_numpy(thumbnail).to(self.device)
        attention = self.model.attend(seen, cells, tissue.grid.shape)
        if not attention.isfinite().all():
            raise ModelError(f"the attention of {name} is no number; try lower learning rates")
        return attention

    def _choose(self, example: Example, seed: int) -> Chosen:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.training.freeze_attention):
            attention = self._attend(example.thumbnail, example.tissue, example.ref.id)
            return Chosen(attention, choose(attention, example.tissue, self.settings, seed))

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
    attention
        Over the slide's tissue cells, shape (K,).
    tiles
        Those of one draw.
    """

    attention: Tensor
    tiles: WeightedTiles

    @property
    def entropy(self) -> Tensor:
        """Of the attention, in nats."""
        return expectation.entropy(self.attention)


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
    drawn = draw(
        settings.sampling.design,
        explore(attention.cpu(), settings.sampling.exploration),
        cells=torch.from_numpy(tissue.cells),
        shape=tissue.grid.shape,
        n=settings.sampling.tiles,
        generator=torch.Generator().manual_seed(seed),
    )
    here = drawn.to(attention.device)
    return WeightedTiles(
        cells=tissue.cells[drawn.indices.numpy()],
        attention=attention[here.indices],
        inclusion=drawn.expected,
        weight=expectation.weights(attention, here),
    )
