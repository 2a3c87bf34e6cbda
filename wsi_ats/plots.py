"""Figures: the only import of matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from wsi_ats.artifacts import atomic
from wsi_ats.selection import AttentionMap, Selection
from wsi_ats.slides.base import Pixels

_TRUTH = ListedColormap(["white", "#f3d9e3", "#8796c9", "#c02942"])
_TRUTH_NAMES = ("glass", "tissue", "look-alike", "lesion")


def figure_of_slide(
    path: Path,
    *,
    thumbnail: Pixels,
    attention: AttentionMap,
    selection: Selection,
    tiles: Pixels,
    title: str,
    truth: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Draw how a slide was scored: thumbnail, tissue, attention, drawn tiles and, if known, the truth.

    Parameters
    ----------
    path
        PNG to write.
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3).
    attention
        Attention over the slide's cells, with its tissue.
    selection
        The tiles that were drawn.
    tiles
        Pixels of the first of them, shape (M, s, s, 3); shown below.
    title
        Above the figure.
    truth
        Kind of each cell, shape (rows, columns): 0 glass, 1 tissue, 2 look-alike, 3 lesion.
    """
    rows, columns = attention.grid.shape
    extent = (0.0, float(columns), float(rows), 0.0)
    panels = 4 if truth is None else 5
    shown = min(len(tiles), 16)
    figure = Figure(figsize=(3.2 * panels, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    halves = figure.subfigures(2, 1, height_ratios=(3.2, 1.2), squeeze=False)
    upper, lower = halves[0, 0], halves[1, 0]
    axes = upper.subplots(1, panels)
    axes[0].imshow(thumbnail, extent=extent)
    axes[0].set_title("thumbnail")
    axes[1].imshow(attention.tissue, extent=extent, cmap="gray_r", vmin=0, vmax=2)
    axes[1].set_title(f"tissue: {attention.tissue.sum():,} cells")
    relative = np.where(attention.tissue, attention.attention * attention.tissue.sum(), np.nan)
    # A few cells may stand far above the rest, which would all be black beside them.
    top = max(1.0, float(np.nanpercentile(relative, 99)))
    image = axes[2].imshow(relative, extent=extent, cmap="magma", vmin=0, vmax=top)
    axes[2].set_title("attention (1 = uniform)")
    upper.colorbar(image, ax=axes[2], fraction=0.05, extend="max")
    row, column = np.divmod(selection.cells, columns)
    axes[3].imshow(thumbnail, extent=extent, alpha=0.5)
    axes[3].scatter(column + 0.5, row + 0.5, s=30, facecolors="none", edgecolors="black", linewidths=1.2)
    axes[3].set_title(f"{len(np.unique(selection.cells))} tiles read")
    if truth is not None:
        axes[4].imshow(truth, extent=extent, cmap=_TRUTH, vmin=-0.5, vmax=3.5, interpolation="nearest")
        axes[4].set_title("truth: red lesion, blue look-alike")
        marks = truth.flat[selection.cells[:shown]]
    for axis in axes:
        axis.set_axis_off()
    for i, axis in enumerate(np.atleast_1d(lower.subplots(1, max(1, shown)))):
        axis.set_axis_off()
        if i < shown:
            axis.imshow(tiles[i])
            if truth is not None:
                axis.set_title(_TRUTH_NAMES[marks[i]], fontsize=7)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
