"""The base class of all kinds of networks, and the networks that read whole slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_ats.nn import expectation
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


class ImageClassifier(SlideNetwork):
    """A backbone with global pooling and a linear classifier.

    Parameters
    ----------
    encoder
        Encoder from images (N, h, w, 3) of any size to features (N, D).
    classes
        Number of outputs, such as classes.
    """

    def __init__(self, encoder: TileEncoder, *, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (classes,) of a slide, RGB, uint8, shape (h, w, 3)."""
        return self.classify(self.embed(image[None]))[0]


class AttentionMIL(SlideNetwork):
    r"""Attention pooling of the features of all tiles.

    .. math:: a_k = \mathrm{softmax}_k\, w^T \tanh(V h_k) \quad\text{(eq. 8)}, \qquad
              a_k = \mathrm{softmax}_k\, w^T (\tanh(V h_k) \odot \sigma(U h_k)) \quad\text{(eq. 9)}

    Parameters
    ----------
    encoder
        Encoder from tiles (N, h, w, 3) to features (N, D).
    classes
        Number of outputs, such as classes.
    gated
        Whether to use equation 9 rather than 8.
    width
        Rows of V and U; 128 in the authors' code.

    Examples
    --------
    >>> from wsi_ats.nn.encoder import build_encoder
    >>> model = AttentionMIL(build_encoder("test_resnet", pretrained=False), classes=2, gated=True)
    >>> features = model.embed(torch.zeros(5, 64, 64, 3, dtype=torch.uint8))
    >>> attention = model.attend(features)
    >>> attention.shape, model.classify(model.pool(attention, features)).shape
    (torch.Size([5]), torch.Size([2]))
    """

    def __init__(self, encoder: TileEncoder, *, classes: int, gated: bool, width: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        self.value = nn.Linear(encoder.width, width)
        self.gate = nn.Linear(encoder.width, width) if gated else None
        # Without a bias, which the softmax would cancel.
        self.score = nn.Linear(width, 1, bias=False)
        self.head = nn.Linear(encoder.width, classes)

    def attend(self, features: Tensor) -> Tensor:
        """Return the attention over all tiles, shape (K,), sums to 1, from their features (K, D)."""
        return torch.softmax(self.score_tiles(features), dim=0)

    def score_tiles(self, features: Tensor) -> Tensor:
        """Return the logits (K,) of the attention from the features (K, D) of all tiles."""
        hidden = torch.tanh(self.value(features))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(features))
        logits: Tensor = self.score(hidden)[:, 0]
        # Half precision is not enough for probabilities that differ by orders of magnitude.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def pool(self, attention: Tensor, features: Tensor) -> Tensor:
        """Return the slide's feature (D,) from the attention (K,) and features (K, D) of all tiles."""
        return expectation.exact(attention, features)

    def parts(self) -> Mapping[str, Sequence[nn.Module]]:
        """See :meth:`wsi_ats.nn.network.SlideNetwork.parts`."""
        attention = [self.value, self.score] if self.gate is None else [self.value, self.gate, self.score]
        return {"backbone": [self.encoder], "attention": attention, "head": [self.head]}
