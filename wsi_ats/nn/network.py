"""What the networks of all kinds of models have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from wsi_ats.nn.encoder import TileEncoder


class SlideNetwork(nn.Module):
    """A network that ends in a linear classifier of a slide's feature.

    Attributes
    ----------
    encoder
        Tiles, or whole images, to features (N, D).
    head
        Features (..., D) to logits.
    """

    encoder: TileEncoder
    head: nn.Linear

    def embed(self, tiles: Tensor) -> Tensor:
        """Encode tiles, uint8 (N, h, w, 3), as features (N, D)."""
        features: Tensor = self.encoder(tiles)
        return features

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits (..., classes) of pooled features (..., D)."""
        logits: Tensor = self.head(pooled)
        return logits

    def parts(self) -> Mapping[str, Sequence[nn.Module]]:
        """Modules by what decides how fast they learn: ``backbone``, ``attention`` or ``head``."""
        return {"backbone": [self.encoder], "head": [self.head]}
