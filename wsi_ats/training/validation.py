"""Validation slides during training: outputs of the network, and metrics of each epoch and of the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import torch
from torch import Tensor

from wsi_ats.errors import ModelError
from wsi_ats.models.base import Finish, draw_seed
from wsi_ats.models.batches import Reader, ahead, balancing
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.calibration import Calibration, calibration
from wsi_ats.nn.cases import pool_slides
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import TrainingSettings
from wsi_ats.tasks.evaluation import main_metric
from wsi_ats.training.diagnosis import Row
from wsi_ats.training.learner import Learner
from wsi_ats.training.progress import Journal
from wsi_ats.training.setup import Setup

_FEWEST_TO_CALIBRATE = 10
"""Fewest slides, or cases, that outputs are calibrated on."""

Outputs = Mapping[int, Sequence[float]]
"""Outputs from one draw, shape (O,), of each slide, or case, that could be read, by its number."""


@dataclass(frozen=True)
class ValidationSlides:
    """Slides held out to evaluate the network in training, with as many tiles as at scoring."""

    setup: Setup

    def outputs(
        self,
        model: SlideNetwork,
        source: Reader,
        draws: Sequence[str | int],
        on_failed: Callable[[Mapping[str, str]], None],
    ) -> list[Outputs]:
        """Compute the outputs of all slides that can be read, from several draws.

        A slide with a damaged tile has outputs only from the draws without this tile.

        Parameters
        ----------
        model
            The network, which is switched to evaluation mode.
        source
            Reader of tiles, or of their features.
        draws
            Name of each draw; the same name draws the same tiles.
        on_failed
            Function called with the messages of slides that cannot be read, by id.

        Returns
        -------
        list of dict
            Outputs of each draw.
        """
        setup, learning = self.setup, self.setup.learning
        method = method_for(model.eval(), setup.settings, setup.device)
        own = setup.processes.share(range(len(setup.validation_units)))
        per_pass = max(1, learning.slides_per_step // method.passes(learning.slides_per_step))
        parts = [
            (number, own[first : first + per_pass])
            for number in range(len(draws))
            for first in range(0, len(own), per_pass)
        ]

        def begin(part: tuple[int, Sequence[int]]) -> tuple[list[int], Finish]:
            number, units = part
            shown = [
                (unit, setup.validation[slide]) for unit in units for slide in setup.validation_units[unit]
            ]
            examples = [example for _, example in shown]
            seeds = [draw_seed(learning.seed, f"{each.ref.id}{draws[number]}", -1) for each in examples]
            return [unit for unit, _ in shown], method.begin(examples, source, seeds)

        outputs: list[dict[int, list[float]]] = [{} for _ in draws]
        with torch.inference_mode():
            for (number, _), (units, finish) in ahead(parts, begin, learning.read_ahead):
                result = finish()
                on_failed(result.failed)
                unit_of = [units[place] for place in result.places]
                pooled, known = pool_slides(result.outputs, result.log_weight, unit_of)
                outputs[number] |= zip(known, pooled.double().cpu().tolist(), strict=True)
        everywhere = setup.processes.gather(outputs)
        return [
            {unit: each for found in everywhere for unit, each in found[number].items()}
            for number in range(len(draws))
        ]

    def metrics(self, outputs: Outputs, prefix: str = "") -> dict[str, float | None]:
        """Compute loss, gain and the task's main metric; :mod:`wsi_ats.training.diagnosis` explains them.

        Parameters
        ----------
        outputs
            Outputs of one draw.
        prefix
            Prefix of the metrics' names.

        Raises
        ------
        ModelError
            When an output is NaN or infinite.
        """
        target, units = self.setup.target, sorted(outputs)
        found = torch.tensor([outputs[unit] for unit in units], dtype=torch.float64)
        found = found.reshape(-1, target.outputs)
        if not found.isfinite().all():
            raise ModelError("scores of the model are NaN or infinite; try lower learning rates")
        targets = self._targets(units)
        loss = chance = gain = None
        if units:
            true, guess = target.normalise(targets), self.setup.chance.to(found).expand_as(found)
            loss = target.definition.losses(found, true).mean().item()
            chance = target.definition.losses(guess, true).mean().item()
            gain = 1 - loss / chance if chance else None
        name, value = self.main_metric(found, targets)
        return {f"{prefix}loss": loss, f"{prefix}gain": gain, f"{prefix}{name}": value}

    def main_metric(self, outputs: Tensor, targets: Tensor) -> tuple[str, float | None]:
        """Return name and value of the task's main metric; larger is better."""
        target = self.setup.target
        scores = target.restore(target.definition.activate(outputs))
        return main_metric(target.definition, targets.numpy(), scores.numpy())

    def _targets(self, units: Sequence[int]) -> Tensor:
        """Return the targets (N, T) of some slides, or cases, in the units of the tables."""
        labels = [self.setup.validation[self.setup.validation_units[unit][0]].target for unit in units]
        return torch.tensor(labels, dtype=torch.float64).reshape(-1, self.setup.target.width)

    def calibrated(self, draws: Sequence[Outputs]) -> tuple[Sequence[Outputs], Calibration | None]:
        """Calibrate outputs; see :mod:`wsi_ats.nn.calibration`.

        Parameters
        ----------
        draws
            Outputs of several draws.

        Returns
        -------
        list of dict, and Calibration
            The calibrated outputs, and the calibration. Outputs are unchanged, with ``None``, if there are
            fewer slides than :data:`_FEWEST_TO_CALIBRATE`, a class is absent, or settings switch it off.
        """
        target, learning = self.setup.target, self.setup.learning
        units = sorted(set.intersection(*map(set, draws)))
        if len(units) < _FEWEST_TO_CALIBRATE or not learning.calibrate_scores:
            return draws, None
        targets = self._targets(units)
        classes = targets[:, 0].tolist() if target.definition.has_classes else []
        if classes and len(set(classes)) < target.outputs:
            return draws, None
        weights = balancing(classes) if learning.balance != "none" else [1.0] * len(units)
        weight, true = torch.tensor(weights, dtype=torch.float64), target.normalise(targets)
        found = calibration(
            torch.tensor([[draw[unit] for unit in units] for draw in draws], dtype=torch.float64),
            lambda outputs: (target.definition.losses(outputs, true) * weight).mean(),
            classes=bool(classes),
        )
        changed = [
            {unit: found(torch.tensor(each, dtype=torch.float64)).tolist() for unit, each in draw.items()}
            for draw in draws
        ]
        return changed, found

    def compare(
        self, one: Sequence[Outputs], other: Sequence[Outputs]
    ) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """Return the mean metrics of two kinds of draws, on the slides that all draws of both could read.

        Parameters
        ----------
        one, other
            Outputs of several draws of each kind.
        """
        known = set.intersection(*map(set, one), *map(set, other))
        return self._mean_metrics(one, known), self._mean_metrics(other, known)

    def _mean_metrics(self, draws: Sequence[Outputs], units: Collection[int]) -> dict[str, float | None]:
        """Return the mean metrics of several draws, on some of the slides."""
        every = [self.metrics({unit: each[unit] for unit in units}) for each in draws]
        return {
            name: None
            if any(each[name] is None for each in every)
            else fmean(cast(float, each[name]) for each in every)
            for name in every[0]
        }


