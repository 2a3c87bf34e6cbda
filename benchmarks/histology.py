"""All kinds of models on a folder of histology images: test error, and what it costs.

Run ``python -m benchmarks.histology FOLDER --labels TABLE``. The folder holds slides, or images of tissue
(JPEG, PNG, TIFF), which are first written as small pyramids without loss; the table has the columns
``slide_id`` or ``path``, ``case_id`` and ``label``. Every method is trained on all folds but one and tested
on the last, in turn; all images of a case are in one fold. Attention sampling and uniform patches are run
with several numbers of tiles, the methods that see everything at several scales.

Each method is trained in a process of its own, and scored in another. Seconds are of one thread's processor
time (of the wall where there is a GPU); those of training are of the whole of it, measuring the features'
constants included, divided by the images seen. Memory is the process's peak, less what it has before it
builds the network or reads its first image. Nothing is tuned and nothing stops early: the last epoch counts.

The default folder is that of the TCIA osteosarcoma images (60 of 1024 x 1024 pixels, 3 classes, 4 cases, both
told by the file names), seen at 2 micrometres a pixel to end in about 15 minutes of one core. The backbone
starts from random weights, for none can be had without a network; give better ones with ``--set
model.backbone=resnet18 model.checkpoint=FILE``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from benchmarks._figures import Result, figure_of_costs
from benchmarks._images import collect
from benchmarks.report import report
from pipelines._reports import Silent
from pipelines._runs import Execution
from wsi_ats.artifacts import digest_of, read_json, write_json
from wsi_ats.config import Settings
from wsi_ats.evaluation import auc
from wsi_ats.manifest import check_classes
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.splits import folds_by_case
from wsi_ats.testing.memory import peak_memory

_FOLDER = Path("../shared/data/tiles/osteosarcoma_tcia")
_NAMES = r"(?P<label>.+?)___(?P<case>Case-\d+|P\d+)-"

# The same for all methods, and chosen beforehand. Images of tissue show no glass to tell it from.
_SETTINGS = (
    "tile.size=64",
    "thumbnail.tissue=none",
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "training.slides_per_step=4",
    "training.validation=0",
)


@dataclass(frozen=True)
class Arm:
    """A method in one setting.

    Parameters
    ----------
    method, setting
        What tables and figures call it.
    changes
        Settings that make it.
    """

    method: str
    setting: str
    changes: tuple[str, ...]


def arms(tiles: Sequence[int], scales: Sequence[float], mpp: float) -> list[Arm]:
    """List what is compared; scales are relative to tiles of ``mpp`` micrometres a pixel."""
    mil = {"attention MIL": (), "attention MIL, frozen features": ("training.fine_tuning=frozen",)}
    return [
        *(
            Arm(method, f"{n} tiles", (f"model.kind={kind}", f"sampling.tiles={n}", f"tile.mpp={mpp}"))
            for method, kind in (("attention sampling", "sampling"), ("uniform patches", "uniform"))
            for n in tiles
        ),
        *(
            Arm(method, f"scale {scale:g}", ("model.kind=mil", f"tile.mpp={mpp / scale}", *changes))
            for method, changes in mil.items()
            for scale in scales
        ),
        *(
            Arm(
                "CNN on the image",
                f"scale {scale:g}",
                ("model.kind=image", f"model.scale={scale}", f"tile.mpp={mpp}"),
            )
            for scale in scales
        ),
    ]


@dataclass(frozen=True)
class Job:
    """All folds of one method in one setting with one seed.

    Parameters
    ----------
    folder
        For the models.
    settings
        Of the training.
    folds
        All slides once for each fold; ``split`` says which are tested.
    """

    folder: Path
    settings: Settings
    folds: Sequence[Sequence[SlideRef]]


class _Stopwatch(Silent):
    """Keeps the time that networks are trained, and the memory before."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.before: int | None = None

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[str], None]]:  # noqa: ARG002
        if title != "train":
            yield lambda name: None  # noqa: ARG005
            return
        self.before = self.before or psutil.Process().memory_info().rss
        clock = _clock()
        begin = clock()
        yield lambda name: None  # noqa: ARG005
        self.seconds += clock() - begin


