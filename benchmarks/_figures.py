"""The paper's kind of figure: what an error costs in time and in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median_low

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

_MARKS = "osD^vP*X<>"
_HIGH = 0.8  # errors near the upper edge are named from below


@dataclass(frozen=True, slots=True)
class Result:
    """One trained model.

    Parameters
    ----------
    method
        What gets a mark of its own.
    setting
        Scale, or number of tiles: written beside the mark, or empty. Results that agree in method and setting
        are repetitions, with other seeds or other folds.
    error
        Share of test images that are classified wrongly.
    seconds_per_image
        Of a training step.
    peak_memory
        In bytes.
    """

    method: str
    setting: str
    error: float
    seconds_per_image: float
    peak_memory: float


def figure_of_costs(
    path: Path, results: Sequence[Result], *, title: str, chance: float | None = None
) -> None:
    """Draw test error against time per image and against peak memory.

    One kind of mark a method, one mark a repetition: a mean of runs that learned and runs that did not would
    show neither. A line joins the settings of a method, through the medians of their repetitions.

    Parameters
    ----------
    path
        PNG to write.
    results
        In the order in which methods and settings shall appear.
    title
        Above the figure.
    chance
        Error of guessing, drawn as a line.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    _against(left, results, "seconds_per_image", 1e3, chance)
    _against(right, results, "peak_memory", 1e-6, chance)
    left.set_xlabel("time per image of a training step [ms]")
    right.set_xlabel("peak memory of a training step [MB]")
    left.set_ylabel("test error")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, format="png", dpi=120)


def figure_of_epochs(
    path: Path,
    lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    *,
    title: str,
    levels: Mapping[str, float],
) -> None:
    """Draw test error against epochs.

    Parameters
    ----------
    path
        PNG to write.
    lines
        Epochs and errors of each repetition, by name.
    title
        Above the figure.
    levels
        Errors to hold them against, by name.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title)
    for number, (name, repetitions) in enumerate(lines.items()):
        for i, points in enumerate(repetitions):
            label = f"{name}, {len(repetitions)} seeds" if not i else None
            axes.plot(
                *zip(*points, strict=True),
                color=f"C{number}",
                marker=_MARKS[number],
                markersize=4,
                label=label,
            )
    for (name, error), style in zip(levels.items(), (":", "--", "-."), strict=False):
        axes.axhline(error, color="grey", linestyle=style, linewidth=1, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test error")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=120)


def _against(axes: Axes, results: Sequence[Result], cost: str, unit: float, chance: float | None) -> None:
    for number, method in enumerate(dict.fromkeys(each.method for each in results)):
        ours = [each for each in results if each.method == method]
        colour, mark = f"C{number}", _MARKS[number % len(_MARKS)]
        points = []
        for setting in dict.fromkeys(each.setting for each in ours):
            group = [each for each in ours if each.setting == setting]
            errors = [each.error for each in group]
            axes.plot([unit * getattr(each, cost) for each in group], errors, mark, color=colour, alpha=0.7)
            x = unit * mean(getattr(each, cost) for each in group)
            points.append((x, median_low(errors)))
            high = max(errors) > _HIGH
            axes.annotate(
                setting,
                (x, min(errors) if high else max(errors)),
                xytext=(0, -16 if high else 8),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1)
        axes.plot([], [], mark, color=colour, label=method)
    if chance is not None:
        axes.axhline(chance, color="grey", linestyle=":", linewidth=1, label="guessing")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
