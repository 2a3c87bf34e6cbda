"""Drawn tiles for TRIDENT, in its tree of folders: coordinates, and features if they were kept."""

from __future__ import annotations

from pathlib import Path

from wsi_ats.results.exports.coordinates import copy_features, write_patches
from wsi_ats.results.exports.format import Format
from wsi_ats.results.scores import ScoredSlide


def write_trident(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<magnification>x_<pixels>px_<overlap>px_overlap/patches`` and ``features_wsi_ats``.

    The magnification is that of the tiles, and the overlap is in their pixels, as TRIDENT names its folders.
    """
    selection = slide.selection()
    grid = selection.grid
    scale = grid.cell / grid.tile_size
    magnification = round(10 / (selection.mpp * scale))
    overlap = round((grid.cell - grid.pitch) / scale)
    job = folder / f"{magnification}x_{grid.tile_size}px_{overlap}px_overlap"
    written = [write_patches(job / "patches" / f"{slide.id}_patches.h5", selection)]
    if slide.features_file.exists():
        written.append(copy_features(job / "features_wsi_ats" / f"{slide.id}.h5", slide))
    return written


FORMAT = Format(
    "trident",
    programs="TRIDENT, torchmil's TridentWSIDataset",
    contents="patches/*_patches.h5; with kept features features_wsi_ats/*.h5",
    slide=write_trident,
)
