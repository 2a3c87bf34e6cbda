"""How scoring grows with the size of the slide, on one level and on two.

Run ``python -m benchmarks.slide_size``. Slides of 10,000 to 160,000 pixels a side, 30 % tissue, are scored
from 64 tiles of 256 pixels by a small untrained network with random attention, each in a new process. What
grows with the slide on one level is its thumbnail; on two levels 8 regions are looked at instead. Peak memory
is the whole process's, most of it libraries: compare rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from wsi_ats.settings import Settings
from wsi_ats.tasks.targets import Target

_SIDES = (10_000, 40_000, 160_000)
_SETTINGS = (
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "sampling.tiles=64",
    "sampling.regions=8",
)


def write(folder: Path, side: int) -> Path:
    """Write a slide of a size, unless it is there."""
    from wsi_ats.testing.bank import make_tile_bank
    from wsi_ats.testing.synthetic import write_slide

    path = folder / f"slide_{side}.tif"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        bank = make_tile_bank(256, 0, variants=8, palettes=1)
        write_slide(path, bank=bank, width=side, height=side, positive=True, rng=np.random.default_rng(side))
    return path


def measure(path: Path, levels: int, changes: tuple[str, ...]) -> dict[str, Any]:
    """Score one slide in this process."""
    import torch

    from wsi_ats.models.checkpoints import model_for
    from wsi_ats.models.scoring import LoadedModel
    from wsi_ats.slides import SlideRef, open_slide
    from wsi_ats.slides.memory import MemorySlide
    from wsi_ats.testing.memory import peak_memory

    torch.set_num_threads(1)
    torch.manual_seed(0)
    target = Target("classification", ("negative", "positive"))
    settings = Settings().with_values([*_SETTINGS, f"thumbnail.levels={levels}", *changes])
    model = model_for(settings, target).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("logit.weight"):
            torch.nn.init.normal_(parameter)

    def score(ref: SlideRef, slide: Any) -> Any:
        return LoadedModel(model, settings, target, "").score(slide, ref=ref)

    # The first use of the libraries takes time and memory of its own, whatever the slide.
    warm = MemorySlide([np.full((2560, 2560, 3), 150, np.uint8)], mpp=0.5)
    score(SlideRef("warm", "warm", "warm"), warm)
    begin = time.perf_counter()
    ref = SlideRef.from_path(path)
    with open_slide(ref) as slide:
        found = score(ref, slide).prediction
    return {
        "side": int(path.stem.split("_")[1]),
        "levels": levels,
        "file_mb": path.stat().st_size / 1e6,
        "tissue_tiles": found.tiles_total,
        "tiles_read": found.tiles_read,
        "read_mb": found.bytes_read / 1e6,
        "peak_mb": peak_memory() / 1e6,
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    """Print the table and write it to ``results/slide_size.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=_SIDES)
    parser.add_argument("--slides", type=Path, default=Path("results/slides"), help="Kept for another run.")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.name=value")
    parser.add_argument("--one", nargs=2, metavar=("PATH", "LEVELS"), help="Measure in this process.")
    options = parser.parse_args()
    if options.one:
        path, levels = options.one
        print(json.dumps(measure(Path(path), int(levels), tuple(options.set))))
        return
    rows = []
    for side in options.sides:
        path = write(options.slides, side)
        for levels in (1, 2):
            command = [sys.executable, "-m", "benchmarks.slide_size", "--one", str(path), str(levels)]
            ran = subprocess.run(
                [*command, "--set", *options.set], capture_output=True, text=True, check=True
            )
            rows.append(json.loads(ran.stdout))
    report("scoring 64 tiles", "slide_size", {name: [row[name] for row in rows] for name in rows[0]})


if __name__ == "__main__":
    main()
