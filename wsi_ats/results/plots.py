"""Draw plots of results; pictures of slides are in :mod:`wsi_ats.results.pictures`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import not_installed
from wsi_ats.files import atomic
from wsi_ats.tasks.panels import Calibration, Confusion, Lines, Panel, Scatter

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise not_installed("matplotlib", "plots", "drawing figures") from error

_UNIT_SQUARE: dict[str, Any] = {"xlim": (-0.02, 1.02), "ylim": (-0.02, 1.02), "aspect": "equal"}


def figure_of_panels(path: Path, panels: Sequence[Panel], *, title: str) -> None:
    """Draw plots side by side.

    Parameters
    ----------
    path
        PNG to write.
    panels
        The plots, at least one.
    title
        Title above the figure.
    """
    figure, axes = _figure(len(panels), title)
    for panel, axis in zip(panels, axes, strict=True):
        _draw_panel(panel, axis)
    _save(figure, path)


def figure_of_budgets(path: Path, rows: Sequence[Mapping[str, Any]], *, all_tiles: int) -> None:
    """Draw a metric against the number of tiles that are read, with intervals, a curve for each method.

    Parameters
    ----------
    path
        PNG to write.
    rows
        ``method``, ``tiles`` (0 for all), ``metric``, ``value``, ``low`` and ``high`` of each point.
    all_tiles
        Number of tiles of a slide, where the points of all tiles are drawn.
    """
    figure, (axes,) = _figure(1, "")
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and row["low"] is not None]
        x = [row["tiles"] or all_tiles for row in own]
        y = np.array([row["value"] for row in own])
        low, high = (np.array([row[name] for row in own]) for name in ("low", "high"))
        # A percentile interval need not contain the value.
        errors = np.maximum([y - low, high - y], 0)
        axes.errorbar(x, y, errors, label=method, marker="o", markersize=4, capsize=3)
    axes.set(xscale="log", xlabel="tiles read from a slide", ylabel=rows[0]["metric"])
    ticks = sorted({row["tiles"] or all_tiles for row in rows})
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.legend()
    _save(figure, path)


def _draw_panel(panel: Panel, axes: Axes) -> None:
    match panel:
        case Lines():
            _draw_lines(axes, panel)
        case Scatter(true, predicted):
            low, high = min(*true, *predicted), max(*true, *predicted)
            _draw_diagonal(axes, low, high)
            axes.scatter(true, predicted, s=14, alpha=0.6)
            axes.set(xlabel="true value", ylabel="predicted value", aspect="equal")
        case Calibration(table):
            _draw_reliability(axes, table)
            axes.set(**_UNIT_SQUARE)
        case Confusion(counts, names):
            _draw_confusion(axes, counts, names)


def _draw_diagonal(axes: Axes, low: float, high: float) -> None:
    axes.plot((low, high), (low, high), color="grey", linewidth=0.8, linestyle=":")


def _draw_lines(axes: Axes, panel: Lines) -> None:
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    if panel.diagonal:
        _draw_diagonal(axes, 0, 1)
    for name, (x, y) in panel.curves.items():
        axes.plot(x, y, label=name, drawstyle="steps-post" if panel.steps else "default")
    if not panel.curves:
        text = "not defined:\na class is absent"
        axes.text(0.5, 0.5, text, ha="center", va="center", backgroundcolor="white")
    elif panel.unit_square:
        axes.legend(loc="lower center", fontsize=8)
    else:
        axes.legend()
    if panel.unit_square:
        axes.set(**_UNIT_SQUARE)
    else:
        axes.set(ylim=(0, 1.02))
        axes.set_xlim(left=0)


def _figure(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.2 * panels, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_reliability(axes: Axes, table: Mapping[str, Sequence[float | None]]) -> None:
    """Draw frequencies over probabilities, and the counts below."""
    rows = list(zip(table["low"], table["n"], table["probability"], table["frequency"], strict=True))
    width = 1 / len(rows)
    most = max(n or 0 for _, n, _, _ in rows) or 1
    axes.bar(
        [low or 0.0 for low, *_ in rows],
        [0.25 * (n or 0) / most for _, n, _, _ in rows],
        width=width,
        align="edge",
        color="lightgrey",
        edgecolor="white",
    )
    _draw_diagonal(axes, 0, 1)
    axes.plot([p for _, _, p, _ in rows if p is not None], [f for *_, f in rows if f is not None], marker="o")
    axes.set(title=f"calibration (bars: counts, up to {most})", xlabel="probability", ylabel="frequency")


def _draw_confusion(axes: Axes, counts: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Draw counts, coloured by their share of each true class."""
    total = counts.sum(axis=1, keepdims=True)
    axes.imshow(counts / np.maximum(total, 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(counts):
        dark = number > 0.5 * total[row, 0]
        axes.text(column, row, str(number), ha="center", va="center", color="white" if dark else "black")
    places, wrapped = range(len(names)), [textwrap.fill(name, 16, break_long_words=False) for name in names]
    axes.set(title="confusion", xlabel="predicted", ylabel="true")
    axes.set_xticks(places, wrapped, rotation=90 if len(names) > 3 else 0, fontsize=8)
    axes.set_yticks(places, wrapped, fontsize=8)
