"""Outlines of tiles and of tissue as GeoJSON coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from wsi_ats.geometry import Grid, IntArray


def ring(x: int, y: int, width: int, height: int) -> list[list[int]]:
    """Return the closed outline of a box, counter-clockwise with y upwards, as GeoJSON requires.

    ``x, y`` is its corner, and ``width, height`` its size.

    Examples
    --------
    >>> ring(0, 0, 2, 1)
    [[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]
    """
    right, bottom = x + width, y + height
    return [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]


def polygons(boxes: IntArray) -> npt.NDArray[Any]:
    """Return boxes as polygons of shapely, shape (n,).

    Parameters
    ----------
    boxes
        ``x, y, width, height``, shape (n, 4).
    """
    x, y, width, height = boxes.T
    made: npt.NDArray[Any] = shapely.box(x, y, x + width, y + height)
    return made


def outline(mask: npt.NDArray[np.bool_], grid: Grid, *, corner: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Return the outline of some cells as a GeoJSON geometry.

    Parameters
    ----------
    mask
        The cells, shape (rows, columns).
    grid
        The grid of the cells.
    corner
        Level-0 pixel (x, y) from which the result counts.

    Returns
    -------
    dict
        A Polygon or MultiPolygon, with holes.

    Examples
    --------
    >>> outline(np.array([[True, True]]), Grid(20, 10, 10, 10))["type"]
    'Polygon'
    """
    boxes = grid.boxes(np.flatnonzero(mask))
    boxes[:, :2] -= corner
    whole = shapely.simplify(shapely.union_all(polygons(boxes)), 0)
    geometry: dict[str, Any] = shapely.geometry.mapping(whole)
    return geometry
