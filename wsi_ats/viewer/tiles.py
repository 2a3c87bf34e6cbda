"""Tiles of a web page, cut from a slide; the tiles and the open slides that are kept."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from wsi_ats.errors import SlideReadError
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.resample import resample

SIZE = 256
"""Side of a tile of the page in pixels."""

# Pixels of the slide that are read at once for a tile, 12 MB, and in all. A pyramid needs few, but a slide of
# one level would be read as a whole for a small picture of it.
_PIXELS_AT_ONCE = 1 << 22
_MOST_PIXELS = 100_000_000

# Levels whose downsample is nearly a power of 2 are shown without interpolation, if no pixel is then shown
# half a pixel from its place.
_SHIFT = 0.5


@dataclass(frozen=True)
class Pyramid:
    """The tiles of a slide on a page: at zoom ``top`` pixels of level 0, at zoom 0 all in one tile.

    Parameters
    ----------
    width, height
        Size of the slide in level-0 pixels.

    Examples
    --------
    >>> pyramid = Pyramid(1000, 600)
    >>> pyramid.top, pyramid.shape(0), pyramid.shape(2), pyramid.count
    (2, (1, 1), (3, 4), 17)
    """

    width: int
    height: int

    @property
    def top(self) -> int:
        """The zoom of full resolution."""
        return max(0, math.ceil(math.log2(max(self.width, self.height) / SIZE)))

    @property
    def count(self) -> int:
        """Number of tiles at all zooms."""
        return sum(math.prod(self.shape(zoom)) for zoom in range(self.top + 1))

    def scale(self, zoom: int) -> int:
        """Return the level-0 pixels per pixel of the page."""
        return 1 << (self.top - zoom)

    def shape(self, zoom: int) -> tuple[int, int]:
        """Return the rows and columns of tiles."""
        side = SIZE * self.scale(zoom)
        return -(-self.height // side), -(-self.width // side)

    def __contains__(self, place: tuple[int, int, int]) -> bool:
        """Whether there is a tile at zoom, column and row."""
        zoom, column, row = place
        if not 0 <= zoom <= self.top:
            return False
        rows, columns = self.shape(zoom)
        return 0 <= column < columns and 0 <= row < rows


def read_tile(slide: Slide, zoom: int, column: int, row: int) -> Pixels:
    """Read one tile of the page, shape (256, 256, 3), from the coarsest level that is fine enough.

    Parameters
    ----------
    slide
        The slide.
    zoom, column, row
        Place of the tile in the slide's :class:`Pyramid`.

    Raises
    ------
    SlideReadError
        When a pixel cannot be read, or the slide has no level near this zoom.
    """
    scale = Pyramid(slide.levels[0].width, slide.levels[0].height).scale(zoom)
    fit = [i for i, level in enumerate(slide.levels) if level.downsample <= scale * (1 + _SHIFT / SIZE)]
    level = fit[-1]
    downsample = slide.levels[level].downsample
    step = scale / downsample
    if abs(step - round(step)) * SIZE < _SHIFT:
        step = round(step)
    if (SIZE * step) ** 2 > _MOST_PIXELS:
        raise SlideReadError(
            slide.path,
            f"this view needs {(SIZE * step) ** 2 / 1e6:,.0f} million pixels of level {level} for each tile, "
            "because the slide has no coarser level; zoom in, or convert it with `wsi-ats convert`",
        )
    left = _start(column * SIZE * scale / downsample, step)
    top = _start(row * SIZE * scale / downsample, step)
    rows = max(1, min(SIZE, int(_PIXELS_AT_ONCE / (SIZE * step * step))))
    bands = [
        _read(slide, level, left, top + first * step, step, min(rows, SIZE - first))
        for first in range(0, SIZE, rows)
    ]
    return np.concatenate(bands)


def _start(position: float, step: float) -> float:
    return round(position) if step == round(step) else position


def _read(slide: Slide, level: int, left: float, top: float, step: float, rows: int) -> Pixels:
    right, bottom = left + SIZE * step, top + rows * step
    x, y = math.floor(left), math.floor(top)
    corner = np.array([[x, y]], dtype=np.int64)
    pixels = slide.read_regions(level, corner, math.ceil(right) - x, math.ceil(bottom) - y)[0]
    return resample(pixels, SIZE, rows, (left - x, top - y, right - x, bottom - y))


class TileCache:
    """The tiles that were used last, up to a number of bytes; any thread may use it.

    Parameters
    ----------
    most_bytes
        Limit of all tiles together.

    Examples
    --------
    >>> cache = TileCache(most_bytes=5)
    >>> cache.get("a", lambda: b"1234"), cache.get("b", lambda: b"56"), cache.size
    (b'1234', b'56', 2)
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.size = 0
        self._tiles: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, place: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return a tile, and make it if it is not there; nothing is kept if that fails."""
        with self._lock:
            if place in self._tiles:
                self._tiles.move_to_end(place)
                return self._tiles[place]
        tile = make()  # two threads may make the same tile, which is rare and does no harm
        with self._lock:
            self.size += len(tile) - len(self._tiles.pop(place, b""))
            self._tiles[place] = tile
            while self.size > self.most_bytes:
                self.size -= len(self._tiles.popitem(last=False)[1])
        return tile


@dataclass(eq=False)
class _Open:
    opening: Lock = field(default_factory=Lock)
    slide: Slide | None = None
    users: int = 0


class OpenSlides:
    """Slides that stay open for the next request, few of them; any thread may use it.

    Parameters
    ----------
    opened
        Opens the slide of a number.
    most
        Slides that stay open. Those in use are never closed, so more may be open for a moment.
    """

    def __init__(self, opened: Callable[[int], Slide], most: int) -> None:
        self.most = most
        self._opened = opened
        self._slides: OrderedDict[int, _Open] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._slides)

    @contextmanager
    def use(self, number: int) -> Iterator[Slide]:
        """Lend an open slide."""
        with self._lock:
            one = self._slides.setdefault(number, _Open())
            self._slides.move_to_end(number)
            one.users += 1
        try:
            with one.opening:
                one.slide = one.slide or self._opened(number)
            yield one.slide
        finally:
            with self._lock:
                one.users -= 1
            self._close_idle(self.most)

    def close(self) -> None:
        """Close all slides that are not in use."""
        self._close_idle(0)

    def _close_idle(self, most: int) -> None:
        with self._lock:
            idle = [number for number, one in self._slides.items() if not one.users]
            closed = [self._slides.pop(number) for number in idle[: max(0, len(self._slides) - most)]]
        for one in closed:
            if one.slide is not None:
                one.slide.close()
