"""Reading of the overview of a slide, and of its regions in two-level sampling: thumbnail and tissue.

This module is separate from the networks, so that reading an overview does not import torch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt

from wsi_ats.geometry import Grid
from wsi_ats.overview.quality import find_artefacts
from wsi_ats.overview.records import Background, Overview, Quality, TissueMask, TissueMethod
from wsi_ats.overview.regions import RegionGrid, Window
from wsi_ats.overview.tiles import grid_for, read_thumbnail
from wsi_ats.overview.tissue import find_tissue, tell_background
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.resample import resample

# Tissue is found equally well with fewer pixels per cell, and much faster on a large slide. A thumbnail with
# more pixels than this is halved for it, as long as a cell keeps a side of four pixels.
_TISSUE_PIXELS = 1 << 21
_TISSUE_SIDE = 4

# Parts along a side of a region, in which tissue is found: a small biopsy is a speck in a region, but not in
# a part of it.
_PARTS = 4


def read_overview(slide: Slide, settings: Settings, *, measure_quality: bool = False) -> Overview:
    """Read a slide's thumbnail and find its tissue.

    Parameters
    ----------
    slide
        The slide.
    settings
        Sections ``tile`` and ``thumbnail`` are used.
    measure_quality
        Whether to measure artefacts even if ``thumbnail.exclude`` does not need them.

    Returns
    -------
    Overview
        The overview on the grid of cells or, with two levels, of regions. Its tissue mask lacks the cells
        excluded by ``thumbnail.exclude``; their tissue fraction is kept.

    Raises
    ------
    SlideError
        When the resolution is unknown or the thumbnail cannot be read.
    """
    tile, view = settings.tile, settings.thumbnail
    grid = grid_for(slide, tile_size=tile.size, mpp=tile.mpp, tolerance=tile.tolerance, stride=tile.stride)
    if view.levels == 2:
        return _overview_of_regions(
            slide, RegionGrid(grid, view.cells_per_region).grid, settings, measure_quality
        )
    thumbnail = read_thumbnail(slide, grid, view.pixels_per_cell)
    smaller = _reduced(thumbnail, view.pixels_per_cell)
    background = _background(slide, smaller, grid, settings)
    if background.method == "fluorescence":
        smaller = thumbnail  # bright nuclei far apart would be averaged away
    scanned = _scanned(slide, smaller, (0.0, 0.0), _pixel(smaller, grid))
    found = find_tissue(
        smaller, grid, method=background.method, min_fraction=view.min_tissue, scanned=scanned
    )
    overview = Overview(thumbnail, found, background=background)
    if measure_quality or view.exclude:
        overview = _with_quality(overview, settings, settings.thumbnail_mpp)
    return overview


def read_region_overview(
    slide: Slide, overview: Overview, regions: RegionGrid, window: Window, settings: Settings
) -> Overview:
    """Read the thumbnail of one region and find the tissue cells in it.

    Parameters
    ----------
    slide
        The slide.
    overview
        The slide's overview, for the kind of background, which one region may not show.
    regions
        The slide's cells in regions.
    window
        Cells of the region.
    settings
        Section ``thumbnail`` is used.

    Returns
    -------
    Overview
        The overview of the region's cells alone, on a grid in thumbnail pixels from the region's corner. If
        no tissue is found, all cells count as tissue, because the slide's overview showed some and the
        region's attention needs at least one cell. For the same reason, no cell is excluded if all would be.

    Raises
    ------
    SlideReadError
        When a pixel cannot be read.
    """
    view = settings.thumbnail
    pixels = view.pixels_per_cell
    thumbnail = read_thumbnail(slide, regions.cells, pixels, window)
    grid = Grid(window.columns * pixels, window.rows * pixels, pixels, pixels)
    background = overview.background
    if background.method == "auto":
        background = _background(slide, overview.thumbnail, regions.grid, settings)
    pixel = regions.cells.pitch / pixels
    corner = (window.column * regions.cells.pitch, window.row * regions.cells.pitch)
    scanned = _scanned(slide, thumbnail, corner, pixel)
    found = find_tissue(
        thumbnail, grid, method=background.method, min_fraction=view.min_tissue, scanned=scanned
    )
    for known in (scanned, None):  # a region at the edge of the scan may have no scanned pixel
        if not len(found.cells):
            found = find_tissue(thumbnail, grid, method="none", scanned=known)
    everything = Overview(thumbnail, found, background=background)
    if not view.exclude:
        return everything
    rest = _with_quality(everything, settings, settings.thumbnail_mpp)
    return rest if len(rest.tissue.cells) else everything


def explain_exclusion(overview: Overview, settings: Settings) -> str | None:
    """Return the reason if all tissue is excluded; ``None`` if some may be read, or if there is no tissue."""
    count, outside = len(overview.all_tissue.cells), overview.outside
    if not count and outside is not None and outside.mask.any():
        return (
            f"none of {np.count_nonzero(outside.mask)} tissue cells has its centre in the regions of "
            f"{outside.regions}"
        )
    if len(overview.tissue.cells) or not count:
        return None
    each = ", ".join(
        f"{name} {np.count_nonzero(mask)}"
        for name, mask in overview.artefacts.items()
        if name in settings.thumbnail.excluded
    )
    cells = "cells" if settings.thumbnail.levels == 1 else "regions"
    return (
        f"all {count} tissue {cells} were left out: {each}; see thumbnail.exclude and thumbnail.max_artefact"
    )


def regions_of(tissue: TissueMask, settings: Settings) -> RegionGrid:
    """Return the cells of a mask of regions, as :func:`read_overview` returns it with two levels."""
    tile = settings.tile
    return RegionGrid.around(
        tissue.grid, side=settings.thumbnail.cells_per_region, tile_size=tile.size, stride=tile.stride
    )


def count_tiles(tissue: TissueMask, settings: Settings) -> int:
    """Count the tissue tiles of a slide; with two levels, estimate their number from the tissue area."""
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


def _overview_of_regions(slide: Slide, grid: Grid, settings: Settings, measure_quality: bool) -> Overview:
    pixels = settings.thumbnail.pixels_per_region
    thumbnail = read_thumbnail(slide, grid, pixels)
    rows, columns = grid.shape
    side = pixels // _PARTS
    # Size of the slide in thumbnail pixels, without those beyond its edge.
    width, height = (
        min(count * pixels, max(1, round(length / grid.pitch * pixels)))
        for length, count in ((grid.width, columns), (grid.height, rows))
    )
    parts = Grid(width, height, side, 1)
    down, across = parts.shape
    inside = thumbnail[: down * side, : across * side]
    background = _background(slide, thumbnail, grid, settings)
    found = find_tissue(
        inside,
        parts,
        method=background.method,
        min_fraction=settings.thumbnail.min_tissue,
        scanned=_scanned(slide, inside, (0.0, 0.0), _pixel(thumbnail, grid)),
    )
    fraction = _of_regions(np.where(found.mask, found.fraction, 0), grid)
    mask = fraction > 0
    if settings.thumbnail.tissue == "none":
        # A region at the edge may show less than half a pixel.
        mask |= _of_regions(found.mask, grid) > 0
    overview = Overview(thumbnail, TissueMask(grid, fraction, mask), background=background)
    view = settings.thumbnail
    if measure_quality or view.exclude:
        mpp = settings.thumbnail_mpp * view.pixels_per_cell * view.cells_per_region / view.pixels_per_region
        overview = _with_quality(overview, settings, mpp, found)
    return overview


def _with_quality(
    overview: Overview, settings: Settings, mpp: float, parts: TissueMask | None = None
) -> Overview:
    """Measure artefacts, and exclude tissue as the settings demand.

    Parameters
    ----------
    overview
        The overview with all tissue.
    settings
        Section ``thumbnail`` is used.
    mpp
        Micrometres per pixel of the thumbnail.
    parts
        With two levels, the tissue in the parts of regions; the side of a part is a quarter of a region's.
    """
    found, cells = overview.tissue, parts or overview.tissue
    if overview.background.method == "fluorescence":
        return overview
    side = len(overview.thumbnail) // found.grid.shape[0] // (_PARTS if parts else 1)
    rows, columns = cells.grid.shape
    quality = find_artefacts(overview.thumbnail[: rows * side, : columns * side], cells, mpp=mpp)
    over = {name: values > settings.thumbnail.max_artefact for name, values in quality.maps.items()}
    beyond = partial(_beyond, found=found, parts=parts)
    excluded = beyond(np.any([over[name] for name in settings.thumbnail.excluded if name in over], axis=0))
    if parts is not None:
        quality = Quality(**{name: _of_regions(each, found.grid) for name, each in quality.maps.items()})
    return replace(
        overview,
        tissue=replace(found, mask=found.mask & ~excluded),
        quality=quality,
        artefacts={name: beyond(each) for name, each in over.items()},
        excluded=excluded,
    )


def _beyond(
    over: npt.NDArray[np.bool_], *, found: TissueMask, parts: TissueMask | None
) -> npt.NDArray[np.bool_]:
    """Return tissue cells with too much of an artefact; for regions, those where all tissue parts have it."""
    if parts is None:
        return found.mask & over
    some, others = (_of_regions(parts.mask & each, found.grid) > 0 for each in (over, ~over))
    return found.mask & some & ~others


def _scanned(
    slide: Slide, image: Pixels, corner: tuple[float, float], pixel: float
) -> npt.NDArray[np.bool_] | None:
    """Return a mask of the scanned pixels of an image, shape (h, w); ``None`` if all were scanned.

    Parameters
    ----------
    slide
        The slide, with its scanned parts.
    image
        The image, shape (h, w, 3).
    corner
        Top-left ``x, y`` of the image in level-0 pixels.
    pixel
        Side of its pixels in level-0 pixels.
    """
    full = slide.levels[0]
    if slide.scanned == ((0, 0, full.width, full.height),):
        return None
    y, x = (
        first + pixel * (np.arange(count) + 0.5)
        for first, count in zip(corner[::-1], image.shape, strict=False)
    )
    scanned = np.zeros(image.shape[:2], dtype=bool)
    for part in slide.scanned:
        down = (y >= part.y) & (y < part.y + part.height)
        across = (x >= part.x) & (x < part.x + part.width)
        scanned |= np.outer(down, across)
    return scanned


def _reduced(thumbnail: Pixels, side: int) -> Pixels:
    """Halve a large thumbnail with ``side`` pixels per cell to the size at which tissue is found."""
    while thumbnail[..., 0].size > _TISSUE_PIXELS and side % 2 == 0 and side // 2 >= _TISSUE_SIDE:
        side //= 2
        thumbnail = resample(thumbnail, thumbnail.shape[1] // 2, thumbnail.shape[0] // 2)
    return thumbnail


def _of_regions(parts: npt.NDArray[np.generic], regions: Grid) -> npt.NDArray[np.float32]:
    """Return the mean over the parts of each region; missing parts in the last row and column count as 0."""
    rows, columns = regions.shape
    padded = np.zeros((rows * _PARTS, columns * _PARTS), dtype=np.float32)
    down, across = parts.shape
    padded[:down, :across] = parts
    means: npt.NDArray[np.float32] = padded.reshape(rows, _PARTS, columns, _PARTS).mean((1, 3))
    return means


def _pixel(thumbnail: Pixels, grid: Grid) -> float:
    """Return the side of a thumbnail's pixels in level-0 pixels."""
    return grid.pitch * grid.shape[0] / len(thumbnail)


def _background(slide: Slide, thumbnail: Pixels, grid: Grid, settings: Settings) -> Background:
    """Choose the method to find tissue; ``auto`` depends on the scanned part of the thumbnail."""
    method = cast(TissueMethod, settings.thumbnail.tissue)
    if method != "auto":
        return Background(method, "requested")
    if settings.tile.channel:
        return Background("fluorescence", "a channel was requested")
    return tell_background(thumbnail, _scanned(slide, thumbnail, (0.0, 0.0), _pixel(thumbnail, grid)))
