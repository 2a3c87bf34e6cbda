"""The first look at a slide: its thumbnail and its tissue; with two levels, the closer look at a region too.

Apart from the networks, so that whoever only looks does not wait the seconds that they take to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from wsi_ats.geometry import Grid
from wsi_ats.overview.masks import Quality, TissueMask
from wsi_ats.overview.quality import find_artefacts
from wsi_ats.overview.regions import RegionGrid, Window
from wsi_ats.overview.tiles import grid_for, read_thumbnail
from wsi_ats.overview.tissue import Background, Method, find_tissue, tell_background
from wsi_ats.settings import ARTEFACTS, Settings
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.resample import resample

# Tissue is as well found at fewer pixels per cell, and on a large slide in a fraction of the time: a
# thumbnail of more pixels is halved for it, as long as four pixels a side of a cell are left.
_TISSUE_PIXELS = 1 << 21
_TISSUE_SIDE = 4

# Tissue of a region is looked for in parts of it: a small biopsy is a speck in a region, but not in these.
_PARTS = 4


@dataclass(frozen=True)
class View:
    """What the first look at a slide shows.

    Parameters
    ----------
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3).
    found
        All tissue there is, also what is left out.
    settings
        Section ``thumbnail`` is used.
    mpp
        Micrometres per pixel of the thumbnail, as the settings want it.
    background
        What tissue was told from.
    parts
        With two levels, the tissue of a quarter of a region's side each; ``found`` is of regions then.
    """

    thumbnail: Pixels
    found: TissueMask
    settings: Settings
    mpp: float
    background: Background
    parts: TissueMask | None = None

    @cached_property
    def quality(self) -> Quality:
        """What spoils the cells; with two levels, the means over a region's parts."""
        if self.parts is None:
            return self._quality
        shape = self.found.grid.shape
        return Quality(**{name: _of_regions(each, *shape) for name, each in self._quality.maps.items()})

    @cached_property
    def beyond(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Tissue cells of which an artefact spoils too much, by its name; what cannot be told is not named.

        With two levels, regions of which it spoils every part that has tissue.
        """
        return {name: self._spoilt([name]) for name in self._quality.maps}

    @cached_property
    def tissue(self) -> TissueMask:
        """The tissue that may be read: without what ``thumbnail.exclude`` names."""
        excluded = self.settings.thumbnail.excluded
        if not excluded:
            return self.found  # the quality need not be known
        names = [name for name in excluded if name in self._quality.maps]
        return replace(self.found, mask=self.found.mask & ~self._spoilt(names))

    @property
    def spoilt_shares(self) -> dict[str, float | None]:
        """Share of the tissue cells in :attr:`beyond` by artefact; ``None`` where it cannot be told."""
        count = len(self.found.cells)
        return {
            name: float(self.beyond[name].sum() / count) if count and name in self.beyond else None
            for name in ARTEFACTS
        }

    @property
    def nothing_left(self) -> str | None:
        """Why no tissue may be read although there is some; ``None`` where that is not so."""
        if len(self.tissue.cells) or not len(self.found.cells):
            return None
        what = "cells" if self.parts is None else "regions"
        each = ", ".join(
            f"{name} {np.count_nonzero(mask)}"
            for name, mask in self.beyond.items()
            if name in self.settings.thumbnail.excluded
        )
        return (
            f"all {len(self.found.cells)} tissue {what} were left out: {each}; see thumbnail.exclude and "
            "thumbnail.max_artefact"
        )

    @cached_property
    def _quality(self) -> Quality:
        """Of the cells, or of the parts of regions."""
        if self.background.method == "fluorescence":
            return Quality()
        tissue = self.parts or self.found
        side = len(self.thumbnail) // self.found.grid.shape[0] // (_PARTS if self.parts else 1)
        rows, columns = tissue.grid.shape
        return find_artefacts(self.thumbnail[: rows * side, : columns * side], tissue, mpp=self.mpp)

    def _spoilt(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Tissue cells of which any of these artefacts spoils too much."""
        limit, tissue = self.settings.thumbnail.max_artefact, (self.parts or self.found).mask
        over = np.zeros(tissue.shape, dtype=bool)
        for name in names:
            over |= self._quality.maps[name] > limit
        if self.parts is None:
            return tissue & over
        spoilt, left = (_of_regions(tissue & each, *self.found.grid.shape) > 0 for each in (over, ~over))
        return self.found.mask & spoilt & ~left


def look(slide: Slide, settings: Settings) -> tuple[Pixels, TissueMask]:
    """Read a slide's thumbnail and find its tissue.

    Parameters
    ----------
    slide
        The slide.
    settings
        Sections ``tile`` and ``thumbnail`` are used.

    Returns
    -------
    ndarray of uint8, shape (rows * p, columns * p, 3), and TissueMask
        The mask carries the grid: of cells, or of regions where there are two levels. It lacks the cells that
        ``thumbnail.exclude`` leaves out; their fraction stays.

    Raises
    ------
    SlideError
        When the resolution is unknown or the thumbnail cannot be read.
    """
    view = inspect(slide, settings)
    return view.thumbnail, view.tissue


def inspect(slide: Slide, settings: Settings) -> View:
    """Look as :func:`look` does, and tell what spoils the tissue as well; the parameters are the same."""
    tile, view = settings.tile, settings.thumbnail
    grid = grid_for(slide, tile_size=tile.size, mpp=tile.mpp, tolerance=tile.tolerance, stride=tile.stride)
    if view.levels == 2:
        return _inspect_regions(slide, RegionGrid(grid, view.cells_per_region).grid, settings)
    thumbnail = read_thumbnail(slide, grid, view.pixels_per_cell)
    seen = _coarse(thumbnail, view.pixels_per_cell)
    background = _background(slide, seen, grid, settings)
    if background.method == "fluorescence":
        seen = thumbnail  # bright nuclei far apart would be averaged away
    scanned = _scanned(slide, seen, (0.0, 0.0), _pixel(seen, grid))
    found = find_tissue(seen, grid, method=background.method, min_fraction=view.min_tissue, scanned=scanned)
    return View(thumbnail, found, settings, settings.thumbnail_mpp, background)


def look_closer(
    slide: Slide, coarse: Pixels, regions: RegionGrid, window: Window, settings: Settings
) -> tuple[Pixels, TissueMask]:
    """Look at the cells of one region.

    Parameters
    ----------
    slide
        The slide.
    coarse
        Its thumbnail: what the whole slide's background is, a single region may not show.
    regions
        Its cells in regions.
    window
        Those of the region.
    settings
        Section ``thumbnail`` is used.

    Returns
    -------
    ndarray of uint8, shape (rows * p, columns * p, 3), and TissueMask
        Of the region's cells alone; the mask's grid counts in thumbnail pixels from the region's corner.
        All cells count as tissue where none is: the coarse look saw some, and whatever attention the region
        has must fall on one of its cells. For the same reason none is left out where all would be; the coarse
        look has left out regions that are spoilt throughout.

    Raises
    ------
    SlideReadError
        When a pixel cannot be read.
    """
    view = settings.thumbnail
    pixels = view.pixels_per_cell
    thumbnail = read_thumbnail(slide, regions.cells, pixels, window)
    grid = Grid(window.columns * pixels, window.rows * pixels, pixels, pixels)
    background = _background(slide, coarse, regions.grid, settings)
    method = background.method
    pixel = regions.cells.pitch / pixels
    corner = (window.column * regions.cells.pitch, window.row * regions.cells.pitch)
    scanned = _scanned(slide, thumbnail, corner, pixel)
    found = find_tissue(thumbnail, grid, method=method, min_fraction=view.min_tissue, scanned=scanned)
    for seen in (scanned, None):  # a region at the very edge of the scan may show no pixel of it
        if not len(found.cells):
            found = find_tissue(thumbnail, grid, method="none", scanned=seen)
    if view.exclude and method != "fluorescence":
        left = View(thumbnail, found, settings, settings.thumbnail_mpp, background).tissue
        found = left if len(left.cells) else found
    return thumbnail, found


def regions_of(tissue: TissueMask, settings: Settings) -> RegionGrid:
    """The cells behind a mask of regions, as :func:`look` gives it where there are two levels."""
    tile = settings.tile
    return RegionGrid.around(
        tissue.grid, side=settings.thumbnail.cells_per_region, tile_size=tile.size, stride=tile.stride
    )


def count_tiles(tissue: TissueMask, settings: Settings) -> int:
    """Tissue tiles of a slide: the cells of its mask, or as many as the tissue of its regions would fill."""
    if settings.thumbnail.levels == 1:
        return len(tissue.cells)
    regions, side = regions_of(tissue, settings), settings.thumbnail.cells_per_region
    # The regions of the last row and column may have fewer cells.
    down, across = (
        np.clip(cells - side * np.arange(count), 0, side)
        for cells, count in zip(regions.cells.shape, tissue.grid.shape, strict=True)
    )
    filled = np.minimum(tissue.fraction * side**2, np.outer(down, across))
    return int(np.ceil(filled[tissue.mask].sum()))


def _inspect_regions(slide: Slide, grid: Grid, settings: Settings) -> View:
    pixels = settings.thumbnail.pixels_per_region
    thumbnail = read_thumbnail(slide, grid, pixels)
    rows, columns = grid.shape
    side = pixels // _PARTS
    # In thumbnail pixels, of which those past the slide's edge are no part of it.
    width, height = (
        min(count * pixels, max(1, round(length / grid.pitch * pixels)))
        for length, count in ((grid.width, columns), (grid.height, rows))
    )
    parts = Grid(width, height, side, 1)
    down, across = parts.shape
    seen = thumbnail[: down * side, : across * side]
    background = _background(slide, thumbnail, grid, settings)
    found = find_tissue(
        seen,
        parts,
        method=background.method,
        min_fraction=settings.thumbnail.min_tissue,
        scanned=_scanned(slide, seen, (0.0, 0.0), _pixel(thumbnail, grid)),
    )
    fraction = _of_regions(np.where(found.mask, found.fraction, 0), rows, columns)
    mask = fraction > 0
    if settings.thumbnail.tissue == "none":
        # Of a region at the very edge there may be less than half a pixel to see.
        mask |= _of_regions(found.mask, rows, columns) > 0
    view = settings.thumbnail
    mpp = settings.thumbnail_mpp * view.pixels_per_cell * view.cells_per_region / view.pixels_per_region
    return View(thumbnail, TissueMask(grid, fraction, mask), settings, mpp, background, found)


def _scanned(
    slide: Slide, seen: Pixels, corner: tuple[float, float], pixel: float
) -> npt.NDArray[np.bool_] | None:
    """Which pixels of a view the scanner saw, shape (h, w); ``None`` for all.

    Parameters
    ----------
    slide
        It says which parts were scanned.
    seen
        The view, shape (h, w, 3).
    corner
        Its top-left ``x, y`` in level-0 pixels.
    pixel
        Its pixels' side in level-0 pixels.
    """
    full = slide.levels[0]
    if slide.scanned == ((0, 0, full.width, full.height),):
        return None
    y, x = (
        first + pixel * (np.arange(count) + 0.5)
        for first, count in zip(corner[::-1], seen.shape, strict=False)
    )
    seen_there = np.zeros(seen.shape[:2], dtype=bool)
    for part in slide.scanned:
        down = (y >= part.y) & (y < part.y + part.height)
        across = (x >= part.x) & (x < part.x + part.width)
        seen_there |= np.outer(down, across)
    return seen_there


def _coarse(thumbnail: Pixels, side: int) -> Pixels:
    """Halve a large thumbnail, of so many pixels a side of a cell, until it is enough to find tissue on."""
    while thumbnail[..., 0].size > _TISSUE_PIXELS and side % 2 == 0 and side // 2 >= _TISSUE_SIDE:
        side //= 2
        thumbnail = resample(thumbnail, thumbnail.shape[1] // 2, thumbnail.shape[0] // 2)
    return thumbnail


def _of_regions(parts: npt.NDArray[np.generic], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Means of regions over their parts, of which the last row and column may have fewer."""
    padded = np.zeros((rows * _PARTS, columns * _PARTS), dtype=np.float32)
    down, across = parts.shape
    padded[:down, :across] = parts
    means: npt.NDArray[np.float32] = padded.reshape(rows, _PARTS, columns, _PARTS).mean((1, 3))
    return means


def _pixel(thumbnail: Pixels, grid: Grid) -> float:
    """Side of a thumbnail's pixels, in level-0 pixels."""
    return grid.pitch * grid.shape[0] / len(thumbnail)


def _background(slide: Slide, thumbnail: Pixels, grid: Grid, settings: Settings) -> Background:
    """How tissue is found; ``auto`` is decided by the part of the slide's thumbnail that was scanned."""
    method = cast(Method, settings.thumbnail.tissue)
    if method != "auto":
        return Background(method, "asked for")
    if settings.tile.channel:
        return Background("fluorescence", "a channel was asked for")
    return tell_background(thumbnail, _scanned(slide, thumbnail, (0.0, 0.0), _pixel(thumbnail, grid)))
