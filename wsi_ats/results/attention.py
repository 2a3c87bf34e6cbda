"""Attention maps on disk."""

from __future__ import annotations

from pathlib import Path

from wsi_ats.files import load_arrays, save_arrays
from wsi_ats.results.records import AttentionMap


def save_attention(path: Path, attention: AttentionMap) -> None:
    """Write an attention map, atomically."""
    save_arrays(path, attention.grid, attention=attention.attention, tissue=attention.tissue)


def load_attention(path: Path) -> AttentionMap:
    """Read an attention map written by :func:`save_attention`.

    Raises
    ------
    ArtifactError
        When the file is missing or damaged.
    """
    grid, arrays = load_arrays(path, "attention", "tissue")
    return AttentionMap(grid, arrays["attention"], arrays["tissue"])
