"""The bags' slides as files, through the whole product: a backbone trained end to end, and a frozen one.

``python -m benchmarks.end_to_end --data FOLDER`` writes the slides of :mod:`benchmarks.tissue` as pyramids,
looks at them, reads tiles of them and trains EfficientNet-Lite0 from its ImageNet weights, once as a whole
and once frozen. Frozen it sees what the bags hold, so the last lines of each seed, the same training on the
bags, must say much the same if what is measured on bags is to be true of slides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.learning import TARGET, scores, train
from benchmarks.tissue import MPP, Bag, BagReader, Collection, make_collection, write_slides
from benchmarks.tissue_features import BACKBONE, SIDE, weights_file
from wsi_ats.models.batches import Example, Reader, TileReader
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.tables.files import write_csv
from wsi_ats.tasks.evaluation import auc

SLIDES = (60, 16, 60)
DRAWS = 4  # each reads and encodes its tiles anew
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


def opened(folder: Path, ref: SlideRef) -> Slide:
    """Open a slide of the folder."""
    return open_slide(str(folder / ref.path))


def seen(bags: Sequence[Bag], folder: Path, settings: Settings) -> list[Example]:
    """What training is given of slides: their thumbnails and tissue, found as in any others."""
    examples = []
    for bag in bags:
        with opened(folder, bag.ref) as slide:
            overview = read_overview(slide, settings)
        examples.append(Example(bag.ref, overview, TARGET.encode(bag.ref.label or "")))
    return examples


def measured(
    collection: Collection, arm: str, folder: Path, cache: Path, seed: int
) -> list[dict[str, object]]:
    """Train one arm, and score the test slides by attention and by uniform draws."""
    values = [*COMMON, *ARMS[arm], f"training.seed={seed}"]
    if arm != "bags":
        values.append(f"model.checkpoint={weights_file(cache)}")
    settings = Settings().with_values(values)
    reader: AbstractContextManager[Reader]
    if arm == "bags":
        training, validation, test = (
            [bag.example(TARGET) for bag in bags]
            for bags in (collection.train, collection.validation, collection.test)
        )
        reader = nullcontext(BagReader(collection))
    else:
        training, validation, test = (
            seen(bags, folder, settings)
            for bags in (collection.train, collection.validation, collection.test)
        )
        reader = TileReader(1, partial(opened, folder))
    begin = time.perf_counter()
    with reader as tiles_of:
        trained, _ = train(training, validation, settings, tiles_of)
        seconds = time.perf_counter() - begin
        model = trained.model
        assert isinstance(model, AttentionSampler)
        rows: list[dict[str, object]] = []
        labels = [int(bag.positive) for bag in collection.test]
        scale = model.attention_scale.item()
        for name, at in (("attention", scale), ("uniform", 0.0)):
            model.attention_scale.fill_(at)
            for tiles in TILES:
                drawn = replace(settings, sampling=replace(settings.sampling, tiles=tiles))
                found = [
                    auc(labels, each) or 0.0 for each in scores(model, drawn, test, tiles_of, draws=DRAWS)
                ]
                rows.append(
                    {"seed": seed, "arm": arm, "draws": name, "tiles": tiles, "auc": fmean(found)}
                    | {"scale": at, "seconds": seconds}
                )
    return rows


def main() -> None:
    """Parse the command line, run, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of shared data")
    parser.add_argument("--cache", type=Path, default=Path("results/tissue"), help="for crops and features")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/end_to_end.csv"))
    parser.add_argument("--material", default="colon")
    parser.add_argument("--lesion", type=float, default=0.2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for seed in given.seeds:
        collection = make_collection(
            given.material,
            lesion=given.lesion,
            visible=True,
            slides=SLIDES,
            seed=seed,
            cache=given.cache,
            data=given.data,
        )
        with tempfile.TemporaryDirectory() as folder:
            write_slides(collection, Path(folder))
            for arm in given.arms:
                for row in measured(collection, arm, Path(folder), given.cache, seed):
                    rows.append(row)
                    print(*(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in row.items()), flush=True)  # fmt: skip
    write_csv(given.out, {name: [row[name] for row in rows] for name in rows[0]})


if __name__ == "__main__":
    main()
