"""Cost of scoring by the size of the slide, on one level and on two.

Run ``python -m benchmarks.slide_size``. Slides of 10,000 to 160,000 pixels a side are scored from 64 tiles of
256 pixels by a small untrained network, each in a new process. On one level the thumbnail grows with the
slide; on two, 8 regions are read instead. Peak memory is the whole process's, most of it libraries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import command, report
from benchmarks.synthetic import score, slide_of, untrained
from benchmarks.timing import in_new_process
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.testing.memory import peak_memory

_SETTINGS = (
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "sampling.tiles=64",
    "sampling.regions=8",
)


def measure(path: str, levels: int, changes: Sequence[str]) -> dict[str, Any]:
    """Score one slide in this process."""
    torch.set_num_threads(1)
    settings = Settings().with_values([*_SETTINGS, f"thumbnail.levels={levels}", *changes])
    model = untrained(settings)
    # The first use of the libraries takes time and memory of its own, whatever the slide.
    score(model, MemorySlide([np.full((2560, 2560, 3), 150, np.uint8)], mpp=0.5), settings)
    begin = time.perf_counter()
    with open_slide(path) as slide:
        found = score(model, slide, settings).prediction
    return {
        "side": int(Path(path).stem.split("_")[1]),
        "levels": levels,
        "file_mb": Path(path).stat().st_size / 1e6,
        "tissue_tiles": found.tiles_total,
        "tiles_read": found.tiles_read,
        "read_mb": found.bytes_read / 1e6,
        "peak_mb": peak_memory() / 1e6,
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    """Print the table and write it to ``slide_size.csv``."""
    parser = command(__doc__, settings=True, slides=True)
    parser.add_argument("--sides", type=int, nargs="+", default=(10_000, 40_000, 160_000))
    options = parser.parse_args()
    rows = [
        in_new_process("benchmarks.slide_size", "measure", str(path), levels, options.changes)
        for path in (slide_of(options.slides, side) for side in options.sides)
        for levels in (1, 2)
    ]
    report("scoring 64 tiles", "slide_size", rows, options.out)


if __name__ == "__main__":
    main()
