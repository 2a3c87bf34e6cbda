"""Clocks that compare ways of doing one thing on a machine that others use as well."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass
class Times:
    """Seconds of some calls, by the clock on the wall and of the processor.

    Parameters
    ----------
    wall, processor
        One value a call.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median by the clock on the wall."""
        return median(self.wall)

    @property
    def processor_seconds(self) -> float:
        """Median of the processor's."""
        return median(self.processor)


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Call all sides in turn, once to warm up and then in each round, so that they meet the same load."""
    found = {name: Times() for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            if number:
                found[name].wall.append(time.perf_counter() - wall)
                found[name].processor.append(time.process_time() - processor)
    return found


def in_new_process(module: str, *arguments: object) -> dict[str, Any]:
    """Run a module that prints JSON in a process of its own, whose peak memory is then its own as well."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def process_io(name: str) -> int:
    """Bytes that this process has asked of files (``rchar``) or got from the disk (``read_bytes``) so far."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
