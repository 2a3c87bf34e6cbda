"""Validation slides during training: what a network says of them, and how good that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import torch
from torch import Tensor

from wsi_ats.batches import Example, Reader, ahead
from wsi_ats.config import Settings
from wsi_ats.errors import ModelError
from wsi_ats.evaluation import main_figure
from wsi_ats.methods import method_for
from wsi_ats.methods.base import Finish, draw_seed
from wsi_ats.nn.cases import pool_slides
from wsi_ats.nn.losses import activate, losses
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.processes import Processes
from wsi_ats.targets import Target

OnFailed = Callable[[Mapping[str, str]], None]
"""Told the messages of slides that could not be read, by id."""


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
    width
        Numbers T in the target of a slide.
    chance
        Outputs (O,) of a guess; see :func:`wsi_ats.nn.losses.constant_outputs`.
    processes
        Each works on its share of the slides.
    device
        Where to compute.
    """

    examples: Sequence[Example]
    units: Sequence[Sequence[int]]
    settings: Settings
    target: Target
    width: int
    chance: Tensor
    processes: Processes
    device: torch.device

    def outputs(
        self, model: SlideNetwork, source: Reader, draws: Sequence[str | int], on_failed: OnFailed
    ) -> tuple[list[Tensor], Tensor]:
        """Compute outputs of all slides that can be read, by several draws.

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
        list of Tensor, shape (N, O), and Tensor, shape (N, T), float64
            Outputs by draw, and targets in the labels' own units.
        """
        learning = self.settings.training
        method = method_for(model.eval(), self.settings, self.device)
        own = self.processes.share(self.units)
        per_pass = max(1, learning.slides_per_step // method.passes(learning.slides_per_step))
        parts = [
            (number, own[first : first + per_pass])
            for number in range(len(draws))
            for first in range(0, len(own), per_pass)
        ]

        def begin(part: tuple[int, Sequence[Sequence[int]]]) -> tuple[list[int], Finish]:
            number, units = part
            examples = [self.examples[slide] for slides in units for slide in slides]
            seeds = [draw_seed(learning.seed, f"{each.ref.id}{draws[number]}", -1) for each in examples]
            numbers = [unit for unit, slides in enumerate(units) for _ in slides]
            return numbers, method.begin(examples, source, seeds)

        outputs: list[list[list[float]]] = [[] for _ in draws]
        targets: list[tuple[float, ...]] = []
        with torch.inference_mode():
            for (number, units), (numbers, finish) in ahead(parts, begin, learning.read_ahead):
                result = finish()
                on_failed(result.failed)
                unit_of = [numbers[place] for place in result.places]
                pooled, shown = pool_slides(result.outputs, result.log_weight, unit_of)
                outputs[number] += pooled.double().cpu().tolist()
                if number == 0:
                    targets += [self.examples[units[unit][0]].target for unit in shown]
        everywhere = self.processes.gather((outputs, targets))
        joined = [[each for found, _ in everywhere for each in found[number]] for number in range(len(draws))]
        true = [each for _, found in everywhere for each in found]
        return [torch.tensor(each, dtype=torch.float64) for each in joined], torch.tensor(
            true, dtype=torch.float64
        )

    def figures(self, outputs: Tensor, targets: Tensor, prefix: str = "") -> dict[str, float | None]:
        """Compute loss, gain and the task's main figure; see :mod:`wsi_ats.diagnosis` for what they say.

        Parameters
        ----------
        outputs, targets
            See :meth:`outputs`.
        prefix
            Of the figures' names.

        Raises
        ------
        ModelError
            When an output is no number.
        """
        task, known = self.target.task, len(outputs) > 0
        if not known:
            outputs, targets = torch.zeros(0, self.target.outputs), torch.zeros(0, self.width)
        if not outputs.isfinite().all():
            raise ModelError("the model gives scores that are no numbers; try lower learning rates")
        true = self.target.normalise(targets)
        loss = chance = gain = None
        if known:
            loss = losses(task, outputs, true).mean().item()
            chance = losses(task, self.chance.to(outputs).expand_as(outputs), true).mean().item()
            gain = 1 - loss / chance if chance else None
        name, value = self.main_figure(outputs, targets)
        return {f"{prefix}loss": loss, f"{prefix}gain": gain, f"{prefix}{name}": value}

    def main_figure(self, outputs: Tensor, targets: Tensor) -> tuple[str, float | None]:
        """Return name and value of the task's main figure; the larger the better."""
        scores = self.target.restore(activate(self.target.task, outputs))
        return main_figure(self.target.task, targets.numpy(), scores.numpy())

    def mean_figures(
        self, model: SlideNetwork, source: Reader, draws: int, on_failed: OnFailed
    ) -> dict[str, float | None]:
        """Return the mean of the figures over several draws.

        Parameters
        ----------
        model, source, on_failed
            See :meth:`outputs`.
        draws
            How many.
        """
        outputs, targets = self.outputs(model, source, range(draws), on_failed)
        every = [self.figures(each, targets) for each in outputs]
        return {
            name: None
            if any(each[name] is None for each in every)
            else fmean(cast(float, each[name]) for each in every)
            for name in every[0]
        }
