"""Train baselines that settings alone cannot describe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_ats.models.batches import epoch_batches
from wsi_ats.nn.attention import relative_colour
from wsi_ats.overview.records import Overview


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


def fit_thumbnails(
    slides: Sequence[Overview],
    targets: Sequence[int],
    *,
    classes: int,
    epochs: int,
    seed: int,
    learning_rate: float = 2e-3,
) -> ThumbnailClassifier:
    """Train a classifier of thumbnails alone.

    Parameters
    ----------
    slides
        Overviews of the slides.
    targets
        Number of each slide's class.
    classes
        Number of classes.
    epochs
        Passes over the slides.
    seed
        Seed of weights and order.
    learning_rate
        Learning rate of AdamW.

    Returns
    -------
    ThumbnailClassifier
        The network, in evaluation mode.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pixels_per_cell = slides[0].thumbnail.shape[0] // slides[0].tissue.grid.shape[0]
        model = ThumbnailClassifier(pixels_per_cell, classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        for batch in epoch_batches(len(slides), 8, seed + epoch):
            logits = torch.stack([thumbnail_logits(model, slides[i]) for i in batch])
            loss = F.cross_entropy(logits, torch.tensor([targets[i] for i in batch]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def thumbnail_logits(model: ThumbnailClassifier, slide: Overview) -> torch.Tensor:
    """Return the logits (classes,) of one slide from its thumbnail."""
    logits: torch.Tensor = model(torch.from_numpy(slide.thumbnail), torch.from_numpy(slide.tissue.mask))
    return logits
