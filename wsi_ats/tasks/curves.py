"""What stands behind the figures: ROC and precision-recall curves, the confusion matrix, calibration.

Curves and calibration judge the probability of something that happens or does not; :func:`events` says what.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn import metrics

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Curve = dict[str, list[float]]

BINS = 10


def events(task: str, targets: Floats, scores: Floats) -> tuple[Bools, Floats]:
    """Say what the probabilities foretold, and whether it came true.

    Parameters
    ----------
    task
        ``"classification"``: of two classes the second; of more, that the most probable one is right.
        ``"multilabel"``: each label of each slide, where it is known.
    targets, scores
        As in :func:`wsi_ats.tasks.evaluation.figures`, shapes (N, T) and (N, C).

    Returns
    -------
    happened : array of bool
        Shape (M,).
    probability : array
        Shape (M,).
    """
    if task == "multilabel":
        known = ~np.isnan(targets)
        return targets[known] == 1, scores[known]
    number = targets[:, 0]
    if scores.shape[1] == 2:
        return number == 1, scores[:, 1]
    return number == scores.argmax(axis=1), scores.max(axis=1)


def reliability(happened: Bools, probability: Floats, *, bins: int = BINS) -> dict[str, list[float | None]]:
    """Hold probabilities against frequencies, in equally wide bins.

    Parameters
    ----------
    happened, probability
        As :func:`events` gives them.
    bins
        Their number.

    Returns
    -------
    dict of list
        ``low`` and ``high`` of each bin, the upper edge within; ``n``; ``probability``, its mean; and
        ``frequency``, the share that happened. The last two are ``None`` where the bin is empty.

    Examples
    --------
    >>> table = reliability(np.array([True, False]), np.array([0.9, 0.8]), bins=2)
    >>> table["n"], table["frequency"]
    ([0, 2], [None, 0.5])
    """
    edges = np.linspace(0, 1, bins + 1)
    of = np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, bins - 1)
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


def expected_calibration_error(happened: Bools, probability: Floats, *, bins: int = BINS) -> float | None:
    """Mean distance between probability and frequency over bins, weighted by their numbers.

    It is biased upwards for small numbers (Guo et al. 2017, arXiv:1706.04599).

    Parameters
    ----------
    happened, probability, bins
        As in :func:`reliability`.

    Returns
    -------
    float or None
        ``None`` of nothing.

    Examples
    --------
    >>> round(expected_calibration_error(np.array([True, False]), np.array([0.9, 0.8]), bins=2), 3)
    0.35
    """
    if not len(happened):
        return None
    table = reliability(happened, probability, bins=bins)
    rows = zip(table["n"], table["probability"], table["frequency"], strict=True)
    return sum(n * abs(p - f) for n, p, f in rows if n and p is not None and f is not None) / len(happened)


def roc(happened: Bools, probability: Floats) -> Curve:
    """Give the ROC curve: of what did and did not happen, the shares that are at or above each threshold.

    Parameters
    ----------
    happened, probability
        As :func:`events` gives them; both outcomes must occur.

    Returns
    -------
    dict of list
        ``threshold`` (the first is infinite: nothing is above it), ``false_positive_rate``,
        ``true_positive_rate``.
    """
    false, true, thresholds = metrics.roc_curve(happened, probability)
    return {
        "threshold": thresholds.tolist(),
        "false_positive_rate": false.tolist(),
        "true_positive_rate": true.tolist(),
    }


def precision_recall(happened: Bools, probability: Floats) -> Curve:
    """Give the precision-recall curve.

    Parameters
    ----------
    happened, probability
        As :func:`events` gives them; both outcomes must occur.

    Returns
    -------
    dict of list
        ``threshold`` (the last is infinite: nothing is above it, and precision is 1 by custom),
        ``precision``, ``recall``.
    """
    precision, recall, thresholds = metrics.precision_recall_curve(happened, probability)
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
        Numbers of classes, shape (N,); at least one.
    classes
        Their number.

    Returns
    -------
    array of int
        Shape (classes, classes): rows are true, columns predicted.
    """
    counts: npt.NDArray[np.int64] = metrics.confusion_matrix(true, predicted, labels=np.arange(classes))
    return counts
