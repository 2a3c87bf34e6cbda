"""Selections as tables: one Parquet file per slide, which can be read back, or one table of all slides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.records import Selection
from wsi_ats.tables.files import read_parquet, write_csv, write_parquet

_VERSION = 3  # incremented when stored selections can no longer be read as before
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
        "version": _VERSION,
        "slide_id": selection.slide_id,
        "path": selection.path,
        "grid": asdict(selection.grid),
        "level": selection.level,
        "bounds": selection.bounds,
        "scores": selection.scores,
    }
    columns = selection.columns()
    write_parquet(path, columns, types=_types(columns), metadata=metadata)


def _types(columns: Iterable[str]) -> dict[str, str]:
    return _TYPES | {name: "double" for name in columns if name.startswith(_EVIDENCE)}


def read_selection(path: str | Path) -> Selection:
    """Read a selection.

    Raises
    ------
    ArtifactError
        When the file is missing, damaged or not a selection.
    """
    columns, metadata = read_parquet(path)
    if metadata.get("version") != _VERSION or not _TYPES.keys() <= columns.keys():
        raise ArtifactError(
            f"{path} is not a selection of version {_VERSION} (version {metadata.get('version')}, columns "
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


def write_selections_csv(path: str | Path, selections: Iterable[Selection]) -> None:
    """Write the selections of all slides as one CSV table."""
    write_csv(path, _joined(selections))


def write_selections_parquet(path: str | Path, selections: Iterable[Selection]) -> None:
    """Write the selections of all slides as one Parquet table."""
    table = _joined(selections)
    write_parquet(path, table, types=_types(table))


def _joined(selections: Iterable[Selection]) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {name: [] for name in _TYPES}
    for selection in selections:
        for name, values in selection.columns().items():
            table.setdefault(name, []).extend(values)
    return table
