"""Slides as tests of readers have them; in a module of its own, because workers import it."""

from __future__ import annotations

import os
import time

import numpy as np
from distributed import Worker

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import Grid
from wsi_ats.overview.tiles import grid_for, read_tiles
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.slides.memory import MemorySlide

GRID = Grid(80, 64, cell=16, tile_size=16)


def grey_slide(ref: SlideRef) -> MemorySlide:
    """Open a slide of plain grey cells, which JPEG does not change; its name selects a fault."""
    if ref.id.startswith("absent"):
        raise SlideOpenError(ref.path, "no such file")
    pixels = np.kron(greys_of(ref.id)[..., None].repeat(3, 2), np.ones((16, 16, 1), np.uint8))
    return _Awkward([pixels], mpp=0.5, path=ref.id)


def greys_of(name: str) -> np.ndarray:
    """Return the grey value of each cell of a slide, shape (rows, columns)."""
    return np.random.default_rng(sum(map(ord, name))).integers(0, 256, GRID.shape, dtype=np.uint8)


class _Awkward(MemorySlide):
    def read_regions(self, *args):
        if self.path.startswith("bad"):
            raise SlideReadError(self.path, "tile 3 is damaged")
        if self.path.startswith("deadly"):
            os._exit(1)
        if self.path.startswith("slow"):
            time.sleep(0.2)
        if self.path.startswith("bug"):
            raise ZeroDivisionError
        return super().read_regions(*args)


def look(slide: Slide) -> tuple[str, np.ndarray]:
    """Something that is no batch of tiles."""
    return slide.path, slide.read_regions(0, np.array([[0, 0]]), 80, 64)[0]


def tiles_at(slide: Slide, cells: list[int]) -> np.ndarray:
    """Tiles of a slide's own resolution."""
    return read_tiles(slide, grid_for(slide, tile_size=64, mpp=0.5, tolerance=0.2), cells)


def open_slides(dask_worker: Worker) -> int:
    """Return the number of slides that this worker keeps open."""
    plugins = dask_worker.plugins
    return sum(len(plugin.open._idle) for name, plugin in plugins.items() if name.startswith("slides-"))
