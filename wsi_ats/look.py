"""The first look at a slide: its thumbnail and its tissue; with two levels, the closer look at a region too.

Apart from the networks, so that whoever only looks does not wait the seconds that they take to import.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from wsi_ats.config import Settings
from wsi_ats.geometry import Grid
from wsi_ats.regions import RegionGrid, Window
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.tiles import grid_for, read_thumbnail
from wsi_ats.tissue import Method, find_tissue, is_fluorescence

# Tissue of a region is looked for in parts of it: a small biopsy is a speck in a region, but not in these.
_PARTS = 4


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
        The mask carries the grid: of cells, or of regions where there are two levels.

    Raises
    ------
    SlideError
        When the resolution is unknown or the thumbnail cannot be read.
    """
    tile, view = settings.tile, settings.thumbnail
    grid = grid_for(slide, tile_size=tile.size, mpp=tile.mpp, tolerance=tile.tolerance, stride=tile.stride)
    if settings.thumbnail.levels == 2:
        return _look_at_regions(slide, RegionGrid(grid, view.cells_per_region).grid, settings)
    thumbnail = read_thumbnail(slide, grid, view.pixels_per_cell)
    return thumbnail, find_tissue(thumbnail, grid, method=_method(settings), min_fraction=view.min_tissue)


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
        has must fall on one of its cells.

    Raises
    ------
    SlideReadError
        When a pixel cannot be read.
    """
    view = settings.thumbnail
    pixels = view.pixels_per_cell
    thumbnail = read_thumbnail(slide, regions.cells, pixels, window)
    grid = Grid(window.columns * pixels, window.rows * pixels, pixels, pixels)
    method = _method(settings)
    if method == "auto":
        method = "fluorescence" if is_fluorescence(coarse) else "brightfield"
    found = find_tissue(thumbnail, grid, method=method, min_fraction=view.min_tissue)
    if not len(found.cells):
        found = find_tissue(thumbnail, grid, method="none")
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


def _look_at_regions(slide: Slide, grid: Grid, settings: Settings) -> tuple[Pixels, TissueMask]:
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
    found = find_tissue(
        thumbnail[: down * side, : across * side],
        parts,
        method=_method(settings),
        min_fraction=settings.thumbnail.min_tissue,
    )
    in_parts = np.zeros((rows * _PARTS, columns * _PARTS))
    in_parts[:down, :across] = np.where(found.mask, found.fraction, 0)
    fraction = in_parts.reshape(rows, _PARTS, columns, _PARTS).mean((1, 3))
    # Of a region at the very edge there may be less than half a pixel to see.
    mask = (fraction > 0) | (settings.thumbnail.tissue == "none")
    return thumbnail, TissueMask(grid, fraction.astype(np.float32), mask)


def _method(settings: Settings) -> Method:
    return cast(Method, settings.thumbnail.tissue)
