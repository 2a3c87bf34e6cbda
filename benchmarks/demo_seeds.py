"""AUC of the demo for many seeds, with perturbed initial weights and other numbers of threads.

Run ``python -m benchmarks.demo_seeds``. Each row is attention sampling as ``make demo`` trains and scores it;
slides, weights and draws all follow from its seed. Seed 0 is also trained with initial weights perturbed
by a millionth, as the rounding of another processor might do, and with more threads.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.report import Rows, command, report
from pipelines._runs import Execution
from pipelines.demo import SETTINGS, Scale, Stopwatch, compare, make_slides
from wsi_ats.files import read_json
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings
from wsi_ats.tasks.targets import Target
from wsi_ats.training import fit as training


@dataclass(frozen=True)
class Trial:
    """A training of the demo; its initial weights are perturbed unless ``disturbance``, a seed, is 0."""

    seed: int
    disturbance: int = 0
    threads: int = 1


def disturbed(
    make: Callable[[Settings, Target], SlideNetwork], number: int
) -> Callable[[Settings, Target], SlideNetwork]:
    """Return a function that makes networks with weights perturbed by a millionth; 0 changes nothing."""

    def made(settings: Settings, target: Target) -> SlideNetwork:
        network, generator = make(settings, target), torch.Generator().manual_seed(number)
        if number:
            with torch.no_grad():
                for weight in network.parameters():
                    weight.mul_(1 + 1e-6 * torch.randn(weight.shape, generator=generator))
        return network

    return made


def run(trials: Sequence[Trial], scale: Scale) -> Rows:
    """Make the slides of one seed, train on them in several ways, and score the others."""
    rows: Rows = []
    execution = Execution(workers=1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        slides = make_slides(out, scale, seed=trials[0].seed, execution=execution)
        for trial in trials:
            torch.set_num_threads(trial.threads)
            settings = Settings().with_values(
                [*SETTINGS, f"training.epochs={scale.epochs}", f"training.seed={trial.seed}"]
            )
            begin = time.perf_counter()
            with patch.object(training, "model_for", disturbed(training.model_for, trial.disturbance)):
                arms = {"attention": ()}
                made = compare(out, *slides, settings, execution=execution, clock=Stopwatch(), arms=arms)
            row = {"auc": made["attention"].auc, "in_lesion": made["attention"].in_lesion}
            record = read_json(out / "models" / "attention" / "run.json")
            row |= {
                "trained_with_seed": int(record["trained_with_seed"]),
                "seconds": time.perf_counter() - begin,
            }
            rows.append({**asdict(trial), **row})
            print(rows[-1], flush=True)
            for name in ("models", "scores"):
                shutil.rmtree(out / name)
    return rows


def main() -> None:
    """Run all trials, and print and write the table, worst first."""
    parser = command(__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(20)))
    parser.add_argument("--disturbances", type=int, default=10, help="number for seed 0")
    parser.add_argument("--threads", nargs="*", type=int, default=[2, 4], help="besides one, for seed 0")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    others = [Trial(0, number + 1) for number in range(given.disturbances)]
    others += [Trial(0, threads=number) for number in given.threads]
    jobs = [[Trial(seed)] for seed in given.seeds] + [part for part in (others[::2], others[1::2]) if part]
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        rows = [row for done in pool.map(run, jobs, [Scale()] * len(jobs)) for row in done]
    report("the demo, worst first", "demo_seeds", sorted(rows, key=lambda row: row["auc"]), given.out)


if __name__ == "__main__":
    main()