@contextmanager
def drawing_uniformly(model: AttentionSampler) -> Iterator[None]:
    """Make a model draw tiles uniformly inside the context."""
    scale = model.attention_scale.item()
    model.attention_scale.fill_(0.0)
    try:
        yield
    finally:
        model.attention_scale.fill_(scale)


def monitored_metric(row: Row, learning: TrainingSettings) -> tuple[str, float | None]:
    """Return the name of the validation metric that decides on the best epoch, and its value.

    Parameters
    ----------
    row
        Metrics of an epoch; the names for validation slides begin with ``validation_``.
    learning
        Settings, which name the metric in ``monitor``.

    Returns
    -------
    str, and float or None
        Larger is better; ``None`` if the metric is undefined.
    """
    names = [name for name in row if name.startswith("validation_")]
    (score,) = (name for name in names if name not in {"validation_loss", "validation_gain"})
    name = score if learning.monitor == "score" else "validation_loss"
    value = cast(float | None, row[name])
    return name, -value if value is not None and name == "validation_loss" else value


def is_exhausted(rows: Sequence[Row], learning: TrainingSettings) -> bool:
    """Return whether the patience for epochs without improvement in a phase is exhausted.

    An epoch with an undefined metric counts as no improvement.

    Parameters
    ----------
    rows
        Metrics of the phase's epochs so far.
    learning
        Settings with ``patience`` and ``monitor``.
    """
    if not learning.patience:
        return False
    merits = [monitored_metric(row, learning)[1] for row in rows]
    best = max((merit for merit in merits if merit is not None), default=None)
    since = len(rows) if best is None else len(rows) - 1 - merits.index(best)
    return since >= learning.patience


