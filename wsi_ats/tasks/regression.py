"""Regression: a slide has a value.

The label is a number such as ``3.2``; it is the target and, predicted, the score. Networks predict it in
units of the training labels' standard deviation, so that one learning rate suits all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_ats.errors import ManifestError
from wsi_ats.tasks.base import Details, Floats, Names, NumberTask
from wsi_ats.tasks.labels import number_of, refuse_columns
from wsi_ats.tasks.panels import Scatter

if TYPE_CHECKING:
    from torch import Tensor

# Values are stratified by quartile, if there are enough cases to fill the quartiles.
_QUANTILES = 4
_CASES_PER_QUANTILE = 10


class Regression(NumberTask):
    """The task of predicting a value."""

    name = "regression"
    main_metric = "r2"
    chance = 0.0
    tables = ()
    has_units, relative = True, False

    def join(self, columns: Mapping[str, Sequence[str | None]]) -> list[str | None]:
        """Refuse several columns."""
        refuse_columns(self.name, columns)

    def must_learn(self, label: str) -> frozenset[str]:
        """Return an empty set: values between those of training slides can be predicted."""
        _value(label)
        return frozenset()

    def describe(self, labels: Sequence[str]) -> tuple[tuple[str, ...], float, float]:
        """Return mean and standard deviation of the values."""
        values = np.array([_value(label) for label in labels])
        if len(set(values)) < 2 or values.std() == 0:
            raise ManifestError(
                f"regression needs values that differ, but all {len(values)} slides have {list(labels[:1])}"
            )
        return ("value",), float(values.mean()), float(values.std())

    def check_enough(self, labels: Sequence[str], cases: Sequence[str]) -> None:
        """Accept all: values that differ are enough."""

    def strata(self, labels: Sequence[str], cases: Sequence[str]) -> list[str]:
        """Return the quartile of each value; fewer parts, or one, if there are few cases."""
        values = np.array([_value(label) for label in labels])
        quantiles = min(_QUANTILES, len(set(cases)) // _CASES_PER_QUANTILE)
        edges = np.quantile(values, np.arange(1, quantiles) / max(1, quantiles))
        return [str(number) for number in np.searchsorted(edges, values, side="right")]

    def notes(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the range of the values."""
        values = [_value(label) for label in labels]
        return {"values": {"least": min(values), "most": max(values)}}

    def encode(self, label: str, names: Names) -> tuple[float, ...]:
        """Return the value."""
        return (_value(label),)

    def width(self, names: Names) -> int:
        """Return 1, for the value."""
        return 1

    def decide(self, scores: Sequence[float], names: Names) -> str | None:
        """Return the value."""
        return str(scores[0])

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute squared errors."""
        return (outputs - targets.to(outputs.dtype)).square().mean(1)

    def metrics(self, targets: Floats, scores: Floats, names: Names, counts: Floats) -> dict[str, Floats]:
        """Compute r2, mae and rmse; the last two have the unit of the values."""
        from wsi_ats.tasks.evaluation import ratio

        error, slides = scores[:, 0] - targets[:, 0], counts.sum(axis=1)
        return {
            "r2": self.main(targets, scores, counts),
            "mae": ratio(counts @ np.abs(error), slides),
            "rmse": np.sqrt(ratio(counts @ np.square(error), slides)),
        }

    def main(self, targets: Floats, scores: Floats, counts: Floats) -> Floats:
        """Compute the coefficient of determination; NaN for equal values."""
        from wsi_ats.tasks.evaluation import ratio

        value, drawn = targets[:, 0], counts > 0
        most = np.where(drawn, value, -np.inf).max(axis=1, initial=-np.inf)
        least = np.where(drawn, value, np.inf).min(axis=1, initial=np.inf)
        mean = ratio(counts @ value, counts.sum(axis=1))
        spread = (counts * np.square(value - mean[:, None])).sum(axis=1)
        # Rounding would leave a spread of equal values that is not quite 0.
        return 1 - ratio(counts @ np.square(value - scores[:, 0]), np.where(most > least, spread, 0))

    def undefined(self, targets: Floats, names: Names) -> str:
        """Return a reason if all values are equal."""
        return "all values are the same" if np.ptp(targets[:, 0]) == 0 else ""

    def details(self, targets: Floats, scores: Floats, names: Names, models: Names) -> Details:
        """Plot predicted against true values."""
        return Details({}, [Scatter(targets[:, 0].tolist(), scores[:, 0].tolist())])


def _value(label: str) -> float:
    return number_of(label, "a number such as 3.2")
