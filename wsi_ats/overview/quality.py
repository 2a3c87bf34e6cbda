"""Artefacts in a thumbnail: pen ink, and blur if pixels are fine enough.

Folds and air bubbles are not detected. A fold absorbs twice as much light as tissue, but so does tissue with
twice as many nuclei: a threshold that keeps 98 % of real tissue finds only a fifth to three quarters of
folds, and its false positives are dense tissue, such as tumour. ``docs/how-to/quality.md`` has the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from wsi_ats.overview.records import Quality, TissueMask
from wsi_ats.overview.tissue import (
    Floats,
    Mask,
    Pixels,
    blurred,
    lamp,
    shares,
    tell_background,
    within,
    without_small,
)
from wsi_ats.settings import COARSEST_FOCUS

# Optical densities of red, green and blue distinguish ink from stains:
# - Blue and green ink absorb red, which haematoxylin, eosin and DAB absorb least. Twice the density of red
#   minus the density of green is at most 0.5 in dense tissue, 0.63 in dark bluish photographs, and 0.65 in
#   the middle of blue nuclei; in strong ink it is 0.8 to 1.3.
# - Black ink absorbs much of all three; pink tissue under it still absorbs more green.
# - Red ink does not absorb red, and absorbs nearly as much blue as green; eosin absorbs half as much.
_BLUE_OR_GREEN = 0.7
_BLACK, _GREY = 0.6, 0.4  # least density in every colour; largest difference between colours
_RED, _NOT_PINK = 0.55, 0.5  # least difference of green and red; least density of blue

_SMALLEST_STROKE = 1.0  # area in cells; dust, pigment and vessels are smaller

# Sharpness is the share of the detail of a few pixels that is in single pixels. 98 % of sharp tissue of three
# collections, at 2 to 16 um per pixel, had more than 0.43; blurred by a pixel, 98 % had less. 0.43 is three
# quarters of 0.57.
_SHARP = 0.57
_FINE, _COARSE = 1.0, 3.0  # standard deviations of Gaussians, in pixels
_NOISE = 1e-4  # variance; keeps noise from deciding in flat or strongly blurred tissue

_FRAMES = {"pen": (0, 220, 255), "blur": (255, 220, 0)}  # colours of no stain and of few inks


def find_artefacts(thumbnail: Pixels, tissue: TissueMask, *, mpp: float | None = None) -> Quality:
    """Measure the artefacts of each cell.

    Parameters
    ----------
    thumbnail
        The slide's thumbnail at p pixels per cell, shape (rows * p, columns * p, 3); see
        :func:`wsi_ats.overview.tiles.read_thumbnail`.
    tissue
        Its tissue, from :func:`wsi_ats.overview.tissue.find_tissue`.
    mpp
        Micrometres per pixel of the thumbnail.

    Returns
    -------
    Quality
        ``pen`` is the fraction of a cell under black, blue, green or red ink. Pale ink is missed. Stains of
        such colours are mistaken for ink: trichromes, Alcian blue, methyl green, AEC.

        ``blur`` is 1 minus the fine detail of a tissue cell and its neighbours, relative to sharp tissue. It
        exceeds 0.25 if the blur has a standard deviation of about one pixel or more. It is ``None`` without
        ``mpp``, and above 4 micrometres per pixel, where only gross blur would be found.

        Both are ``None`` for a fluorescence slide.

    Raises
    ------
    SettingsError
        When the thumbnail does not fit the mask's grid.

    Examples
    --------
    >>> from wsi_ats.geometry import Grid
    >>> from wsi_ats.overview.tissue import find_tissue
    >>> thumbnail = np.full((64, 64, 3), 240, np.uint8)
    >>> thumbnail[16:32, 32:64] = (200, 120, 170)
    >>> thumbnail[16:32, 48:64] = (40, 90, 180)
    >>> tissue = find_tissue(thumbnail, Grid(1024, 1024, cell=256, tile_size=256))
    >>> find_artefacts(thumbnail, tissue).pen[1].tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    seen, side = within(thumbnail, tissue.grid)
    if tell_background(seen).method == "fluorescence":
        return Quality()
    white = lamp(seen)
    density = np.log10(white) - np.log10(np.clip(seen, 1, white, dtype=np.float32))
    ink = without_small(_ink(density), _SMALLEST_STROKE * min(side**2, density[..., 0].size))
    pen = np.clip(shares(ink, tissue.grid, side), 0, 1)
    fine_enough = mpp is not None and mpp <= COARSEST_FOCUS
    return Quality(pen, _lack_of_detail(density.max(axis=2), tissue, side) if fine_enough else None)


def mark(thumbnail: Pixels, artefacts: Mapping[str, npt.NDArray[np.bool_]]) -> Pixels:
    """Draw frames around cells of a thumbnail.

    Parameters
    ----------
    thumbnail
        The thumbnail, shape (rows * p, columns * p, 3).
    artefacts
        Cells to frame, by artefact, bool, shape (rows, columns): ink in cyan, blur in yellow.

    Returns
    -------
    ndarray of uint8
        A copy of the thumbnail, with frames.
    """
    marked = thumbnail.copy()
    for name, cells in artefacts.items():
        side = len(thumbnail) // len(cells)
        frame = np.zeros((side, side), dtype=bool)
        frame[[0, -1]] = frame[:, [0, -1]] = True
        marked[np.kron(cells, frame)] = _FRAMES[name]
    return marked


def _ink(density: Floats) -> Mask:
    """Return the pixels under ink, from the (decadic) optical density of each colour."""
    red, green, blue = np.moveaxis(density, 2, 0)
    least, most = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    ink: Mask = 2 * red - green > _BLUE_OR_GREEN
    ink |= (least > _BLACK) & (most - least < _GREY)
    ink |= (green - red > _RED) & (blue > _NOT_PINK)
    return ink


def _lack_of_detail(density: Floats, tissue: TissueMask, side: int) -> Floats:
    fine, all_detail = (
        _around(shares((density - blurred(density, sigma)) ** 2, tissue.grid, side) * tissue.mask)
        for sigma in (_FINE, _COARSE)
    )
    sharpness = np.sqrt(fine / (all_detail + _NOISE))
    lacking = np.clip(1 - sharpness / _SHARP, 0, 1) * tissue.mask
    return np.asarray(lacking, dtype=np.float32)


def _around(cells: Floats) -> Floats:
    """Sum each cell and its eight neighbours: blur extends over several cells, and one cell is noisy."""
    padded: Floats = np.pad(cells, 1)
    rows: Floats = padded[:-2] + padded[1:-1] + padded[2:]
    summed: Floats = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return summed
