"""Metrics of an epoch and of the trained network, by attention and by uniform draws."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from wsi_ats.errors import ModelError
from wsi_ats.nn.calibration import Calibration
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.training.learner import Learner
from wsi_ats.training.progress import Journal
from wsi_ats.training.validation import Outputs, ValidationSlides, drawing_uniformly

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

    def _by_attention_and_uniform(self) -> dict[str, float | None]:
        """Compute the metrics of the validation slides by attention and by as many uniform draws."""
        metrics = self.validate()
        names = {name: name.replace("validation_", "uniform_") for name in metrics}
        model, progress = self.learner.final, self.journal.progress
        if not isinstance(model, AttentionSampler):
            return metrics | dict.fromkeys(names.values())
        if not model.attention_scale or model.attention is None:
            return metrics | {names[name]: value for name, value in metrics.items()}
        before = progress.rows[-1] if progress.rows else None
        if self.journal.phase.name == "attention" and before and before["phase"] == "attention":
            # The classifier has not changed.
            return metrics | {name: cast(float | None, before[name]) for name in names.values()}
        with drawing_uniformly(model):
            return metrics | self.validate("uniform_")
