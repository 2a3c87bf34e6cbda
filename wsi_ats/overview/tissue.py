"""Tissue in a thumbnail: the only import of scikit-image.

In brightfield, glass is bright and colourless, and tissue absorbs at least one colour. In fluorescence, the
background is black, and tissue is brighter. In both, a pixel is tissue if its difference from the background
exceeds a threshold.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse
from skimage import filters, measure

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.overview.records import Background, TissueMask, TissueMethod

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

# Otsu's threshold always divides pixels into two groups, even the noise of bare glass, or the dark and pale
# parts of a slide full of tissue. It is used between these limits; outside them it cannot be right.
# Differences from the background in grey values, of 255:
# - brightfield: JPEG noise, uneven light and tinted glass stay below 18; faint eosin reaches 30.
# - fluorescence: camera noise stays below 5; the dim cytoplasm between nuclei has 10 or more.
_LIMITS = {"brightfield": (18.0, 28.0), "fluorescence": (5.0, 12.0)}

# Signals are clipped: strongly stained pixels do not help to find the edge of pale tissue, but would raise
# Otsu's threshold.
_SIGNAL_MAX = 80.0

# Lengths and areas are in cells, so that the mask hardly depends on the thumbnail's resolution.
_BLUR = 0.08  # joins nuclei into tissue and suppresses noisy pixels
_SMALLEST_SPECK = 0.25  # dust and detached cells are not worth a tile
_SMALLEST_HOLE = 1.0  # a vessel or duct belongs to the tissue around it

# Below this in all colours, a pixel of a brightfield slide was not scanned.
_UNSCANNED = 20

# A pixel is dark if at least one colour is below the first, and bright if all are above the second.
_DARK, _BRIGHT = 24, 160

# If the fractions of dark and of bright pixels both exceed this, they contradict each other.
_CONTRADICTION = 0.2

# If a smaller fraction of pixels is dark or bright, the background is unknown.
_NO_BACKGROUND = 0.01

# A tile is empty if a smaller fraction of its pixels, such as dust and noise, differs from one tone.
_NOTHING = 0.01

# A scanned rectangle covers at least the first fraction of the image, and the second fraction of its pixels
# is not dark.
_RECTANGLE, _FILLED = 0.01, 0.9

# Programs also fill unscanned areas with other tones: colourless and constant over a tenth of an image,
# whereas tissue and glass have grain. Brighter tones may be glass that saturates the camera.
_FIELD = 0.1
_FIELD_TONES = (_UNSCANNED, 200)


def find_tissue(
    thumbnail: Pixels,
    grid: Grid,
    *,
    method: TissueMethod = "auto",
    min_fraction: float = 0.1,
    scanned: Mask | None = None,
) -> TissueMask:
    """Find the cells that contain tissue.

    Parameters
    ----------
    thumbnail
        The slide's thumbnail at p pixels per cell, from :func:`wsi_ats.overview.tiles.read_thumbnail`, shape
        (rows * p, columns * p, 3).
    grid
        The slide's grid.
    method
        ``"brightfield"``: pixels darker or more colourful than glass. ``"fluorescence"``: pixels brighter
        than black. ``"auto"``: the method that fits the background. ``"none"``: every cell.
    min_fraction
        Fraction of a cell that must be tissue, in (0, 1].
    scanned
        Mask of the thumbnail pixels that were scanned, shape (rows * p, columns * p); all by default.
        Unscanned pixels, and grey fields filled in by a program, are ignored in estimates of background and
        stain.

    Returns
    -------
    TissueMask
        Empty for bare glass. Nothing outside the slide or the scanned parts is tissue.

    Raises
    ------
    SettingsError
        When the thumbnail does not fit the grid, or an argument has a value other than those above.

    Examples
    --------
    >>> grid = Grid(1024, 1024, cell=256, tile_size=256)
    >>> thumbnail = np.full((64, 64, 3), 240, np.uint8)
    >>> thumbnail[16:32, 32:64] = (200, 120, 170)
    >>> find_tissue(thumbnail, grid).cells.tolist()
    [6, 7]
    """
    seen, side = within(thumbnail, grid)
    if method not in get_args(TissueMethod):
        raise SettingsError(
            f"tissue method is {method!r}, expected one of {', '.join(get_args(TissueMethod))}"
        )
    if not 0 < min_fraction <= 1:
        raise SettingsError(f"min_fraction must be in (0, 1], not {min_fraction}")

    down, across = _axes(grid, side)
    possible = np.minimum(np.outer(down.sum(axis=1), across.sum(axis=1)), 1)
    inside = np.ones(seen.shape[:2], dtype=bool) if scanned is None else scanned[: len(seen), : seen.shape[1]]
    if method == "none":
        there = np.ones(grid.shape, dtype=bool) if scanned is None else shares(inside, grid, side) > 0
        return TissueMask(grid, np.where(there, possible, 0), there)
    if method == "auto":
        method = tell_background(seen, inside).method
    known = inside & ~_filled_in(seen) if method == "brightfield" else inside
    if not known.any():
        return TissueMask(grid, np.zeros(grid.shape, np.float32), np.zeros(grid.shape, dtype=bool))
    signal = _absorbed(seen, known) if method == "brightfield" else _emitted(seen, known)
    signal = blurred(signal, _BLUR * side)
    tissue = (signal > _threshold(signal[known], method)) & known
    area = min(side**2, tissue.size)  # of a cell, or of a smaller slide
    tissue = without_small(tissue, _SMALLEST_SPECK * area)
    tissue |= _enclosed(~tissue & ~without_small(~tissue, _SMALLEST_HOLE * area)) & inside
    fraction = np.minimum(shares(tissue, grid, side), 1)
    # A slide smaller than a cell cannot fill it; its fraction is relative to the part of the cell that it
    # covers.
    return TissueMask(grid, fraction, fraction >= min_fraction * possible.max())


def tell_background(pixels: Pixels, inside: Mask | None = None) -> Background:
    """Distinguish a dark background from a bright one.

    In fluorescence, at least one colour is dark even in tissue; in brightfield none is, and glass and pale
    tissue are bright in all three. Black around rectangles that are at least a quarter bright is the part
    that a brightfield scanner skipped.

    Parameters
    ----------
    pixels
        RGB, shape (h, w, 3).
    inside
        Mask of the slide's pixels, shape (h, w); all by default.

    Examples
    --------
    >>> tell_background(np.full((8, 8, 3), 240, np.uint8))
    Background(method='brightfield', reason='100% of it is bright, 0% dark', doubt='')
    """
    darkest, black = _extreme(np.minimum, pixels), _extreme(np.maximum, pixels) < _UNSCANNED
    inside = np.ones(black.shape, dtype=bool) if inside is None else inside
    seen, rest = darkest[inside], inside & ~black
    dark, bright = int(np.count_nonzero(seen < _DARK)), int(np.count_nonzero(seen > _BRIGHT))
    of_dark, of_bright = (number / max(1, seen.size) for number in (dark, bright))
    reason = f"{of_bright:.0%} of it is bright, {of_dark:.0%} dark"
    doubt = ""
    if min(of_dark, of_bright) > _CONTRADICTION:
        doubt = (
            f"{reason}: a brightfield slide with dark fields, or a fluorescence slide with bright ones; "
            "check the tissue, and set thumbnail.tissue if it is wrong"
        )
    if max(of_dark, of_bright) < _NO_BACKGROUND:
        doubt = (
            f"{reason}: no background is visible; check the tissue, and set thumbnail.tissue if it is wrong"
        )
    if dark <= max(bright, seen.size / 4):
        return Background("brightfield", reason, doubt)
    if bright <= max(np.count_nonzero(rest) / 4, 1) or not _is_rectangles(rest):
        return Background("fluorescence", reason, doubt)
    return Background("brightfield", f"{reason}, all around rectangles that were scanned", doubt)


def are_empty(tiles: Pixels) -> Mask:
    """Find empty tiles: glass, or parts that were not scanned.

    Parameters
    ----------
    tiles
        RGB, uint8, shape (N, h, w, 3).

    Returns
    -------
    ndarray of bool, shape (N,)
        True if at least 99 % of the pixels have one nearly colourless tone, within the limits that
        distinguish tissue from glass or, in dark tiles, from black. About every fourth pixel along each axis
        is sampled.

    Examples
    --------
    >>> are_empty(np.full((2, 64, 64, 3), 240, np.uint8)).tolist()
    [True, True]
    """
    step = max(1, tiles.shape[1] // 64)
    pixels = tiles[:, ::step, ::step].reshape(len(tiles), -1, 3)
    tone = np.median(pixels, axis=1)
    dark = tone.max(axis=1) < _DARK
    grain, colour = (
        np.where(dark, fluorescence, brightfield)
        for fluorescence, brightfield in zip(_LIMITS["fluorescence"], _LIMITS["brightfield"], strict=True)
    )
    other = np.abs(pixels - tone[:, None]).max(axis=2) > grain[:, None]
    empty: Mask = (other.mean(axis=1) < _NOTHING) & (np.ptp(tone, axis=1) < colour)
    return empty


def _is_rectangles(mask: Mask) -> bool:
    """Return whether large rectangles cover nearly all of a mask."""
    least = _RECTANGLE * mask.size
    found = measure.regionprops(_parts(mask))  # type: ignore[no-untyped-call]
    filled = sum(each.area for each in found if each.area >= least and each.extent >= _FILLED)
    return bool(filled >= _FILLED * np.count_nonzero(mask))


def within(thumbnail: Pixels, grid: Grid) -> tuple[Pixels, int]:
    """Crop a thumbnail to the slide, because the padding beyond its edge is not background.

    Parameters
    ----------
    thumbnail
        See :func:`find_tissue`.
    grid
        The slide's grid.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3), and int
        The part inside the slide, and the side of a cell in pixels.

    Raises
    ------
    SettingsError
        When the thumbnail does not fit the grid.
    """
    rows, columns = grid.shape
    side = thumbnail.shape[0] // rows
    if thumbnail.dtype != np.uint8 or thumbnail.shape != (rows * side, columns * side, 3) or not side:
        raise SettingsError(
            f"a thumbnail of {rows} x {columns} cells must be uint8 of shape ({rows} p, {columns} p, 3), not "
            f"{thumbnail.dtype} {thumbnail.shape}"
        )
    height, width = (max(1, round(length / grid.pitch * side)) for length in (grid.height, grid.width))
    return thumbnail[:height, :width], side


def lamp(pixels: Pixels) -> np.float32:
    """Return the grey value of unabsorbed light in a brightfield slide, given its pixels (..., 3).

    Stains hardly absorb one of the colours, so its value shows the light even if all pixels are tissue.
    """
    return np.float32(np.clip(np.percentile(_extreme(np.maximum, pixels), 95), 200, 255))


def shares(pixels: npt.NDArray[np.generic], grid: Grid, side: int) -> Floats:
    """Sum pixels over the tile of each cell, weighted by the fraction of the tile that they cover.

    Parameters
    ----------
    pixels
        A mask or numbers, shape (h, w), inside the slide only, see :func:`within`.
    grid
        The slide's grid.
    side
        Side of a cell in pixels.

    Returns
    -------
    ndarray of float32, shape (rows, columns)
        For a mask, the covered fraction of each cell; for numbers, their mean if the whole cell is inside the
        slide.
    """
    down, across = _axes(grid, side)
    height, width = pixels.shape
    summed: Floats = (across[:, :width] @ (down[:, :height] @ pixels.astype(np.float32)).T).T
    return summed


def without_small(mask: Mask, pixels: float) -> Mask:
    """Remove connected parts with fewer pixels than given."""
    parts = _parts(mask)
    keep = np.bincount(parts.ravel()) >= pixels
    keep[0] = False
    kept: Mask = keep[parts]
    return kept


def blurred(signal: Floats, sigma: float) -> Floats:
    """Blur with a Gaussian of ``sigma`` pixels; edge pixels are repeated."""
    smooth: Floats = filters.gaussian(signal, sigma, mode="nearest")  # type: ignore[no-untyped-call]
    return smooth


def _absorbed(pixels: Pixels, known: Mask) -> Floats:
    """Return the absorption in the most absorbed colour; 0 for unknown pixels."""
    brightest = _extreme(np.maximum, pixels)
    absorbed: Floats = np.clip(lamp(pixels[known]) - _extreme(np.minimum, pixels), 0, _SIGNAL_MAX)
    absorbed[(brightest < _UNSCANNED) | ~known] = 0
    return absorbed


def _emitted(pixels: Pixels, known: Mask) -> Floats:
    """Return the difference between the brightest colour and the background; 0 for unknown pixels."""
    brightest = _extreme(np.maximum, pixels)
    # If all pixels are tissue, so are the darkest; black is never as bright as 30.
    black = np.float32(min(np.percentile(brightest[known], 2), 30))
    emitted: Floats = np.clip(brightest - black, 0, _SIGNAL_MAX)
    emitted[~known] = 0
    return emitted


def _filled_in(pixels: Pixels) -> Mask:
    """Return the pixels that were not scanned, shape (h, w): black, and the grey of filled-in fields."""
    brightest = _extreme(np.maximum, pixels)
    colourless = brightest - _extreme(np.minimum, pixels) <= 2
    low, high = _FIELD_TONES
    counts = np.bincount(brightest[colourless], minlength=256)
    tone = low + int(counts[low:high].argmax())
    filled: Mask = brightest < _UNSCANNED
    if counts[tone] > _FIELD * brightest.size:
        filled |= colourless & (brightest == tone)
    return filled


def _extreme(which: np.ufunc, pixels: Pixels) -> Pixels:
    """Return the minimum or maximum of the three colours, ten times as fast as by reducing an axis."""
    extreme: Pixels = which(which(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return extreme


def _threshold(signal: Floats, method: str) -> float:
    low, high = _LIMITS[method]
    otsu: float = filters.threshold_otsu(signal)  # type: ignore[no-untyped-call]
    return min(max(otsu, low), high)


def _parts(mask: Mask) -> IntArray:
    """Label the connected parts from 1; other pixels are 0."""
    parts: IntArray = measure.label(mask, connectivity=1)  # type: ignore[no-untyped-call]
    return parts


def _enclosed(mask: Mask) -> Mask:
    """Remove connected parts that touch the border, because tissue may not surround them."""
    parts = _parts(mask)
    keep = np.ones(parts.max() + 1, dtype=bool)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        keep[edge] = False
    keep[0] = False
    kept: Mask = keep[parts]
    return kept


def _axes(grid: Grid, side: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Return :func:`_overlaps` along rows and along columns."""
    (height, width), (rows, columns) = (grid.height, grid.width), grid.shape
    return _overlaps(height, grid, rows, side), _overlaps(width, grid, columns, side)


def _overlaps(length: int, grid: Grid, count: int, side: int) -> sparse.csr_array:
    """Return the fraction of each cell that each thumbnail pixel covers within the slide, along one axis.

    Sparse, shape (count, count * side). Applied along both axes, it averages pixels over the tiles of cells,
    which extend beyond a cell's own pixels if tiles overlap.
    """
    pixel = grid.pitch / side
    first = np.arange(count)[:, None] * side
    pixels = first + np.arange(int(np.ceil(grid.cell / pixel)) + 1)
    start = np.arange(count)[:, None] * grid.pitch
    left, right = (
        np.clip(np.minimum(edge * pixel, length), start, start + grid.cell) for edge in (pixels, pixels + 1)
    )
    shares = np.where(pixels < count * side, right - left, 0) / grid.cell
    rows = np.broadcast_to(np.arange(count)[:, None], pixels.shape)
    columns = np.minimum(pixels, count * side - 1)
    entries = (shares.astype(np.float32).ravel(), (rows.ravel(), columns.ravel()))
    return sparse.csr_array(entries, shape=(count, count * side))
