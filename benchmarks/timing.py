"""Clocks that compare alternatives on a shared machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Times(NamedTuple):
    """Median wall time and CPU time of calls, in seconds."""

    seconds: float
    processor_seconds: float


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Call all sides in turn, once to warm up and once in each round, so that they meet the same load."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, call in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            found[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {name: Times(*map(median, zip(*each[1:], strict=True))) for name, each in found.items()}


def in_new_process(module: str, function: str, *arguments: object) -> dict[str, Any]:
    """Call a function in a new process, so that its peak memory is measured alone; values pass as JSON."""
    call = f"import json, {module}; print(json.dumps({module}.{function}(*{json.dumps(arguments)})))"
    ran = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def process_io(name: str) -> int:
    """Return the bytes this process has read from files (``rchar``) or the disk (``read_bytes``) so far."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
