"""Features of drawn tiles for torchmil's ProcessedMILDataset: an array for each slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.files import atomic
from wsi_ats.results.exports.coordinates import read_features
from wsi_ats.results.exports.format import Format
from wsi_ats.results.scores import ScoredSlide


def write_torchmil(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``features``, ``coords`` and ``attention`` as ``<slide_id>.npy``.

    Coordinates are corners in level-0 pixels (x, y); attention is that of each tile's cell.
    """
    selection = slide.selection()
    tiles = selection.distinct()
    arrays: dict[str, Any] = {
        "features": read_features(slide),
        "coords": selection.grid.boxes(tiles.cells)[:, :2],
        "attention": selection.attention[tiles.row],
    }
    written = [folder / name / f"{slide.id}.npy" for name in arrays]
    for path, values in zip(written, arrays.values(), strict=True):
        with atomic(path) as temporary:
            np.save(temporary, values)
    return written


FORMAT = Format(
    "torchmil",
    programs="torchmil's ProcessedMILDataset",
    contents="features, coords and attention as *.npy; needs kept features",
    slide=write_torchmil,
)
