"""Helpers to interrupt runs and compare their results."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import files


def results(out: Path) -> dict[str, object]:
    """All that a run leaves of its slides, byte by byte, but for the times."""
    [path] = [path for path in out.glob("*.csv") if path.stem in {"predictions", "slides"}]
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    time_at = rows[0].index("seconds")
    kept: dict[str, object] = {path.stem: [row[:time_at] + row[time_at + 1 :] for row in rows]}
    for folder in ("selections", "attention", "prepared", "thumbnails"):
        if (out / folder).exists():
            kept |= {f"{folder}/{name}": (out / folder / name).read_bytes() for name in files(out / folder)}
    return kept


def recorded(out: Path) -> set[str]:
    return {path.stem for path in (out / "records").glob("[!.]*.json")}


@contextmanager
def in_the_middle(out: Path, number: int, act: Callable[[], object]) -> Iterator[None]:
    """Act once there are so many records, whatever is at work meanwhile."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and len(recorded(out)) < number:
            time.sleep(0.005)
        if not over.is_set():
            act()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
