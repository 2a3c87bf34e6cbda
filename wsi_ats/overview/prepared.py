"""The overview of a slide on disk, as ``prepare`` keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from wsi_ats.files import load_arrays, save_arrays
from wsi_ats.overview.masks import Quality, TissueMask
from wsi_ats.slides.base import Pixels


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` keeps of a slide.

    Parameters
    ----------
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3).
    tissue
        Tissue cells and their grid.
    quality
        What spoils them, as far as it was told.
    """

    thumbnail: Pixels
    tissue: TissueMask
    quality: Quality = field(default_factory=Quality)


def save_prepared(path: Path, prepared: Prepared) -> None:
    """Write a thumbnail with its tissue and quality, atomically."""
    save_arrays(
        path,
        prepared.tissue.grid,
        thumbnail=prepared.thumbnail,
        fraction=prepared.tissue.fraction,
        mask=prepared.tissue.mask,
        **prepared.quality.maps,
    )


def load_prepared(path: Path) -> Prepared:
    """Read what :func:`save_prepared` wrote.

    Raises
    ------
    ArtifactError
        When the file is missing or damaged.
    """
    maps = [each.name for each in fields(Quality)]
    grid, arrays = load_arrays(path, "thumbnail", "fraction", "mask", optional=maps)
    return Prepared(
        arrays["thumbnail"],
        TissueMask(grid, arrays["fraction"], arrays["mask"]),
        Quality(**{name: arrays[name] for name in maps if name in arrays}),
    )
