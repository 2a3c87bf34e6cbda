"""Attention-based multiple-instance learning: read and encode all tissue tiles, pool them by attention.

All of a slide's features are in memory, but pixels and feature maps of a few tiles only: in training the
backward pass reads and encodes the tiles a second time. With a frozen backbone each tile is encoded once,
and its feature kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from wsi_ats.batches import Example, TileReader
from wsi_ats.config import Settings
from wsi_ats.errors import ModelError, SlideError
from wsi_ats.features import FeatureFolder
from wsi_ats.geometry import IntArray
from wsi_ats.methods.base import DrawLogits, Estimates, WeightedTiles
from wsi_ats.methods.tiles import TILES_AT_A_TIME, calibrate, embed_in_parts
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.mil import AttentionMIL
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.tiles import read_tiles


@dataclass(frozen=True)
class MultipleInstanceLearning:
    """See :class:`wsi_ats.methods.base.Method`.

    Parameters
    ----------
    model
        Its network.
    settings
        Section ``training`` is used.
    device
        Where the network is; the CPU by default.
    folder
        For features of a frozen backbone; without, they are computed anew each time.
    at_a_time
        Most tiles whose pixels are in memory at once.
    """

    model: AttentionMIL
    settings: Settings
    device: torch.device | None = None
    folder: Path | None = None
    at_a_time: int = TILES_AT_A_TIME

    def passes(self, slides: int) -> int:
        """One slide in a pass: the features of a single one are in memory."""
        return slides

    def check(self, training: Sequence[Example], validation: Sequence[Example]) -> None:
        """All slides will do: only features grow with their size, 2 KB a tile in a resnet18."""

    def calibrate(self, examples: Sequence[Example], reader: TileReader) -> None:
        """Measure the encoder's constants on tiles drawn uniformly from all slides."""
        calibrate(self.model.encoder, examples, reader, self.settings, device=self.device)

    def estimate(
        self,
        examples: Sequence[Example],
        reader: TileReader,
        seed_of: Callable[[Example], int],  # noqa: ARG002  (nothing is drawn)
    ) -> Estimates:
        """Compute the logits of some slides from all their tiles; nothing is estimated.

        Raises
        ------
        ModelError
            When attention is no longer a number.
        """
        logits, targets, failed, read = [], [], {}, 0
        for example in examples:
            try:
                features, tiles = self._features(example, reader)
            except SlideError as error:
                failed[example.ref.id] = str(error)
                continue
            logits.append(self._classify(features, example.ref.id)[0])
            targets.append(example.target)
            read += tiles
        none = torch.zeros(0, self.model.head.out_features, device=self.device)
        return Estimates(
            logits=torch.stack(logits) if logits else none,
            targets=torch.tensor(targets, dtype=torch.int64, device=self.device),
            failed=failed,
            tiles=read,
        )

    @torch.inference_mode()
    def score(
        self,
        slide: Slide,
        thumbnail: Pixels,  # noqa: ARG002  (all that it says is in `tissue`)
        tissue: TissueMask,
        seeds: Iterable[int],  # noqa: ARG002  (nothing is drawn)
    ) -> Iterator[DrawLogits]:
        """Compute the logits of one slide from all its tiles; each weighs what attention gives it."""
        features = self._embed(partial(read_tiles, slide, tissue.grid), tissue.cells)
        logits, attention = self._classify(features, slide.path)
        tiles = WeightedTiles(
            grid=tissue.grid,
            cells=tissue.cells,
            attention=attention,
            inclusion=torch.ones(len(attention), dtype=torch.float64),
            weight=attention,
        )
        yield DrawLogits(logits.float().cpu(), tiles, len(tissue.cells), attention)

    def _classify(self, features: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Logits (classes,) and attention (K,) from the features (K, D) of all tiles."""
        attention = self.model.attend(features)
        if not attention.isfinite().all():
            raise ModelError(f"the attention of {name} is no number; try lower learning rates")
        return self.model.classify(self.model.pool(attention, features)), attention

    def _features(self, example: Example, reader: TileReader) -> tuple[Tensor, int]:
        """Features (K, D) of all tiles of a slide, and how many tiles are read for them.

        From disk, if they are there and cannot have changed.
        """

        def read(cells: IntArray) -> Pixels:
            [tiles] = reader.read([(example, cells)])
            return tiles.result()

        cells, learns = example.tissue.cells, any(w.requires_grad for w in self.model.encoder.parameters())
        store = None if learns else self._store
        stored = store and store.load(example.ref, example.tissue)
        if stored is not None:
            return torch.from_numpy(stored).to(self.device), 0
        twice = learns and torch.is_grad_enabled()
        features = self._embed(read, cells, twice=twice)
        if store:
            store.save(example.ref, example.tissue, features.cpu().numpy())
        return features, 2 * len(cells) if twice else len(cells)

    def _embed(self, read: Callable[[IntArray], Pixels], cells: IntArray, *, twice: bool = False) -> Tensor:
        return embed_in_parts(
            self.model.embed, read, cells, self.device, at_a_time=self.at_a_time, twice=twice
        )

    @cached_property
    def _store(self) -> FeatureFolder | None:
        # Asked for after calibration, and a frozen encoder does not change any more.
        return FeatureFolder(self.folder, fingerprint(self.model.encoder)) if self.folder else None


def fingerprint(encoder: TileEncoder) -> str:
    """Digest of all that an encoder's features depend on: weights, statistics and constants."""
    digest = hashlib.sha256()
    for name, value in chain(encoder.named_parameters(), encoder.named_buffers()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
