"""The first look at a slide: its thumbnail and its tissue.

Apart from the networks, so that whoever only looks does not wait the seconds that they take to import.
"""

from __future__ import annotations

from typing import cast

from wsi_ats.config import Settings
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.tiles import grid_for, read_thumbnail
from wsi_ats.tissue import Method, find_tissue


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
        The mask carries the grid.

    Raises
    ------
    SlideError
        When the resolution is unknown or the thumbnail cannot be read.
    """
    tile, view = settings.tile, settings.thumbnail
    grid = grid_for(slide, tile_size=tile.size, mpp=tile.mpp, tolerance=tile.tolerance, stride=tile.stride)
    thumbnail = read_thumbnail(slide, grid, view.pixels_per_cell)
    return thumbnail, find_tissue(
        thumbnail, grid, method=cast(Method, view.tissue), min_fraction=view.min_tissue
    )
