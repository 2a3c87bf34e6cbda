"""Find tissue in a thumbnail: the only import of scikit-image.

In brightfield, glass is bright and colourless, and tissue absorbs at least one colour. In fluorescence, the
background is black, and tissue shines. Either way, tissue is above a threshold of the distance of each pixel
from the background.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse
from skimage import filters, measure

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.records import Background, TissueMethod

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

# Otsu's threshold always splits pixels in two, even the noise of bare glass, or the dark and pale parts of a
# slide that is tissue all over. Between the limits it decides; outside them it cannot be right.
# In grey values away from the background, of 255:
# - brightfield: JPEG noise, uneven light and tinted glass stay below 18; faint eosin reaches 30.
# - fluorescence: a camera's noise stays below 5; the dim cytoplasm between nuclei has 10 or more.
_LIMITS = {"brightfield": (18.0, 28.0), "fluorescence": (5.0, 12.0)}

# Strongly stained pixels do not show where pale tissue ends, but attract Otsu's threshold.
_SIGNAL_MAX = 80.0

# Lengths and areas are in cells, so that the mask hardly depends on the thumbnail's resolution.
_BLUR = 0.08  # joins nuclei into tissue and suppresses noisy pixels
_SMALLEST_SPECK = 0.25  # dust and torn-off cells do not deserve a tile
_SMALLEST_HOLE = 1.0  # a vessel or duct belongs to the tissue around it

# Black in all colours: in a brightfield slide the scanner never saw it.
_UNSCANNED = 20

# A slide is dark where at least one colour is, and bright where all are.
_DARK, _BRIGHT = 24, 160

# Shares of the scan above which dark and bright pixels contradict each other.
_CONTRADICTION = 0.2

# Where fewer pixels are dark or bright, the background is unknown.
_NO_BACKGROUND = 0.01

# A tile is empty if fewer of its pixels, such as dust and noise, differ from one tone.
_NOTHING = 0.01

# Scanned rectangles cover at least this share of the image, and are filled with pixels that are not dark.
_RECTANGLE, _FILLED = 0.01, 0.9

# Other tones that programs fill in there: colourless and constant over a tenth of an image, where tissue and
# glass have grain. Brighter ones may be glass that saturates the camera.
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
    """Find the cells that hold tissue.

    Parameters
    ----------
    thumbnail
        The slide at p pixels per cell, as :func:`wsi_ats.overview.tiles.read_thumbnail` gives it: shape
        (rows * p, columns * p, 3).
    grid
        The slide's grid.
    method
        ``"brightfield"``: what is darker or more colourful than glass. ``"fluorescence"``: what is
        brighter than black. ``"auto"``: the one that fits the background. ``"none"``: every cell.
    min_fraction
        Share of a cell that must be tissue, in (0, 1].
    scanned
        Pixels of the thumbnail that were scanned, shape (rows * p, columns * p); all by default. The others
        do not count for background and stain, nor do grey fields that a program has filled in.

    Returns
    -------
    TissueMask
        Empty for bare glass. Nothing outside the slide or the scanned parts is tissue.

    Raises
    ------
    SettingsError
        When the thumbnail is not one of the grid, or a setting is not one of those above.

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
    area = min(side**2, tissue.size)  # of a cell, or of a slide that is smaller
    tissue = without_small(tissue, _SMALLEST_SPECK * area)
    tissue |= _enclosed(~tissue & ~without_small(~tissue, _SMALLEST_HOLE * area)) & inside
    fraction = np.minimum(shares(tissue, grid, side), 1)
    # A slide smaller than a cell fills none; its share is relative to the part of a cell that it covers.
    return TissueMask(grid, fraction, fraction >= min_fraction * possible.max())


def tell_background(pixels: Pixels, inside: Mask | None = None) -> Background:
    """Distinguish a dark background from a bright one.

    In fluorescence, at least one colour is dark even in tissue; in brightfield none is, and glass and pale
    tissue are bright in all three. Black around rectangles of which a quarter is bright is the part that a
    brightfield scanner left out.

    Parameters
    ----------
    pixels
        Shape (h, w, 3).
    inside
        Pixels of the slide, shape (h, w); all by default.

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
            f"{reason}: a brightfield slide with dark fields, or a fluorescence slide with bright ones; look "
            "at what was found, and set thumbnail.tissue if it is wrong"
        )
    if max(of_dark, of_bright) < _NO_BACKGROUND:
        doubt = f"{reason}: there is no background to tell tissue from; set thumbnail.tissue if it is wrong"
    if dark <= max(bright, seen.size / 4):
        return Background("brightfield", reason, doubt)
    if bright <= max(np.count_nonzero(rest) / 4, 1) or not _is_rectangles(rest):
        return Background("fluorescence", reason, doubt)
    return Background("brightfield", f"{reason}, all around rectangles that were scanned", doubt)


def are_empty(tiles: Pixels) -> Mask:
    """Find tiles that show nothing: glass, or a part that was not scanned.

    Parameters
    ----------
    tiles
        RGB, uint8, shape (N, h, w, 3).

    Returns
    -------
    ndarray of bool, shape (N,)
        True where all but a hundredth of the pixels have one nearly colourless tone, within the limits by
        which tissue stands out from glass or, in the dark, from black. About every fourth pixel is sampled.

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
    """Crop a thumbnail to the slide: the padding past its edge is no background.

    Parameters
    ----------
    thumbnail
        See :func:`find_tissue`.
    grid
        The slide's grid.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3), and int
        The part inside the slide, and the pixels a side of a cell.

    Raises
    ------
    SettingsError
        When the thumbnail is not one of the grid.
    """
    rows, columns = grid.shape
    side = thumbnail.shape[0] // rows
    if thumbnail.dtype != np.uint8 or thumbnail.shape != (rows * side, columns * side, 3) or not side:
        raise SettingsError(
            f"a thumbnail of {rows} x {columns} cells is uint8 ({rows} p, {columns} p, 3), "
            f"not {thumbnail.dtype} {thumbnail.shape}"
        )
    height, width = (max(1, round(length / grid.pitch * side)) for length in (grid.height, grid.width))
    return thumbnail[:height, :width], side


