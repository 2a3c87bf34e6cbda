"""Attention networks: from a thumbnail to a distribution over the cells of its grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_ats.nn.backbone import Backbone, batch_norms


class SmallAttention(nn.Module):
    """A few convolutions over each cell and its neighbours.

    Colours are relative to the mean of the slide's own tissue, so that the slide's stain does not matter,
    only deviations from it. Edges are padded by reflection: zero padding would reveal the border, the best
    known failure of attention sampling. The last layer starts at zero, so that training starts from uniform
    attention.

    Parameters
    ----------
    pixels_per_cell
        Side of a cell in thumbnail pixels.
    width
        Number of channels.
    """

    def __init__(self, pixels_per_cell: int, width: int = 32) -> None:
        super().__init__()
        self.cell = nn.Conv2d(3, width, pixels_per_cell, stride=pixels_per_cell)
        self.around = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        # No bias: the softmax would cancel it.
        self.logit = nn.Conv2d(width, 1, 1, bias=False)
        nn.init.zeros_(self.logit.weight)

    def forward(self, thumbnail: Tensor, mask: Tensor) -> Tensor:
        """Score every cell.

        Parameters
        ----------
        thumbnail
            RGB, uint8, shape (rows * p, columns * p, 3).
        mask
            Candidate (tissue) cells, bool, shape (rows, columns).

        Returns
        -------
        Tensor, shape (rows, columns)
            Logits; those outside the mask are arbitrary.
        """
        image = relative_colour(thumbnail, mask).to(self.logit.weight.dtype)
        cells = F.gelu(self.cell(image[None]))
        # Reflection needs at least two cells a side; a narrower slide repeats its edge.
        around = self.around if min(cells.shape[2:]) > 1 else self._narrow
        logits: Tensor = self.logit(F.gelu(around(cells)))
        return logits[0, 0]

    def _narrow(self, cells: Tensor) -> Tensor:
        padded = F.pad(cells, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, self.around.weight, self.around.bias)


def relative_colour(thumbnail: Tensor, mask: Tensor) -> Tensor:
    """Return the colour of every thumbnail pixel minus the mean colour of the candidate cells.

    Parameters
    ----------
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3).
    mask
        Candidate cells, bool, shape (rows, columns), at least one.

    Returns
    -------
    Tensor, shape (3, rows * p, columns * p)
        In units of 1/8 of the colour range, about the spread of stained tissue.
    """
    (rows, columns), side = mask.shape, thumbnail.shape[0] // mask.shape[0]
    cells = thumbnail.reshape(rows, side, columns, side, 3).transpose(1, 2)
    mean = cells[mask].float().mean((0, 1, 2))
    # Arithmetic of bytes and floats, and over colours as the last dimension, is four times as slow.
    colours = thumbnail.permute(2, 0, 1).to(torch.float32, copy=True)
    return colours.sub_(mean[:, None, None]).div_(32)


def score_turned(network: nn.Module, thumbnail: Tensor, mask: Tensor, turn: int) -> Tensor:
    """Score every cell of a slide in another orientation, and turn the logits back.

    Parameters
    ----------
    network
        Network from thumbnail and mask to logits; see :meth:`SmallAttention.forward`.
    thumbnail, mask
        Thumbnail and mask of the slide in its own orientation.
    turn
        Number of right angles, plus 4 to mirror the slide first; 0 keeps the orientation.

    Returns
    -------
    Tensor, shape (rows, columns)
    """
    if not turn:
        logits: Tensor = network(thumbnail, mask)
        return logits
    laid = [torch.rot90(each, turn % 4, (0, 1)) for each in (thumbnail, mask)]
    if turn < 4:
        return torch.rot90(network(*laid), -turn, (0, 1))
    return torch.rot90(network(*(each.flip(1) for each in laid)).flip(1), -(turn % 4), (0, 1))


def candidate_logits(logits: Tensor, cells: Tensor) -> Tensor:
    """Return the logits (K,) of the candidate cells, whose softmax is the attention.

    Parameters
    ----------
    logits
        Shape (rows, columns).
    cells
        Flat numbers of the candidate cells, shape (K,).
    """
    # Half precision is not enough for probabilities that differ by orders of magnitude.
    return logits.flatten()[cells].to(torch.promote_types(logits.dtype, torch.float32))


class FeatureMapAttention(nn.Module):
    """Attention from the feature maps of any backbone.

    Every map is resampled to the grid, and a linear layer, zero at the start, scores the cells: fine maps
    contribute detail, coarse ones context. Batch normalisation keeps its stored statistics: those of a single
    slide would remove its deviations, and differ from those used at scoring.

    The thumbnail is padded by reflection, to keep the backbone's own zero padding away from its cells. The
    receptive field of a deep network is larger than any affordable padding, so this is exact only for shallow
    networks. Transformers with position embeddings depend on the position of a cell, whatever the padding.

    Parameters
    ----------
    backbone
        Backbone created with ``maps=True``.
    """

    # In pixels of the coarsest map. With a margin of 1, the border of a constant image differs from its
    # centre as much as random colours differ from one another; with 4, by a twentieth of that (resnet18).
    MARGIN = 4

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network
        self.logit = nn.Conv2d(sum(backbone.map_widths), 1, 1, bias=False)
        nn.init.zeros_(self.logit.weight)
        self._stride = math.lcm(*backbone.map_strides)
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std).reshape(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def train(self, mode: bool = True) -> FeatureMapAttention:
        """Switch layers such as dropout; normalisation layers stay constant."""
        super().train(mode)
        for layer in batch_norms(self.network):
            layer.eval()
        return self

    def forward(self, thumbnail: Tensor, mask: Tensor) -> Tensor:
        """Score every cell; see :meth:`SmallAttention.forward`."""
        image = (thumbnail.permute(2, 0, 1).to(self.mean.dtype) - self.mean) / self.std
        rows, columns = mask.shape
        cell = thumbnail.shape[0] // rows
        unit = math.lcm(self._stride, cell)  # a whole number of cells and of every map's pixels
        margin = unit * math.ceil(self.MARGIN * self._stride / unit)
        padded = _pad(image[None], margin, -image.shape[1] % unit, -image.shape[2] % unit)
        size = (padded.shape[2] // cell, padded.shape[3] // cell)
        maps = torch.cat([_to_grid(each, size) for each in self.network(padded)], dim=1)
        first = margin // cell
        logits: Tensor = self.logit(maps[:, :, first : first + rows, first : first + columns])
        return logits[0, 0]


def _pad(image: Tensor, margin: int, bottom: int, right: int) -> Tensor:
    """Reflect (1, 3, h, w) by ``margin`` on every side and by ``bottom`` and ``right`` more."""
    height, width = image.shape[2:]
    pads = (margin, margin + right, margin, margin + bottom)
    fits = max(pads[:2]) < width and max(pads[2:]) < height
    return F.pad(image, pads, mode="reflect" if fits else "replicate")


def _to_grid(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Average fine maps into cells, interpolate coarse ones."""
    if features.shape[2] >= size[0]:
        return F.adaptive_avg_pool2d(features, size)
    return F.interpolate(features, size, mode="bilinear", align_corners=False)
