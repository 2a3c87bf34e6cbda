"""Validation slides during training: what a network says of them, and how good that is."""

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
from wsi_ats.models.batches import Example, Reader, ahead, balancing
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.calibration import Calibration, calibration
from wsi_ats.nn.cases import pool_slides
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings, TrainingSettings
from wsi_ats.tasks.evaluation import main_metric
from wsi_ats.tasks.targets import Target
from wsi_ats.training.diagnosis import Row
from wsi_ats.training.processes import Processes

OnFailed = Callable[[Mapping[str, str]], None]
"""Told the messages of slides that could not be read, by id."""

FEWEST_TO_CALIBRATE = 10
"""Slides, or cases, that it takes to calibrate outputs."""

Outputs = Mapping[int, Sequence[float]]
"""What a network says by one draw: O numbers of each slide, or case, that could be read, by its number."""


@dataclass(frozen=True)
class Watch:
    """Slides that are set aside to watch.

    Parameters
    ----------
    examples
        The slides.
    units
        Places of those that are scored together: of each slide, or of all slides of a case.
    settings
        Those of the run; as many tiles are drawn as at scoring.
    target
        What is predicted.
    chance
        Outputs (O,) of a guess; see :meth:`wsi_ats.tasks.base.Task.constant_outputs`.
    processes
        Each works on its share of the slides.
    device
        Where to compute.
    """

    examples: Sequence[Example]
    units: Sequence[Sequence[int]]
    settings: Settings
    target: Target
    chance: Tensor
    processes: Processes
    device: torch.device

    def outputs(
        self, model: SlideNetwork, source: Reader, draws: Sequence[str | int], on_failed: OnFailed
    ) -> list[Outputs]:
        """Compute outputs of all slides that can be read, by several draws.

        A slide of which one tile cannot be read is in the draws that miss this tile, and not in the others.

        Parameters
        ----------
        model
            Is put into evaluation mode.
        source
            Gives tiles, or their features.
        draws
            Name of each draw; the same name draws the same tiles.
        on_failed
            Told of slides that cannot be read.

        Returns
        -------
        list of dict
            Of each draw.
        """
        learning = self.settings.training
        method = method_for(model.eval(), self.settings, self.device)
        own = self.processes.share(range(len(self.units)))
        per_pass = max(1, learning.slides_per_step // method.passes(learning.slides_per_step))
        parts = [
            (number, own[first : first + per_pass])
            for number in range(len(draws))
            for first in range(0, len(own), per_pass)
        ]

        def begin(part: tuple[int, Sequence[int]]) -> tuple[list[int], Finish]:
            number, units = part
            shown = [(unit, self.examples[slide]) for unit in units for slide in self.units[unit]]
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
        everywhere = self.processes.gather(outputs)
        return [
            {unit: each for found in everywhere for unit, each in found[number].items()}
            for number in range(len(draws))
        ]

    def figures(self, outputs: Outputs, prefix: str = "") -> dict[str, float | None]:
        """Compute loss, gain and the task's main figure; :mod:`wsi_ats.training.diagnosis` explains them.

        Parameters
        ----------
        outputs
            Of one draw.
        prefix
            Of the figures' names.

        Raises
        ------
        ModelError
            When an output is no number.
        """
        task, units = self.target.definition, sorted(outputs)
        found = torch.tensor([outputs[unit] for unit in units], dtype=torch.float64)
        found = found.reshape(-1, self.target.outputs)
        if not found.isfinite().all():
            raise ModelError("the model gives scores that are no numbers; try lower learning rates")
        labels = [self.examples[self.units[unit][0]].target for unit in units]
        targets = torch.tensor(labels, dtype=torch.float64).reshape(-1, self.target.width)
        true = self.target.normalise(targets)
        loss = chance = gain = None
        if units:
            loss = task.losses(found, true).mean().item()
            chance = task.losses(self.chance.to(found).expand_as(found), true).mean().item()
            gain = 1 - loss / chance if chance else None
        name, value = self.main_figure(found, targets)
        return {f"{prefix}loss": loss, f"{prefix}gain": gain, f"{prefix}{name}": value}

    def main_figure(self, outputs: Tensor, targets: Tensor) -> tuple[str, float | None]:
        """Return name and value of the task's main figure; the larger the better."""
        scores = self.target.restore(self.target.definition.activate(outputs))
        return main_metric(self.target.definition, targets.numpy(), scores.numpy())

    def calibrated(self, draws: Sequence[Outputs]) -> tuple[Sequence[Outputs], Calibration | None]:
        """Make outputs mean what they say; see :mod:`wsi_ats.nn.calibration`.

        Parameters
        ----------
        draws
            Outputs of several draws.

        Returns
        -------
        list of dict, and Calibration
            What the outputs become, and how. They stay as they are where the slides are fewer than
            :data:`FEWEST_TO_CALIBRATE`, a class is absent, or settings say so; then there is ``None``.
        """
        task, learning = self.target.definition, self.settings.training
        units = sorted(set.intersection(*map(set, draws)))
        if len(units) < FEWEST_TO_CALIBRATE or not learning.calibrate_scores:
            return draws, None
        targets = torch.tensor(
            [self.examples[self.units[unit][0]].target for unit in units], dtype=torch.float64
        )
        classes = targets[:, 0].tolist() if task.has_classes else []
        if classes and len(set(classes)) < self.target.outputs:
            return draws, None
        weights = balancing(classes) if learning.balance != "none" else [1.0] * len(units)
        weight, true = torch.tensor(weights, dtype=torch.float64), self.target.normalise(targets)
        found = calibration(
            torch.tensor([[draw[unit] for unit in units] for draw in draws], dtype=torch.float64),
            lambda outputs: (task.losses(outputs, true) * weight).mean(),
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
        """Return the mean figures of two ways to draw, on the slides that all draws of both could read.

        Parameters
        ----------
        one, other
            Outputs of several draws of each.
        """
        known = set.intersection(*map(set, one), *map(set, other))
        return self._mean_figures(one, known), self._mean_figures(other, known)

    def _mean_figures(self, draws: Sequence[Outputs], units: Collection[int]) -> dict[str, float | None]:
        """Return the mean of the figures over several draws, of some slides alone."""
        every = [self.figures({unit: each[unit] for unit in units}) for each in draws]
        return {
            name: None
            if any(each[name] is None for each in every)
            else fmean(cast(float, each[name]) for each in every)
            for name in every[0]
        }


@contextmanager
def drawing_uniformly(model: AttentionSampler) -> Iterator[None]:
    """Let a model draw tiles uniformly for a while."""
    scale = model.attention_scale.item()
    model.attention_scale.fill_(0.0)
    try:
        yield
    finally:
        model.attention_scale.fill_(scale)


def watched_figure(row: Row, learning: TrainingSettings) -> tuple[str, float | None]:
    """Name of the validation figure that tells the best epoch, and its value, the larger the better.

    Parameters
    ----------
    row
        Figures of an epoch; those of validation slides have names that begin with ``validation_``.
    learning
        Says by ``monitor`` which figure it is.
    """
    names = [name for name in row if name.startswith("validation_")]
    (score,) = (name for name in names if name not in {"validation_loss", "validation_gain"})
    name = score if learning.monitor == "score" else "validation_loss"
    value = cast(float | None, row[name])
    return name, -value if value is not None and name == "validation_loss" else value


def is_exhausted(rows: Sequence[Row], learning: TrainingSettings) -> bool:
    """Whether patience with the epochs of a phase is at its end.

    An epoch whose figure cannot be told is one without a better figure.

    Parameters
    ----------
    rows
        Figures of the phase's epochs so far.
    learning
        With ``patience`` and ``monitor``.
    """
    if not learning.patience:
        return False
    merits = [watched_figure(row, learning)[1] for row in rows]
    best = max((merit for merit in merits if merit is not None), default=None)
    since = len(rows) if best is None else len(rows) - 1 - merits.index(best)
    return since >= learning.patience