def lamp(pixels: Pixels) -> np.float32:
    """Return the grey value of unabsorbed light, from a brightfield slide's pixels (..., 3).

    Stains hardly absorb one of the colours, so its level is that of the lamp even where all is tissue.
    """
    return np.float32(np.clip(np.percentile(_extreme(np.maximum, pixels), 95), 200, 255))


def shares(pixels: npt.NDArray[np.generic], grid: Grid, side: int) -> Floats:
    """Sum up pixels over the tiles of cells, each by the share of the tile that it covers.

    Parameters
    ----------
    pixels
        Shape (h, w), of the slide alone as :func:`within` gives it: a mask, or numbers.
    grid
        The slide's grid.
    side
        Pixels a side of a cell.

    Returns
    -------
    ndarray of float32, shape (rows, columns)
        For a mask, the share of each cell; for numbers, their mean where the whole cell is in the slide.
    """
    down, across = _axes(grid, side)
    height, width = pixels.shape
    summed: Floats = (across[:, :width] @ (down[:, :height] @ pixels.astype(np.float32)).T).T
    return summed


def without_small(mask: Mask, pixels: float) -> Mask:
    """Drop connected parts of fewer pixels."""
    parts = _parts(mask)
    keep = np.bincount(parts.ravel()) >= pixels
    keep[0] = False
    kept: Mask = keep[parts]
    return kept


def blurred(signal: Floats, sigma: float) -> Floats:
    """Blur by a Gaussian of ``sigma`` pixels, with edges repeated."""
    smooth: Floats = filters.gaussian(signal, sigma, mode="nearest")  # type: ignore[no-untyped-call]
    return smooth


def _absorbed(pixels: Pixels, known: Mask) -> Floats:
    """Return the light absorbed from the colour that lost most; 0 where it is not known."""
    brightest = _extreme(np.maximum, pixels)
    absorbed: Floats = np.clip(lamp(pixels[known]) - _extreme(np.minimum, pixels), 0, _SIGNAL_MAX)
    absorbed[(brightest < _UNSCANNED) | ~known] = 0
    return absorbed


def _emitted(pixels: Pixels, known: Mask) -> Floats:
    """Return the difference of the brightest colour to the background; 0 where it is not known."""
    brightest = _extreme(np.maximum, pixels)
    # Where all is tissue the darkest pixels are tissue too; black is never as bright as 30.
    black = np.float32(min(np.percentile(brightest[known], 2), 30))
    emitted: Floats = np.clip(brightest - black, 0, _SIGNAL_MAX)
    emitted[~known] = 0
    return emitted


def _filled_in(pixels: Pixels) -> Mask:
    """Return pixels that no scanner saw, shape (h, w): black, and the grey of a filled-in field."""
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
    """Return the least or greatest of three colours, ten times as fast as by reducing an axis."""
    extreme: Pixels = which(which(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return extreme


def _threshold(signal: Floats, method: str) -> float:
    low, high = _LIMITS[method]
    otsu: float = filters.threshold_otsu(signal)  # type: ignore[no-untyped-call]
    return min(max(otsu, low), high)


def _parts(mask: Mask) -> IntArray:
    """Number the connected parts from 1, the rest 0."""
    parts: IntArray = measure.label(mask, connectivity=1)  # type: ignore[no-untyped-call]
    return parts


def _enclosed(mask: Mask) -> Mask:
    """Drop connected parts that touch the border: nothing shows that tissue surrounds them."""
    parts = _parts(mask)
    keep = np.ones(parts.max() + 1, dtype=bool)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        keep[edge] = False
    keep[0] = False
    kept: Mask = keep[parts]
    return kept


def _axes(grid: Grid, side: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Return :func:`_overlaps` of rows and of columns."""
    (height, width), (rows, columns) = (grid.height, grid.width), grid.shape
    return _overlaps(height, grid, rows, side), _overlaps(width, grid, columns, side)


def _overlaps(length: int, grid: Grid, count: int, side: int) -> sparse.csr_array:
    """Return the share of each cell that each thumbnail pixel covers within the slide, along one axis.

    Shape (count, count * side), with a few entries in each row. Summed over both axes, it averages pixels
    over the cells' tiles, which are larger than a cell's own pixels where cells overlap.
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
