"""When enough draws of a slide have been scored: the rule of anytime scoring."""

from __future__ import annotations

from wsi_ats.results.records import Stop
from wsi_ats.settings import SamplingSettings

MOST_DRAWS = 100
"""Where neither tolerance nor budget ends it. The error of one draw has then fallen ten-fold; for less, take
larger draws: the error of ``systematic`` falls faster with their size than with their number."""


def stop(sampling: SamplingSettings, *, draws: int, error: float | None, read: int) -> Stop | None:
    """Say whether scoring a slide ends, and why; asked after each draw.

    Whether a further draw is made depends on those that were made and on nothing else. Where it might need
    more tiles than the budget has left it is not begun, although it might have shared enough of its tiles
    with earlier ones: to look at the draw first, and to leave it if it is large, would favour small ones.

    Parameters
    ----------
    sampling
        The settings.
    draws
        How many were made.
    error
        Standard error over them, see :class:`wsi_ats.results.records.Prediction`; ``None`` where there is
        none yet.
    read
        Distinct tiles that they read.

    Returns
    -------
    Stop or None
        ``None`` if another draw is to be made.

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
    if error is not None and error <= sampling.tolerance:  # without one: 0, where all draws agree exactly
        return Stop.TOLERANCE
    if sampling.max_tiles and read + sampling.tiles > sampling.max_tiles:
        return Stop.MAX_TILES
    return Stop.MAX_DRAWS if draws >= MOST_DRAWS else None
