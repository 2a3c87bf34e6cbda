"""Validation slides during training: outputs of the network, and their metrics."""

from __future__ import annotations

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
