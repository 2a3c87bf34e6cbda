"""Features of the drawn tiles on disk."""

from __future__ import annotations

from pathlib import Path

from wsi_ats.bags.writing import BagWriter
from wsi_ats.results.records import ReadTiles, Selection


def save_features(path: Path, selection: Selection, tiles: ReadTiles, *, model_digest: str) -> None:
    """Write the features of the distinct tiles of a selection, atomically.

    Parameters
    ----------
    path
        The file, which :class:`wsi_ats.bags.writing.BagWriter` describes.
    selection, tiles
        The tiles, and their features in the order of their cells.
    model_digest
        Fingerprint of the model, whose encoder made the features.

    Raises
    ------
    FeatureError
        When a feature is NaN or infinite.
    ArtifactError
        When the file cannot be written.
    """
    grid = selection.grid
    with BagWriter(
        path,
        name=selection.slide_id,
        size=(grid.width, grid.height),
        mpp=selection.mpp,
        side=grid.cell,
        width=tiles.features.shape[1],
        overlap=grid.cell - grid.pitch,
        tile_size=grid.tile_size,
        encoder=f"wsi_ats-{model_digest}",
        digest=model_digest,
    ) as writer:
        writer.append(grid.boxes(tiles.cells)[:, :2], tiles.features)
