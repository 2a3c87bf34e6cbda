"""The overview of a slide on disk, as ``prepare`` stores it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from wsi_ats.files import load_arrays, save_arrays
from wsi_ats.overview.records import Overview, Quality, TissueMask


def save_overview(path: Path, overview: Overview) -> None:
    """Write the thumbnail, tissue and quality of a slide, atomically."""
    save_arrays(
        path,
        overview.tissue.grid,
        thumbnail=overview.thumbnail,
        fraction=overview.tissue.fraction,
        mask=overview.tissue.mask,
        **overview.quality.maps,
    )


def load_overview(path: Path) -> Overview:
    """Read the thumbnail, tissue and quality that :func:`save_overview` wrote.

    Raises
    ------
    ArtifactError
        When the file is missing or damaged.
    """
    maps = [each.name for each in fields(Quality)]
    grid, arrays = load_arrays(path, "thumbnail", "fraction", "mask", optional=maps)
    return Overview(
        arrays["thumbnail"],
        TissueMask(grid, arrays["fraction"], arrays["mask"]),
        Quality(**{name: arrays[name] for name in maps if name in arrays}),
    )
