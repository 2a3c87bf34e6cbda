"""The base class of all kinds of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from wsi_ats.nn.encoder import TileEncoder


class SlideNetwork(nn.Module):
    """A network that ends in a linear classifier of a slide's feature.

    Attributes
    ----------
    encoder
        Encoder from tiles, or whole images, to features (N, D).
    head
        Classifier from features (..., D) to logits.
    dropout
        Share of each tile's features that are dropped in training.
    """

    encoder: TileEncoder
    head: nn.Linear
    dropout: float = 0.0

    def embed(self, tiles: Tensor) -> Tensor:
        """Return features (N, D) of tiles, uint8 (N, h, w, 3), or of their backbone features (N, width)."""
        features: Tensor = self.encoder.standardise(tiles) if tiles.ndim == 2 else self.encoder(tiles)
        return F.dropout(features, self.dropout, self.training)

    def classify(self, pooled: Tensor) -> Tensor:
        """Return the logits (..., classes) of pooled features (..., D)."""
        logits: Tensor = self.head(pooled)
        return logits

    def parts(self) -> Mapping[str, Sequence[nn.Module]]:
        """Group modules by their learning rate: ``backbone``, ``attention``, ``head`` or ``gate``."""
        return {"backbone": [self.encoder], "head": [self.head]}
