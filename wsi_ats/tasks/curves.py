"""ROC and precision-recall curves, calibration and the confusion matrix.

Curves and calibration assess the predicted probability of an event that happens or does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.tasks.base import Details, Floats
from wsi_ats.tasks.evaluation import Bools, Event, Indices, ratio
from wsi_ats.tasks.panels import Calibration, Lines

Curve = dict[str, list[float]]

BINS = 10


def reliability(happened: Bools, probability: Floats, *, bins: int = BINS) -> dict[str, list[float | None]]:
    """Compare probabilities with frequencies, in equally wide bins.

    Parameters
    ----------
    happened, probability
        Whether the event happened, and its probability, shape (M,).
    bins
        Number of bins.

    Returns
    -------
    dict of list
        ``low`` and ``high`` of each bin, the upper edge within; ``n``; ``probability``, its mean; and
        ``frequency``, the share that happened. The last two are ``None`` if the bin is empty.

    Examples
    --------
    >>> table = reliability(np.array([True, False]), np.array([0.9, 0.8]), bins=2)
    >>> table["n"], table["frequency"]
    ([0, 2], [None, 0.5])
    """
    edges, of = np.linspace(0, 1, bins + 1), _bins(probability, bins)
    n = np.bincount(of, minlength=bins)

    def mean(values: npt.NDArray[np.generic]) -> list[float | None]:
        sums = np.bincount(of, weights=values.astype(np.float64), minlength=bins)
        return [float(total / number) if number else None for total, number in zip(sums, n, strict=True)]

    return {
        "low": edges[:-1].tolist(),
        "high": edges[1:].tolist(),
        "n": n.tolist(),
        "probability": mean(probability),
        "frequency": mean(happened),
    }


def expected_calibration_error(event: Event, counts: Floats, *, bins: int = BINS) -> Floats:
    """Compute the mean distance between probability and frequency over bins, weighted by their counts.

    It is biased upwards for small numbers (Guo et al. 2017, arXiv:1706.04599).

    Parameters
    ----------
    event
        Outcomes and probabilities.
    counts
        How often each slide is in each of R samples, shape (R, N).
    bins
        As in :func:`reliability`.

    Returns
    -------
    array, shape (R,)
        NaN without predictions.

    Examples
    --------
    >>> event = Event(np.array([True, False]), np.array([0.9, 0.8]), np.arange(2))
    >>> expected_calibration_error(event, np.array([[1.0, 1.0]]), bins=2).round(3)
    array([0.35])
    """
    distance, number = np.zeros((counts.shape[1], bins)), np.zeros(counts.shape[1])
    np.add.at(distance, (event.slides, _bins(event.probability, bins)), event.probability - event.happened)
    np.add.at(number, event.slides, 1)
    return ratio(np.abs(counts @ distance).sum(axis=1), counts @ number)


def _bins(probability: Floats, bins: int) -> Indices:
    """Return the bin of each probability; an upper edge is within its bin."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, bins - 1)


def roc(event: Event) -> Curve:
    """Compute the ROC curve: true and false positive rate above each threshold.

    Points on a straight line between others are left out.

    Parameters
    ----------
    event
        Outcomes and probabilities; both outcomes must occur.

    Returns
    -------
    dict of list
        ``threshold`` (the first is infinite: nothing is above it), ``false_positive_rate``,
        ``true_positive_rate``.
    """
    from sklearn.metrics import roc_curve

    false, true, thresholds = roc_curve(event.happened, event.probability)
    return {
        "threshold": thresholds.tolist(),
        "false_positive_rate": false.tolist(),
        "true_positive_rate": true.tolist(),
    }


def precision_recall(event: Event) -> Curve:
    """Compute the precision-recall curve.

    Parameters
    ----------
    event
        Outcomes and probabilities; both outcomes must occur.

    Returns
    -------
    dict of list
        ``threshold`` (the last is infinite: nothing is above it, and precision is 1 by convention),
        ``precision``, ``recall``.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(event.happened, event.probability)
    return {
        "threshold": [*thresholds.tolist(), float("inf")],
        "precision": precision.tolist(),
        "recall": recall.tolist(),
    }


def confusion(true: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> npt.NDArray[np.int64]:
    """Count slides by true and predicted class.

    Parameters
    ----------
    true, predicted
        Class numbers, shape (N,); at least one.
    classes
        Number of classes.

    Returns
    -------
    array of int
        Shape (classes, classes): rows are true, columns predicted.
    """
    from sklearn.metrics import confusion_matrix

    counts: npt.NDArray[np.int64] = confusion_matrix(true, predicted, labels=np.arange(classes))
    return counts


def details_of_events(events: Mapping[str, Event], forecasts: Event) -> Details:
    """Make tables and plots of events with predicted probabilities.

    Parameters
    ----------
    events
        Outcome and probability of each event, by name; events that always or never happened are left out.
    forecasts
        Outcome and probability of the predictions whose calibration is shown.

    Returns
    -------
    Details
        ``roc.csv``, ``precision_recall.csv``, ``reliability.csv``, and a plot of each.
    """
    defined = {name: event for name, event in events.items() if len(set(event.happened.tolist())) == 2}
    rocs = {name: roc(event) for name, event in defined.items()}
    precisions = {name: precision_recall(event) for name, event in defined.items()}
    table = reliability(forecasts.happened, forecasts.probability)
    x, y, recall, precision = "false_positive_rate", "true_positive_rate", "recall", "precision"
    return Details(
        {
            "roc.csv": _stack(rocs, "threshold", x, y),
            "precision_recall.csv": _stack(precisions, "threshold", precision, recall),
            "reliability.csv": table,
        },
        [
            Lines(
                "false positive rate",
                "true positive rate",
                {name: (curve[x], curve[y]) for name, curve in rocs.items()},
                "ROC",
                unit_square=True,
                diagonal=True,
            ),
            # Steps: average precision uses the precision of the threshold that first reaches a recall.
            Lines(
                recall,
                precision,
                {name: (curve[recall], curve[precision]) for name, curve in precisions.items()},
                "precision and recall",
                steps=True,
                unit_square=True,
            ),
            Calibration(table),
        ],
    )


def _stack(tables: Mapping[str, Curve], *columns: str) -> dict[str, list[Any]]:
    stacked: dict[str, list[Any]] = {name: [] for name in ("class", *columns)}
    for name, table in tables.items():
        stacked["class"] += [name] * len(table[columns[0]])
        for column in columns:
            stacked[column] += table[column]
    return stacked
