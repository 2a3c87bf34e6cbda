"""Regions: square blocks of cells, the coarser of the two levels of two-level sampling.

On a very large slide even a thumbnail of all cells is large. So a coarse thumbnail shows regions, a few of
them are drawn, and only these are read at a resolution that shows cells.
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
        First cell.
    rows, columns
        Number of cells.
    """

    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class RegionGrid:
    """The cells of a slide in square regions.

    Parameters
    ----------
    cells
        Grid of cells, one tile each.
    side
        Cells a side of a region; those of the last row and column may have fewer.

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
            raise SettingsError(f"a region needs at least 1 cell a side, not {self.side}")

    @classmethod
    def around(cls, grid: Grid, *, side: int, tile_size: int, stride: float) -> RegionGrid:
        """Find the cells of a grid of regions, as :attr:`grid` gives it.

        Parameters
        ----------
        grid
            The grid of regions.
        side
            Cells a side of a region.
        tile_size, stride
            Of the tiles; see :func:`wsi_ats.overview.tiles.grid_for`.
        """
        pitch = grid.pitch / side
        return cls(
            Grid(grid.width, grid.height, pitch / stride, tile_size, None if stride == 1 else pitch), side
        )

    @property
    def grid(self) -> Grid:
        """Grid of the regions, which overlap where their tiles do.

        Its ``tile_size`` is a region's side in pixels of the tiles.
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
            For a region that is not of this grid.
        """
        grid = self.grid
        if not 0 <= region < grid.size:
            raise SettingsError(f"region {region} is not one of the grid's {grid.size} regions")
        row, column = (self.side * number for number in divmod(region, grid.shape[1]))
        rows, columns = self.cells.shape
        return Window(row, column, min(self.side, rows - row), min(self.side, columns - column))

    def numbers(self, window: Window, inside: IntArray) -> IntArray:
        """Return flat numbers on the slide's grid of cells, given flat numbers ``inside`` a window."""
        rows, columns = np.divmod(inside, window.columns)
        numbers: IntArray = (window.row + rows) * self.cells.shape[1] + window.column + columns
        return numbers
