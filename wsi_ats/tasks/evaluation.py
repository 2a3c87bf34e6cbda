"""Figures of merit for each task, and how far they can be trusted.

A figure that is not defined, because a class is absent, is ``None``: nothing is put in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import config_context, metrics

from wsi_ats.errors import SettingsError
from wsi_ats.tasks.curves import events, expected_calibration_error

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Figures = dict[str, float | None]


def auc(targets: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """Area under the ROC curve; for more than two classes the mean of each class against the rest.

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
    true, scores = np.asarray(targets), np.asarray(probabilities, dtype=np.float64)
    if len(np.unique(true)) < scores.shape[1]:
        return None
    # Class by class: for several at once scikit-learn wants rows that sum to one to the last digit.
    return _mean(metrics.roc_auc_score, [(true == k, scores[:, k]) for k in _shown(scores.shape[1])])


def figures(
    task: str, targets: npt.ArrayLike, scores: npt.ArrayLike, *, names: Sequence[str] = ()
) -> Figures:
    """Compare what was predicted with what is true.

    Parameters
    ----------
    task
        As in ``model.task``; decides what the arrays mean and which figures are given.
    targets
        Shape (N, T). ``"classification"``: number of the class. ``"multilabel"``: 0 or 1 for each label, nan
        where it is not known.
        ``"regression"``: the value. ``"survival"``: time, and 1 if the event was seen then, else 0.
    scores
        Shape (N, C): probability of each class or label, the value, or the risk.
    names
        Of classes or labels; if there are more than one to tell from the rest, the area under the ROC curve
        of each is given as ``auc_<name>``.

    Returns
    -------
    dict
        The first is the task's main figure; for it, larger is better. ``None`` where a figure is not defined.

        ==============  ==========================================================================
        task            figures
        ==============  ==========================================================================
        classification  auc, average_precision, accuracy, balanced_accuracy, f1, brier,
                        calibration_error; means over the classes where there are more than two
        multilabel      auc, average_precision, accuracy, f1, brier, calibration_error; means over
                        the labels
        regression      r2, mae, rmse, in the unit of the values
        survival        concordance
        ==============  ==========================================================================

    Raises
    ------
    SettingsError
        For an unknown task.

    Examples
    --------
    >>> figures("regression", [[1.0], [2.0], [3.0]], [[1.0], [2.0], [2.5]])["mae"]
    0.16666666666666666
    """
    true, found = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    true = true[:, None] if true.ndim == 1 else true
    if task not in _TASKS:
        raise SettingsError(f"unknown task {task!r}; choose one of {', '.join(_TASKS)}")
    # It would check what has been checked here, at ten times the cost of the figures themselves.
    with config_context(skip_parameter_validation=True):
        return _TASKS[task](true, found, names)


