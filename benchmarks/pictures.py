"""Cost of pictures beyond scoring, for small and large slides.

Run ``python -m benchmarks.pictures``. Synthetic slides are scored with kept tiles by a small untrained
network; then the picture of the slide and the contact sheet of 25 tiles are drawn, in one thread. Numbers are
medians over rounds, after one to warm up, of the seconds of the processor: other work on the machine does not
count. ``export`` also reads thumbnail and tiles again. Aim: 0.5 seconds a slide for both pictures
(``seconds``).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.report import command, report
from benchmarks.synthetic import TARGET, score, slide_of, untrained
from benchmarks.timing import interleaved
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.pictures import figure_of_slide, figure_of_tiles
from wsi_ats.results.shown import ShownSlide
from wsi_ats.settings import Settings
from wsi_ats.slides import SlideRef, open_slide

_SETTINGS = ("model.backbone=test_resnet", "model.pretrained=false", "sampling.tiles=64")


def measure(path: Path, settings: Settings, folder: Path, rounds: int) -> dict[str, Any]:
    """Draw one slide, and time each picture, the reads of ``export``, and scoring."""
    model = untrained(settings)
    ref = SlideRef.from_path(path)
    with open_slide(path) as slide:
        loaded = LoadedModel(model, settings, TARGET, "")
        scored = loaded.score(slide, ref=ref, settings=settings, keep_tiles=True)
        assert scored.overview is not None
        assert scored.tiles is not None
        assert scored.tiles.pixels is not None
        row = scored.prediction.row(TARGET.columns)
        shown = ShownSlide.of(row, TARGET, slide, scored.overview, scored.attention, scored.selection)
        cells = np.sort(shown.cells_on_sheet)
        shown = shown.with_tiles(scored.tiles.cells, scored.tiles.pixels)
        grid = shown.drawn.grid if shown.drawn else scored.overview.tissue.grid
        times = interleaved(
            {
                "slide": partial(figure_of_slide, folder / "a.png", shown),
                "tiles": partial(figure_of_tiles, folder / "b.png", shown),
                "overview": partial(read_overview, slide, settings),
                "read": partial(read_tiles, slide, grid, cells),
                "score": partial(score, model, slide, settings),
            },
            rounds,
        )
    seconds = {name: each.processor_seconds for name, each in times.items()}
    both = seconds["slide"] + seconds["tiles"]
    return {
        "side": int(path.stem.split("_")[1]),
        "thumbnail": shown.overview.thumbnail.shape[0],
        "slide_s": seconds["slide"],
        "tiles_s": seconds["tiles"],
        "seconds": both,
        "export_s": both + seconds["overview"] + seconds["read"],
        "scoring_s": seconds["score"],
        "kilobytes": sum((folder / f"{name}.png").stat().st_size for name in "ab") / 1e3,
    }


def main() -> None:
    """Print the table and write it to ``pictures.csv``."""
    parser = command(__doc__, settings=True, slides=True)
    parser.add_argument("--sides", type=int, nargs="+", default=(5_000, 40_000, 160_000))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings().with_values([*_SETTINGS, *options.changes])
    with TemporaryDirectory() as folder:
        rows = [
            measure(slide_of(options.slides, side), settings, Path(folder), options.rounds)
            for side in options.sides
        ]
    report("pictures of a slide", "pictures", rows, options.out, machine=True)


if __name__ == "__main__":
    main()
