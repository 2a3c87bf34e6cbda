"""Megapixel MNIST, the reference's own experiment, with its competitors and what did it.

Run ``python -m benchmarks.megapixel_mnist --data FOLDER`` with MNIST's four gz files in the folder. See
:mod:`benchmarks.mnist_canvas` for the data and :mod:`benchmarks.mnist_models` for the networks.

Two arms are reported apart. ``no prior`` may look at every cell and is told nothing of what is bright or
dark: the only one to hold against the reference, whose test error stays at 0.90 until about epoch 210 and
ends near 0.20 after 500. ``ink prior`` may only look where the low view shows ink, more so the more ink: a
cue of this benchmark.

``--what headline`` (the default) takes about ten minutes on two idle cores; ``ablations`` changes one choice
at a time; ``competitors`` trains each of the paper's other methods for ``--seconds``. Every model is trained
in a process of its own, on one thread, and timed by the processor time of that process, so that what else
the machine does matters little. Tables go to ``--out`` as CSV, figures as PNG.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._figures import Result, figure_of_costs, figure_of_epochs
from benchmarks.mnist_canvas import (
    CLASSES,
    DIGITS,
    PATCH,
    SIDE,
    Canvases,
    Numbers,
    make_canvases,
    read_digits,
)
from benchmarks.mnist_models import LOW, TILE, EveryTile, Recipe, Sampler, Seen, WholeCanvas, grid_corners
from benchmarks.report import report
from wsi_ats.nn.expectation import entropy
from wsi_ats.tables import read_csv, write_csv

_WARM_UP = 50  # steps until Adam knows the size of gradients
_CLIP = 5.0
_BLANK = 4  # pixels of black around MNIST's digits: a tile has all of a digit that has all but these

NO_PRIOR = Recipe()
INK_PRIOR = Recipe(mask=True, prior=1.0)
ARMS = {"no prior": NO_PRIOR, "ink prior": INK_PRIOR}
UNIFORM = Recipe(design="uniform", teaching=0.0, entropy=0.0, attention_rate=0.0)

ABLATIONS = {
    "no teaching": {"teaching": 0.0},
    "teaching by the gate alone": {"evidence": 0.0},
    "linear pooling": {"pool": "linear"},
    "no normalisation of features": {"normalise": False},
    "attention learns no faster": {"attention_rate": 2e-3},
    "multinomial draws": {"design": "multinomial"},
    "cells side by side (stride 50)": {"stride": 50},
    "no entropy term": {"entropy": 0.0},
    "exploration 0.1": {"exploration": 0.1},
    "initialisation of PyTorch": {"he": False},
}
INK_ABLATIONS = {
    "no teaching": {"teaching": 0.0},
    "mask alone": {"prior": 0.0},
    "initialisation of PyTorch": {"he": False},
}


@dataclass(frozen=True, slots=True)
class Job:
    """One model to train.

    Parameters
    ----------
    method, setting
        What the tables call it.
    build
        Makes the model.
    seed
        Of canvases, weights and draws.
    data
        Folder of MNIST.
    train, test
        Number of canvases.
    schedule
        Batch, epochs and rates.
    seconds
        Of processor time after which training ends, whatever the epoch.
    held_out
        Test on canvases of training digits, set aside: for choosing settings.
    """

    method: str
    setting: str
    build: Callable[[], nn.Module]
    seed: int
    data: Path
    train: int = 5000
    test: int = 1000
    schedule: Recipe = NO_PRIOR
    seconds: float = math.inf
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Epoch:
    """Where a training stood; the columns of the table of curves."""

    method: str
    setting: str
    seed: int
    epoch: float
    """Passes over the training canvases until now."""
    train_loss: float
    train_error: float
    test_error: float
    attention_entropy: float
    """In nats; of models without attention, nan."""
    tiles_on_digits: float
    """Share of drawn tiles that hold all of a digit."""
    digits_seen: float
    """Of the five, how many lie wholly in a drawn tile."""
    signal_to_noise: float
    """See :func:`signal_to_noise`, on the first training canvases."""
    seconds: float
    """Processor time until now, of training alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job."""

    curve: tuple[Epoch, ...]
    seconds_per_image: float
    """Median over steps, of a training step."""
    peak_memory: int
    """In bytes, what training took beyond the process with its libraries and data."""
    repeated_error: float
    """Test error of the mean probability over four independent draws, so of 40 tiles."""


def run(job: Job) -> Outcome:
    """Make the canvases, train, test after each epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    train, test = _canvases(job)
    model = job.build()
    generator = torch.Generator().manual_seed(job.seed)
    base = _reset_peak_memory()
    curve, steps = [], []
    for loss, error, done in _train(model, job, train, generator, steps):
        curve.append(_stand(model, job, (train, test), generator, (done, loss, error, sum(steps))))
    peak = _peak_memory() - base
    repeated = _test(model, test, generator, draws=4).error if isinstance(model, Sampler) else math.nan
    batch = min(job.schedule.batch, job.train)
    return Outcome(tuple(curve), median(steps) / batch, peak, repeated)


