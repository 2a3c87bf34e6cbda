"""Plots as values, so that tasks describe plots without drawing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Reliability = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Lines:
    """Curves with a legend.

    Parameters
    ----------
    x, y
        Labels of the axes; y goes from 0 to 1.
    curves
        Points (x, y) of each curve by its name. If there are none, the plot shows a note instead.
    title
        Title above the plot.
    steps
        Whether to draw steps: y holds from its x to the next.
    unit_square
        Whether x goes from 0 to 1 too.
    diagonal
        Whether to draw the line y = x.
    """

    x: str
    y: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    title: str = ""
    steps: bool = False
    unit_square: bool = False
    diagonal: bool = False


@dataclass(frozen=True)
class Scatter:
    """Predicted against true values, in one unit; at least one of each."""

    true: Sequence[float]
    predicted: Sequence[float]


@dataclass(frozen=True)
class Calibration:
    """Frequencies over probabilities; the table is that of :func:`wsi_ats.tasks.curves.reliability`."""

    table: Reliability


@dataclass(frozen=True)
class Confusion:
    """Numbers of slides, shape (classes, classes): rows are true, columns predicted classes."""

    counts: npt.NDArray[np.int64]
    names: Sequence[str]


Panel = Lines | Scatter | Calibration | Confusion
