"""From a slide to arrays: its grid, its thumbnail, and the tiles of chosen cells.

The pipeline reads the thumbnail once, then the chosen tiles. Both are resampled to the grid: a tile has
``tile_size`` x ``tile_size`` pixels, and the thumbnail a whole number of pixels per cell. No other module
introduces offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import MppError, SettingsError
from wsi_ats.geometry import Grid, IntArray, Level
from wsi_ats.overview.regions import Window
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.resample import resample

# Pixels of the thumbnail's source level in memory at a time: 16 M pixels are 48 MB.
_STRIP_PIXELS = 1 << 24

# Largest cell, relative to the slide's longer side: a slide may be smaller than a tile, but hardly a tenth of
# it.
_LARGEST_CELL = 10


def grid_for(slide: Slide, *, tile_size: int, mpp: float, tolerance: float, stride: float = 1.0) -> Grid:
    """Return the grid of a slide whose tiles have a given resolution.

    If a level of the slide has that resolution within the tolerance, tiles consist of that level's own
    pixels, and the grid starts at the same corner as the file's own tile grid: nothing is resampled and, if
    ``tile_size`` is a multiple of the file's tile size, no unneeded bytes are read.

    Parameters
    ----------
    slide
        The slide.
    tile_size
        Side of a tile in pixels.
    mpp
        Micrometres per pixel of a tile.
    tolerance
        Largest relative difference from ``mpp`` at which native pixels are kept.
    stride
        Distance from one cell to the next as a fraction of the tile, in (0, 1].

    Raises
    ------
    MppError
        When the slide's resolution is unknown or coarser than ``mpp`` (pixels are never made up), or when the
        whole slide would be less than a tenth of a tile.
    """
    have = slide.mpp.value
    wanted = mpp / have  # level-0 pixels per tile pixel
    nearest = min((level.downsample for level in slide.levels), key=lambda d: abs(d / wanted - 1))
    native = abs(nearest / wanted - 1) <= tolerance
    if wanted < 1 and not native:
        raise MppError(
            slide.path,
            f"its finest level has {have} micrometres per pixel, but tiles need {mpp}; "
            f"set tile.mpp to {have} or more",
        )
    downsample = nearest if native else wanted
    full, cell = slide.levels[0], tile_size * downsample
    if cell > _LARGEST_CELL * max(full.width, full.height):
        raise MppError(
            slide.path,
            f"a tile of {tile_size} pixels at {mpp} micrometres per pixel is {cell:.0f} of its pixels wide, "
            f"but the slide has only {full.width} x {full.height}; set a smaller tile.mpp or tile.size",
        )
    return Grid(full.width, full.height, cell, tile_size, None if stride == 1 else cell * stride)


def read_tiles(slide: Slide, grid: Grid, cells: npt.ArrayLike) -> Pixels:
    """Read the tiles of cells.

    Parameters
    ----------
    slide
        The slide.
    grid
        Its grid.
    cells
        Flat cell numbers, shape (N,).

    Returns
    -------
    ndarray of uint8, shape (N, tile_size, tile_size, 3)
        RGB, in the order of ``cells``; the area outside the slide has the background colour.

    Raises
    ------
    SlideReadError
        When a pixel cannot be read.

    Examples
    --------
    >>> from wsi_ats.slides.memory import MemorySlide
    >>> slide = MemorySlide([np.zeros((512, 512, 3), np.uint8)], mpp=0.5)
    >>> read_tiles(slide, Grid(512, 512, cell=256, tile_size=256), [0, 3]).shape
    (2, 256, 256, 3)
    """
    side = grid.tile_size
    number = level_for(slide.levels, grid.cell / side)
    level = slide.levels[number]
    boxes = grid.boxes(cells)
    source = grid.cell / level.downsample  # side of a tile in pixels of the level
    if round(source) == side:
        aligned = [[level.from_level0(x), level.from_level0(y)] for x, y in boxes[:, :2].tolist()]
        return slide.read_regions(number, _corners(aligned), side, side)
    tiles = np.empty((len(boxes), side, side, 3), dtype=np.uint8)
    # One more pixel along each axis, because the edges of a tile may cut pixels.
    padded = int(np.ceil(source)) + 1
    starts = boxes[:, :2] / level.downsample
    corners = np.floor(starts).astype(np.int64)
    for i, (left, top) in enumerate((starts - corners).tolist()):
        region = slide.read_regions(number, corners[i : i + 1], padded, padded)[0]
        tiles[i] = resample(region, side, side, (left, top, left + source, top + source))
    return tiles


def read_thumbnail(slide: Slide, grid: Grid, pixels_per_cell: int, window: Window | None = None) -> Pixels:
    """Read a slide, or a window of its cells, at a whole number of pixels per cell.

    The coarsest level that is fine enough is read once, in strips, so that memory does not grow with its
    size.

    Parameters
    ----------
    slide
        The slide.
    grid
        Its grid.
    pixels_per_cell
        Side of a cell in pixels of the result.
    window
        Cells to read; all by default.

    Returns
    -------
    ndarray of uint8, shape (rows * pixels_per_cell, columns * pixels_per_cell, 3)
        RGB, with the rows and columns of the window or else of the grid; the corner of pixel (0, 0) is the
        corner of the first cell.

    Raises
    ------
    SettingsError
        When a cell would have more pixels in the thumbnail than in the slide.
    SlideReadError
        When a pixel cannot be read.
    """
    if not 1 <= pixels_per_cell <= grid.pitch:
        raise SettingsError(f"pixels_per_cell must be in [1, {grid.pitch}], not {pixels_per_cell}")
    scale = grid.pitch / pixels_per_cell  # level-0 pixels per thumbnail pixel
    number = level_for(slide.levels, scale)
    level = slide.levels[number]
    window = window or Window(0, 0, *grid.shape)
    first_row, first_column, height, width = (count * pixels_per_cell for count in window)
    step = scale / level.downsample  # side of a thumbnail pixel in pixels of the level
    rows_per_strip = max(1, int(_STRIP_PIXELS / (width * step * step)))
    left, right = first_column * step, (first_column + width) * step
    x = int(np.floor(left))
    thumbnail = np.empty((height, width, 3), dtype=np.uint8)
    for row in range(0, height, rows_per_strip):
        count = min(rows_per_strip, height - row)
        top, bottom = ((first_row + each) * step for each in (row, row + count))
        y = int(np.floor(top))
        strip = slide.read_regions(
            number, _corners([[x, y]]), int(np.ceil(right)) - x, int(np.ceil(bottom)) - y
        )[0]
        thumbnail[row : row + count] = resample(
            strip, width, count, (left - x, top - y, right - x, bottom - y)
        )
    return thumbnail


def level_for(levels: Sequence[Level], downsample: float) -> int:
    """Return the number of the coarsest level with at most the given downsample, to within a thousandth."""
    fine = [i for i, level in enumerate(levels) if level.downsample <= downsample * 1.001]
    return max(fine, key=lambda i: levels[i].downsample, default=0)


def _corners(corners: Sequence[Sequence[int]]) -> IntArray:
    return np.asarray(corners, dtype=np.int64).reshape(-1, 2)
