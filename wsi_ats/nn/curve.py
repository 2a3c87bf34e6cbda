"""A space-filling curve over a grid: find the cells at given places along it, without sorting.

Systematic sampling needs the cells in an order in which neighbours stay together, and the running sum of
their mass in that order. Sorting a million cells takes longer than reading the drawn tiles. But a Z-order
curve visits a square quarter by quarter, so the mass of each square suffices: masses are added up once, from
cells to the whole grid, and each place is found by descending from the whole grid to its cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Curve:
    """A Z-order (Morton) curve laid over a grid.

    Parameters
    ----------
    shape
        Rows and columns of the grid.
    origin
        Row and column of the curve's plane at which the grid begins.
    turned
        The curve runs down before it runs across.
    """

    shape: tuple[int, int]
    origin: tuple[int, int] = (0, 0)
    turned: bool = False

    @classmethod
    def random(cls, shape: tuple[int, int], generator: torch.Generator) -> Curve:
        """Return a curve with random origin and orientation, so that any two cells may be far apart on it."""
        row, column = torch.randint(cls.side(shape), (2,), generator=generator).tolist()
        return cls(shape, (row, column), bool(torch.rand((), generator=generator) < 0.5))

    @staticmethod
    def side(shape: tuple[int, int]) -> int:
        """Return the number of origins along each axis: the power of two above a grid's longer side."""
        return 1 << max(shape).bit_length()


def locate(mass: Tensor, curve: Curve, places: Tensor) -> Tensor:
    """Find the cells at given places along a curve.

    Parameters
    ----------
    mass
        Mass of each cell, not negative, positive somewhere, shape (rows, columns), float64.
    curve
        The order of the cells.
    places
        Shares of the mass before each place, in [0, 1), shape (n,), float64.

    Returns
    -------
    Tensor, shape (n,)
        Flat numbers of cells, int64; never of a cell without mass.

    Examples
    --------
    >>> mass = torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
    >>> locate(mass, Curve((2, 2)), torch.tensor([0.0, 0.3, 0.7, 0.8], dtype=torch.float64)).tolist()
    [0, 2, 2, 3]
    """
    sums = _sums_of_squares(mass, curve.origin)
    left = places * sums[-1][0, 0]  # mass between the beginning of the square and the place
    row, column = (torch.full_like(left, edge >> len(sums) - 1, dtype=torch.int64) for edge in curve.origin)
    quarter = torch.arange(4, device=mass.device)
    down, across = (quarter % 2, quarter // 2) if curve.turned else (quarter // 2, quarter % 2)
    for level in reversed(range(len(sums) - 1)):
        rows, columns = 2 * row[:, None] + down, 2 * column[:, None] + across
        ends = _at(sums[level], rows, columns, curve.origin, level).cumsum(1)
        # Take the first quarter that ends after the place; rounding must not lead past the last with mass.
        left = torch.minimum(left, ends[:, 3].nextafter(ends.new_zeros(())))
        chosen = (ends <= left[:, None]).sum(1, keepdim=True)
        left = left - F.pad(ends, (1, 0)).gather(1, chosen)[:, 0]
        row, column = rows.gather(1, chosen)[:, 0], columns.gather(1, chosen)[:, 0]
    return (row - curve.origin[0]) * curve.shape[1] + column - curve.origin[1]


def _sums_of_squares(mass: Tensor, origin: tuple[int, int]) -> list[Tensor]:
    """Return the mass of the squares of 1, 2, 4, ... cells a side, up to one that covers the grid."""
    sums = [mass]
    while sums[-1].numel() > 1:
        top, left = (edge >> len(sums) - 1 & 1 for edge in origin)
        height, width = sums[-1].shape
        padded = F.pad(sums[-1], (left, (left + width) % 2, top, (top + height) % 2))
        pairs = padded[::2] + padded[1::2]  # ten times as fast as one sum over both axes
        sums.append(pairs[:, ::2] + pairs[:, 1::2])
    return sums


def _at(sums: Tensor, rows: Tensor, columns: Tensor, origin: tuple[int, int], level: int) -> Tensor:
    """Return the mass of squares of the plane, 0 outside the grid."""
    rows, columns = rows - (origin[0] >> level), columns - (origin[1] >> level)
    height, width = sums.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    mass = sums[rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return torch.where(inside, mass, 0)
