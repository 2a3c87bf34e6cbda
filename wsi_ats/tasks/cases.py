"""Scores of cases from those of their slides, for models whose cases are more than one slide."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def case_scores(task: str, scores: npt.ArrayLike, log_weight: npt.ArrayLike) -> Floats:
    """Pool the scores of a case's slides.

    As in training (:func:`wsi_ats.nn.cases.pool_slides`) what is pooled are the outputs of the network, which
    follow from the scores: log-odds of probabilities, values and risks as they are.

    Parameters
    ----------
    task
        One of :data:`wsi_ats.tasks.targets.TASKS`.
    scores
        Of the slides, shape (S, C).
    log_weight
        What each slide counts, shape (S,).

    Returns
    -------
    ndarray, shape (C,)

    Examples
    --------
    >>> case_scores("classification", [[0.5, 0.5], [0.2, 0.8]], [0.0, 0.0]).round(3)  # odds of 1 and 4: 2
    array([0.333, 0.667])
    >>> case_scores("regression", [[1.0], [5.0]], [0.0, np.log(3)])
    array([4.])
    """
    found = np.asarray(scores, dtype=np.float64)
    exponents = np.exp(np.asarray(log_weight) - np.max(log_weight))
    weight = exponents / exponents.sum()
    if task not in {"classification", "multilabel"}:
        pooled: Floats = weight @ found
        return pooled
    tiny = np.finfo(np.float64).tiny  # a probability may have been rounded to 0
    with np.errstate(under="ignore"):
        yes = np.exp(weight @ np.log(np.maximum(found, tiny)))
        if task == "classification":
            return np.asarray(yes / yes.sum())
        no = np.exp(weight @ np.log(np.maximum(1 - found, tiny)))
    return np.asarray(yes / (yes + no))
