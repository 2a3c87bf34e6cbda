"""Regions: square blocks of cells, the coarser level of two-level sampling.

On a very large slide, even a thumbnail of all cells is large. Therefore a few regions are drawn from a coarse
thumbnail, and only these are read at the resolution of cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray


class Window(NamedTuple):
    """A rectangle of cells of a grid.

    Parameters
    ----------
    row, column
        Its first cell.
    rows, columns
        Its size in cells.
    """

    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class RegionGrid:
    """The cells of a slide, grouped in square regions.

    Parameters
    ----------
    cells
        Grid of cells, one tile each.
    side
        Side of a region in cells; regions of the last row and column may be smaller.

    Examples
    --------
    >>> regions = RegionGrid(Grid(1000, 600, cell=64, tile_size=64), side=4)
    >>> regions.grid.shape
    (3, 4)
    >>> regions.window(11)  # the last: 16 columns of cells are 4 regions, 10 rows are 2 and a half
    Window(row=8, column=12, rows=2, columns=4)
    """

    cells: Grid
    side: int

    def __post_init__(self) -> None:
        if self.side < 1:
            raise SettingsError(f"the side of a region must be at least 1 cell, not {self.side}")

    @classmethod
    def around(cls, grid: Grid, *, side: int, tile_size: int, stride: float) -> RegionGrid:
        """Return the cells of a grid of regions; the inverse of :attr:`grid`.

        Parameters
        ----------
        grid
            The grid of regions.
        side
            Side of a region in cells.
        tile_size, stride
            Size and stride of the tiles; see :func:`wsi_ats.overview.tiles.grid_for`.
        """
        pitch = grid.pitch / side
        return cls(
            Grid(grid.width, grid.height, pitch / stride, tile_size, None if stride == 1 else pitch), side
        )

    @property
    def grid(self) -> Grid:
        """The grid of the regions, which overlap if their tiles do.

        Its ``tile_size`` is the side of a region in tile pixels.
        """
        cells = self.cells
        cell = (self.side - 1) * cells.pitch + cells.cell
        return Grid(
            cells.width,
            cells.height,
            cell,
            round(cell / cells.cell * cells.tile_size),
            None if cells.stride is None else self.side * cells.stride,
        )

    def window(self, region: int) -> Window:
        """Return the cells of one region, given by its flat number.

        Raises
        ------
        SettingsError
            For a region outside this grid.
        """
        grid = self.grid
        if not 0 <= region < grid.size:
            raise SettingsError(f"region {region} is not one of the grid's {grid.size} regions")
        row, column = (self.side * number for number in divmod(region, grid.shape[1]))
        rows, columns = self.cells.shape
        return Window(row, column, min(self.side, rows - row), min(self.side, columns - column))

    def numbers(self, window: Window, inside: IntArray) -> IntArray:
        """Convert flat cell numbers ``inside`` a window to flat numbers on the slide's grid of cells."""
        rows, columns = np.divmod(inside, window.columns)
        numbers: IntArray = (window.row + rows) * self.cells.shape[1] + window.column + columns
        return numbers
