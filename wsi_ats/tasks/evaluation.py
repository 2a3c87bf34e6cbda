"""Metrics shared by tasks, their confidence intervals, and the table of metrics.

Metrics are computed for many samples of the slides at once: ``counts``, shape (R, N), has how often each of N
slides is in each of R samples, which may be never. The metrics have shape (R,). A metric that is undefined in
a sample, because a class is absent, is NaN there, and ``None`` in tables; no other value replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wsi_ats.tasks.base import Floats, Metrics, Names, Task

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

# Most counts at once: they and what is computed from them take some 50 MB.
_COUNTS = 2**20


class Event(NamedTuple):
    """Outcome and predicted probability of an event for M of N slides; all have shape (M,).

    Parameters
    ----------
    happened, probability
        Whether it happened, and its probability.
    slides
        Numbers of the slides, in the columns of ``counts``.
    """

    happened: Bools
    probability: Floats
    slides: Indices


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
    events = class_events(np.asarray(targets), np.asarray(probabilities, dtype=np.float64))
    return alone(mean_area(events, once(len(events[0].slides))))


def once(slides: int) -> Floats:
    """Return the counts of one sample with each slide once, shape (1, slides)."""
    return np.ones((1, slides))


def alone(values: Floats) -> float | None:
    """Return a metric of one sample, shape (1,), as a number; ``None`` if it is undefined."""
    return None if np.isnan(values[0]) else float(values[0])


def ratio(above: Floats, below: Floats) -> Floats:
    """Divide arrays of one shape; NaN where the divisor is 0."""
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0))


def class_events(number: npt.NDArray[Any], scores: Floats) -> list[Event]:
    """Return the event of each class; of two classes only that of the second, which mirrors the first.

    Parameters
    ----------
    number
        Class number of each slide, shape (M,).
    scores
        Probabilities, shape (M, classes).
    """
    classes, slides = scores.shape[1], np.arange(len(number))
    return [Event(number == k, scores[:, k], slides) for k in ([1] if classes == 2 else range(classes))]


def area(event: Event, counts: Floats) -> Floats:
    """Compute the area under the ROC curve of one event; NaN if it always or never happened.

    It is the share of the pairs of a slide with the event and one without that the probabilities put in the
    right order; ties count half.

    Parameters
    ----------
    event
        The event.
    counts
        Samples of the slides, shape (R, N).

    Returns
    -------
    array, shape (R,)

    Examples
    --------
    >>> event = Event(np.array([False, True, True]), np.array([0.3, 0.1, 0.6]), np.arange(3))
    >>> area(event, np.array([[1.0, 1, 1], [1, 0, 2], [0, 1, 1]]))
    array([0.5, 1. , nan])
    """
    order = np.argsort(event.probability)
    happened, probability = event.happened[order], event.probability[order]
    counts = counts[:, event.slides[order]]
    # How many slides without the event are before each place.
    before = np.pad(np.cumsum(counts * ~happened, axis=1), ((0, 0), (1, 0)))
    left, right = (np.searchsorted(probability, probability[happened], side) for side in ("left", "right"))
    with_event = counts[:, happened]
    wins = (with_event * (before[:, left] + before[:, right])).sum(axis=1)
    return ratio(wins, 2 * with_event.sum(axis=1) * before[:, -1])


def mean_area(events: Sequence[Event], counts: Floats) -> Floats:
    """Compute the mean of :func:`area`, shape (R,); NaN if an area is undefined."""
    return _mean([area(event, counts) for event in events])


def average_precision(events: Sequence[Event], counts: Floats) -> Floats:
    """Compute the mean average precision of several events, shape (R,); NaN if one never happened.

    It is the mean, over the slides with the event, of the precision when every slide at least as probable
    is predicted to have it.
    """
    return _mean([_average_precision(event, counts) for event in events])


def _average_precision(event: Event, counts: Floats) -> Floats:
    order = np.argsort(-event.probability)
    # Equal probabilities are predicted together: only the last of them counts.
    last = np.flatnonzero(np.diff(event.probability[order], append=-np.inf))
    counts = counts[:, event.slides[order]]
    with_event = counts * event.happened[order]
    right, predicted = (np.cumsum(each, axis=1)[:, last] for each in (with_event, counts))
    # Before the first slide of a sample, nothing is right.
    precision = right / np.maximum(predicted, 1)
    return ratio((np.diff(right, prepend=0) * precision).sum(axis=1), with_event.sum(axis=1))


def f1(happened: Bools, predicted: Bools, counts: Floats) -> Floats:
    """Compute the mean F1 of K events; NaN if one never happened and was never predicted.

    Parameters
    ----------
    happened, predicted
        Whether each event happened, and whether it was predicted to, shape (N, K).
    counts
        Samples of the slides, shape (R, N).

    Returns
    -------
    array, shape (R,)
    """
    both = ratio(2 * counts @ (happened & predicted), counts @ happened + counts @ predicted)
    return np.asarray(both.mean(axis=1))


def _mean(metrics: Sequence[Floats]) -> Floats:
    return np.asarray(np.mean(metrics, axis=0))


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
        Numbers by name, ``None`` where they are undefined; see :meth:`wsi_ats.tasks.base.Task.metrics`.

    Examples
    --------
    >>> from wsi_ats.tasks.registry import task_named
    >>> true, scores = [[1.0], [2.0], [3.0]], [[1.0], [2.0], [2.5]]
    >>> metrics_of(task_named("regression"), true, scores, names=["value"])["mae"]
    0.16666666666666666
    """
    targets, scores = _rows(targets), _rows(scores)
    found = task.metrics(targets, scores, names, once(len(targets)))
    return {name: alone(values) for name, values in found.items()}


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
    targets, scores = _rows(targets), _rows(scores)
    return task.main_metric, alone(task.main(targets, scores, once(len(targets))))


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
    compute: Callable[[Floats], Mapping[str, Floats]], cases: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Interval]:
    """Resample cases with replacement: percentile intervals of 95 % (Efron & Tibshirani 1993, chapter 13).

    Slides of one case are alike, so resampling slides instead of cases would make intervals too narrow.

    Parameters
    ----------
    compute
        Computes metrics, shape (R,), of samples from the counts of their slides, shape (R, N). It is called
        with blocks of samples, and their results are joined.
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
    >>> def mean(counts):
    ...     return {"mean": counts @ values / counts.sum(axis=1)}
    >>> interval = bootstrap(mean, [str(i) for i in range(100)], resamples=200, seed=0)["mean"]
    >>> interval.low < 49.5 < interval.high
    True
    """
    names, of = np.unique(np.asarray(cases, dtype=str), return_inverse=True)
    generator, block = np.random.default_rng(seed), max(1, _COUNTS // max(1, len(cases)))
    found = {name: [values[:0]] for name, values in compute(once(len(cases))).items()}
    for first in range(0, resamples if len(names) > 1 else 0, block):
        size = min(block, resamples - first)
        drawn = generator.integers(len(names), size=(size, len(names)))
        drawn += len(names) * np.arange(size)[:, None]  # each sample counts its own cases
        times = np.bincount(drawn.ravel(), minlength=size * len(names)).reshape(size, -1)
        for name, values in compute(times[:, of].astype(np.float64)).items():
            found[name].append(values)
    return {name: _interval(np.concatenate(each)) for name, each in found.items()}


def sample_by_sample(compute: Callable[[Indices], Metrics]) -> Callable[[Floats], dict[str, Floats]]:
    """Let metrics of one sample be computed for many, one after the other.

    Parameters
    ----------
    compute
        Computes the metrics of a sample from the numbers of its slides, shape (M,), which may repeat.

    Returns
    -------
    callable
        For :func:`bootstrap`.

    Examples
    --------
    >>> values = np.array([1.0, 2.0, 6.0])
    >>> sample_by_sample(lambda sample: {"largest": values[sample].max()})(np.array([[1, 1, 0], [2, 0, 1]]))
    {'largest': array([2., 6.])}
    """

    def of_all(counts: Floats) -> dict[str, Floats]:
        rows = [compute(np.repeat(np.arange(len(row)), row.astype(np.int64))) for row in counts]
        # None, which is undefined, becomes NaN.
        return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}

    return of_all


def _interval(values: Floats) -> Interval:
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, (2.5, 97.5)).tolist() if len(known) else (None, None)
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

    def compute(counts: Floats) -> Mapping[str, Floats]:
        return task.metrics(targets, scores, names, counts)

    why = task.undefined(targets, names) if len(targets) else "there are no slides to evaluate"
    return with_intervals(
        compute, cases, resamples=resamples, seed=seed, undefined=why or "no pair can be compared"
    )


def with_intervals(
    compute: Callable[[Floats], Mapping[str, Floats]],
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
    found = {name: alone(values) for name, values in compute(once(len(cases))).items()}
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
