"""Command line and tables of the benchmarks."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wsi_ats.tables.files import write_csv

Row = dict[str, Any]
Rows = list[Row]

# Instruction sets that decide how fast a processor multiplies.
_MULTIPLIES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def command(
    doc: str | None, *, settings: bool = False, slides: bool = False, tissue: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with ``--out`` and, where wanted, ``--set``, ``--slides``, ``--data``, ``--cache``."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of the tables, or a .csv file"
    )
    if settings:
        parser.add_argument("--set", nargs="*", default=[], dest="changes", metavar="SECTION.NAME=VALUE")
    if slides:
        parser.add_argument(
            "--slides",
            type=Path,
            default=Path("results/slides"),
            help="folder of synthetic slides, made once",
        )
    if tissue:
        parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of shared data")
        parser.add_argument("--cache", type=Path, default=Path("results/tissue"), help="for crops, features")
    return parser


def hardware() -> str:
    """Name the processor, its cores and the instruction sets that it multiplies with."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.machine())
    if "model" in facts:  # virtual machines may name the maker only
        name += f" (family {facts.get('cpu family')} model {facts['model']})"
    flags = " ".join(flag for flag in _MULTIPLIES if flag in facts.get("flags", "").split())
    return ", ".join(filter(None, [name, f"{os.cpu_count()} cores", flags]))


def report(title: str, name: str, rows: Sequence[Any], out: Path, *, machine: bool = False) -> None:
    """Print a table and write it to ``<out>/<name>.csv``, or to ``out`` itself if that is a CSV file.

    Rows are mappings or dataclasses. ``machine`` adds a column with the hardware, printed below the table.
    """
    dicts = [dict(row) if isinstance(row, Mapping) else asdict(row) for row in rows]
    names = list(dict.fromkeys(key for row in dicts for key in row))
    table = Table(*names, title=title, caption=hardware() if machine else None)
    for row in dicts:
        table.add_row(*(text(row.get(key)) for key in names))
    Console(width=160).print(table)
    columns: dict[str, list[Any]] = {key: [row.get(key) for row in dicts] for key in names}
    if machine:
        columns["hardware"] = [hardware()] * len(dicts)
    path = out if out.suffix == ".csv" else out / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, columns)


def text(value: object) -> str:
    """Return a value as text."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
