"""Geometry of annotations: outlines, and the cells of a grid that lie in them.

Coordinates are level-0 pixels, (x, y). A *shape* is a polygon or several, with or without holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from wsi_ats.geometry import Grid, IntArray, Region

FloatArray = npt.NDArray[np.float64]

Shape = Any
"""A polygon or multipolygon of shapely, which has no types."""


class Outline(NamedTuple):
    """A polygon as a program wrote it.

    Parameters
    ----------
    name
        Its class; empty if it has none.
    shell
        Corners, shape (N, 2); the first may be repeated last.
    holes
        Corners of each hole.
    """

    name: str
    shell: FloatArray
    holes: tuple[FloatArray, ...] = ()


def shape_of(outline: Outline) -> tuple[Shape, bool]:
    """Make the shape of an outline, and tell whether it crossed itself and had to be repaired.

    Everything that a self-crossing outline encloses belongs to its shape. The shape is empty if the outline
    has no area.
    """
    shell, repaired = _filled(outline.shell)
    holes = [_filled(each) for each in outline.holes]
    if holes:
        shell = _areas(shapely.difference(shell, shapely.union_all([hole for hole, _ in holes])))
    return shell, repaired or any(each for _, each in holes)


def _filled(corners: FloatArray) -> tuple[Shape, bool]:
    if len(np.unique(corners, axis=0)) < 3:
        return shapely.Polygon(), False
    shape = shapely.Polygon(corners)
    if shapely.is_valid(shape):
        return shape, False
    return _areas(shapely.make_valid(shape, method="structure", keep_collapsed=False)), True


def _areas(shape: Shape) -> Shape:
    """Return the parts of a shape that have an area, without points and lines."""
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    parts = shapely.get_parts(shape)
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def moved(shape: Shape, x: int, y: int) -> Shape:
    """Return a shape, moved by ``x, y``."""
    return shapely.transform(shape, lambda corners: corners + np.array([x, y]))


def joined(shapes: Sequence[Shape]) -> Shape:
    """Return the area that any of the shapes covers."""
    return _areas(shapely.union_all(list(shapes)))


def without(shape: Shape, other: Shape) -> Shape:
    """Return a shape without the area of another."""
    return _areas(shapely.difference(shape, other))


def parts(shape: Shape, apart: float) -> list[Shape]:
    """Return the parts of a shape that are at least ``apart`` pixels from one another, in any order."""
    pieces = [piece for piece in shapely.get_parts(shape) if piece.area > 0]
    around = shapely.get_parts(shapely.buffer(shape, apart / 2))
    inside, of = shapely.STRtree(around).query(shapely.point_on_surface(pieces), predicate="within")
    groups: dict[int, list[Shape]] = {}
    for piece, group in zip(inside.tolist(), of.tolist(), strict=True):
        groups.setdefault(group, []).append(pieces[piece])
    return [joined(group) for group in groups.values()]


def outside(shapes: Sequence[Shape], frame: Region) -> tuple[int, float]:
    """Return the number of shapes that lie outside a frame as a whole, and the share of all area outside."""
    box = shapely.box(frame.x, frame.y, frame.x + frame.width, frame.y + frame.height)
    inside = shapely.area(shapely.intersection(list(shapes), box))
    total = shapely.area(list(shapes)).sum()
    return int(np.count_nonzero(inside == 0)), float(1 - inside.sum() / total)


def extent(shapes: Sequence[Shape]) -> tuple[float, float, float, float]:
    """Return the smallest ``x, y`` and the largest ``x, y`` of shapes."""
    left, top, right, bottom = shapely.total_bounds(list(shapes)).tolist()
    return left, top, right, bottom


def cells_inside(shape: Shape, grid: Grid, cells: IntArray) -> npt.NDArray[np.bool_]:
    """Tell which cells have their centre in a shape; its edge belongs to it.

    Parameters
    ----------
    shape
        The shape.
    grid
        The grid of the cells.
    cells
        Flat numbers of cells, shape (n,).

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    rows, columns = np.divmod(cells, grid.shape[1])
    shapely.prepare(shape)
    x, y = (numbers * grid.pitch + grid.cell / 2 for numbers in (columns, rows))
    found: npt.NDArray[np.bool_] = shapely.intersects_xy(shape, x, y)
    return found


def shares(shape: Shape, grid: Grid) -> FloatArray:
    """Compute the share of each cell that a shape covers.

    The grid is halved again and again; blocks that are wholly in or out need no further work, so the cost
    grows with the length of the outline and not with the area.

    Parameters
    ----------
    shape
        The shape.
    grid
        The grid.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
        Values in [0, 1]. The part of a cell beyond the edge of the slide counts as not covered.

    Examples
    --------
    >>> square, _ = shape_of(Outline("", np.array([(0, 0), (15, 0), (15, 10), (0, 10.0)])))
    >>> shares(square, Grid(30, 20, cell=10, tile_size=10)).tolist()
    [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    covered = np.zeros(grid.shape)
    todo = [(shape, 0, grid.shape[0], 0, grid.shape[1])]
    while todo:
        part, top, bottom, left, right = todo.pop()
        box = shapely.box(
            *(left * grid.pitch, top * grid.pitch),
            *((right - 1) * grid.pitch + grid.cell, (bottom - 1) * grid.pitch + grid.cell),
        )
        part = _areas(shapely.intersection(part, box))
        share = part.area / box.area
        whole = share > 1 - 1e-9  # rounding
        if share == 0:
            continue
        if whole or (bottom - top == right - left == 1):
            covered[top:bottom, left:right] = 1.0 if whole else share
        elif bottom - top > right - left:
            middle = (top + bottom) // 2
            todo += [(part, top, middle, left, right), (part, middle, bottom, left, right)]
        else:
            middle = (left + right) // 2
            todo += [(part, top, bottom, left, middle), (part, top, bottom, middle, right)]
    return covered
