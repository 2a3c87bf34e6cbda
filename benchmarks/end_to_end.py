"""The bags as slide files, through the whole pipeline: a backbone trained end to end, and a frozen one.

``python -m benchmarks.end_to_end --data FOLDER`` writes the slides of :mod:`benchmarks.tissue` as pyramids,
finds their tissue, reads their tiles and trains EfficientNet-Lite0 from its ImageNet weights, once as a whole
and once frozen. Frozen, it gives the features of the bags. So the last lines of each seed, the same training
on the bags, must nearly agree with it if results on bags are to hold for slides.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.engine import examples_of, train
from benchmarks.learning import areas, probabilities, ways
from benchmarks.report import Rows, command, report, text
from benchmarks.synthetic import TARGET
from benchmarks.tissue import MPP, BagReader, Collection, make_collection, write_slides
from benchmarks.tissue_features import BACKBONE, SIDE, weights_file
from wsi_ats.models.batches import Example, Reader, TileReader
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Slide, SlideRef

SLIDES = (60, 16, 60)
DRAWS = 4  # each reads and encodes its tiles again
TILES = (16,)
COMMON = (
    f"tile.size={SIDE}",
    f"tile.mpp={MPP}",
    "sampling.tiles=16",
    "model.pretrained=false",
    "training.epochs=6",
    "training.tiles=32",
    "training.slides_per_step=2",
    "training.attention_tiles=64",
)
ARMS = {
    "trained": (f"model.backbone={BACKBONE}",),
    "frozen": (f"model.backbone={BACKBONE}", "training.fine_tuning=frozen"),
    "bags": ("model.backbone=features:1280", "training.fine_tuning=frozen", "training.precision=float32"),
}


def measured(collection: Collection, arm: str, folder: Path, cache: Path, seed: int) -> Rows:
    """Train one arm, and score the test slides by attention and by uniform draws."""
    settings = Settings().with_values([*COMMON, *ARMS[arm], f"training.seed={seed}"])
    if arm == "bags":
        return _scored(settings, arm, collection, collection.examples(TARGET), BagReader(collection))
    settings = settings.with_values([f"model.checkpoint={weights_file(cache)}"])

    def opened(ref: SlideRef) -> Slide:
        return open_slide(str(folder / ref.path))

    splits = (collection.train, collection.validation, collection.test)
    parts = [examples_of((bag.ref for bag in bags), settings, opened) for bags in splits]
    with TileReader(1, opened) as reader:
        return _scored(settings, arm, collection, parts, reader)


def _scored(
    settings: Settings, arm: str, collection: Collection, parts: Sequence[list[Example]], reader: Reader
) -> Rows:
    training, validation, test = parts
    begin = time.perf_counter()
    trained, _ = train(training, validation, settings, reader, retries=1)
    rows: Rows = []
    seconds = time.perf_counter() - begin
    for draws, tiles, scale, model in ways(trained.model, TILES):
        if tiles:
            drawn = replace(settings, sampling=replace(settings.sampling, tiles=tiles))
            found = areas(collection, probabilities(model, drawn, test, reader, draws=DRAWS))
            row = {"seed": settings.training.seed, "arm": arm, "draws": draws, "tiles": tiles}
            rows.append({**row, "auc": fmean(found), "scale": scale, "seconds": seconds})
            print(", ".join(f"{name} {text(value)}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Run all arms of all seeds, and print and write the table."""
    parser = command(__doc__, tissue=True)
    parser.add_argument("--material", default="colon")
    parser.add_argument("--lesion", type=float, default=0.2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: Rows = []
    for seed in given.seeds:
        where = {"seed": seed, "cache": given.cache, "data": given.data, "visible": True}
        collection = make_collection(given.material, lesion=given.lesion, slides=SLIDES, **where)
        with tempfile.TemporaryDirectory() as folder:
            write_slides(collection, Path(folder))
            for arm in given.arms:
                rows += measured(collection, arm, Path(folder), given.cache, seed)
    report("slides as files", "end_to_end", rows, given.out)


if __name__ == "__main__":
    main()
