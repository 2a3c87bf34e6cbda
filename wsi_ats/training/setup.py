"""Constants of a training: slides, settings, device and folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from wsi_ats.files import digest_of
from wsi_ats.models.batches import Example, Reader, balancing, units
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Fixes, Settings, TrainingSettings
from wsi_ats.tasks.targets import Target
from wsi_ats.training.phases import Phase, phases_of
from wsi_ats.training.processes import Processes

OnBad = Callable[[str, str], None]

Batch = Sequence[tuple[int, int]]
"""Slides, or cases, of a step: the number of each, and its place in the order of the run."""


@dataclass(frozen=True)
class Setup:
    """Arguments of :func:`wsi_ats.training.fit.fit`, which explains them, and values derived from them."""

    training: Sequence[Example]
    validation: Sequence[Example]
    settings: Settings
    target: Target
    folder: Path
    device: torch.device
    reader: Reader
    processes: Processes
    network: Callable[[], SlideNetwork]
    features: Path
    max_bad: int | None
    on_bad: OnBad
    every_epoch: bool

    def __post_init__(self) -> None:
        # Refuse slides of a case with different labels before anything is stored.
        _ = self.units, self.validation_units

    @property
    def learning(self) -> TrainingSettings:
        """Section ``training`` of the settings."""
        return self.settings.training

    @cached_property
    def phases(self) -> list[Phase]:
        """Phases of the training, in order."""
        return phases_of(self.settings)

    @cached_property
    def units(self) -> list[list[int]]:
        """Places of the training slides of each unit with a label: a slide, or a case."""
        return units(self.training, by_case=self.settings.model.cases != "separate")

    @cached_property
    def validation_units(self) -> list[list[int]]:
        """Places of the validation slides of each unit with a label."""
        return units(self.validation, by_case=self.settings.model.cases != "separate")

    @cached_property
    def classes(self) -> list[float]:
        """First number of the target of each unit; the class, for tasks with classes."""
        return [self.training[places[0]].target[0] for places in self.units]

    @cached_property
    def unit_weights(self) -> list[float] | None:
        """Weight of each unit in the loss; ``None`` for equal ones."""
        return balancing(self.classes) if self.learning.balance == "weights" else None

    @cached_property
    def chance(self) -> Tensor:
        """Outputs (O,) of a guess: the constant with the least loss, as the network is trained.

        With balanced classes all classes are equally likely. Validation slides are compared with the same
        constant, although their loss is not balanced: a network that has learned nothing from balanced
        training outputs this constant, not the label frequencies, so its gain is 0 there as well.
        """
        labels = [self.training[places[0]].target for places in self.units]
        targets = self.target.normalise(torch.tensor(labels))
        if self.learning.balance != "none":
            targets = torch.tensor(sorted(set(self.classes)))[:, None]
        return self.target.definition.constant_outputs(targets, self.target.outputs)

    @cached_property
    def identity(self) -> str:
        """Fingerprint of everything that a stored state depends on."""
        slides = (
            f"{part}/{each.ref.id}/{each.ref.case}={each.target}"
            for part, examples in enumerate((self.training, self.validation))
            for each in examples
        )
        count = str(self.processes.count)
        return digest_of(self.settings.digest(Fixes.MODEL), repr(self.target), count, *slides)

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Return the targets (B, T) of some slides in the units of the network's outputs."""
        # Single precision would not distinguish two close times.
        targets = torch.tensor([each.target for each in examples], dtype=torch.float64, device=self.device)
        return self.target.normalise(targets)

    def names(self, batch: Batch) -> str:
        """Return the ids of a step's slides, for messages."""
        return ", ".join(self.training[slide].ref.id for unit, _ in batch for slide in self.units[unit])
