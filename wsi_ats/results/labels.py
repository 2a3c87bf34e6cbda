"""Places for labels beside marks, so that no two labels collide."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_ats.results.records import FloatArray

# Places are tried on rings around the mark, near ones first, on each in these directions.
_DIRECTIONS, _RINGS, _STEP = 16, 40, 4.0


def place_labels(
    anchors: FloatArray, radii: FloatArray, sizes: FloatArray, marks: FloatArray, room: FloatArray
) -> FloatArray:
    """Place a label beside each of some marks.

    A label avoids the labels placed before it and the marks; where there is no such place, the labels alone.

    Parameters
    ----------
    anchors
        Middles of the marks with a label, (x, y), shape (n, 2), all in one unit of length such as points.
    radii
        Distance of the nearest labels from the middle of each mark, shape (n,).
    sizes
        Width and height of each label, shape (n, 2).
    marks
        Boxes to avoid if possible, (left, bottom, right, top), shape (m, 4).
    room
        Box in which labels must be, (left, bottom, right, top).

    Returns
    -------
    ndarray of float64, shape (n, 2)
        Middles of the labels; NaN for a label for which there is no room.

    Examples
    --------
    >>> mark = np.array([[5.0, 5.0]])
    >>> boxes = np.array([[4.0, 4.0, 6.0, 6.0]])
    >>> room = np.array([0.0, 0.0, 20.0, 20.0])
    >>> place_labels(mark, np.array([2.0]), np.array([[4.0, 2.0]]), boxes, room).round(2).tolist()
    [[9.0, 5.0]]
    """
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    towards = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    places = np.full(anchors.shape, np.nan)
    taken = np.zeros((0, 4))
    for i, (anchor, radius, size) in enumerate(zip(anchors, radii, sizes, strict=True)):
        spare = None
        for ring in range(_RINGS):
            middles = anchor + towards * (radius + _STEP * ring + size / 2)
            boxes = np.concatenate([middles - size / 2, middles + size / 2], axis=1)
            inside = (boxes[:, :2] >= room[:2]).all(1) & (boxes[:, 2:] <= room[2:]).all(1)
            free = inside & ~_meet(boxes, taken)
            best = free & ~_meet(boxes, marks)
            if spare is None and free.any():
                spare = middles[np.argmax(free)]
            if best.any():
                places[i] = middles[np.argmax(best)]
                break
        else:
            if spare is not None:
                places[i] = spare
        if not np.isnan(places[i]).any():
            taken = np.concatenate([taken, [[*(places[i] - size / 2), *(places[i] + size / 2)]]])
    return places


def _meet(boxes: FloatArray, others: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which of the boxes (k, 4) meet any of the others (m, 4)."""
    apart = (boxes[:, None, :2] >= others[None, :, 2:]) | (others[None, :, :2] >= boxes[:, None, 2:])
    met: npt.NDArray[np.bool_] = np.any(~np.any(apart, axis=-1), axis=-1)
    return met
