"""Drawn tiles and attention beside annotations: whether they fall where experts saw something.

A cell is *annotated* if annotations cover at least half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_ats.annotations.record import Annotations
from wsi_ats.annotations.shapes import FloatArray, shares
from wsi_ats.geometry import IntArray
from wsi_ats.results.records import AttentionMap, Selection
from wsi_ats.tasks.base import Metrics
from wsi_ats.tasks.evaluation import Event, alone, area, once

LEAST_COVERED = 0.5
"""Share of a cell that annotations must cover, so that it counts as annotated."""

FALSE_POSITIVES = (0.25, 0.5, 1, 2, 4, 8)
"""False-positive tiles a slide at which sensitivities are averaged, as in the Camelyon16 challenge."""

APART = 75.0
"""Annotated areas less than so many micrometres apart are one, as in the Camelyon16 challenge."""

_POINTS = 200  # most points of a curve


@dataclass(frozen=True, eq=False)
class Localisation:
    """Drawn tiles and attention of one slide beside its annotations; make it with :func:`locate`.

    Parameters
    ----------
    tissue, annotated
        Number of tissue cells, and of the annotated ones among them.
    tiles, hits
        Number of drawn tiles, counted in each draw, and of those in annotated cells.
    auc
        Area under the ROC curve of attention, as a detector of annotated cells; ``None`` if all tissue cells
        are annotated or none is.
    mass
        Share of all attention that is in annotated cells.
    found
        Rank of the first tile in each connected annotated area, if the tiles of the slide are taken in order
        of attention, from 1; 0 for an area without tissue, which no tile can find. Shape (areas,).
    false
        Ranks of the tiles in no annotated area, ascending, shape (n,).
    """

    tissue: int
    annotated: int
    tiles: int
    hits: int
    auc: float | None
    mass: float
    found: IntArray
    false: IntArray

    @property
    def share(self) -> float:
        """Share of the tissue cells that is annotated: the hit rate of tiles drawn by chance."""
        return self.annotated / self.tissue

    @property
    def hit_rate(self) -> float:
        """Share of the drawn tiles that are in annotated cells."""
        return self.hits / self.tiles


def locate(
    selection: Selection, attention: AttentionMap, annotations: Annotations, *, seed: int
) -> Localisation:
    """Compare drawn tiles and attention of a slide with its annotations.

    Parameters
    ----------
    selection
        The tiles that were drawn, at least one.
    attention
        Attention over the tissue. With two levels, its cells are regions, and all but the hits are counted in
        regions.
    annotations
        Areas to find, see :data:`APART` and :meth:`wsi_ats.annotations.record.Annotations.only`.
    seed
        Seed of the order of cells that have the same attention.

    Returns
    -------
    Localisation
        A tile finds an area if the area covers at least half of it. An area so small that this holds for no
        tissue cell is found by the cell that it covers most.
    """
    tissue, grid = np.flatnonzero(attention.tissue), attention.grid
    weight = attention.attention.flat[tissue]
    covered = annotations.shares(grid)
    drawn = covered if selection.grid == grid else annotations.shares(selection.grid)
    positive = covered.flat[tissue] >= LEAST_COVERED
    order = np.lexsort((np.random.default_rng(seed).permutation(len(tissue)), -weight))
    rank = np.empty(len(tissue), dtype=np.int64)
    rank[order] = np.arange(1, len(tissue) + 1)
    true, found = positive.copy(), []
    for shape in annotations.shapes:
        own = _cells_of(shares(shape, grid).flat[tissue])
        true[own] = True
        found.append(int(rank[own].min()) if len(own) else 0)
    return Localisation(
        tissue=len(tissue),
        annotated=int(positive.sum()),
        tiles=len(selection.cells),
        hits=int((drawn.flat[selection.cells] >= LEAST_COVERED).sum()),
        auc=alone(area(Event(positive, weight, np.arange(len(tissue))), once(len(tissue)))),
        mass=float(weight[positive].sum()),
        found=np.array(found, dtype=np.int64),
        false=np.sort(rank[~true]),
    )


def _cells_of(covered: FloatArray) -> IntArray:
    """Return the numbers of the cells that find an area, from the share of each that the area covers."""
    most = covered.max(initial=0)
    return np.flatnonzero(covered >= min(LEAST_COVERED, most)) if most else np.empty(0, dtype=np.int64)


def metrics_of(located: Sequence[Localisation]) -> Metrics:
    """Compute the means over slides.

    Parameters
    ----------
    located
        The slides.

    Returns
    -------
    dict
        ``hit_rate``, ``annotated_tissue`` (the hit rate by chance), ``attention_auc`` and ``attention_mass``
        are means over slides with annotated tissue; ``froc`` is the mean sensitivity at
        :data:`FALSE_POSITIVES`. Undefined metrics are ``None``.
    """
    some = [each for each in located if each.annotated]
    values = {
        "hit_rate": [each.hit_rate for each in some],
        "annotated_tissue": [each.share for each in some],
        "attention_auc": [each.auc for each in some if each.auc is not None],
        "attention_mass": [each.mass for each in some],
        "froc": [sensitivity for _, sensitivity in _at_false_positives(located)],
    }
    return {name: float(np.mean(each)) if each else None for name, each in values.items()}


def curve(located: Sequence[Localisation]) -> dict[str, list[float]]:
    """Compute the free-response ROC curve over slides, as more tiles of each are taken in order of attention.

    Parameters
    ----------
    located
        The slides.

    Returns
    -------
    dict of list
        ``tiles`` taken of each slide, ``false_positives`` (tiles in no annotated area, mean over all slides)
        and ``sensitivity`` (share of all annotated areas that were found). Empty lists if there is no
        annotated area.
    """
    found = _found(located)
    most = max((each.tissue for each in located), default=0) if len(found) else 0
    tiles = np.unique(np.geomspace(1, most, _POINTS).round()).astype(np.int64) if most else np.array([])
    false = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *(each.false for each in located)]))
    return {
        "tiles": tiles.tolist(),
        "false_positives": (np.searchsorted(false, tiles, "right") / max(1, len(located))).tolist(),
        "sensitivity": [float(np.mean((found > 0) & (found <= k))) for k in tiles],
    }


def _found(located: Sequence[Localisation]) -> IntArray:
    return np.concatenate([np.empty(0, dtype=np.int64), *(each.found for each in located)])


def _at_false_positives(located: Sequence[Localisation]) -> list[tuple[float, float]]:
    """Return the sensitivity at each number of false positives; none if there is no annotated area."""
    found, count = _found(located), len(located)
    if not len(found):
        return []
    # More ranks than these are never needed, and bootstrap samples are many.
    most = int(FALSE_POSITIVES[-1] * count) + 1
    false = np.sort(np.concatenate([each.false[:most] for each in located]))
    points = []
    for allowed in FALSE_POSITIVES:
        number = int(allowed * count)
        # As many tiles of each slide as there are before one false positive too many.
        tiles = false[number] - 1 if number < len(false) else max(each.tissue for each in located)
        points.append((allowed, float(np.mean((found > 0) & (found <= tiles)))))
    return points
