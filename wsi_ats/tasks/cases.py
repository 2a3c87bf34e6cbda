"""Pool the scores of slides into those of their cases."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_ats.tasks.base import Floats, Task


def case_scores(task: Task, scores: npt.ArrayLike, log_weight: npt.ArrayLike) -> Floats:
    """Pool the scores of a case's slides.

    As in training (:func:`wsi_ats.nn.cases.pool_slides`), the outputs of the network are pooled. They follow
    from the scores: log-odds from probabilities; values and risks are outputs themselves.

    Parameters
    ----------
    task
        Task of the model.
    scores
        Scores of the slides, shape (S, C).
    log_weight
        Logarithm of each slide's weight, shape (S,).

    Returns
    -------
    ndarray, shape (C,)

    Examples
    --------
    >>> from wsi_ats.tasks.registry import TASKS
    >>> case_scores(TASKS["classification"], [[0.5, 0.5], [0.2, 0.8]], [0, 0]).round(3)  # odds of 1 and 4: 2
    array([0.333, 0.667])
    >>> case_scores(TASKS["regression"], [[1.0], [5.0]], [0.0, np.log(3)])
    array([4.])
    """
    exponents = np.exp(np.asarray(log_weight) - np.max(log_weight))
    return task.pool(np.asarray(scores, dtype=np.float64), exponents / exponents.sum())
