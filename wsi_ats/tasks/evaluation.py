"""Metrics shared by tasks, their confidence intervals, and the table of metrics.

A metric that is undefined, because a class is absent, is ``None``; no other value replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.tasks.base import Floats, Metrics, Names, Task

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Event = tuple[Bools, Floats]
"""Outcome and predicted probability of an event for each of M slides; both of shape (M,)."""


def auc(targets: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """Compute the area under the ROC curve; for more than two classes, the mean of each against the rest.

    Parameters
    ----------
    targets
        Numbers of the true classes, shape (N,).
    probabilities
        Shape (N, classes).

    Returns
    -------
    float or None
        ``None`` if a class is absent, so that the area is undefined.

    Examples
    --------
    >>> auc([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    1.0
    """
    return mean_area(class_events(np.asarray(targets), np.asarray(probabilities, dtype=np.float64)))


def class_events(number: npt.NDArray[Any], scores: Floats) -> list[Event]:
    """Return the event of each class; of two classes only that of the second, which mirrors the first.

    Parameters
    ----------
    number
        Class number of each slide, shape (M,).
    scores
        Probabilities, shape (M, classes).
    """
    classes = scores.shape[1]
    return [(number == k, scores[:, k]) for k in ([1] if classes == 2 else range(classes))]


def area(event: Event) -> float | None:
    """Compute the area under the ROC curve of one event; ``None`` if it always or never happened.

    It is the share of the pairs of a slide with the event and one without that the probabilities put in the
    right order; ties count half. Intervals need thousands of areas, precisions and F1, and scikit-learn takes
    milliseconds for each.
    """
    happened, probability = event
    others = np.sort(probability[~happened])
    pairs = len(others) * (len(happened) - len(others))
    each = (np.searchsorted(others, probability[happened], side).sum() for side in ("left", "right"))
    return float(sum(each) / (2 * pairs)) if pairs else None


def mean_area(events: Sequence[Event]) -> float | None:
    """Compute the mean of :func:`area`; ``None`` if an area is undefined."""
    areas = [each for each in map(area, events) if each is not None]
    return float(np.mean(areas)) if len(areas) == len(events) else None


def average_precision(events: Sequence[Event]) -> float:
    """Compute the mean average precision of several events that each happened at least once.

    It is the mean, over the slides with the event, of the precision when every slide at least as probable
    is predicted to have it.
    """
    return float(np.mean([_average_precision(*event) for event in events]))


def _average_precision(happened: Bools, probability: Floats) -> float:
    order = np.argsort(-probability)
    # Equal probabilities are predicted together: only the last of them counts.
    last = np.flatnonzero(np.diff(probability[order], append=-np.inf))
    right = np.cumsum(happened[order])[last]
    return float(np.sum(np.diff(right, prepend=0) * right / (last + 1)) / right[-1])


def f1(events: Sequence[tuple[Bools, Bools]]) -> float:
    """Compute the mean F1 of pairs (happened, predicted), one per event that happened at least once."""
    return float(np.mean([2 * np.sum(both[0] & both[1]) / np.sum(both) for both in events]))


def metrics_of(task: Task, targets: npt.ArrayLike, scores: npt.ArrayLike, *, names: Names) -> Metrics:
    """Compute all metrics of scores.

    Parameters
    ----------
    task
        Defines the meaning of the arrays, and the metrics.
    targets
        Encoded labels, shape (N, T).
    scores
        Probability of each class or label, the value, or the risk; shape (N, C).
    names
        Names of the target.

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
    return task.metrics(_rows(targets), _rows(scores), names)


def main_metric(task: Task, targets: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[str, float | None]:
    """Return name and value of only the first of :func:`metrics_of`, which is much faster.

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
    return task.main_metric, task.main(_rows(targets), _rows(scores))


def _rows(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a metric over samples of cases.

    Parameters
    ----------
    low, high
        2.5th and 97.5th percentile over the resamples in which it is defined; ``None`` if there are none.
    undefined
        Number of resamples in which it is undefined, because a class is absent.
    """

    low: float | None
    high: float | None
    undefined: int


def bootstrap(
    compute: Callable[[Indices], Metrics], cases: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Interval]:
    """Resample cases with replacement: percentile intervals of 95 % (Efron & Tibshirani 1993, chapter 13).

    Slides of one case are alike, so resampling slides instead of cases would make intervals too narrow.

    Parameters
    ----------
    compute
        Computes the metrics of a sample from the numbers of its slides, shape (M,), which may repeat.
    cases
        Case of each slide, length N.
    resamples
        Number of samples.
    seed
        Seed of the samples.

    Returns
    -------
    dict of Interval
        Interval of each metric, by name; with fewer than two cases all are ``None``.

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
        ``metric`` (its name), ``value``, ``low``, ``high``, ``n`` (slides, or cases if each row is
        one), ``cases``, ``undefined_resamples`` and ``note``, the reason for a missing value.
    """

    def compute(sample: Indices) -> Metrics:
        return metrics_of(task, targets[sample], scores[sample], names=names)

    why = task.undefined(targets, names) if len(targets) else "there are no slides to evaluate"
    return with_intervals(
        compute, cases, resamples=resamples, seed=seed, undefined=why or "no pair can be compared"
    )


def with_intervals(
    compute: Callable[[Indices], Metrics],
    cases: Sequence[str],
    *,
    resamples: int,
    seed: int,
    undefined: str,
) -> list[dict[str, Any]]:
    """Make rows of metrics with their intervals, in the columns of :func:`metrics_table`.

    Parameters
    ----------
    compute, cases, resamples, seed
        As in :func:`bootstrap`.
    undefined
        Reason why a metric may be undefined.
    """
    found = compute(np.arange(len(cases)))
    intervals = bootstrap(compute, cases, resamples=resamples, seed=seed)
    return [
        {
            "metric": name,
            "value": value,
            "low": intervals[name].low if value is not None else None,
            "high": intervals[name].high if value is not None else None,
            "n": len(cases),
            "cases": len(set(cases)),
            "undefined_resamples": intervals[name].undefined,
            "note": f"not defined: {undefined}" if value is None else None,
        }
        for name, value in found.items()
    ]
