"""Where two models look: MIL, which reads every tile, and attention sampling, which draws a few.

Run ``python -m benchmarks.qualitative``. Both are trained on the same synthetic slides, from slide labels
alone; then, for a few positive slides that share neither tiles nor stains with them, the figure shows the
slide, the truth, the attention of each model and the tiles that weigh most in its decision. Attention
sampling has more epochs, in which it still reads fewer tiles: 16 of a slide where MIL reads about 300, twice.
The slides shown are the first positive ones, not the best. A few minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines._cluster import connect
from pipelines._runs import Execution
from pipelines.demo import SETTINGS
from pipelines.score import score
from pipelines.train import train
from wsi_ats.overview.tiles import read_thumbnail, read_tiles
from wsi_ats.results.attention import load_attention
from wsi_ats.results.exports.tables import read_selection
from wsi_ats.results.plots import ModelView, SlideView, figure_of_models
from wsi_ats.results.records import Selection
from wsi_ats.settings import Settings
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.tables.files import read_parquet
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.tasks.evaluation import auc
from wsi_ats.testing.synthetic import write_collection

_TILE = 64
_SHOWN = 16  # tiles of each model
_PIXELS_PER_CELL = 16  # of the image shown

# Beside those of the demo; `{epochs}` are a model's own.
_MODELS = {
    "MIL": ("model.kind=mil", "training.slides_per_step=4"),
    "sampling": ("model.kind=sampling",),
}


def slides(folder: Path, count: int, side: int, seed: int) -> list[SlideRef]:
    """Write synthetic slides, unless they are there."""
    if not (folder / "labels.csv").exists():
        write_collection(
            folder,
            slides=count,
            width=side,
            height=side,
            tile_size=_TILE,
            seed=seed,
            variants=16,
            palettes=1,
            banks=max(1, count // 4),
        )
    return read_manifest(folder / "labels.csv")


def heaviest(selection: Selection, count: int) -> Selection:
    """The tiles of the largest weights; of equal ones, of the largest attention."""
    order = np.lexsort((-selection.attention, -selection.weight))[:count]
    names = ("cells", "attention", "inclusion", "weight", "draw", "order")
    return replace(selection, **{name: getattr(selection, name)[order] for name in names})


def view(ref: SlideRef, truth: Path, scores: dict[str, Path]) -> SlideView:
    """What the figure shows of a slide."""
    with np.load(truth / f"{ref.id}.npz") as file:
        kinds = file["kinds"]
    models = {}
    with open_slide(ref) as slide:
        for name, folder in scores.items():
            selection = heaviest(read_selection(folder / "selections" / f"{ref.id}.parquet"), _SHOWN)
            models[name] = ModelView(
                load_attention(folder / "attention" / f"{ref.id}.npz"),
                selection,
                read_tiles(slide, selection.grid, selection.cells),
            )
        image = read_thumbnail(slide, selection.grid, _PIXELS_PER_CELL)
    return SlideView(image, kinds, models)


def area(scores: Path, refs: Sequence[SlideRef]) -> float:
    """Area under the curve on the held-out slides."""
    rows, _ = read_parquet(scores / "predictions.parquet")
    positive = {ref.id: int(ref.label == "positive") for ref in refs}
    found = auc(
        [positive[name] for name in rows["slide_id"]],
        np.stack([rows["prob_negative"], rows["prob_positive"]], axis=1),
    )
    assert found is not None  # both classes are there by construction
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both models, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--training", type=int, default=60, help="Slides.")
    parser.add_argument("--held-out", type=int, default=20, help="Slides.")
    parser.add_argument("--side", type=int, default=2048, help="Of a slide, in pixels.")
    parser.add_argument("--epochs", type=int, nargs=2, default=[6, 30], metavar=("MIL", "SAMPLING"))
    parser.add_argument("--shown", type=int, default=3, help="Positive slides in the figure.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, default=Path("results/qualitative"), help="Kept for another run."
    )
    parser.add_argument("--out", type=Path, default=Path("docs/qualitative.png"))
    options = parser.parse_args(arguments)
    work = options.work.absolute()
    training = slides(work / "training", options.training, options.side, 2 * options.seed)
    held_out = slides(work / "held-out", options.held_out, options.side, 2 * options.seed + 1)
    scores = {}
    with connect(workers=1) as client:
        execution = Execution(scheduler=client, strict=True)
        for (name, changes), epochs in zip(_MODELS.items(), options.epochs, strict=True):
            settings = Settings().with_values(
                [*SETTINGS, *changes, f"training.epochs={epochs}", f"training.seed={options.seed}"]
            )
            train(training, work / "models" / name, settings=settings, execution=execution)
            scores[name] = work / "scores" / name
            score(held_out, work / "models" / name, scores[name], seed=options.seed, execution=execution)
            print(f"{name}: AUC {area(scores[name], held_out):.3f} on {len(held_out)} held-out slides")
    positive = [ref for ref in held_out if ref.label == "positive"][: options.shown]
    areas = ", ".join(f"{name} {area(folder, held_out):.3f}" for name, folder in scores.items())
    figure_of_models(
        options.out,
        [view(ref, work / "held-out" / "truth", scores) for ref in positive],
        title=f"Held-out positive slides; AUC on {len(held_out)} such and negative ones: {areas}",
    )


if __name__ == "__main__":
    main()
