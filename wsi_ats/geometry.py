"""Places on a slide: levels, regions, and the grid of attention cells.

All coordinates are in one frame: **level-0 pixels, (x, y), y down**. Only :meth:`Level.from_level0` converts
to pixels of another level, and it rounds once. A *cell* has one attention value and is one tile that may be
read: the grid of attention cells is also the grid of tiles.

Positions are multiples of 2^-20 pixels and therefore exact at any distance: errors do not accumulate, and the
right edge of one cell is the left edge of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError

IntArray = npt.NDArray[np.int64]

_ONE = 1 << 20  # sub-pixel units in a pixel: 10^5 cells of 10^4 pixels still fit an int64 product


class Region(NamedTuple):
    """A rectangle in level-0 pixels: columns ``[x, x + width)``, rows ``[y, y + height)``.

    Parameters
    ----------
    x, y
        Top-left corner.
    width, height
        Size.
    """

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a slide's pyramid.

    Parameters
    ----------
    width, height
        Size in pixels of this level.
    downsample
        Level-0 pixels per pixel of this level; any real number >= 1 (3.9997 is common).
    """

    width: int
    height: int
    downsample: float

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or not self.downsample >= 1:
            raise SettingsError(f"a level needs a size >= 1 and a downsample >= 1, not {self}")

    def from_level0(self, position: float) -> int:
        """Round a level-0 coordinate to the nearest pixel edge of this level."""
        return int(np.floor(position / self.downsample + 0.5))


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid of square cells that covers a slide from its top-left corner; each cell is one tile.

    The last row and column may extend beyond the slide; readers fill the area outside with the slide's
    background colour.

    Parameters
    ----------
    width, height
        Size of the slide in level-0 pixels.
    cell
        Side of a tile in level-0 pixels; may be fractional.
    tile_size
        Side of the tile that the network sees, in pixels.
    stride
        Level-0 pixels from one cell to the next; ``None`` means ``cell``: tiles neither overlap nor leave
        gaps. Use half a cell for objects about as large as a tile.

    Examples
    --------
    >>> grid = Grid(width=1000, height=600, cell=256, tile_size=256)
    >>> grid.shape
    (3, 4)
    >>> grid.region(5)
    Region(x=256, y=256, width=256, height=256)
    """

    width: int
    height: int
    cell: float
    tile_size: int
    stride: float | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise SettingsError(f"a slide needs a size >= 1, not {self.width} x {self.height}")
        if self.tile_size < 1:
            raise SettingsError(f"tile_size must be >= 1 pixel, not {self.tile_size}")
        if not 1 <= self.cell < 1 << 20:
            raise SettingsError(f"a cell must be 1 to 2^20 level-0 pixels wide, not {self.cell}")
        if not 1 <= self.pitch <= self.cell:
            raise SettingsError(f"stride must be in [1, cell = {self.cell}], not {self.stride}")

    @property
    def pitch(self) -> float:
        """Level-0 pixels from one cell to the next."""
        return self.cell if self.stride is None else self.stride

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self._count(self.height), self._count(self.width)

    @property
    def size(self) -> int:
        """Number of cells."""
        rows, columns = self.shape
        return rows * columns

    def _count(self, length: int) -> int:
        beyond_first = length * _ONE - _units(self.cell)
        return 1 + max(0, -(-beyond_first // _units(self.pitch)))

    def boxes(self, cells: npt.ArrayLike) -> IntArray:
        """Return the level-0 rectangles of cells, as an array.

        Parameters
        ----------
        cells
            Flat cell numbers, row by row, shape (N,).

        Returns
        -------
        ndarray of int64, shape (N, 4)
            ``x, y, width, height`` in level-0 pixels.

        Raises
        ------
        SettingsError
            For a cell outside this grid.
        """
        numbers = np.asarray(cells, dtype=np.int64)
        outside = numbers[(numbers < 0) | (numbers >= self.size)]
        if outside.size:
            raise SettingsError(f"cell {outside[0]} is not among the grid's {self.size} cells")
        rows, columns = np.divmod(numbers, self.shape[1])
        pitch, cell = _units(self.pitch), _units(self.cell)
        left, top = _round(columns * pitch), _round(rows * pitch)
        right, bottom = _round(columns * pitch + cell), _round(rows * pitch + cell)
        return np.stack([left, top, right - left, bottom - top], axis=-1)

    def region(self, cell: int) -> Region:
        """Return the level-0 rectangle of one cell."""
        return Region(*self.boxes([cell])[0].tolist())

    def regions(self, cells: npt.ArrayLike) -> Sequence[Region]:
        """Return the level-0 rectangles of cells, in the given order."""
        return [Region(*box) for box in self.boxes(cells).tolist()]


def _units(length: float) -> int:
    return round(length * _ONE)


def _round(units: IntArray) -> IntArray:
    return (units + _ONE // 2) >> 20
