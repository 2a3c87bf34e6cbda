"""Train baselines that settings alone cannot describe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from wsi_ats.models.batches import epoch_batches
from wsi_ats.nn.baselines import ThumbnailClassifier
from wsi_ats.overview.records import Overview


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
