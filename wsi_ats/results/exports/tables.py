"""Tables of all slides: drawn tiles and predictions, as CSV and as Parquet."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from wsi_ats.files import atomic
from wsi_ats.results.exports.format import Format
from wsi_ats.results.records import Selection
from wsi_ats.results.scores import ScoredSlide, Scores
from wsi_ats.results.selections import selection_types
from wsi_ats.tables.files import write_csv, write_parquet


def _write_csv(folder: Path, scores: Scores, slides: Sequence[ScoredSlide]) -> list[Path]:
    return _tables(folder, scores, slides, "csv")


def _write_parquet(folder: Path, scores: Scores, slides: Sequence[ScoredSlide]) -> list[Path]:
    return _tables(folder, scores, slides, "parquet")


def _tables(folder: Path, scores: Scores, slides: Sequence[ScoredSlide], kind: str) -> list[Path]:
    """Write one table of all tiles, and copy that of the predictions."""
    table = _joined(slide.selection() for slide in slides)
    written = [folder / f"{name}.{kind}" for name in ("selections", "predictions")]
    with atomic(written[0]) as temporary:
        if kind == "csv":
            write_csv(temporary, table)
        else:
            write_parquet(temporary, table, types=selection_types(table))
    with atomic(written[1]) as temporary:
        shutil.copyfile(scores.folder / written[1].name, temporary)
    return written


CSV = Format(
    "csv",
    programs="spreadsheets, R, pandas",
    contents="selections.csv, a row for each tile of each draw, and predictions.csv",
    collection=_write_csv,
)
PARQUET = Format(
    "parquet",
    programs="pandas, polars, DuckDB",
    contents="the same tables as Parquet",
    collection=_write_parquet,
)


def _joined(selections: Iterable[Selection]) -> dict[str, list[Any]]:
    parts = [selection.columns() for selection in selections]
    names = dict.fromkeys([*selection_types(()), *(name for part in parts for name in part)])
    # A slide of which all tiles were read has no evidence.
    return {
        name: [value for part in parts for value in part.get(name, [None] * len(part["x"]))] for name in names
    }
