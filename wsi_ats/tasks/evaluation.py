"""Metrics that tasks share, how far they can be trusted, and the table of them.

A metric that is not defined, because a class is absent, is ``None``: nothing is put in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import config_context, metrics

from wsi_ats.tasks.base import Floats, Metrics, Names, Task

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Event = tuple[Bools, Floats]
"""Truth and probability of something that may happen, for each of M slides; both of shape (M,)."""


def auc(targets: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """Compute the area under the ROC curve; of more than two classes, the mean of each against the rest.

    Parameters
    ----------
    targets
        Numbers of the true classes, shape (N,).
    probabilities
        Shape (N, classes).

    Returns
    -------
    float or None
        ``None`` where a class is absent and the area is not defined.

    Examples
    --------
    >>> auc([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    1.0
    """
    return mean_area(class_events(np.asarray(targets), np.asarray(probabilities, dtype=np.float64)))


def class_events(number: npt.NDArray[Any], scores: Floats) -> list[Event]:
    """Return the event of being of each class; of two classes the second: the first is its mirror image.

    Parameters
    ----------
    number
        Of the class, shape (M,).
    scores
        Probabilities, shape (M, classes).
    """
    classes = scores.shape[1]
    return [(number == k, scores[:, k]) for k in ([1] if classes == 2 else range(classes))]


def area(event: Event) -> float | None:
    """Compute the area under the ROC curve of one event; ``None`` where it always happened, or never."""
    happened, probability = event
    return float(metrics.roc_auc_score(happened, probability)) if len(np.unique(happened)) == 2 else None


def mean_area(events: Sequence[Event]) -> float | None:
    """Compute the mean of :func:`area`; ``None`` where one is not defined."""
    areas = [each for each in map(area, events) if each is not None]
    return float(np.mean(areas)) if len(areas) == len(events) else None


def average_precision(events: Sequence[Event]) -> float:
    """Compute the mean average precision of several events, each of which happened at least once."""
    return float(np.mean([metrics.average_precision_score(*event) for event in events]))


def f1(events: Sequence[tuple[Bools, Bools]]) -> float:
    """Compute the mean F1 of several events that happened and were predicted; 0 for one never predicted."""
    return float(np.mean([metrics.f1_score(*event, zero_division=0.0) for event in events]))


def metrics_of(task: Task, targets: npt.ArrayLike, scores: npt.ArrayLike, *, names: Names) -> Metrics:
    """Compare scores with the truth.

    Parameters
    ----------
    task
        Decides what the arrays mean and which metrics there are.
    targets
        Encoded labels, shape (N, T).
    scores
        Probability of each class or label, the value, or the risk; shape (N, C).
    names
        Of the target.

    Returns
    -------
    dict
        See :meth:`wsi_ats.tasks.base.Task.metrics`.

    Examples
    --------
    >>> from wsi_ats.tasks.registry import task_named
    >>> true, scores = [[1.0], [2.0], [3.0]], [[1.0], [2.0], [2.5]]
    >>> metrics_of(task_named("regression"), true, scores, names=["value"])["mae"]
    0.16666666666666666
    """
    # Validation checks what has been checked here, at ten times the cost of the metrics themselves.
    with config_context(skip_parameter_validation=True):
        return task.metrics(_rows(targets), _rows(scores), names)


def main_metric(task: Task, targets: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[str, float | None]:
    """Return name and value of the first of :func:`metrics_of` alone, which takes much less time.

    Parameters
    ----------
    task, targets, scores
        As in :func:`metrics_of`.

    Examples
    --------
    >>> from wsi_ats.tasks.registry import task_named
    >>> main_metric(task_named("regression"), [[1.0], [2.0], [3.0]], [[1.0], [2.0], [2.5]])
    ('r2', 0.875)
    """
    with config_context(skip_parameter_validation=True):
        return task.main_metric, task.main(_rows(targets), _rows(scores))


def _rows(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


@dataclass(frozen=True)
class Interval:
    """Where a metric would lie in other samples of cases.

    Parameters
    ----------
    low, high
        Its 2.5 and 97.5 percentile over the resamples in which it is defined; ``None`` if there is none.
    undefined
        Resamples in which it is not, because a class is absent.
    """

    low: float | None
    high: float | None
    undefined: int


def bootstrap(
    compute: Callable[[Indices], Metrics], cases: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Interval]:
    """Resample cases with replacement: percentile intervals of 95 % (Efron & Tibshirani 1993, chapter 13).

    Cases, not slides: those of one case are alike, and resampling them apart would make intervals too narrow.

    Parameters
    ----------
    compute
        Gives the metrics of a sample, from the numbers of its slides, shape (M,); some occur more than once.
    cases
        Case of each slide, length N.
    resamples
        How many samples.
    seed
        Decides which.

    Returns
    -------
    dict of Interval
        By metric. Of fewer than two cases nothing is known, and all are ``None``.

    Examples
    --------
    >>> values = np.arange(100.0)
    >>> def mean(sample):
    ...     return {"mean": float(values[sample].mean())}
    >>> interval = bootstrap(mean, [str(i) for i in range(100)], resamples=200, seed=0)["mean"]
    >>> interval.low < 49.5 < interval.high
    True
    """
    names, of = np.unique(np.asarray(cases, dtype=str), return_inverse=True)
    slides = [np.flatnonzero(of == number) for number in range(len(names))]
    generator = np.random.default_rng(seed)
    found: dict[str, list[float | None]] = {name: [] for name in compute(np.arange(len(cases)))}
    for _ in range(resamples if len(names) > 1 else 0):
        sample = np.concatenate([slides[i] for i in generator.integers(len(names), size=len(names))])
        for name, value in compute(sample).items():
            found[name].append(value)
    return {name: _interval(values) for name, values in found.items()}


def _interval(values: Sequence[float | None]) -> Interval:
    known = [value for value in values if value is not None]
    low, high = np.percentile(known, (2.5, 97.5)).tolist() if known else (None, None)
    return Interval(low, high, len(values) - len(known))


def metrics_table(
    task: Task,
    names: Names,
    targets: Floats,
    scores: Floats,
    cases: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Make the rows of ``metrics.csv``: each metric with its interval.

    Parameters
    ----------
    task, names, targets, scores
        As in :func:`metrics_of`.
    cases
        Case of each slide, length N.
    resamples, seed
        As in :func:`bootstrap`.

    Returns
    -------
    list of dict
        ``figure`` (the metric's name), ``value``, ``low``, ``high``, ``n`` (slides, or cases if each row is
        one), ``cases``, ``undefined_resamples`` and ``note``, which says why a value is missing.
    """

    def compute(sample: Indices) -> Metrics:
        return metrics_of(task, targets[sample], scores[sample], names=names)

    found = compute(np.arange(len(targets)))
    intervals = bootstrap(compute, cases, resamples=resamples, seed=seed)
    why = task.undefined(targets, names) if len(targets) else "there is none to evaluate"
    return [
        {
            "figure": name,
            "value": value,
            "low": intervals[name].low if value is not None else None,
            "high": intervals[name].high if value is not None else None,
            "n": len(targets),
            "cases": len(set(cases)),
            "undefined_resamples": intervals[name].undefined,
            "note": f"not defined: {why or 'no two can be compared'}" if value is None else None,
        }
        for name, value in found.items()
    ]