def _canvases(job: Job) -> tuple[Canvases, Canvases]:
    rng = np.random.default_rng((job.seed, 0))
    digits = read_digits(job.data, train=True)
    if job.held_out:
        both = make_canvases(job.train + job.test, *digits, rng)
        return both.part(0, job.train), both.part(job.train, len(both))
    train = make_canvases(job.train, *digits, rng)
    rng = np.random.default_rng((job.seed, 1))
    return train, make_canvases(job.test, *read_digits(job.data, train=False), rng)


def _train(
    model: nn.Module, job: Job, canvases: Canvases, generator: torch.Generator, steps: list[float]
) -> Iterator[tuple[float, float, float]]:
    """Train, and yield loss, error and epochs done after each epoch and at the end; times go to ``steps``."""
    schedule, rng = job.schedule, np.random.default_rng((job.seed, 2))
    attention = [each for name, each in model.named_parameters() if name.startswith("attention.")]
    others = [each for name, each in model.named_parameters() if not name.startswith("attention.")]
    rates = (schedule.rate, schedule.attention_rate)
    groups = [{"params": each, "lr": rate} for each, rate in zip((others, attention), rates, strict=True)]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    total = schedule.epochs * math.ceil(len(canvases) / schedule.batch)
    for epoch in range(schedule.epochs):
        loss, wrong, seen = 0.0, 0, 0
        for which in _batches(rng.permutation(len(canvases)), schedule.batch):
            begin = time.process_time()
            progress = max(len(steps) / total, sum(steps) / job.seconds)
            scale = min(1, (len(steps) + 1) / _WARM_UP) * (1 + math.cos(math.pi * progress)) / 2
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = scale * rate
            labels = torch.from_numpy(canvases.labels[which])
            outcome = model(canvases, which, generator)
            optimizer.zero_grad()
            model.loss(outcome, labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            logits = _logits(outcome).detach()
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            wrong += int((logits.argmax(1) != labels).sum())
            seen += len(which)
            steps.append(time.process_time() - begin)
            if sum(steps) >= job.seconds:
                yield loss / seen, wrong / seen, epoch + seen / len(canvases)
                return
        yield loss / seen, wrong / seen, epoch + 1


def _logits(outcome: Seen | Tensor) -> Tensor:
    return outcome.logits if isinstance(outcome, Seen) else outcome


def _batches(order: Numbers, size: int) -> Iterator[Numbers]:
    return (order[start : start + size] for start in range(0, len(order), size))


@dataclass(slots=True)
class _Tested:
    error: float = 0.0
    attention_entropy: float = math.nan
    on_digits: list[float] = field(default_factory=list)
    digits: list[float] = field(default_factory=list)


@torch.no_grad()
def _test(model: nn.Module, canvases: Canvases, generator: torch.Generator, *, draws: int = 1) -> _Tested:
    """Classify canvases, from the mean probability over independent draws."""
    was_training = model.training
    model.eval()
    tested, wrong, entropies = _Tested(), 0, []
    for which in _batches(np.arange(len(canvases)), 16):
        chances = torch.zeros(())
        for _ in range(draws):
            outcome = model(canvases, which, generator)
            chances = chances + torch.softmax(_logits(outcome), 1)
        wrong += int((chances.argmax(1) != torch.from_numpy(canvases.labels[which])).sum())
        if isinstance(outcome, Seen):
            entropies.append(torch.vmap(entropy)(outcome.log_attention.exp()))
            corners = grid_corners(canvases.side, model.recipe.stride)[outcome.drawn.indices]
            holds = holding(canvases, which, corners)
            tested.on_digits += holds.any(2).mean(1).tolist()
            tested.digits += holds.any(1).sum(1).tolist()
    tested.error = wrong / len(canvases)
    if entropies:
        tested.attention_entropy = torch.cat(entropies).mean().item()
    model.train(was_training)
    return tested


def _stand(
    model: nn.Module,
    job: Job,
    canvases: tuple[Canvases, Canvases],
    generator: torch.Generator,
    progress: tuple[float, float, float, float],
) -> Epoch:
    train, test = canvases
    done, loss, error, seconds = progress
    tested = _test(model, test, generator)
    sampling = isinstance(model, Sampler)
    row = Epoch(
        method=job.method,
        setting=job.setting,
        seed=job.seed,
        epoch=done,
        train_loss=loss,
        train_error=error,
        test_error=tested.error,
        attention_entropy=tested.attention_entropy,
        tiles_on_digits=float(np.mean(tested.on_digits)) if sampling else math.nan,
        digits_seen=float(np.mean(tested.digits)) if sampling else math.nan,
        signal_to_noise=signal_to_noise(model, train, generator) if sampling else math.nan,
        seconds=seconds,
    )
    print(
        f"{row.method}, {row.setting}, seed {row.seed}: epoch {row.epoch:.2f}, train error {error:.3f}, "
        f"test error {row.test_error:.3f}, digits seen {row.digits_seen:.2f}, {seconds:.0f} s",
        flush=True,
    )
    return row


def holding(canvases: Canvases, which: Numbers, corners: Numbers) -> np.ndarray:
    """Whether tiles of some canvases hold all of a digit, but for the black around it.

    Parameters
    ----------
    canvases, which
        The canvases, (B,) of them.
    corners
        Upper left pixels of tiles, shape (B, n, 2).

    Returns
    -------
    array of bool, shape (B, n, 5)
    """
    offsets = canvases.places[which][:, None, :DIGITS] - corners[:, :, None]
    return ((offsets >= -_BLANK) & (offsets <= TILE - PATCH + _BLANK)).all(3)


def reachable(canvases: Canvases, stride: int) -> float:
    """Of the five digits of a canvas, how many lie wholly in some tile of the grid."""
    corners = grid_corners(canvases.side, stride)
    found = [
        holding(canvases, which, corners[None]).any(1).sum(1).mean()
        for which in _batches(np.arange(len(canvases)), 16)
    ]
    return float(np.mean(found))


def signal_to_noise(
    model: Sampler, canvases: Canvases, generator: torch.Generator, *, batches: int = 16
) -> float:
    """How much the labels have to say to the attention in one minibatch.

    The attention's gradient with the true labels minus that with labels of other canvases, from the same
    draws: what is not about the label cancels. The length of its mean over minibatches, less what
    chance adds to it, in units of its standard deviation over minibatches. A plateau of hundreds of epochs is
    where it is nearly 0.

    Parameters
    ----------
    model
        Left as it is.
    canvases
        Of which ``batches`` minibatches are taken, at least 2.
    generator
        Of draws.
    batches
        How many, at least 2.
    """
    parameters = list(model.attention.parameters())
    differences = []
    was_training = model.training
    model.eval()  # statistics of batch normalisation stay as they are
    size = min(model.recipe.batch, len(canvases) // 2)
    for which in list(_batches(np.arange(len(canvases)), size))[:batches]:
        labels = torch.from_numpy(canvases.labels[which])
        seen = model(canvases, which, generator)
        true, other = (
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in (model.loss(seen, labels), model.loss(seen, labels.roll(1)))
        )
        differences.append(true - other)
    model.train(was_training)
    stacked = torch.stack(differences)
    noise = stacked.var(0).sum()
    signal = (stacked.mean(0).square().sum() - noise / len(stacked)).clamp(min=0)
    return (signal / noise).sqrt().item() if noise > 0 else 0.0


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _reset_peak_memory() -> int:
    """Forget the peak until now; the memory in use. Unlike getrusage's, this peak can be reset (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak_memory() -> int:
    return _status("VmHWM")


def headline(options: argparse.Namespace) -> list[Job]:
    """Both arms, for every seed."""
    return [
        _sampling(options, seed, setting, replace(recipe, epochs=options.epochs))
        for seed in options.seeds
        for setting, recipe in ARMS.items()
    ]


def ablations(options: argparse.Namespace) -> list[Job]:
    """One choice changed at a time, for every seed; the first row of each arm changes none."""
    return [
        _sampling(options, seed, f"{arm}, {name}", replace(recipe, epochs=options.epochs, **changes))
        for seed in options.seeds
        for arm, recipe, table in (("no prior", NO_PRIOR, ABLATIONS), ("ink prior", INK_PRIOR, INK_ABLATIONS))
        for name, changes in ({"as it is": {}} | table).items()
    ]


def competitors(options: argparse.Namespace) -> list[Job]:
    """The paper's other methods, each for the same processor time."""
    methods: dict[tuple[str, str], Callable[[], nn.Module]] = {
        ("attention MIL, all tiles", "900 tiles"): EveryTile,
        ("uniform tiles", f"N = {UNIFORM.tiles}"): partial(Sampler, UNIFORM),
        ("CNN, whole canvas", "scale 0.12"): partial(WholeCanvas, LOW),
        ("CNN, whole canvas", "scale 0.5"): partial(WholeCanvas, SIDE // 2),
        ("CNN, whole canvas", "scale 1.0"): partial(WholeCanvas, SIDE),
    }
    return [
        _job(options, seed, method, setting, build, UNIFORM, seconds=options.seconds)
        for seed in options.seeds
        for (method, setting), build in methods.items()
    ]


def _sampling(options: argparse.Namespace, seed: int, setting: str, recipe: Recipe) -> Job:
    return _job(options, seed, "attention sampling", setting, partial(Sampler, recipe), recipe)


def _job(
    options: argparse.Namespace,
    seed: int,
    method: str,
    setting: str,
    build: Callable[[], nn.Module],
    schedule: Recipe,
    *,
    seconds: float = math.inf,
) -> Job:
    return Job(
        method=method,
        setting=setting,
        build=build,
        seed=seed,
        data=options.data,
        train=options.train,
        test=options.test,
        schedule=schedule,
        seconds=seconds,
        held_out=options.held_out,
    )


PARTS = {"headline": headline, "ablations": ablations, "competitors": competitors}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that were asked for; print and write their tables, and the figure of what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", nargs="+", choices=PARTS, default=["headline"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=120.0, help="processor time of each competitor")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--held-out", action="store_true", help="test on training canvases set aside")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.what:
        jobs = PARTS[part](options)
        with ProcessPoolExecutor(
            options.workers, mp_context=get_context("spawn"), max_tasks_per_child=1
        ) as pool:
            outcomes = []
            for outcome in pool.map(run, jobs):
                outcomes.append(outcome)  # what is done is written, whatever becomes of the rest
                columns = _write(part, jobs, outcomes, options.out)
        title = f"Megapixel MNIST, {part}: one thread of a {hardware()}"
        report(title, f"megapixel_mnist_{part}", columns, options.out)
    draw_figures(options.out)


def _write(
    part: str, jobs: Sequence[Job], outcomes: Sequence[Outcome], folder: Path
) -> dict[str, list[object]]:
    curves = [epoch for outcome in outcomes for epoch in outcome.curve]
    write_csv(
        folder / f"megapixel_mnist_{part}_curves.csv",
        {each.name: [getattr(epoch, each.name) for epoch in curves] for each in fields(Epoch)},
    )
    columns: dict[str, list[object]] = {}
    for job, outcome in zip(jobs, outcomes, strict=False):
        last = outcome.curve[-1]
        row = {
            "method": job.method,
            "setting": job.setting,
            "seed": job.seed,
            "epochs": last.epoch,
            "test_error": last.test_error,
            "test_error_of_4_draws": outcome.repeated_error,
            "train_error": last.train_error,
            "digits_seen": last.digits_seen,
            "seconds": last.seconds,
            "ms_per_image": 1e3 * outcome.seconds_per_image,
            "peak_memory_mb": outcome.peak_memory / 1e6,
            "hardware": hardware(),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    write_csv(folder / f"megapixel_mnist_{part}.csv", columns)
    return columns


def draw_figures(folder: Path) -> None:
    """Draw error against cost, and against epochs, of whatever tables are in a folder."""
    tables = [folder / f"megapixel_mnist_{part}.csv" for part in ("headline", "competitors")]
    results = [
        Result(
            # The arms are no budgets of one method: no line joins them.
            f"{row['method']}, {row['setting']}" if row["setting"] in ARMS else row["method"],
            "" if row["setting"] in ARMS else row["setting"],
            float(row["test_error"]),
            float(row["ms_per_image"]) / 1e3,
            float(row["peak_memory_mb"]) * 1e6,
        )
        for table in tables
        if table.exists()
        for row in _rows(table)
    ]
    if results:
        spent = {
            table.stem.rpartition("_")[2]: sorted(float(row["seconds"]) for row in _rows(table))
            for table in tables
            if table.exists()
        }
        times = ", ".join(f"{part} {each[0]:.0f} to {each[-1]:.0f} s" for part, each in spent.items())
        figure_of_costs(
            folder / "megapixel_mnist.png",
            results,
            title=f"Megapixel MNIST, N = {NO_PRIOR.tiles} (processor time of training: {times})",
            chance=1 - 1 / CLASSES,
        )
    curves = folder / "megapixel_mnist_headline_curves.csv"
    if curves.exists():
        points: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for row in _rows(curves):
            line = points.setdefault(row["setting"], {}).setdefault(row["seed"], [])
            line.append((float(row["epoch"]), float(row["test_error"])))
        marks = {
            "guessing; the reference until epoch 210": 1 - 1 / CLASSES,
            "the reference at epoch 500": 0.2,
        }
        figure_of_epochs(
            folder / "megapixel_mnist_curves.png",
            {setting: list(seeds.values()) for setting, seeds in points.items()},
            title=f"Megapixel MNIST, N = {NO_PRIOR.tiles}",
            levels=marks,
        )


def _rows(path: Path) -> list[dict[str, str]]:
    columns = read_csv(path)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def hardware() -> str:
    """What the figures were measured on."""
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    main()
