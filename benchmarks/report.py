"""Tables of benchmarks: printed for people, written for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wsi_ats.tables.files import write_csv


def report(
    title: str,
    name: str,
    columns: Mapping[str, Sequence[object]],
    folder: str | Path = "results",
    *,
    below: Sequence[str] = (),
) -> None:
    """Print a table and write it to ``<folder>/<name>.csv``.

    Columns named in ``below`` are printed below the table, each of their values once.
    """
    shown = {key: values for key, values in columns.items() if key not in below}
    said = "; ".join(", ".join(dict.fromkeys(map(_text, columns[key]))) for key in below)
    table = Table(*shown, title=title, caption=said or None)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*(_text(cell) for cell in row))
    Console(width=140).print(table)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_csv(Path(folder) / f"{name}.csv", {key: list(values) for key, values in columns.items()})


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
