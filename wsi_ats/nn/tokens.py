"""Layers of known encoders that timm lacks: from tokens to features, and a stem of convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Pooled(nn.Module):
    """A vision transformer whose tokens become one vector.

    Parameters
    ----------
    trunk
        A timm network with ``forward_features``, from images (N, 3, h, w) to tokens (N, count, width).
    prefix
        Number of tokens before those of patches; the first is the class token.
    pool
        Network from the tokens of each image to one vector. Without it the features are the class token,
        followed by the mean of the patch tokens.
    """

    def __init__(self, trunk: nn.Module, prefix: int, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.pool = pool
        self._prefix = prefix

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, width) of images (N, 3, h, w)."""
        network: Any = self.trunk
        tokens: Tensor = network.forward_features(images)
        if self.pool is None:
            return torch.cat([tokens[:, 0], tokens[:, self._prefix :].mean(1)], 1)
        pooled: Tensor = self.pool(tokens)
        return pooled


class AttentionPool(nn.Module):
    """Attention of one learned query over all tokens, as in CONCH.

    Parameters
    ----------
    width
        Number of features.
    tokens
        Width of the tokens.
    bias
        Whether the linear maps of attention add constants.
    """

    def __init__(self, width: int, tokens: int, *, bias: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width))
        self.attn = nn.MultiheadAttention(width, 8, bias=bias, kdim=tokens, vdim=tokens, batch_first=True)
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(tokens)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return vectors (N, width) for the tokens (N, count, width) of images."""
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        keys = self.ln_k(tokens)
        found: Tensor = self.attn(query, keys, keys, need_weights=False)[0]
        normed: Tensor = self.norm(found[:, 0])
        return normed


class ConvStem(nn.Module):
    """The stem of CTransPath in place of Swin's patches: two strided convolutions, and one of 1 x 1 pixel.

    Parameters
    ----------
    img_size
        Side of the images in pixels.
    patch_size
        Pixels per position of the output; always 4.
    embed_dim
        Channels of the output.
    norm_layer
        Normalisation of the output's channels.
    **ignored
        Other arguments that timm gives to stems: input channels, and the format of the output.
    """

    def __init__(
        self, img_size: int, patch_size: int, embed_dim: int, norm_layer: Any, **ignored: object
    ) -> None:
        super().__init__()
        del ignored
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        layers: list[nn.Module] = []
        for before, after in ((3, embed_dim // 8), (embed_dim // 8, embed_dim // 4)):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.proj = nn.Sequential(*layers, nn.Conv2d(embed_dim // 4, embed_dim, 1))
        self.norm = norm_layer(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return positions (N, h / 4, w / 4, channels) of images (N, 3, h, w)."""
        normed: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return normed