def _clock() -> Callable[[], float]:
    import torch

    return time.perf_counter if torch.cuda.is_available() else time.process_time


def train_folds(job: Job) -> dict[str, Any]:
    """Train on every fold; seconds per image, and peak memory in bytes."""
    import torch
    from distributed import Client

    from pipelines.train import train

    torch.set_num_threads(1)
    watch = _Stopwatch()
    # Thumbnails are prepared by a thread of this process: another would have to import all libraries first.
    client = Client(
        processes=False,
        n_workers=1,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        set_as_default=False,
    )
    with client:
        execution = Execution(scheduler=client, overwrite=True, strict=True, reporter=watch)
        for number, refs in enumerate(job.folds):
            train(refs, job.folder / f"fold_{number}", settings=job.settings, execution=execution)
    images = sum(ref.split == "train" for refs in job.folds for ref in refs)
    seconds = watch.seconds / (images * job.settings.training.epochs)
    return {"seconds": seconds, "memory": peak_memory() - (watch.before or 0)}


def score_folds(job: Job) -> dict[str, Any]:
    """Score the slides that each fold leaves out; seconds per image, peak memory in bytes, probabilities."""
    import torch

    from wsi_ats.checkpoints import load_model
    from wsi_ats.inference import predict_slide

    torch.set_num_threads(1)
    clock, seconds, before, scores = _clock(), 0.0, None, []
    for number, refs in enumerate(job.folds):
        trained = load_model(
            job.folder / f"fold_{number}", torch.device("cuda" if torch.cuda.is_available() else "cpu")
        )
        before = before or psutil.Process().memory_info().rss
        for ref in (ref for ref in refs if ref.split == "test"):
            begin = clock()
            with open_slide(ref) as slide:
                scored = predict_slide(
                    trained.model,
                    ref,
                    slide,
                    job.settings,
                    target=trained.target,
                    model_digest=trained.digest,
                    seed=job.settings.training.seed,
                    device=next(trained.model.parameters()).device,
                )
            seconds += clock() - begin
            of_class = dict(zip(trained.target.names, scored.prediction.scores.values(), strict=True))
            scores.append({"fold": number, "label": ref.label, **of_class})
    return {"seconds": seconds / len(scores), "memory": peak_memory() - (before or 0), "scores": scores}


def _alone(function: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """Call a function in a process of its own, unless an earlier run has."""
    record = job.folder / f"{function.__name__}.json"
    if not record.exists():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            made = pool.submit(function, job).result()
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, made)
    return read_json(record)


def figures_of(scores: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, float | None]:
    """Test error and area under the curve over all folds, and the errors of the best and the worst fold.

    Parameters
    ----------
    scores
        For each image its ``fold``, its ``label``, and the probability of each class.
    classes
        Their names.
    """
    probabilities = [[score[name] for name in classes] for score in scores]
    targets = [classes.index(score["label"]) for score in scores]
    wrong = [row.index(max(row)) != target for row, target in zip(probabilities, targets, strict=True)]
    by_fold = [
        mean(float(each) for each, score in zip(wrong, scores, strict=True) if score["fold"] == fold)
        for fold in sorted({score["fold"] for score in scores})
    ]
    return {
        "error": mean(map(float, wrong)),
        "best fold": min(by_fold),
        "worst fold": max(by_fold),
        "AUC": auc(targets, probabilities),
    }


def majority_error(folds: Sequence[Sequence[SlideRef]]) -> float:
    """Test error, over all folds, of always saying the class that is most common in training.

    Where several are, the mean of saying each of them.
    """
    wrong: list[float] = []
    for refs in folds:
        counts = Counter(ref.label for ref in refs if ref.split == "train")
        most = [label for label, number in counts.items() if number == max(counts.values())]
        wrong += [1 - (ref.label in most) / len(most) for ref in refs if ref.split == "test"]
    return mean(wrong)


