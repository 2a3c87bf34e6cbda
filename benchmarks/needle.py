"""Attention sampling against all tiles, uniform tiles and the thumbnail, on slides of real tissue.

Run ``python -m benchmarks.needle``. For every seed and part of the tissue that is lesion (1 %, 5 %, 20 %),
slides of 20,480 x 20,480 pixels are made of images that no other split has (see
:mod:`benchmarks.needle_slides`), every arm is trained on the training slides and scored on the test slides,
each in a process of its own with one thread, and the slides are deleted. What is finished is kept in
``--work``, and a run that was stopped goes on. ``--split val`` scores slides made of the validation images:
settings are chosen on these, with other seeds, and the training slides are then made without them. The test
images of three seeds such as 3, 4 and 5 have none in common.

All arms have one backbone, trained beforehand on kinds of tissue that no slide has
(:mod:`benchmarks.needle_backbone`), and it stays as it is, so that "MIL on all tiles" reads and encodes each
tile of each training slide once. "Fine-tuned" trains it too; "fine-tuned features" are of the backbone that
attention sampling has so trained. Controls that must fail: attention sampling from shuffled labels, and
logistic regression on the mean colour of each slide's tissue, and on what the file's size and the tissue's
outline say ("trivial statistics").

Intervals are of 2,000 bootstrap samples of test slides, drawn within each seed; every slide is a case.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import needle_slides
from benchmarks._needle_figure import figure
from benchmarks.needle_backbone import pretrain
from benchmarks.report import report
from pipelines._reports import Silent
from pipelines._runs import Execution
from wsi_ats.artifacts import digest_of, read_json, write_json
from wsi_ats.config import Settings
from wsi_ats.errors import SettingsError
from wsi_ats.evaluation import auc
from wsi_ats.manifest import read_manifest
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.tables import read_csv, read_parquet
from wsi_ats.testing.memory import peak_memory

BACKBONE = "test_byobnet"
BACKBONE_STEPS = 1500
SETTINGS = (
    f"tile.size={needle_slides.CELL // 4}",
    f"tile.mpp={4 * needle_slides.MPP}",
    "thumbnail.pixels_per_cell=4",
    f"model.backbone={BACKBONE}",
    "model.pretrained=false",
    "sampling.tiles=24",
    "training.fine_tuning=frozen",
    "training.head_learning_rate=1e-3",
    "training.epochs=10",
    "training.validation=0",
)
# Otherwise attention ends on a single tile of each training slide, and knows these by heart.
_ENTROPY = "training.entropy=0.1"
_TUNED, _ON_TUNED = "attention sampling, fine-tuned", "MIL on all tiles, fine-tuned features"
ARMS: Mapping[str, tuple[str, ...]] = {
    "attention sampling": (_ENTROPY,),
    "uniform sampling": ("sampling.design=uniform",),
    "attention frozen at its start": ("training.freeze_attention=true",),
    "MIL on all tiles": ("model.kind=mil",),
    _TUNED: ("training.fine_tuning=full", _ENTROPY),
    _ON_TUNED: ("model.kind=mil",),
    "shuffled labels": (_ENTROPY,),
}
BASELINES = ("thumbnail CNN", "mean colour", "trivial statistics")
_THUMBNAIL_EPOCHS = 30
_BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Collection:
    """Slides of one seed.

    Parameters
    ----------
    seed
        Of slides, weights and draws.
    lesion
        Part of the tissue of positive slides.
    visible
        Whether regions are darker than their surroundings in the thumbnail.
    training, scored
        Numbers of slides.
    split
        Images of which slides are scored: test, or val.
    """

    seed: int
    lesion: float
    visible: bool
    training: int
    scored: int
    split: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{'visible' if self.visible else 'hidden'}_{self.lesion:g}_{self.split}_{self.seed}"

    def write(self, folder: Path, data: Path) -> None:
        """Write the slides, unless they are there."""
        material = needle_slides.read_material(data, self.seed)
        if self.split == "test":  # nothing is chosen any more, and images are few
            material["train"] = material["train"].joined(material["val"])
        for number, (split, slides) in enumerate((("train", self.training), (self.split, self.scored))):
            needle_slides.write_slides(
                folder / split,
                material[split],
                pairs=slides // 2,
                lesion_fraction=self.lesion,
                rng=np.random.default_rng([self.seed, number, round(1000 * self.lesion)]),
                visible=self.visible,
            )


@dataclass(frozen=True)
class Job:
    """One arm on one collection.

    Parameters
    ----------
    arm
        Its name.
    folder
        Of the slides.
    work
        For the model.
    settings
        Of the training.
    split
        Which slides are scored.
    record
        File for what is found.
    """

    arm: str
    folder: Path
    work: Path
    settings: Settings
    split: str
    record: Path


class _Stopwatch(Silent):
    """Keeps the time that networks are trained, and the memory before."""

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0
        self.before = 0

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[str], None]]:  # noqa: ARG002
        wall, processor = time.perf_counter(), time.process_time()
        if title == "train":
            self.before = psutil.Process().memory_info().rss
        yield lambda name: None  # noqa: ARG005
        if title == "train":
            self.seconds, self.processor = time.perf_counter() - wall, time.process_time() - processor


def run_arm(job: Job) -> dict[str, Any]:
    """Train on the training slides, score the others; what both took, and the scores."""
    import torch
    from distributed import Client

    from pipelines.score import score
    from pipelines.train import train

    torch.set_num_threads(1)
    watch, begin = _Stopwatch(), time.process_time()
    training, scored = (read_manifest(job.folder / split / "labels.csv") for split in ("train", job.split))
    if job.arm == "shuffled labels":
        training = shuffled(training, job.settings.training.seed)
    with Client(
        processes=False,
        n_workers=1,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        set_as_default=False,
    ) as client:
        execution = Execution(scheduler=client, overwrite=True, strict=True, reporter=watch)
        train(training, job.work / "model", settings=job.settings, execution=execution)
        peak = peak_memory()
        score(
            scored,
            job.work / "model",
            job.work / "scores",
            seed=job.settings.training.seed,
            execution=execution,
        )
    rows, _ = read_parquet(job.work / "scores" / "predictions.parquet")
    metrics = read_csv(job.work / "model" / "metrics.csv")
    shutil.copy(job.work / "model" / "metrics.csv", job.record.with_suffix(".metrics.csv"))
    if job.arm == _TUNED:
        keep_backbone(job.work / "model" / "model.safetensors", backbone_of(job.record))
    return {
        "scores": _scores(scored, dict(zip(rows["slide_id"], rows["prob_positive"], strict=True))),
        "in_lesion": _in_lesion(job, scored),
        "tiles": mean(rows["tiles_read"]),
        "bytes": mean(rows["bytes_read"]),
        "tissue": mean(rows["tiles_total"]),
        "score_seconds": mean(rows["seconds"]),
        "train_tiles": sum(float(tiles) for tiles in metrics["tiles"]),
        "train_seconds": watch.seconds,
        "train_processor": watch.processor,
        "train_memory": peak - watch.before,
        "processor": time.process_time() - begin,
    }


def backbone_of(record: Path) -> Path:
    """Where the backbone is kept that attention sampling has trained."""
    return record.with_suffix(".safetensors")


def keep_backbone(model: Path, path: Path) -> None:
    """Keep a trained model's backbone as a weights file of its own."""
    prefix = "encoder.network."
    state = {name: value for name, value in load_file(model).items() if name.startswith(prefix)}
    save_file({name.removeprefix(prefix): value for name, value in state.items()}, path)


