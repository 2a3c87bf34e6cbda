"""Survival: each slide has a time to an event, or a time until which there was none.

The label is ``time;event``, such as ``23.5;1``; with event 0 the slide is censored: the event came later, or
never. The target has both numbers. The score is a risk, a log-hazard in Cox's model: the larger, the sooner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_ats.errors import ManifestError
from wsi_ats.tasks.base import Details, Floats, Names, NumberTask
from wsi_ats.tasks.labels import column_flag, flag_of, join_rows, number_of
from wsi_ats.tasks.panels import Lines

if TYPE_CHECKING:
    from torch import Tensor


class Survival(NumberTask):
    """The task of predicting the risk of an event."""

    name = "survival"
    main_metric = "concordance"
    chance = 0.5
    tables = ("kaplan_meier.csv",)
    has_units, relative = False, True
    requires = "wsi_ats.tasks.concordance"

    def join(self, columns: Mapping[str, Sequence[str | None]]) -> list[str | None]:
        """Join a column of times and one of events, in this order.

        Examples
        --------
        >>> Survival().join({"months": ["23.5", "12"], "died": ["1", None]})
        ['23.5;1', None]
        """
        return join_rows(columns, _join)

    def must_learn(self, label: str) -> frozenset[str]:
        """Return the event, if it was observed."""
        return frozenset({"event"} if _time_and_event(label)[1] else ())

    def describe(self, labels: Sequence[str]) -> tuple[tuple[str, ...], float, float]:
        """Return the risk, which has no unit."""
        return ("risk",), 0.0, 1.0

    def check_enough(self, labels: Sequence[str], cases: Sequence[str]) -> None:
        """Check that there is an event."""
        if not any(map(self.must_learn, labels)):
            raise ManifestError(
                f"none of {len(labels)} slides has an event, but at least one is needed; write an event as "
                "1, and the end of follow-up as 0"
            )

    def strata(self, labels: Sequence[str], cases: Sequence[str]) -> list[str]:
        """Return whether the event was observed."""
        return ["event" if self.must_learn(label) else "censored" for label in labels]

    def notes(self, labels: Sequence[str]) -> dict[str, Any]:
        """Count the events."""
        return {"events": sum(map(len, map(self.must_learn, labels)))}

    def encode(self, label: str, names: Names) -> tuple[float, ...]:
        """Return the time, and 1 for an event, else 0."""
        return _time_and_event(label)

    def width(self, names: Names) -> int:
        """Return 2, for time and event."""
        return 2

    def decide(self, scores: Sequence[float], names: Names) -> str | None:
        """Return ``None``: a risk is not a time."""
        return None

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute each slide's share in Cox's partial likelihood; see :func:`cox`."""
        return cox(outputs[:, 0], targets[:, 0], targets[:, 1] > 0)

    def metrics(self, targets: Floats, scores: Floats, names: Names, counts: Floats) -> dict[str, Floats]:
        """Compute the concordance."""
        return {"concordance": self.main(targets, scores, counts)}

    def main(self, targets: Floats, scores: Floats, counts: Floats) -> Floats:
        """Compute the concordance."""
        from wsi_ats.tasks.concordance import concordance

        return concordance(targets[:, 0], targets[:, 1] > 0, scores[:, 0], counts)

    def undefined(self, targets: Floats, names: Names) -> str:
        """Return a reason if there is no event."""
        return "" if targets[:, 1].any() else "no event was observed"

    def details(self, targets: Floats, scores: Floats, names: Names, models: Names) -> Details:
        """Make Kaplan-Meier curves of the slides at low and at high risk."""
        from wsi_ats.tasks.concordance import kaplan_meier

        risk, model = scores[:, 0], np.array(models)
        # Each model has its own scale, so its slides are split at its own median.
        middle = np.array([np.median(risk[model == each]) for each in models])
        halves = {"risk up to the median": risk <= middle, "risk above the median": risk > middle}
        curves = {
            f"{name} (n = {half.sum()})": kaplan_meier(*targets[half].T)
            for name, half in halves.items()
            if half.any()
        }
        points = {name: (times.tolist(), shares.tolist()) for name, (times, shares) in curves.items()}
        rows = [(name, *point) for name, curve in points.items() for point in zip(*curve, strict=True)]
        table = dict(zip(("group", "time", "share"), zip(*rows, strict=True), strict=True))
        plot = Lines("time", "share without event (Kaplan-Meier)", points, steps=True)
        return Details({"kaplan_meier.csv": table}, [plot])


def cox(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Compute each slide's share in the negative logarithm of Cox's partial likelihood.

    Each event is compared with all slides of the batch that were still at risk at its time. Ties are treated
    as by Efron (1977, doi:10.1080/01621459.1977.10480613). Events at one time have equal shares, apart from
    their own risk, so the order of slides does not matter. Only differences of risks in a batch matter.

    Parameters
    ----------
    risk
        Log-hazards, shape (B,).
    time
        Time of the event, or of the last follow-up, shape (B,).
    event
        Whether the event was observed, bool, shape (B,).

    Returns
    -------
    Tensor, shape (B,)
        0 for slides without event; sums to the negative log-likelihood.

    Examples
    --------
    >>> import torch
    >>> cox(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([True, True]))  # of two, then of one
    tensor([0.6931, 0.0000])
    """
    at_risk = time[None, :] >= time[:, None]
    tied = (time[None, :] == time[:, None]) & event[None, :]
    at_risk, tied = at_risk.to(risk.dtype), tied.to(risk.dtype)
    # Of m events at one time, the k-th (k = 0...) is compared with all, as if a share k / m of each had left.
    number = tied.sum(1).clamp(min=1)
    gone = tied.tril(-1).sum(1) / number
    among = (risk + (at_risk - gone[:, None] * tied).log()).logsumexp(1)
    shares = tied @ among / number - risk
    return shares.where(event, 0)


def _join(columns: Mapping[str, str | None]) -> str | None:
    if len(columns) != 2:
        raise ManifestError(f"survival needs two columns, time and event, not {', '.join(columns)}")
    time, event = columns.values()
    return None if time is None or event is None else f"{time};{column_flag(event, list(columns)[1]):.0f}"


def _time_and_event(label: str) -> tuple[float, float]:
    expected = "time;event such as '23.5;1', with event 1, or 0 if it was not observed"
    text, _, flag = (part.strip() for part in label.partition(";"))
    event = flag_of(flag)
    if event is None:
        raise ManifestError(f"label is {label!r}, expected {expected}")
    time = number_of(text, expected, label=label)
    if time < 0:
        raise ManifestError(f"label is {label!r}, but a time cannot be negative; expected {expected}")
    return time, event
