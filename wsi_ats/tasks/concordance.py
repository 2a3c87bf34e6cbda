"""Concordance and Kaplan-Meier curves of censored times; the only module that imports lifelines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import not_installed
from wsi_ats.tasks.base import Floats
from wsi_ats.tasks.evaluation import Bools, ratio

try:
    from lifelines import KaplanMeierFitter
except ModuleNotFoundError as error:
    raise not_installed("lifelines", "survival", "model.task survival") from error

# Cases that are compared with all others at once, which bounds the memory.
_CASES = 1000


def concordance(times: Floats, events: Bools, risks: Floats, counts: Floats) -> Floats:
    """Compute Harrell's concordance index: how often the case at greater risk in a pair has its event first.

    Equal risks count half. Only pairs whose order of events is known count (Harrell et al. 1982,
    doi:10.1001/jama.1982.03320430047030).

    Parameters
    ----------
    times
        Time to the event, or to the last follow-up without it; shape (N,).
    events
        Whether the event was observed, else the case is censored; shape (N,).
    risks
        Risk of each case, shape (N,); larger means an earlier event.
    counts
        How often each case is in each of R samples, shape (R, N).

    Returns
    -------
    array, shape (R,)
        NaN if no pair can be compared.

    Examples
    --------
    >>> times, risks = np.array([1.0, 2, 3]), np.array([0.9, 0.5, 0.1])
    >>> concordance(times, np.array([True, True, False]), risks, np.array([[1.0, 1, 1], [3, 0, 0]]))
    array([ 1., nan])
    """
    right, pairs = np.zeros((2, len(counts)))
    for first in range(0, len(times), _CASES):
        own = slice(first, first + _CASES)
        time, event, risk = times[own, None], events[own, None], risks[own, None]
        # Censored at the time of an event means that the event of this case came later.
        earlier = event & ((time < times) | ((time == times) & ~events))
        ordered = earlier * ((risk > risks) + 0.5 * (risk == risks))
        pairs += (counts[:, own] * (counts @ earlier.T)).sum(axis=1)
        right += (counts[:, own] * (counts @ ordered.T)).sum(axis=1)
    return ratio(right, pairs)


def kaplan_meier(times: npt.ArrayLike, events: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Estimate the share of cases without event after each time (Kaplan & Meier 1958).

    Parameters
    ----------
    times, events
        As in :func:`concordance`; at least one, and any numbers or flags.

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
