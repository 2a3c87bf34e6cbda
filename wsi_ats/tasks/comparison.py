"""Compare several ways to score the same slides by the task's main metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_ats.tasks.base import Floats, Task
from wsi_ats.tasks.evaluation import alone, bootstrap, once, ratio


@dataclass(frozen=True)
class Compared:
    """The main metric of one way to score slides, with intervals of 95 % over samples of cases.

    Parameters
    ----------
    value, low, high
        The metric, a mean over draws, and its interval; ``None`` where it is undefined.
    loss, loss_low, loss_high
        The reference's metric minus this one, on the same samples, and its interval.
    """

    value: float | None
    low: float | None
    high: float | None
    loss: float | None
    loss_low: float | None
    loss_high: float | None


def compare(
    task: Task,
    targets: Floats,
    cases: Sequence[str],
    models: Sequence[str],
    scores: Mapping[str, Floats],
    *,
    reference: str,
    resamples: int,
    seed: int,
) -> dict[str, Compared]:
    """Compare ways to score slides with one of them.

    Parameters
    ----------
    task
        Defines the main metric, which is larger for better scores.
    targets
        Encoded labels, shape (N, T).
    cases
        Case of each slide, length N; cases are resampled, not slides.
    models
        Name of the model of each slide, length N. Where scores of different models cannot be compared
        (``task.relative``), the metric is the mean over models.
    scores
        Scores of each way, shape (D, N, C) with D independent draws; the metric is the mean over draws.
    reference
        The way to compare with.
    resamples, seed
        As in :func:`wsi_ats.tasks.evaluation.bootstrap`.

    Examples
    --------
    >>> from wsi_ats.tasks.registry import task_named
    >>> targets, good = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([[[0.9, 0.1], [0.1, 0.9]] * 2])
    >>> found = compare(
    ...     task_named("classification"), targets, "abcd", ["m"] * 4, {"all": good, "few": 1 - good},
    ...     reference="all", resamples=20, seed=0,
    ... )
    >>> found["all"].value, found["few"].value, found["few"].loss
    (1.0, 0.0, 1.0)
    """
    names = np.asarray(models if task.relative else [""] * len(models), dtype=str)

    parts = [names == name for name in np.unique(names)]

    def metric(way: str, counts: Floats) -> Floats:
        values = np.stack(
            [task.main(targets[part], draw[part], counts[:, part]) for draw in scores[way] for part in parts]
        )
        # In a sample, a model may have no pair of slides to compare.
        known = ~np.isnan(values) if task.relative else np.ones(values.shape, bool)
        return ratio(values.sum(axis=0, where=known), known.sum(axis=0))

    def compute(counts: Floats) -> dict[str, Floats]:
        found = {way: metric(way, counts) for way in scores}
        return found | {f"loss of {way}": found[reference] - values for way, values in found.items()}

    whole = {name: alone(values) for name, values in compute(once(len(targets))).items()}
    intervals = bootstrap(compute, cases, resamples=resamples, seed=seed)
    return {
        way: Compared(
            *(whole[way], intervals[way].low, intervals[way].high),
            *(whole[f"loss of {way}"], intervals[f"loss of {way}"].low, intervals[f"loss of {way}"].high),
        )
        for way in scores
    }
