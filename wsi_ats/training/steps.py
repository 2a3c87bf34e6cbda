"""Steps of the classifier, or of all parts together: draw tiles, read them, compute the loss, learn.

An epoch is a shuffled pass over the slides, some of whose steps are begun ahead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from wsi_ats.models.base import Estimates, Finish, draw_seed
from wsi_ats.models.batches import Example, ahead, epoch_batches
from wsi_ats.nn.cases import pool_slides
from wsi_ats.nn.expectation import effective_size
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.optimisation import set_rates
from wsi_ats.nn.seeding import seed_layers
from wsi_ats.nn.supervision import attention_supervision
from wsi_ats.training.learner import Learner
from wsi_ats.training.progress import Journal
from wsi_ats.training.setup import Batch, Setup


@dataclass(frozen=True)
class _Pass:
    """Slides of a step that are computed together, while their tiles are being read."""

    examples: Sequence[Example]
    units: Sequence[int]  # number of each slide, or of its case
    shown: Sequence[int]  # place in the order: slides of rare classes may occur twice in a step
    finish: Finish


@dataclass(frozen=True)
class Steps:
    """Steps that learn from labels: of a ``setup`` and its ``learner``, recorded in its ``journal``."""

    setup: Setup
    learner: Learner
    journal: Journal

    def begin(self, step: int, batch: Batch) -> list[_Pass]:
        """Draw the tiles of this process's share of a step's slides, and begin to read them."""
        setup, seed = self.setup, self.setup.learning.seed
        seed_layers(draw_seed(seed, "begin", step), setup.device)  # dropout, if attention has any
        own = setup.processes.share(batch)
        slides = sum(len(setup.units[unit]) for unit, _ in own)
        passes = 1 if setup.target.definition.relative else min(len(own), self.learner.method.passes(slides))
        begun = []
        for part in np.array_split(np.asarray(own, dtype=np.int64).reshape(-1, 2), max(1, passes)):
            shown = [
                (setup.training[slide], unit, occasion)
                for unit, occasion in part.tolist()
                for slide in setup.units[unit]
            ]
            examples = [example for example, _, _ in shown]
            seeds = [draw_seed(seed, example.ref.id, occasion) for example, _, occasion in shown]
            with self.journal.naming_step(step):
                finish = self.learner.method.begin(examples, self.learner.source, seeds)
            begun.append(
                _Pass(examples, [unit for _, unit, _ in shown], [each for *_, each in shown], finish)
            )
        return begun

    def take(self, step: int, batch: Batch, begun: Sequence[_Pass]) -> None:
        """Compute the loss of a ``step`` of a ``batch`` from the passes ``begun``, and update the weights."""
        # Dropout, if the backbone has any.
        seed_layers(draw_seed(self.setup.learning.seed, "step", step), self.setup.device)
        self.learner.optimizer.zero_grad(set_to_none=True)
        read = 0
        for each in begun:
            with self.journal.naming_step(step):
                result = each.finish()
            self.journal.note_bad(result.failed)
            self.journal.add(failed=len(result.failed))
            if len(result.places):
                read += self._take_pass(step, batch, each, result)
        self.learner.take_step(read, partial(self.journal.check_finite, step=step, batch=batch))

    def _take_pass(self, step: int, batch: Batch, part: _Pass, result: Estimates) -> int:
        """Add the gradients of a pass, and return the number of its slides, or cases, that were read."""
        outputs, shown = pool_slides(
            result.outputs, result.log_weight, [part.shown[place] for place in result.places]
        )
        unit_of = dict(zip(part.shown, part.units, strict=True))
        units, count = [unit_of[number] for number in shown], len(shown)
        mean = self._loss(outputs, units)
        with torch.no_grad():
            chance = self._loss(self.setup.chance.to(outputs).expand_as(outputs), units)
        # Divided by the slides of the whole step, so that nothing depends on how it is split.
        total = mean * (count / len(batch))
        if result.drawn and self.journal.phase.name == "joint":
            total = self._with_attention_terms(total, batch, part, result)
        # One transfer: each of its own would wait for the GPU again.
        loss, own, by_chance = torch.stack([total.detach(), mean.detach(), chance]).tolist()
        self.journal.check_finite("loss", loss, step, batch)
        total.backward()  # type: ignore[no-untyped-call]
        self.journal.add(loss=own * count, chance=by_chance * count, units=count)
        self._count_tiles(result)
        return count

    def _count_tiles(self, result: Estimates) -> None:
        if not self.learner.frozen:
            self.journal.add(tiles=result.tiles)
        for tiles in result.drawn:
            self.journal.add(
                drawn=1,
                cells=tiles.attended.entropy.exp().item(),
                top=tiles.attended.top_share,
                effective=effective_size(tiles.weight),
            )

    def _loss(self, outputs: Tensor, units: Sequence[int]) -> Tensor:
        """Return the mean loss of some slides, or cases, given by their numbers."""
        setup = self.setup
        targets = self.setup.targets([setup.training[setup.units[unit][0]] for unit in units])
        each = setup.target.definition.losses(outputs, targets)
        if setup.unit_weights is not None:
            each = each * each.new_tensor([setup.unit_weights[unit] for unit in units])
        return each.mean()

    def _with_attention_terms(self, total: Tensor, batch: Batch, part: _Pass, result: Estimates) -> Tensor:
        """Add to the loss the entropy of attention and its supervision by the drawn tiles."""
        learning = self.setup.learning
        slides = sum(len(self.setup.units[unit]) for unit, _ in batch)
        entropy = torch.stack([tiles.attended.entropy for tiles in result.drawn])
        total = total - learning.entropy * entropy.sum() / slides
        if learning.supervision and self.setup.target.definition.has_classes:
            total = total + learning.supervision * self._supervision(part, result) / slides
        return total

    def _supervision(self, part: _Pass, result: Estimates) -> Tensor:
        """Return the loss of attention by the drawn tiles; see :mod:`wsi_ats.nn.supervision`."""
        model, definition = cast(AttentionSampler, self.learner.model), self.setup.target.definition
        summed = result.outputs.new_zeros(())
        for place, tiles, features in zip(result.places, result.drawn, result.features, strict=True):
            with torch.no_grad():
                alone, gate = model.classify(features), model.gate_logits(features)
                targets = self.setup.targets([part.examples[place]]).expand(len(alone), -1)
                evidence = -self.setup.learning.evidence * definition.losses(alone, targets)
            summed = summed + attention_supervision(tiles.weight, tiles.attention, gate, evidence)
        return summed


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
