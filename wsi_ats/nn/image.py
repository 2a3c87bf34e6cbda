"""A CNN on the whole slide at one scale."""

from __future__ import annotations

from torch import Tensor, nn

from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.network import SlideNetwork


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