# Draws of each validation slide in the comparison at the end; from single draws, the area under the curve of
# a hundred slides varies by up to 0.07.
_FINAL_DRAWS = 4


@dataclass(frozen=True)
class Metrics:
    """Metrics of a ``learner`` with its ``journal``, on validation ``slides``."""

    learner: Learner
    journal: Journal
    slides: ValidationSlides

    def row(self, seconds: float) -> dict[str, float | str | None]:
        """Return the metrics of a complete epoch of given ``seconds``; all processes must call it.

        Raises
        ------
        ModelError
            When no training slide could be read.
        """
        progress = self.journal.progress
        self.journal.add(tiles=self.learner.take_tile_count())
        sums = self.journal.gather()
        progress.sums = {}
        if not sums["units"]:
            raise ModelError("no training slide could be read: " + "; ".join(progress.bad.values()))
        drawn, chance = sums["drawn"], sums["chance"]
        begin = time.perf_counter()
        return {
            "epoch": len(progress.rows),
            "phase": self.journal.phase.name,
            "loss": sums["loss"] / sums["units"],
            "gain": 1 - sums["loss"] / chance if chance else None,
            "effective_cells": sums["cells"] / drawn if drawn else None,
            "top_share": sums["top"] / drawn if drawn else None,
            "effective": sums["effective"] / drawn if sums["effective"] else None,
            "staleness": sums["staleness"] / sums["steps"] if sums["effective"] else None,
            "tiles": sums["tiles"],
            "failed": sums["failed"],
            **self._by_attention_and_uniform(),
            "seconds": seconds + time.perf_counter() - begin,
        }

    def validate(self, prefix: str = "validation_") -> dict[str, float | None]:
        """Return the metrics of the validation slides from one draw, the same in every epoch."""
        [outputs] = self.slides.outputs(self.learner.final, self.learner.source, [""], self.journal.note_bad)
        self.learner.take_tile_count()  # discarded: only tiles of training count
        with self.journal.naming_step(self.journal.progress.step):
            return self.slides.metrics(outputs, prefix)

    def compare_draws(
        self, *, by_attention: bool
    ) -> tuple[dict[str, float | None], dict[str, float | None], Calibration | None]:
        """Return mean calibrated metrics from several draws and from uniform draws, and the calibration.

        Without ``by_attention`` all draws are uniform. The calibration is ``None`` if outputs are not
        calibrated.
        """
        draws = uniform = self._draws()
        if by_attention:
            with drawing_uniformly(cast(AttentionSampler, self.learner.model)):
                uniform = self._draws()
        draws, calibration = self.slides.calibrated(draws)
        uniform, _ = self.slides.calibrated(uniform)
        return *self.slides.compare(draws, uniform), calibration

    def _draws(self) -> Sequence[Outputs]:
        """Compute outputs from several draws, or from one for a model that does not sample."""
        draws = _FINAL_DRAWS if isinstance(self.learner.model, AttentionSampler) else 1
        return self.slides.outputs(
            self.learner.model, self.learner.source, range(draws), self.journal.note_bad
        )

    def _is_due(self) -> bool:
        """Return whether the epoch that ends now is validated."""
        journal = self.journal
        is_last = len(journal.phase_rows) + 1 == journal.phase.epochs
        return self.slides.setup.every_epoch or journal.keeps_best or is_last

    def _by_attention_and_uniform(self) -> dict[str, float | None]:
        """Compute the metrics of the validation slides by attention and by as many uniform draws.

        They are ``None`` after an epoch that need not be validated.
        """
        due, setup = self._is_due(), self.slides.setup
        metrics = self.validate() if due else self.slides.metrics({}, "validation_")
        names = {name: name.replace("validation_", "uniform_") for name in metrics}
        model, progress = self.learner.final, self.journal.progress
        if not due or not isinstance(model, AttentionSampler):
            return metrics | dict.fromkeys(names.values())
        if not model.attention_scale or model.attention is None:
            return metrics | {names[name]: value for name, value in metrics.items()}
        before = progress.rows[-1] if progress.rows and setup.every_epoch else None
        if self.journal.phase.name == "attention" and before and before["phase"] == "attention":
            # The classifier has not changed.
            return metrics | {name: cast(float | None, before[name]) for name in names.values()}
        with drawing_uniformly(model):
            return metrics | self.validate("uniform_")
