"""What is kept of a scored slide in files of its own: selected tiles, their features, and attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from wsi_ats.bags.writing import BagWriter
from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.files import load_arrays, save_arrays
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.records import AttentionMap, ReadTiles, Selection
from wsi_ats.tables.files import read_parquet, write_parquet

VERSION = 3
"""Incremented when stored selections can no longer be read as before; such slides are scored again."""

_EVIDENCE = "evidence_"
_TYPES = {
    "slide_id": "string",
    **dict.fromkeys(("x", "y", "width", "height", "level", "row", "col", "draw", "order"), "int64"),
    **dict.fromkeys(("attention", "inclusion", "weight"), "double"),
}


def write_selection(path: str | Path, selection: Selection) -> None:
    """Write one slide's selection for :func:`read_selection`.

    The columns are those of :meth:`wsi_ats.results.records.Selection.columns`; the rest is in the metadata.
    """
    metadata = {
        "version": VERSION,
        "slide_id": selection.slide_id,
        "path": selection.path,
        "grid": asdict(selection.grid),
        "level": selection.level,
        "mpp": selection.mpp,
        "bounds": selection.bounds,
        "scores": selection.scores,
    }
    columns = selection.columns()
    write_parquet(path, columns, types=selection_types(columns), metadata=metadata)


def selection_types(columns: Iterable[str]) -> dict[str, str]:
    """Return the types of the columns of selections, for tables that may be empty."""
    return _TYPES | {name: "double" for name in columns if name.startswith(_EVIDENCE)}


def read_selection(path: str | Path) -> Selection:
    """Read a selection.

    Raises
    ------
    ArtifactError
        When the file is missing, damaged or not a selection.
    """
    columns, metadata = read_parquet(path)
    if metadata.get("version") != VERSION or not _TYPES.keys() <= columns.keys():
        raise ArtifactError(
            f"{path} is not a selection of version {VERSION} (version {metadata.get('version')}, columns "
            f"{', '.join(columns)}); score the slide again"
        )
    try:
        grid = Grid(**metadata["grid"])
        rows, cols = (np.asarray(columns[name], dtype=np.int64) for name in ("row", "col"))
        return Selection(
            slide_id=metadata["slide_id"],
            path=metadata["path"],
            grid=grid,
            level=metadata["level"],
            mpp=metadata["mpp"],
            bounds=Region(*metadata["bounds"]),
            cells=rows * grid.shape[1] + cols,
            attention=np.asarray(columns["attention"], dtype=np.float64),
            inclusion=np.asarray(columns["inclusion"], dtype=np.float64),
            weight=np.asarray(columns["weight"], dtype=np.float64),
            draw=np.asarray(columns["draw"], dtype=np.int64),
            order=np.asarray(columns["order"], dtype=np.int64),
            scores=metadata["scores"],
            evidence={
                name.removeprefix(_EVIDENCE): np.asarray(values, dtype=np.float64)
                for name, values in columns.items()
                if name.startswith(_EVIDENCE)
            },
        )
    except (KeyError, TypeError, SettingsError) as error:
        raise ArtifactError(f"{path}: its metadata is damaged: {error!r}; score the slide again") from error


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
