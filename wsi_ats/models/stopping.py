"""Stopping rule for the draws of a slide (anytime scoring)."""

from __future__ import annotations

from wsi_ats.results.records import Stop
from wsi_ats.settings import SamplingSettings

MOST_DRAWS = 100
"""Limit if neither tolerance nor budget ends the draws: the error is then a tenth of that of one draw. For a
smaller error take larger draws: that of ``systematic`` falls faster with their size than their number."""


def stop(sampling: SamplingSettings, *, draws: int, error: float | None, read: int) -> Stop | None:
    """Decide after a draw whether scoring of a slide ends.

    The decision depends only on the draws so far. A draw that might need more tiles than are left in the
    budget is not begun, although it might share enough of them with earlier draws: drawing first and
    discarding large draws would favour small ones.

    Parameters
    ----------
    sampling
        Sampling settings.
    draws
        Number of draws so far.
    error
        Standard error over the draws; ``None`` for a single draw. See
        :class:`wsi_ats.results.records.Prediction`.
    read
        Number of distinct tiles read so far.

    Returns
    -------
    Stop or None
        The reason to stop, or ``None`` to draw again.

    Examples
    --------
    >>> sampling = SamplingSettings(tiles=16, draws=8, tolerance=0.1, max_tiles=200)
    >>> stop(sampling, draws=8, error=0.3, read=120), stop(sampling, draws=9, error=0.09, read=131)
    (None, <Stop.TOLERANCE: 'tolerance'>)
    >>> stop(sampling, draws=14, error=0.2, read=185)
    <Stop.MAX_TILES: 'max_tiles'>
    """
    if draws < sampling.least_draws:
        return None
    if not sampling.anytime:
        return Stop.DRAWS
    # If all draws agree exactly, the error is 0, which ends them even without a tolerance.
    if error is not None and error <= sampling.tolerance:
        return Stop.TOLERANCE
    if sampling.max_tiles and read + sampling.tiles > sampling.max_tiles:
        return Stop.MAX_TILES
    return Stop.MAX_DRAWS if draws >= MOST_DRAWS else None
