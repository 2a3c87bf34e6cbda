"""Baselines for attention sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_ats.nn.attention import relative_colour


class ThumbnailClassifier(nn.Module):
    """A classifier of the thumbnail alone.

    Like the attention network of attention sampling, it sees each cell and its neighbours. It pools the
    tissue cells by attention (Ilse et al. 2018) and by their mean. If it separates the classes, no tiles are
    needed.

    Parameters
    ----------
    pixels_per_cell
        Side of a cell in thumbnail pixels.
    classes
        Number of classes.
    width
        Number of channels.
    """

    def __init__(self, pixels_per_cell: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.cell = nn.Conv2d(3, width, pixels_per_cell, stride=pixels_per_cell)
        self.around = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Linear(width, 1, bias=False)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, thumbnail: Tensor, mask: Tensor) -> Tensor:
        """Classify a slide.

        Parameters
        ----------
        thumbnail
            RGB, uint8, shape (rows * p, columns * p, 3).
        mask
            Tissue cells, bool, shape (rows, columns).

        Returns
        -------
        Tensor, shape (classes,)
            Logits.
        """
        cells = F.gelu(self.cell(relative_colour(thumbnail, mask)[None]))
        tissue = F.gelu(self.around(cells))[0, :, mask].T
        attention = torch.softmax(self.gate(tissue)[:, 0], dim=0)
        logits: Tensor = self.head(torch.cat([attention @ tissue, tissue.mean(0)]))
        return logits
