"""Concordance and Kaplan-Meier curves of censored times; the only module that imports lifelines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import not_installed

try:
    from lifelines import KaplanMeierFitter
    from lifelines.utils import concordance_index
except ModuleNotFoundError as error:
    raise not_installed("lifelines", "survival", "model.task survival") from error

Floats = npt.NDArray[np.float64]


def concordance(times: npt.ArrayLike, events: npt.ArrayLike, risks: npt.ArrayLike) -> float | None:
    """Compute Harrell's concordance index: how often the case at greater risk in a pair has its event first.

    Equal risks count half. Only pairs whose order of events is known count (Harrell et al. 1982,
    doi:10.1001/jama.1982.03320430047030).

    Parameters
    ----------
    times
        Time to the event, or to the last follow-up without it; shape (N,).
    events
        1 if the event was observed, 0 if the case is censored; shape (N,).
    risks
        Risk of each case, shape (N,); larger means an earlier event.

    Returns
    -------
    float or None
        ``None`` if no pair can be compared.

    Examples
    --------
    >>> concordance([1, 2, 3], [1, 1, 0], [0.9, 0.5, 0.1])
    1.0
    >>> concordance([1, 2, 3], [0, 0, 0], [0.9, 0.5, 0.1]) is None
    True
    """
    risk = np.asarray(risks, dtype=np.float64)
    try:
        return float(concordance_index(np.asarray(times, np.float64), -risk, np.asarray(events, np.float64)))
    except ZeroDivisionError:  # raised if there is no pair
        return None


def kaplan_meier(times: npt.ArrayLike, events: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Estimate the share of cases without event after each time (Kaplan & Meier 1958).

    Parameters
    ----------
    times, events
        As in :func:`concordance`; at least one.

    Returns
    -------
    times : array
        Ascending times, from 0, shape (M,).
    shares : array
        Share of cases without event from that time on, shape (M,).

    Examples
    --------
    >>> times, shares = kaplan_meier([1, 2, 3, 4], [1, 1, 0, 1])
    >>> shares.round(3).tolist()
    [1.0, 0.75, 0.5, 0.5, 0.0]
    """
    fitted = KaplanMeierFitter().fit(np.asarray(times, np.float64), np.asarray(events, np.float64))
    curve = fitted.survival_function_
    return curve.index.to_numpy(np.float64), curve.to_numpy(np.float64)[:, 0]