def main_figure(task: str, targets: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[str, float | None]:
    """Return name and value of the first of :func:`figures` alone, which takes much less time.

    Parameters
    ----------
    task, targets, scores
        See :func:`figures`.

    Examples
    --------
    >>> main_figure("regression", [[1.0], [2.0], [3.0]], [[1.0], [2.0], [2.5]])
    ('r2', 0.875)
    """
    true, found = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    true = true[:, None] if true.ndim == 1 else true
    name, figure = _MAIN[task]
    with config_context(skip_parameter_validation=True):
        return name, figure(true, found)


def _classification(true: Floats, scores: Floats, names: Sequence[str]) -> Figures:
    classes = scores.shape[1]
    number, predicted = true[:, 0].astype(int), scores.argmax(axis=1)
    each = [(number == k, scores[:, k]) for k in _shown(classes)]
    n, whole = len(number), len(np.unique(number)) == classes
    found: Figures = {
        "auc": auc(number, scores),
        "average_precision": _mean(metrics.average_precision_score, each) if whole else None,
        "accuracy": float(metrics.accuracy_score(number, predicted)) if n else None,
        "balanced_accuracy": float(metrics.balanced_accuracy_score(number, predicted)) if whole else None,
        "f1": _f1(number, predicted, labels=list(_shown(classes)), average="macro") if whole else None,
        "brier": float(np.mean(((scores - np.eye(classes)[number]) ** 2).sum(axis=1)) / 2) if n else None,
        "calibration_error": expected_calibration_error(*events("classification", true, scores)),
    }
    areas = [_area(*pair) for pair in each] if names and classes > 2 else []
    return found | {f"auc_{name}": area for name, area in zip(names, areas, strict=False)}


def _multilabel_auc(true: Floats, scores: Floats) -> float | None:
    known = ~np.isnan(true)
    areas = [_area(true[of, k] == 1, scores[of, k]) for k, of in enumerate(known.T)]
    found = [area for area in areas if area is not None]
    return float(np.mean(found)) if len(found) == len(areas) else None


def _multilabel(true: Floats, scores: Floats, names: Sequence[str]) -> Figures:
    known = ~np.isnan(true)
    each = [(true[of, k] == 1, scores[of, k]) for k, of in enumerate(known.T)]
    areas = [_area(*pair) for pair in each]
    n, whole = known.sum(), None not in areas
    found: Figures = {
        "auc": _multilabel_auc(true, scores),
        "average_precision": _mean(metrics.average_precision_score, each) if whole else None,
        "accuracy": float(np.mean((true[known] == 1) == (scores[known] >= 0.5))) if n else None,
        "f1": _mean(_f1, [(event, probability >= 0.5) for event, probability in each]) if whole else None,
        "brier": float(np.mean((true[known] - scores[known]) ** 2)) if n else None,
        "calibration_error": expected_calibration_error(*events("multilabel", true, scores)),
    }
    return found | {f"auc_{name}": area for name, area in zip(names, areas, strict=False)}


def _r2(true: Floats, scores: Floats) -> float | None:
    """Of equal values there is nothing to explain."""
    value = true[:, 0]
    return float(metrics.r2_score(value, scores[:, 0])) if len(value) and np.ptp(value) > 0 else None


def _regression(true: Floats, scores: Floats, names: Sequence[str]) -> Figures:  # noqa: ARG001
    value, found = true[:, 0], scores[:, 0]
    if not len(value):
        return dict.fromkeys(("r2", "mae", "rmse"))
    return {
        "r2": _r2(true, scores),
        "mae": float(metrics.mean_absolute_error(value, found)),
        "rmse": float(metrics.root_mean_squared_error(value, found)),
    }


def _concordance(true: Floats, scores: Floats) -> float | None:
    from wsi_ats.tasks.concordance import concordance

    return concordance(true[:, 0], true[:, 1], scores[:, 0]) if len(true) else None


def _survival(true: Floats, scores: Floats, names: Sequence[str]) -> Figures:  # noqa: ARG001
    return {"concordance": _concordance(true, scores)}


_TASKS: Mapping[str, Callable[[Floats, Floats, Sequence[str]], Figures]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
    "survival": _survival,
}

_MAIN: Mapping[str, tuple[str, Callable[[Floats, Floats], float | None]]] = {
    "classification": ("auc", lambda true, scores: auc(true[:, 0], scores)),
    "multilabel": ("auc", _multilabel_auc),
    "regression": ("r2", _r2),
    "survival": ("concordance", _concordance),
}


def _shown(classes: int) -> Sequence[int]:
    """Classes that are told from the rest: of two the second, of which the first is the mirror image."""
    return [1] if classes == 2 else range(classes)


def _area(event: Bools, probability: Floats) -> float | None:
    return float(metrics.roc_auc_score(event, probability)) if len(np.unique(event)) == 2 else None


def _f1(true: npt.NDArray[Any], predicted: npt.NDArray[Any], **options: Any) -> float:
    """F1, and 0 for what is never predicted."""
    return float(metrics.f1_score(true, predicted, zero_division=0.0, **options))


def _mean(figure: Callable[..., float], each: Sequence[tuple[Bools, npt.NDArray[Any]]]) -> float:
    return float(np.mean([figure(*pair) for pair in each]))


def reason(task: str, targets: npt.ArrayLike, names: Sequence[str]) -> str:
    """Say why figures of a task are not defined; empty where there is no reason.

    Parameters
    ----------
    task, targets, names
        As in :func:`figures`.

    Examples
    --------
    >>> reason("classification", [[1], [1]], ["negative", "positive"])
    "there is none of class 'negative'"
    """
    true = np.asarray(targets, dtype=np.float64)
    if not len(true):
        return "there is none to evaluate"
    if task == "classification":
        absent = [repr(name) for k, name in enumerate(names) if k not in true[:, 0]]
        return f"there is none of class {', '.join(absent)}" if absent else ""
    if task == "multilabel":
        same = [repr(name) for k, name in enumerate(names) if not {0, 1} <= set(true[:, k])]
        return f"there are not both with and without {', '.join(same)}" if same else ""
    if task == "regression":
        return "all values are the same" if np.ptp(true[:, 0]) == 0 else ""
    return "" if true[:, 1].any() else "no event was seen"


@dataclass(frozen=True)
class Interval:
    """Where a figure would lie in other samples of cases.

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
    compute: Callable[[Indices], Figures], cases: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Interval]:
    """Resample cases with replacement: percentile intervals of 95 % (Efron & Tibshirani 1993, chapter 13).

    Cases, not slides: those of one case are alike, and resampling them apart would make intervals too narrow.

    Parameters
    ----------
    compute
        Gives the figures of a sample, from the numbers of its slides, shape (M,); some occur more than once.
    cases
        Case of each slide, length N.
    resamples
        How many samples.
    seed
        Decides which.

    Returns
    -------
    dict of Interval
        By figure. Of fewer than two cases nothing is known, and all are ``None``.

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
    task: str,
    names: Sequence[str],
    targets: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    cases: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Give the rows of ``metrics.csv``: each figure with its interval.

    Parameters
    ----------
    task, names, targets, scores
        As in :func:`figures`.
    cases
        Case of each slide, length N.
    resamples, seed
        As in :func:`bootstrap`.

    Returns
    -------
    list of dict
        ``figure``, ``value``, ``low``, ``high``, ``n`` (slides, or cases if each row is one), ``cases``,
        ``undefined_resamples`` and ``note``, which says why a value is missing.
    """

    def compute(sample: Indices) -> Figures:
        return figures(task, targets[sample], scores[sample], names=names)

    found = compute(np.arange(len(targets)))
    intervals = bootstrap(compute, cases, resamples=resamples, seed=seed)
    why = reason(task, targets, names)
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
