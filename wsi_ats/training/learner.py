"""The network in training, with its optimiser, its method and its source of tiles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import torch

from wsi_ats.models.base import Method
from wsi_ats.models.batches import Reader
from wsi_ats.models.frozen import FrozenFeatures
from wsi_ats.models.kinds import method_for
from wsi_ats.models.sampling import AttentionSampling
from wsi_ats.nn.backbone import Precomputed
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.nn.optimisation import averaged, optimizer_of
from wsi_ats.settings import Settings
from wsi_ats.training.phases import Phase
from wsi_ats.training.setup import Setup


class Learner:
    """A network with the method, optimiser and average of weights of the present phase.

    ``average`` is ``None`` if ``training.ema`` is 0, ``frozen`` has the features of a frozen backbone, and
    ``turns`` is the source of randomness for turning thumbnails in the attention phase.
    """

    method: Method
    optimizer: torch.optim.Optimizer

    def __init__(self, setup: Setup) -> None:
        learning = setup.learning
        self._setup = setup
        torch.manual_seed(learning.seed)
        self.model = setup.network().to(setup.device)
        if learning.learning_blocks is not None:
            self.model.encoder.freeze(but_last=learning.learning_blocks)
        if learning.compile:
            self.model.encoder.network.compile(dynamic=True)
        self._learnable = {name for name, each in self.model.named_parameters() if each.requires_grad}
        self.frozen: FrozenFeatures | None = None
        self.turns = torch.Generator()
        self._method(setup.settings).check(setup.training, setup.validation)

    @property
    def final(self) -> SlideNetwork:
        """Network that is validated and kept: the average of weights, if there is one."""
        if self.average is None:
            return self.model
        return cast(SlideNetwork, self.average.module)

    @property
    def source(self) -> Reader:
        """Reader of tiles, or of their features."""
        return self.frozen or self._setup.reader

    def calibrate(self) -> None:
        """Measure the network's constants, on pixels: a frozen backbone's features lack some of them."""
        self._method(self._setup.settings).calibrate(self._setup.training, self._setup.reader)

    def open_features(self, stack: ExitStack) -> None:
        """Read features in place of pixels if the backbone does not learn; all processes share them."""
        encoder, setup = self.model.encoder, self._setup
        learns = any(name.startswith("encoder.") for name in self._learnable)  # in any phase
        # With a backbone of precomputed features, the reader gives features anyway.
        if not setup.settings.model.reads_tiles or learns or isinstance(encoder.network, Precomputed):
            return
        precision = setup.learning.precision
        frozen = FrozenFeatures(
            setup.reader, encoder, setup.features, device=setup.device, precision=precision
        )
        self.frozen = stack.enter_context(frozen)

    def take_tile_count(self) -> int:
        """Return the number of tiles read for frozen features since the last call."""
        return self.frozen.take_count() if self.frozen else 0

    def begin_phase(self, phase: Phase) -> None:
        """Create the method, the optimiser and the average of weights of a phase."""
        setup, learning = self._setup, self._setup.learning
        learns = {
            id(each)
            for name in phase.learns
            for module in self.model.parts().get(name, ())
            for each in module.parameters()
        }
        # Gradients left from the last phase would count in the gradient norm of this one.
        self.model.zero_grad(set_to_none=True)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name in self._learnable and id(weight) in learns)
        rates = {
            "backbone": learning.learning_rate,
            "attention": learning.attention_learning_rate,
            "attention_backbone": learning.learning_rate,
            "head": learning.head_learning_rate,
            "gate": learning.gate_learning_rate,
        }
        self.optimizer = optimizer_of(self.model, rates, weight_decay=learning.weight_decay)
        self.average = averaged(self.model, learning.ema)
        self.method = self._method(phase.settings(setup.settings))
        if phase.name == "attention" and setup.settings.augmentation.turns:
            self.method = replace(cast(AttentionSampling, self.method), turns=self.turns)

    def take_step(self, count: int, check: Callable[[str, float], None]) -> None:
        """Update the weights from the gradients of all processes, unless they could read no slide.

        ``count`` is the number of slides that this process could read; ``check`` refuses a norm that is NaN.
        """
        if not self._setup.processes.add_gradients(self.model, count):
            return
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._setup.learning.clip)
        check("gradient's norm", norm.item())
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _method(self, settings: Settings) -> Method:
        return method_for(self.model, settings, self._setup.device)