def shuffled(refs: Sequence[SlideRef], seed: int) -> list[SlideRef]:
    """Give slides each other's labels."""
    order = np.random.default_rng([seed, 7]).permutation(len(refs))
    return [replace(ref, label=refs[other].label) for ref, other in zip(refs, order, strict=True)]


def _scores(refs: Sequence[SlideRef], positive: Mapping[str, float]) -> list[tuple[int, float]]:
    return [(int(ref.label == "positive"), float(positive[ref.id])) for ref in refs]


def _in_lesion(job: Job, refs: Sequence[SlideRef]) -> float | None:
    """Share of the tiles drawn of positive slides that are half lesion or more."""
    from wsi_ats.exports.tables import read_selection

    if job.settings.model.kind == "mil":
        return None
    shares = []
    for ref in refs:
        if ref.label == "positive":
            cells = read_selection(job.work / "scores" / "selections" / f"{ref.id}.parquet").cells
            lesion = needle_slides.read_truth(job.folder / job.split, ref.id).lesion
            shares.append(float(np.mean(lesion.flat[cells] >= 0.5)))
    return mean(shares)


def run_baselines(job: Job) -> dict[str, Any]:
    """Train and score what reads no tiles."""
    import torch

    from wsi_ats.artifacts import Prepared
    from wsi_ats.baselines import fit_thumbnails, thumbnail_logits
    from wsi_ats.look import look

    torch.set_num_threads(1)
    parts, seed = [], job.settings.training.seed
    for split in ("train", job.split):
        refs, prepared = read_manifest(job.folder / split / "labels.csv"), []
        for ref in refs:
            with open_slide(ref) as slide:
                prepared.append(Prepared(*look(slide, job.settings)))
        parts.append((refs, prepared))
    (training, seen), (scored, unseen) = parts
    targets = [int(ref.label == "positive") for ref in training]
    begin = time.process_time()
    network = fit_thumbnails(seen, targets, classes=2, epochs=_THUMBNAIL_EPOCHS, seed=seed)
    seconds = time.process_time() - begin
    with torch.inference_mode():
        probabilities = [float(torch.softmax(thumbnail_logits(network, p), 0)[1]) for p in unseen]
    found = {"thumbnail CNN": probabilities}
    for name, features in (("mean colour", _mean_colour), ("trivial statistics", _trivial)):
        known, new = (np.stack([features(ref, p) for ref, p in zip(*part, strict=True)]) for part in parts)
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(known, targets)
        found[name] = model.predict_proba(new)[:, 1].tolist()
    labels = [int(ref.label == "positive") for ref in scored]
    return {name: {"scores": list(zip(labels, values, strict=True))} for name, values in found.items()} | {
        "thumbnail_seconds": seconds
    }