def compare(
    refs: Sequence[SlideRef],
    chosen: Sequence[Arm],
    settings: Settings,
    *,
    folds: int,
    seeds: Sequence[int],
    work: Path,
) -> tuple[list[dict[str, Any]], list[Result]]:
    """Run the comparison; rows of the table, and marks of the figure (one for each seed)."""
    classes = list(check_classes(refs))
    rows: list[dict[str, Any]] = []
    marks: list[Result] = []
    for arm in chosen:
        runs = []
        for seed in seeds:
            begin = time.perf_counter()
            made = settings.with_values([*arm.changes, f"training.seed={seed}"])
            parts = folds_by_case(refs, folds, seed=seed)
            key = digest_of(made.digest(), *(str(ref) for part in parts for ref in part))
            job = Job(work / f"{arm.method} {arm.setting} {key}".replace(" ", "_"), made, parts)
            trained, scored = _alone(train_folds, job), _alone(score_folds, job)
            found = figures_of(scored["scores"], classes)
            marks.append(
                Result(arm.method, arm.setting, found["error"] or 0.0, trained["seconds"], trained["memory"])
            )
            runs.append(
                found
                | {"train ms": 1e3 * trained["seconds"], "score ms": 1e3 * scored["seconds"]}
                | {"train MB": trained["memory"] / 1e6, "score MB": scored["memory"] / 1e6}
            )
            print(
                f"{arm.method}, {arm.setting}, seed {seed}: error {found['error']:.3f} "
                f"({time.perf_counter() - begin:.0f} s)",
                flush=True,
            )
        means = {
            name: None if any(run[name] is None for run in runs) else mean(run[name] for run in runs)
            for name in runs[0]
        }
        rows.append({"method": arm.method, "setting": arm.setting} | means)
    return rows, marks


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, write it as CSV and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=_FOLDER)
    parser.add_argument("--labels", type=Path, help="Table of slide_id or path, case_id, label.")
    parser.add_argument("--names", default=_NAMES, help="Without a table: label and case from file names.")
    parser.add_argument("--mpp", type=float, default=1.0, help="Of plain images.")
    parser.add_argument("--tile-mpp", type=float, default=2.0, help="Scale 1; tiles are drawn at it.")
    parser.add_argument("--tiles", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--methods", nargs="+", help="Only those whose names begin so.")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.name=value")
    parser.add_argument("--work", type=Path, default=Path("results/histology"), help="Kept for another run.")
    parser.add_argument("--out", default="results")
    options = parser.parse_args(arguments)
    refs = collect(
        options.folder, options.work / "slides", labels=options.labels, names=options.names, mpp=options.mpp
    )
    settings = Settings().with_values([*_SETTINGS, f"training.epochs={options.epochs}", *options.set])
    chosen = [
        arm
        for arm in arms(options.tiles, options.scales, options.tile_mpp)
        if options.methods is None or arm.method.startswith(tuple(options.methods))
    ]
    rows, marks = compare(
        refs, chosen, settings, folds=options.folds, seeds=options.seeds, work=options.work.absolute()
    )
    classes = check_classes(refs)
    guess = 1 - 1 / len(classes)
    majority = mean(majority_error(folds_by_case(refs, options.folds, seed=seed)) for seed in options.seeds)
    for name, error in (("guessing", guess), ("majority of training", majority)):
        rows.append(dict.fromkeys(rows[0]) | {"method": name, "setting": "", "error": error})
    facts = {
        "seeds": " ".join(map(str, options.seeds)),
        "epochs": options.epochs,
        "hardware": f"{os.cpu_count()}-core {platform.machine()}",
    }
    columns = {name: [(row | facts)[name] for row in rows] for name in (*rows[0], *facts)}
    title = (
        f"{options.folder.name}: {len(refs)} images of {len({ref.case for ref in refs})} cases, "
        f"{options.folds} folds by case"
    )
    report(title, "histology", columns, folder=options.out)
    figure_of_costs(Path(options.out) / "histology.png", marks, title=title, chance=guess)


if __name__ == "__main__":
    main()
