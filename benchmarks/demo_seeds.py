"""Whether the demo reaches its aim whatever decides by accident: seed, rounding, number of threads.

Run ``python -m benchmarks.demo_seeds``. Each row is attention sampling as ``make demo`` trains and scores it:
of a seed, slides, weights and draws are all its own. Of seed 0 the initial weights are also disturbed, each
by a millionth of itself, as another processor's rounding might, and it is trained with other numbers of
threads.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.report import report
from pipelines._runs import Execution
from pipelines.demo import SETTINGS, Scale, Stopwatch, compare, make_slides
from wsi_ats.files import read_json
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings
from wsi_ats.tasks.targets import Target
from wsi_ats.training import fit as training


@dataclass(frozen=True)
class Trial:
    """A training of the demo.

    Parameters
    ----------
    seed
        Of slides, weights and draws.
    disturbance
        Number of a way to disturb the initial weights; 0 leaves them.
    threads
        Of the training.
    """

    seed: int
    disturbance: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Row:
    """How a trial ended, on the held-out slides.

    Parameters
    ----------
    seed, disturbance, threads
        Of the trial.
    auc
        Area under the ROC curve.
    in_lesion
        Share of the tiles drawn of positive slides that lie in lesions.
    trained_with_seed
        Seed of the run that was kept; another than the trial's where that found nothing.
    seconds
        Of training and scoring.
    """

    seed: int
    disturbance: int
    threads: int
    auc: float
    in_lesion: float | None
    trained_with_seed: int
    seconds: float


def disturbed(
    make: Callable[[Settings, Target], SlideNetwork], number: int
) -> Callable[[Settings, Target], SlideNetwork]:
    """Return a maker of networks whose weights are off by a millionth of themselves.

    Parameters
    ----------
    make
        Makes them as they are.
    number
        Seed of what is added; 0 for nothing.
    """

    def made(settings: Settings, target: Target) -> SlideNetwork:
        network, generator = make(settings, target), torch.Generator().manual_seed(number)
        if number:
            with torch.no_grad():
                for weight in network.parameters():
                    weight.mul_(1 + 1e-6 * torch.randn(weight.shape, generator=generator))
        return network

    return made


def run(trials: Sequence[Trial], scale: Scale) -> list[Row]:
    """Make the slides of one seed, train on them in several ways, and score the others."""
    rows: list[Row] = []
    execution = Execution(workers=1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        training_slides, held_out = make_slides(out, scale, seed=trials[0].seed, execution=execution)
        for trial in trials:
            torch.set_num_threads(trial.threads)
            changes = (*SETTINGS, f"training.epochs={scale.epochs}", f"training.seed={trial.seed}")
            begin = time.perf_counter()
            with patch.object(training, "model_for", disturbed(training.model_for, trial.disturbance)):
                arms = compare(
                    out,
                    training_slides,
                    held_out,
                    Settings().with_values(changes),
                    execution=execution,
                    clock=Stopwatch(),
                    arms={"attention": ()},
                )
            record = read_json(out / "models" / "attention" / "run.json")
            found = arms["attention"]
            seconds = time.perf_counter() - begin
            rows.append(
                Row(*astuple(trial), found.auc, found.in_lesion, int(record["trained_with_seed"]), seconds)
            )
            print(rows[-1], flush=True)
            for made in ("models", "scores"):
                shutil.rmtree(out / made)
    return rows


def main() -> None:
    """Parse the command line, run, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(20)))
    parser.add_argument("--disturbances", type=int, default=10, help="of seed 0")
    parser.add_argument("--threads", nargs="*", type=int, default=[2, 4], help="beside one, of seed 0")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", default="benchmarks/results", help="folder of the table")
    given = parser.parse_args()
    others = [Trial(0, number + 1) for number in range(given.disturbances)]
    others += [Trial(0, threads=number) for number in given.threads]
    jobs = [[Trial(seed)] for seed in given.seeds]
    jobs += [part for part in (others[::2], others[1::2]) if part]
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        rows = [row for done in pool.map(run, jobs, [Scale()] * len(jobs)) for row in done]
    rows.sort(key=lambda row: row.auc)
    columns = {each.name: [getattr(row, each.name) for row in rows] for each in fields(Row)}
    report("the demo, worst first", "demo_seeds", columns, given.out)


if __name__ == "__main__":
    main()
