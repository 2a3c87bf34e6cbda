"""From the tiles of a bag to the cells of a slide's grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wsi_ats.bags.record import Bag
from wsi_ats.errors import FeatureError, SettingsError
from wsi_ats.geometry import Grid, IntArray, Region
from wsi_ats.overview.records import Overview, TissueMask

# Largest relative difference between tile and cell. A tile of 10 % more shows about the same tissue.
_SIDE = 0.1

# Least share of tiles that must lie on or next to tissue. Two methods of finding tissue differ at borders and
# in faint tissue, but a wrong frame puts most tiles elsewhere.
_INSIDE = 0.9

# Coordinates of another level put this many times more tiles in a cell than the right ones.
_CROWDED = 2

# Ratios of resolutions that are often confused, such as 40x and 20x.
_RATIOS = (0.5, 2.0, 0.25, 4.0)

# Usual downsamples: a slide that was converted, or of which a thumbnail is left, has other levels than its
# file had. A factor of 2 is left out, because overlapping tiles crowd as much.
_DOWNSAMPLES = (4.0, 8.0, 16.0, 32.0)

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matched:
    """The cells of a grid that have a tile, and what became of all tiles.

    Parameters
    ----------
    grid
        The grid of the cells.
    cells
        Flat numbers of the cells that have a tile, sorted, int64, shape (K,).
    rows
        Row of the tile nearest to the centre of each of these cells, int64, shape (K,).
    tiles
        Tiles of the bag.
    crowded
        Cells with several tiles, of which only one is used.
    duplicates
        Tiles that have the coordinates of a tile before them.
    without_tile
        Cells with tissue, by our own detection, that have no tile.
    away
        Tiles that lie neither on tissue nor next to it, by our own detection, or outside the grid.
    """

    grid: Grid
    cells: IntArray
    rows: IntArray
    tiles: int
    crowded: int
    duplicates: int
    without_tile: int
    away: int

    @property
    def used(self) -> int:
        """Number of tiles that are used."""
        return len(self.rows)

    def rows_of(self, cells: IntArray) -> IntArray:
        """Return the row of the tile of each cell.

        Parameters
        ----------
        cells
            Flat cell numbers in any order, shape (n,); duplicates are allowed.

        Returns
        -------
        ndarray of int64, shape (n,)
            Rows for :meth:`wsi_ats.bags.record.Bag.read`.

        Raises
        ------
        SettingsError
            For a cell that has no tile.
        """
        cells = np.asarray(cells, dtype=np.int64)
        places = np.searchsorted(self.cells, cells)
        known = places < len(self.cells)
        known[known] = self.cells[places[known]] == cells[known]
        if not known.all():
            raise SettingsError(
                f"cell {cells[~known][0]} has no tile; draw from the {len(self.cells)} that have"
            )
        return self.rows[places]


def match(
    bag: Bag,
    grid: Grid,
    tissue: TissueMask,
    *,
    mpp: float,
    bounds: Region | None = None,
    downsamples: Sequence[float] = (),
) -> Matched:
    """Assign the tiles of a bag to cells.

    A tile belongs to the cell in which its centre lies; where cells overlap, to the one whose centre is
    nearest. Of several tiles in a cell, the one nearest to the cell's centre is used, and the first of equal
    ones. The tiles of the bag decide which cells may be drawn; our own tissue only checks that the
    coordinates are of this slide.

    Parameters
    ----------
    bag
        The features.
    grid
        The slide's grid of cells.
    tissue
        The slide's tissue, with cells that are excluded for artefacts; its grid may be coarser than ``grid``.
    mpp
        Micrometres per level-0 pixel, for messages.
    bounds
        The scanned part of the slide, to find the cause of wrong coordinates.
    downsamples
        Downsample of each level, to find the cause of wrong coordinates.

    Raises
    ------
    FeatureError
        When tiles and cells differ in size by more than 10 %, when fewer than 90 % of the tiles lie on tissue
        or next to it, or when the tiles fit better as coordinates of another level.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from wsi_ats.bags.record import PlainRows, Stamp
    >>> grid = Grid(1000, 500, cell=250, tile_size=250)
    >>> tissue = TissueMask(grid, np.ones(grid.shape, np.float32), np.ones(grid.shape, bool))
    >>> stored = PlainRows(Path("slide.h5"), "<f4", 3, np.arange(3), Stamp(0, 0))
    >>> bag = Bag(Path("slide.h5"), np.array([[0, 0], [260, 10], [240, 0]]), 250.0, stored)
    >>> found = match(bag, grid, tissue, mpp=0.5)
    >>> found.cells.tolist(), found.rows.tolist(), found.crowded
    ([0, 1], [0, 2], 1)
    """
    if len(bag.corners):
        _check_side(bag, grid, mpp)
    centres: Points = np.asarray(bag.corners + bag.side / 2, np.float64)
    beside = _Beside(tissue)
    good = beside(centres)
    causes = _Causes(bag, grid, mpp, beside, bounds, downsamples)
    if good.sum() < _INSIDE * len(good):
        raise FeatureError(
            str(bag.path),
            f"only {good.sum()} of {len(good)} tiles lie on tissue or next to it ({len(tissue.cells)} of "
            f"{tissue.grid.size} cells have tissue); {causes.of_elsewhere()}",
        )
    numbers = _cells_at(centres, grid)
    inside = np.flatnonzero(numbers >= 0)
    numbers = numbers[inside]
    distances = np.square(centres[inside] - _centres(numbers, grid)).sum(axis=1)
    order = np.lexsort((inside, distances, numbers))
    cells, first, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    if (level := causes.of_crowding(len(cells))) is not None:
        raise FeatureError(str(bag.path), level)
    covered = np.zeros(tissue.grid.size, dtype=np.bool_)
    covered[_cells_at(centres[inside], tissue.grid)] = True
    return Matched(
        grid,
        cells,
        inside[order][first],
        tiles=len(bag.corners),
        crowded=int((counts > 1).sum()),
        duplicates=len(bag.corners) - len(np.unique(bag.corners, axis=0)),
        without_tile=int((tissue.mask.ravel() & ~covered).sum()),
        away=int((~good).sum()),
    )


def restrict(overview: Overview, matched: Matched) -> Overview:
    """Return an overview in which the cells with a tile are the tissue.

    Parameters
    ----------
    overview
        The slide's overview, on the grid of ``matched``. Cells that are excluded for artefacts stay
        excluded.
    matched
        The cells that have a tile.

    Returns
    -------
    Overview
        The same thumbnail, fractions and quality; the mask, with the excluded cells, is the cells that have a
        tile.

    Raises
    ------
    SettingsError
        When the overview has another grid, for example of regions.
    """
    tissue = overview.tissue
    if tissue.grid != matched.grid:
        raise SettingsError(
            f"features were matched to {matched.grid}, but the overview has {tissue.grid}; features need "
            "thumbnail.levels=1"
        )
    mask = np.zeros(tissue.grid.size, dtype=np.bool_)
    mask[matched.cells] = True
    mask = mask.reshape(tissue.grid.shape)
    excluded = None if overview.excluded is None else overview.excluded & mask
    return replace(
        overview,
        tissue=replace(tissue, mask=mask if excluded is None else mask & ~excluded),
        artefacts={name: found & mask for name, found in overview.artefacts.items()},
        excluded=excluded,
    )


def _check_side(bag: Bag, grid: Grid, mpp: float) -> None:
    if abs(bag.side / grid.cell - 1) <= _SIDE:
        return
    size, fitting = grid.tile_size, bag.side * mpp / grid.tile_size
    if fitting < mpp:  # finer than the slide: no slide can be read so
        size, fitting = round(bag.side), mpp
    raise FeatureError(
        str(bag.path),
        f"its tiles are {bag.side:g} level-0 pixels ({bag.side * mpp:g} um) wide, but cells are {grid.cell:g}"
        f" ({grid.cell * mpp:g} um); set tile.size={size} and tile.mpp={fitting:g}, or use features of tiles "
        "of that size",
    )


def _cells_at(centres: Points, grid: Grid) -> IntArray:
    """Return the cell of each point, shape (N,); -1 outside the grid."""
    rows, columns = grid.shape
    counts = np.array([columns, rows])
    extent = (counts - 1) * grid.pitch + grid.cell
    inside = ((centres >= 0) & (centres < extent)).all(axis=1)
    # The nearest centre; where cells do not overlap, the cell that contains the point.
    places = np.floor((centres - (grid.cell - grid.pitch) / 2) / grid.pitch)
    x, y = places.clip(0, counts - 1).astype(np.int64).T
    return np.where(inside, y * columns + x, -1)


def _centres(cells: IntArray, grid: Grid) -> Points:
    rows, columns = np.divmod(cells, grid.shape[1])
    return np.stack([columns, rows], axis=1) * grid.pitch + grid.cell / 2


class _Beside:
    """Tells which points lie on a tissue cell or one of its eight neighbours."""

    def __init__(self, tissue: TissueMask) -> None:
        rows, columns = tissue.grid.shape
        padded = np.pad(tissue.mask, 1)
        near = np.zeros_like(tissue.mask)
        for down in range(3):
            for right in range(3):
                near |= padded[down : down + rows, right : right + columns]
        self._grid, self._near = tissue.grid, near.ravel()

    def __call__(self, centres: Points) -> npt.NDArray[np.bool_]:
        cells = _cells_at(centres, self._grid)
        return (cells >= 0) & self._near[cells]


@dataclass(frozen=True, eq=False)
class _Causes:
    """Finds out which mistake explains wrong coordinates, by undoing each of the usual ones."""

    bag: Bag
    grid: Grid
    mpp: float
    beside: _Beside
    bounds: Region | None
    downsamples: Sequence[float]

    def _moved(self, scale: float, shift: tuple[float, float] = (0, 0)) -> Points:
        """Return the centres of tiles whose corners, but not sides, are scaled and shifted."""
        return np.asarray(self.bag.corners * scale + np.array(shift) + self.bag.side / 2, np.float64)

    def of_elsewhere(self) -> str:
        """Return the cause of tiles that do not lie on tissue, and what to do."""
        tried = []
        if self.bounds is not None and (self.bounds.x or self.bounds.y):
            x, y = self.bounds.x, self.bounds.y
            tried.append(
                (
                    self._moved(1, (x, y)),
                    f"they count from the corner of the scan, ({x}, {y}), instead of level 0's",
                )
            )
            tried.append(
                (self._moved(1, (-x, -y)), f"the corner of the scan, ({x}, {y}), was added to them twice")
            )
        own, usual = (
            [(self._moved(each), f"they are pixels of {level} instead of level 0") for each, level in levels]
            for levels in self._levels()
        )
        for ratio in _RATIOS:
            cause = f"their places are multiplied by {ratio:g}, as if this slide had another resolution"
            tried.append((self._moved(ratio) + (ratio - 1) * self.bag.side / 2, cause))
        best = self._best([*own, *tried, *usual])  # of equal ones the first
        if best is None:
            return (
                "neither a shift by the scanned bounds nor another level or resolution explains it; check "
                "that the features and the slide belong together"
            )
        share, _, cause = best
        return (
            f"it would be {share:.0%} if {cause}; extract the features again with level-0 coordinates, or "
            f"check the slide's mpp of {self.mpp:g}"
        )

    def _levels(self) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """Return downsample and description of the slide's levels but the first, and of usual ones."""
        own = [each for each in self.downsamples if each > 1]
        usual = [each for each in _DOWNSAMPLES if not any(abs(each / other - 1) < _SIDE for other in own)]
        return (
            [(each, f"the level with downsample {each:g}") for each in own],
            [(each, f"a level with downsample {each:g}") for each in usual],
        )

    def _best(self, tried: Sequence[tuple[Points, str]]) -> tuple[float, int, str] | None:
        """Return the cause whose undoing spreads the tiles over most cells, if it puts them on tissue.

        Undoing too little may put them on tissue as well, but in fewer cells.

        Returns
        -------
        float, int and str, or None
            Share of the tiles on tissue or next to it, number of cells in which they lie, and the cause.
        """
        found = []
        for points, cause in tried:
            share = float(self.beside(points).mean())
            if share >= _INSIDE:
                found.append((share, len(np.unique(_cells_at(points, self.grid))), cause))
        return max(found, key=lambda each: (each[1], each[0]), default=None)

    def of_crowding(self, cells: int) -> str | None:
        """Return the cause of tiles that crowd in few cells, which may all be tissue; ``None`` if they fit.

        Tiles of another level lie closer together than they are wide. Undoing it spreads them over tissue in
        many more cells, which it does not for tiles that only overlap.
        """
        tried = [
            (self._moved(downsample), f"pixels of {level}")
            for downsample, level in itertools.chain(*self._levels())
            if downsample >= _CROWDED
        ]
        best = self._best(tried) if cells else None
        if best is None or best[1] < _CROWDED * cells:
            return None
        return (
            f"its {len(self.bag.corners)} tiles lie in only {cells} cells, but in {best[1]} if their "
            f"coordinates are {best[2]}; extract the features again with level-0 coordinates"
        )
