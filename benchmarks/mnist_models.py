"""Networks for Megapixel MNIST, as small as the reference's, in the library's models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.mnist_canvas import CLASSES
from wsi_ats.nn.backbone import Backbone
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.mil import AttentionMIL
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import DrawingModel, MilModel, Settings


class AttentionNetwork(nn.Module):
    """From the low view to a logit for every cell: one look at the cell's tile, one at its neighbours.

    Parameters
    ----------
    pixels_per_cell
        Low-view pixels from one cell to the next, half as many as a tile has a side.
    width
        Channels.
    """

    def __init__(self, pixels_per_cell: int, width: int = 16) -> None:
        super().__init__()
        self.beyond = pixels_per_cell  # tiles of the last row and column reach past the view
        self.cell = nn.Conv2d(1, width, 2 * pixels_per_cell, stride=pixels_per_cell)
        self.around = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        self.logit = nn.Conv2d(width, 1, 1, bias=False)
        nn.init.zeros_(self.logit.weight)  # training starts from uniform attention

    def forward(self, thumbnail: Tensor, mask: Tensor) -> Tensor:
        """Score the cells of a grey thumbnail; see :meth:`wsi_ats.nn.attention.SmallAttention.forward`."""
        del mask
        view = F.pad(thumbnail[None, None, :, :, 0] / 64, (0, self.beyond, 0, self.beyond))
        logits: Tensor = self.logit(F.relu(self.around(F.relu(self.cell(view)))))
        return logits[0, 0]


class TileNetwork(nn.Module):
    """Three convolutions and a maximum: features (N, 48) of grey images (N, 3, h, w) of any size.

    Under bfloat16 autocast, which halves the time on processors that know it.
    """

    WIDTH = 48

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 5, stride=2)
        self.second = nn.Conv2d(16, 32, 3)
        self.third = nn.Conv2d(32, self.WIDTH, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (16, 32, self.WIDTH))
        for layer in (self.first, self.second, self.third):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Encode images, from 0 to 1."""
        one, two, three = self.norms
        x = images[:, :1].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            x = F.max_pool2d(F.relu(one(self.first(x))), 2)
            x = F.relu(two(self.second(x)))
            return F.relu(three(self.third(x))).amax((2, 3)).float()


def network(settings: Settings) -> SlideNetwork:
    """Make the network of the kind that settings ask for."""
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    encoder = TileEncoder(Backbone(TileNetwork(), TileNetwork.WIDTH, black, white), trained=False)
    if isinstance(settings.model, MilModel):
        return AttentionMIL(encoder, classes=CLASSES, gated=settings.model.mil_attention == "gated")
    attention = AttentionNetwork(settings.thumbnail.pixels_per_cell)
    return AttentionSampler(
        attention if settings.model.attends else None,
        encoder,
        classes=CLASSES,
        pool=settings.model_as(DrawingModel).pool,
    )
