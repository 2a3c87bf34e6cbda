"""Outlines on a grid of tiles: marching squares with a few crossings on each side."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ats.testing.textures import Field

STEPS = 3  # places at which an outline may cross the side of a tile
EDGE_UNITS = 2 * STEPS  # outlines have whole coordinates in units of tile side / EDGE_UNITS

Point = tuple[int, int]


@dataclass(frozen=True)
class Crossing:
    """One way for an outline to cross a tile.

    Attributes
    ----------
    outline
        Corners (x, y) of the inner part, in units of tile side / `EDGE_UNITS`; always convex.
    chords
        The sides of it that are part of the outline, as (start, end).
    """

    outline: tuple[Point, ...]
    chords: tuple[tuple[Point, Point], ...]

    @property
    def area(self) -> float:
        """Share of the tile's area that is inside."""
        pairs = zip(self.outline, self.outline[1:] + self.outline[:1], strict=True)
        return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / (2 * EDGE_UNITS**2)

    def cover(self, size: int, ragged: Field) -> Field:
        """Return the inner share of each pixel of a tile, with its outline moved by `ragged` pixels."""
        y, x = np.mgrid[:size, :size] + 0.5
        inside = np.full((size, size), np.inf)
        for chord in self.chords:
            (x0, y0), (x1, y1) = np.asarray(chord) * size / EDGE_UNITS
            distance = ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / np.hypot(x1 - x0, y1 - y0)
            inside = np.minimum(inside, distance)
        return np.clip(inside + ragged + 0.5, 0, 1)


def _crossing(inside: tuple[int, ...], places: tuple[int, ...]) -> Crossing:
    """Walk around a tile clockwise from its top left corner, collecting inner corners and crossings."""
    end = EDGE_UNITS
    corners = [(0, 0), (end, 0), (end, end), (0, end)]
    top, right, bottom, left = (2 * place + 1 for place in places)
    crossings = [(top, 0), (end, right), (bottom, end), (0, left)]
    outline: list[Point] = []
    for side in range(4):
        if inside[side]:
            outline.append(corners[side])
        if inside[side] != inside[(side + 1) % 4]:
            outline.append(crossings[side])
    around = zip(outline, outline[1:] + outline[:1], strict=True)
    chords = [pair for pair in around if not set(pair) & set(corners)]
    return Crossing(tuple(outline), tuple(chords))


def _code(inside: Any, places: Any) -> Any:
    """Encode four corners and four places in one number, for a tile or, elementwise, a grid of tiles."""
    code = 0
    for side in range(4):
        crossed = inside[side] != inside[(side + 1) % 4]
        code = (code * 2 + inside[side]) * STEPS + crossed * places[side]
    return code


@functools.cache
def crossings() -> dict[int, Crossing]:
    """Return every crossing by its code, in the order of codes."""
    found = {}
    for inside in itertools.product((0, 1), repeat=4):
        if 0 < sum(inside) < 4:
            saddle = inside in ((0, 1, 0, 1), (1, 0, 1, 0))
            choices = [(STEPS // 2,)] if saddle else [range(STEPS)]
            for places in itertools.product(*choices * 4):
                found[_code(inside, places)] = _crossing(inside, places)
    return dict(sorted(found.items()))


OUTSIDE, INSIDE = 0, 1  # forms of a tile; form 2 + k is the k-th of `crossings()`


def forms(field: Field) -> NDArray[np.int64]:
    """Return the form of every tile from a field on the corners of the grid that is positive inside."""
    inside = (field > 0).astype(np.int64)

    def places(first: Field, second: Field) -> NDArray[np.int64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.nan_to_num(first / (first - second), posinf=0.0, neginf=0.0)
        return np.clip((part * STEPS).astype(np.int64), 0, STEPS - 1)

    along_x, along_y = places(field[:, :-1], field[:, 1:]), places(field[:-1], field[1:])
    corners = [inside[:-1, :-1], inside[:-1, 1:], inside[1:, 1:], inside[1:, :-1]]
    saddle = (corners[0] == corners[2]) & (corners[1] == corners[3]) & (corners[0] != corners[1])
    for crossed in (along_x[:-1], along_x[1:], along_y[:, :-1], along_y[:, 1:]):
        crossed[saddle] = STEPS // 2  # keeps the bank small: saddles are rare
    code = _code(corners, [along_x[:-1], along_y[:, 1:], along_x[1:], along_y[:, :-1]])
    forms: NDArray[np.int64] = np.searchsorted(list(crossings()), code) + 2
    whole = sum(corners)
    forms[whole == 0], forms[whole == 4] = OUTSIDE, INSIDE
    return forms


def areas(forms: NDArray[np.int64]) -> Field:
    """Return the inner share of the area of every tile."""
    table = np.array([0.0, 1.0] + [crossing.area for crossing in crossings().values()])
    areas: Field = table[forms]
    return areas


def rings(forms: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the outlines (x, y) in units of tile side / `EDGE_UNITS`, with the first point repeated last."""
    ways = list(crossings().values())
    following: dict[Point, Point] = {}
    for row, column in np.argwhere(forms > INSIDE):
        x, y = EDGE_UNITS * int(column), EDGE_UNITS * int(row)
        for (x0, y0), (x1, y1) in ways[forms[row, column] - 2].chords:
            following[x + x0, y + y0] = (x + x1, y + y1)
    rings = []
    while following:
        ring = [next(iter(following))]
        while ring[-1] in following:
            ring.append(following.pop(ring[-1]))
        rings.append(np.array(ring))
    return rings
