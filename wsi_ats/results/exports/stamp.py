"""Features of drawn tiles for STAMP: HDF5 with coordinates in micrometres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi_ats.bags.writing import write_micrometres
from wsi_ats.results.exports.coordinates import read_features
from wsi_ats.results.exports.format import Format
from wsi_ats.results.scores import ScoredSlide


def write_stamp(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<slide_id>.h5`` with ``feats`` and ``coords``."""
    selection = slide.selection()
    grid = selection.grid
    path = folder / f"{slide.id}.h5"
    corners = grid.boxes(selection.distinct().cells)[:, :2] * np.float64(selection.mpp)
    write_micrometres(
        path,
        corners,
        read_features(slide),
        extractor=f"wsi_ats-{slide.row['model_digest']}",
        side=grid.cell * selection.mpp,
        tile_size=grid.tile_size,
    )
    return [path]


FORMAT = Format(
    "stamp",
    programs="STAMP",
    contents="*.h5 with feats and coords in micrometres; needs kept features",
    slide=write_stamp,
)
