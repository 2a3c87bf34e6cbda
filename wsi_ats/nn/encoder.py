"""Encode tiles: from pixels to vectors of equal length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_ats.errors import ModelError
from wsi_ats.nn.backbone import Backbone, batch_norms, create_backbone, last_blocks
from wsi_ats.nn.precision import in_full

# Tiles per pass while constants are measured.
_CALIBRATION_BATCH = 64


class TileEncoder(nn.Module):
    """A backbone whose features are standardised by constants, then scaled to one length.

    The estimator is exact only if a feature is a function of its own tile, and sampling in proportion to
    attention is optimal only if all features have the same length. But the raw features of a network are
    nearly parallel, and some vary a thousand times as much as others: their unit vectors hardly differ, and a
    head needs very many steps to separate tiles. Batch normalisation solves that, but makes a feature depend
    on the other tiles of its batch.

    Here features are standardised by a mean and a standard deviation that :meth:`calibrate` measures once,
    before training, on a few hundred tiles. These are constants afterwards, like the statistics of batch
    normalisation inside the backbone, so a feature remains a function of its own tile. Removing correlations
    as well (whitening) was worse: a few hundred tiles determine few of a thousand directions
    (``benchmarks/learning.py``).

    Parameters
    ----------
    backbone
        The network.
    trained
        Whether the backbone has trained weights; it then keeps the statistics of its training.
    """

    # Relative to the feature with the largest spread.
    CONSTANT = 1e-5

    def __init__(self, backbone: Backbone, *, trained: bool) -> None:
        super().__init__()
        # Tiles have channels last, and convolutions are faster on them in this format.
        self.network = backbone.network.to(memory_format=torch.channels_last)
        self.width = backbone.width
        self._trained = trained
        self._frozen = False
        self.register_buffer("centre", torch.zeros(backbone.width))
        self.register_buffer("scale", torch.ones(backbone.width))
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std).reshape(3, 1, 1), persistent=False)
        self.centre: Tensor
        self.scale: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.train(self.training)

    def adopt(self, backbone: Backbone) -> None:
        """Encode pixels with the backbone that computed the features from which a model has learned.

        Parameters
        ----------
        backbone
            The network with its trained weights; it is not trained.

        Raises
        ------
        ModelError
            When it has another number of features.
        """
        if backbone.width != self.width:
            raise ModelError(
                f"the encoder has {backbone.width} features for each tile, but the model was trained on "
                f"{self.width}; it was trained on features of another encoder"
            )
        self.network = backbone.network.to(memory_format=torch.channels_last)
        for own, given in ((self.mean, backbone.mean), (self.std, backbone.std)):
            own.copy_(255 * torch.tensor(given).reshape(3, 1, 1))
        self._trained = True
        self.freeze()

    def forward(self, tiles: Tensor) -> Tensor:
        """Encode tiles.

        Parameters
        ----------
        tiles
            RGB, uint8, shape (N, h, w, 3), on the encoder's device.

        Returns
        -------
        Tensor, shape (N, width)
            Vectors of length sqrt(width), so that a typical entry is of size 1.
        """
        return self.standardise(self.raw(tiles))

    def standardise(self, raw: Tensor) -> Tensor:
        """Return the features (N, width) for gate, pooling and head from those of the backbone."""
        raw = self._of_own_width(raw).to(self.centre.dtype)
        # Half precision is not enough to divide by small numbers.
        with in_full():
            return F.normalize((raw - self.centre) * self.scale, dim=1) * math.sqrt(self.width)

    def raw(self, tiles: Tensor) -> Tensor:
        """Return the backbone's own features (N, width) of tiles (N, h, w, 3), uint8."""
        images = (tiles.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        features: Tensor = self.network(images)
        return features

    def _seen(self, tiles: Tensor) -> Tensor:
        return self._of_own_width(tiles) if tiles.ndim == 2 else self.raw(tiles)

    def _of_own_width(self, features: Tensor) -> Tensor:
        if features.shape[1] != self.width:
            raise ModelError(
                f"got {features.shape[1]} features for each tile, but the model takes {self.width}; set "
                f"model.backbone=features:{features.shape[1]}, or give features of that width"
            )
        return features

    def freeze(self, *, but_last: int = 0) -> None:
        """Exclude the network from training from now on.

        Parameters
        ----------
        but_last
            Number of blocks at the end of the network that keep learning; see
            :func:`wsi_ats.nn.backbone.last_blocks`. With 0 there is no dropout in training either.

        Raises
        ------
        ModelError
            When the network has fewer blocks.
        """
        self.requires_grad_(False)
        self._frozen = but_last == 0
        for weight in last_blocks(self.network, but_last):
            weight.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> TileEncoder:
        """Switch layers such as dropout; normalisation layers stay constant."""
        super().train(mode)
        if self._frozen:
            self.network.eval()
        for layer in batch_norms(self.network):
            layer.eval()
        return self

    def calibrate(self, tiles: Tensor) -> None:
        """Measure the constants on a set of tiles.

        Parameters
        ----------
        tiles
            RGB, uint8, shape (N, h, w, 3), or the backbone's features, shape (N, width); N >= 2; drawn from
            all the tissue that will be encoded.

        Raises
        ------
        ModelError
            When there are fewer than two tiles.
        """
        if len(tiles) < 2:
            raise ModelError(f"calibration needs at least 2 tiles, not {len(tiles)}")
        # Equal parts: batch normalisation has no statistics of a single small tile that would be left over.
        parts = torch.tensor_split(tiles, math.ceil(len(tiles) / _CALIBRATION_BATCH))
        self.calibrate_on(lambda: parts)

    @torch.no_grad()
    def calibrate_on(self, parts: Callable[[], Iterable[Tensor]]) -> None:
        """Measure the constants on tiles or images that need not all be in memory at once.

        Parameters
        ----------
        parts
            Function called for each of up to two passes; yields RGB, uint8, shape (n, h, w, 3), n >= 1, of
            any size, or the backbone's features, shape (n, width).

        Raises
        ------
        ModelError
            When there are fewer than two images, or one is too small for the network.
        """
        was_training = self.training
        self.eval()
        if not self._trained:
            for layer in batch_norms(self.network):
                layer.reset_running_stats()
                layer.momentum = None  # the mean over all passes
                layer.train()
            for part in parts():
                try:
                    self._seen(part)
                except ValueError as error:  # a single pixel has no variance
                    size = f"{part.shape[2]} x {part.shape[1]} pixels"
                    raise ModelError(f"an image of {size} is too small to calibrate on: {error}") from error
            self.eval()
        features = [self._seen(part) for part in parts()]
        if sum(map(len, features)) < 2:
            raise ModelError(f"calibration needs at least 2 images, not {sum(map(len, features))}")
        raw = torch.cat(features).double()
        spread = raw.std(0)
        # Leave out constant features: scaled by their rounding errors, they would drown the others as soon as
        # a tile differs in them.
        spread[spread <= self.CONSTANT * spread.max()] = torch.inf
        self.centre.copy_(raw.mean(0))
        self.scale.copy_(1 / spread)
        self.train(was_training)


def build_encoder(
    backbone: str, *, pretrained: bool, checkpoint: str = "", size: int | None = None
) -> TileEncoder:
    """Build an encoder; see :func:`wsi_ats.nn.backbone.create_backbone` for parameters and errors."""
    made = create_backbone(backbone, pretrained=pretrained, checkpoint=checkpoint, size=size)
    return TileEncoder(made, trained=pretrained or bool(checkpoint))
