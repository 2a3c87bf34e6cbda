"""One epoch: a shuffled pass over the slides in small batches, some of which are begun ahead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from wsi_ats.models.base import draw_seed
from wsi_ats.models.batches import ahead, epoch_batches
from wsi_ats.nn.optimisation import set_rates
from wsi_ats.training.learner import Learner
from wsi_ats.training.progress import Journal
from wsi_ats.training.setup import Batch, Setup

T = TypeVar("T")


def train_epoch(
    setup: Setup,
    learner: Learner,
    journal: Journal,
    *,
    begin: Callable[[int, Batch], T],
    take: Callable[[int, Batch, T], None],
) -> None:
    """Take the remaining steps of an epoch.

    ``begin`` begins a step of ``setup``, by its number and slides, up to ``training.read_ahead`` steps before
    ``take`` takes it, given the result of ``begin``; ``learner`` learns, and ``journal`` records progress.
    """
    learning, progress = setup.learning, journal.progress
    epoch, epochs = len(journal.phase_rows), journal.phase.epochs
    steps = _batches(setup, journal, epoch)
    first = progress.start + epoch * len(steps)
    learner.model.train()
    todo = range(progress.step, first + len(steps))
    # Begin nothing across a stored state: a run that is resumed from it draws by newer weights.
    for _, part in itertools.groupby(todo, key=lambda step: step // learning.checkpoint_steps):
        age = 0
        for step, begun in ahead(part, lambda step: begin(step, steps[step - first]), learning.read_ahead):
            done = (step - progress.start) / (epochs * len(steps))
            set_rates(learner.optimizer, done, warmup=learning.warmup)
            take(step, steps[step - first], begun)
            journal.add(staleness=min(age, learning.read_ahead), steps=1)
            progress.step, age = step + 1, age + 1
        if progress.step < first + len(steps):
            journal.save(learner)


def _batches(setup: Setup, journal: Journal, epoch: int) -> Sequence[Batch]:
    """Return the slides, or cases, of each step of an epoch, with their places in its order."""
    learning, count = setup.learning, len(setup.units)
    batches = epoch_batches(
        count,
        learning.slides_per_step * setup.processes.count,
        draw_seed(learning.seed, f"order {journal.phase.name}", epoch),
        classes=setup.classes if learning.balance == "sampling" else None,
    )
    # A slide may occur more than once: its draw depends on its place in the order.
    occasions = np.arange(count) + len(journal.progress.rows) * count
    places = np.array_split(occasions, len(batches))
    return [list(zip(*each, strict=True)) for each in zip(batches, places, strict=True)]