def _mean_colour(ref: SlideRef, prepared: Any) -> NDArray[np.float64]:  # noqa: ARG001
    """Mean of the tissue's pixels in the thumbnail, (3,)."""
    side = prepared.thumbnail.shape[0] // prepared.tissue.grid.shape[0]
    mask = np.kron(prepared.tissue.mask, np.ones((side, side), dtype=bool))
    mean_colour: NDArray[np.float64] = prepared.thumbnail[mask].mean(axis=0)
    return mean_colour


def _trivial(ref: SlideRef, prepared: Any) -> NDArray[np.float64]:
    """Size of the file, tissue cells, cells at the tissue's border, and the tissue's extent, (5,)."""
    mask = prepared.tissue.mask
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    down, across = (np.ptp(np.flatnonzero(mask.any(axis=axis))) for axis in (1, 0))
    border = np.count_nonzero(mask & ~inner)
    return np.array([Path(ref.path).stat().st_size, np.count_nonzero(mask), border, down, across], float)


def _alone(function: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """Call a function in a process of its own, unless an earlier run has."""
    if not job.record.exists():
        job.record.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            write_json(job.record, pool.submit(function, job).result())
        shutil.rmtree(job.work, ignore_errors=True)  # baselines keep nothing
    return read_json(job.record)


def measure(
    collection: Collection,
    arms: Sequence[str],
    settings: Settings,
    *,
    data: Path,
    work: Path,
    finished: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train and score arms and baselines on one collection.

    Parameters
    ----------
    collection
        The slides.
    arms
        Names in :data:`ARMS`, and ``baselines``.
    settings
        What all arms have in common.
    data
        Images and outlines.
    work
        For slides, models and records.
    finished
        Whether to leave out what an earlier run has not finished.

    Returns
    -------
    dict
        Records by the name of the arm or baseline.
    """
    folder, records = work / "slides" / collection.name, work / "records" / collection.name
    jobs = []
    for arm in arms:
        changes = [*ARMS.get(arm, ()), f"training.seed={collection.seed}"]
        if arm == _ON_TUNED:
            tuned = [job.record for job in jobs if job.arm == _TUNED]
            if not tuned:
                raise SettingsError(f"{arm} needs the backbone of {_TUNED}; name both in --arms")
            changes.append(f'model.checkpoint="{backbone_of(tuned[0])}"')
        made = settings.with_values(changes)
        key = digest_of(made.digest(), str((collection.training, collection.scored)))
        name = f"{arm} {key}".replace(" ", "_")
        model = work / "models" / collection.name / name
        jobs.append(Job(arm, folder, model, made, collection.split, records / f"{name}.json"))
    if finished:
        jobs = [job for job in jobs if job.record.exists()]
    if any(not job.record.exists() for job in jobs):
        collection.write(folder, data)
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        begin = time.perf_counter()
        record = _alone(run_arm if job.arm in ARMS else run_baselines, job)
        new = {job.arm: record} if job.arm in ARMS else {name: record[name] for name in BASELINES}
        for name, each in new.items():
            print(f"{collection.name}: {name} {_area(each['scores']):.3f}", end=", ")
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)
        found |= new
    if not finished:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _area(scores: Sequence[Sequence[float]]) -> float:
    targets = [int(target) for target, _ in scores]
    area = auc(targets, [[1 - positive, positive] for _, positive in scores])
    assert area is not None  # both classes are there by construction
    return area


def interval(
    runs: Sequence[Sequence[Sequence[float]]], *, seed: int = 0, samples: int = _BOOTSTRAPS
) -> tuple[float, float, float]:
    """Mean over seeds of the area under the curve, and its 95 % interval over slides.

    Parameters
    ----------
    runs
        For each seed, (target, score) of each slide.
    seed
        Of the bootstrap.
    samples
        How many.
    """
    rng = np.random.default_rng(seed)
    draws = np.zeros(samples)
    for run in runs:
        targets, scores = np.array(run).T
        positive, negative = scores[targets == 1], scores[targets == 0]
        above = positive[:, None] - negative
        ranks = (above > 0) + 0.5 * (above == 0)
        # Within each class, so that every sample has both.
        weights = [rng.multinomial(n, np.full(n, 1 / n), samples) / n for n in (len(positive), len(negative))]
        draws += np.einsum("sp,pn,sn->s", weights[0], ranks, weights[1]) / len(runs)
    low, high = np.quantile(draws, [0.025, 0.975])
    return mean(_area(run) for run in runs), float(low), float(high)


def summary(
    records: Mapping[tuple[bool, float], Mapping[int, Mapping[str, Mapping[str, Any]]]],
) -> list[dict[str, Any]]:
    """Rows of the table, from the records by visibility and lesion, seed and arm."""
    rows = []
    for (visible, lesion), by_seed in records.items():
        names = dict.fromkeys(name for found in by_seed.values() for name in found)
        for name in names:
            runs = [found[name] for found in by_seed.values() if name in found]
            area, low, high = interval([run["scores"] for run in runs])
            row: dict[str, Any] = {"thumbnail": "shows regions" if visible else "shows nothing"}
            row |= {"lesion": lesion, "arm": name, "AUC": area, "low": low, "high": high}
            areas = [_area(run["scores"]) for run in runs]
            row |= {"worst seed": min(areas), "best seed": max(areas), "seeds": len(runs)}
            for column, key, unit in _COLUMNS:
                values = [run.get(key) for run in runs]
                row[column] = None if None in values else mean(values) / unit
            rows.append(row)
    by_name = {(row["thumbnail"], row["lesion"], row["arm"]): row for row in rows}
    for row in rows:
        all_tiles = by_name.get((row["thumbnail"], row["lesion"], "MIL on all tiles"))
        for column, key in (("reads of MIL's", "tiles"), ("bytes of MIL's", "MB")):
            known = all_tiles is not None and row[key] is not None
            row[column] = row[key] / all_tiles[key] if known and all_tiles else None
    return rows


_KEYS = ("thumbnail", "lesion", "arm")
_OF_QUALITY = ("AUC", "low", "high", "worst seed", "best seed", "seeds", "in lesion")
_OF_COST = ("tiles", "reads of MIL's", "MB", "bytes of MIL's", "train tiles", "train s", "train CPU s")
_OF_COST += ("train peak MB",)
_COLUMNS = (
    ("in lesion", "in_lesion", 1),
    ("tiles", "tiles", 1),
    ("MB", "bytes", 1e6),
    ("train s", "train_seconds", 1),
    ("train CPU s", "train_processor", 1),
    ("train peak MB", "train_memory", 1e6),
    ("train tiles", "train_tiles", 1),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Images and outlines.")
    parser.add_argument("--lesions", type=float, nargs="*", default=list(needle_slides.REGIONS))
    parser.add_argument(
        "--hidden", type=float, nargs="*", default=[0.05, 0.20], help="Thumbnail shows nothing."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--arms", nargs="+", default=[*ARMS, "baselines"], choices=[*ARMS, "baselines"])
    parser.add_argument("--training", type=int, default=60, help="Slides to train on.")
    parser.add_argument("--scored", type=int, default=40, help="Slides to score.")
    parser.add_argument("--split", choices=["test", "val"], default="test")
    parser.add_argument("--finished", action="store_true", help="Tell what earlier runs have finished.")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.name=value")
    parser.add_argument("--work", type=Path, default=Path("results/needle"), help="Kept for another run.")
    parser.add_argument("--out", default="results")
    options = parser.parse_args(arguments)
    work = options.work.absolute()
    weights = work / f"{BACKBONE}_{BACKBONE_STEPS}.safetensors"
    pretrain(options.data, weights, backbone=BACKBONE, steps=BACKBONE_STEPS)
    settings = Settings().with_values([*SETTINGS, f'model.checkpoint="{weights}"', *options.set])
    records: dict[tuple[bool, float], dict[int, dict[str, dict[str, Any]]]] = {}
    # A seed after the other: a run that is stopped has something of everything.
    for seed in options.seeds:
        for visible, lesion in (*((True, f) for f in options.lesions), *((False, f) for f in options.hidden)):
            collection = Collection(seed, lesion, visible, options.training, options.scored, options.split)
            found = measure(
                collection, options.arms, settings, data=options.data, work=work, finished=options.finished
            )
            records.setdefault((visible, lesion), {})[seed] = found
    rows = summary(records)
    title = (
        f"{options.training} training and {options.scored} {options.split} slides of real tissue; one thread "
        f"of a {os.cpu_count()}-core {platform.machine()}"
    )
    for name, chosen in (("needle", _OF_QUALITY), ("needle_costs", _OF_COST)):
        columns = {column: [row[column] for row in rows] for column in (*_KEYS, *chosen)}
        report(title, name, columns, folder=options.out)
    figure(Path(options.out) / "needle.png", rows, settings, data=options.data, seed=options.seeds[0])


if __name__ == "__main__":
    main()
