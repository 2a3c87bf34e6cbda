"""Megapixel MNIST without the megapixels: any view or tile of a canvas, straight from what lies on it.

The recipe is that of Katharopoulos & Fleuret (2019): on a black canvas of 1500 x 1500 pixels lie five MNIST
digits that do not overlap, three of one class, which is the label, and two of others; then 50 patches of
crossed strokes, out of 50 patterns that are the same for all canvases of a set, are laid over whatever is
there. A canvas is kept as its 55 patches and their places. A canvas itself is never needed, nor built unless
somebody asks for a view at full size.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError

PATCH = 28
"""Pixels a side of a digit and of a noise patch."""
SIDE = 1500
"""Pixels a side of a canvas."""
CLASSES = 10
DIGITS, OF_LABEL, NOISE, PATTERNS = 5, 3, 50, 50

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Canvases:
    """A set of canvases. Patches of one canvas have no non-black pixel in common; see :func:`flatten`.

    Parameters
    ----------
    bank
        Patches, shape (P, 28, 28).
    patches
        Which patches lie on each canvas, shape (M, Q), numbers into ``bank``.
    places
        Row and column of the upper left pixel of each, shape (M, Q, 2).
    labels
        Class of each canvas, shape (M,).
    side
        Pixels a side of a canvas.
    """

    bank: Bytes
    patches: Numbers
    places: Numbers
    labels: Numbers
    side: int

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Canvases:
        """Canvases ``start`` to ``stop - 1``."""
        rows = slice(start, stop)
        return Canvases(self.bank, self.patches[rows], self.places[rows], self.labels[rows], self.side)

    def tiles(self, canvases: Numbers, corners: Numbers, size: int) -> Bytes:
        """Cut tiles out of canvases.

        Parameters
        ----------
        canvases
            Which canvas each tile is of, shape (T,).
        corners
            Row and column of each tile's upper left pixel, shape (T, 2). What is outside a canvas is black.
        size
            Pixels a side of a tile.

        Returns
        -------
        array of uint8, shape (T, size, size)
        """
        offsets = self.places[canvases] - corners[:, None]
        tile, which = np.nonzero(((offsets > -PATCH) & (offsets < size)).all(2))
        # With a margin all around, so that no patch need be clipped.
        margin, reach = PATCH - 1, np.arange(PATCH)
        out = np.zeros((len(canvases), size + 2 * margin, size + 2 * margin), np.uint8)
        rows, columns = (offsets[tile, which] + margin).T
        patches = self.patches[canvases[tile], which]
        # Adding by index counts a place once, so patches of one tile go one after the other.
        turn = np.arange(len(tile)) - np.searchsorted(tile, tile)
        for i in range(turn.max(initial=-1) + 1):
            now = turn == i
            down = (rows[now, None] + reach)[:, :, None]
            across = (columns[now, None] + reach)[:, None, :]
            out[tile[now, None, None], down, across] += self.bank[patches[now]]
        return out[:, margin:-margin, margin:-margin]

    def views(self, canvases: Numbers, size: int) -> Floats:
        """Whole canvases, smaller: the average over the area of each pixel, which need not be whole.

        Parameters
        ----------
        canvases
            Which, shape (B,).
        size
            Pixels a side, at most :attr:`side`; at ``side`` this is the canvas itself.

        Returns
        -------
        array of float32, shape (B, size, size)
            From 0 to 255.
        """
        share = _shares(self.side, size)
        span, step = share.shape[1], self.side / size
        places = self.places[canvases]
        down, across = share[places[..., 0]], share[places[..., 1]]
        small = down @ self.bank[self.patches[canvases]].astype(np.float32) @ across.swapaxes(2, 3)
        first = (places / step).astype(np.int64)
        wide = size + span  # the shares beyond the canvas are zero
        rows = first[..., 0, None] + np.arange(span)
        columns = first[..., 1, None] + np.arange(span)
        canvas = np.arange(len(canvases))[:, None, None, None]
        flat = (canvas * wide + rows[..., :, None]) * wide + columns[..., None, :]
        sums = np.bincount(flat.ravel(), small.ravel(), minlength=len(canvases) * wide * wide)
        return sums.reshape(-1, wide, wide)[:, :size, :size].astype(np.float32)


@cache
def _shares(side: int, size: int) -> Floats:
    """How much of each smaller pixel each of 28 pixels in a row covers, for every place of the first.

    Shape (side, span, 28); the smaller pixels begin with the one in which the first pixel begins.
    """
    step = side / size
    places = np.arange(side)
    span = int(np.ceil(PATCH / step)) + 1
    lower = (np.floor(places / step)[:, None] + np.arange(span)) * step
    begin = (places[:, None] + np.arange(PATCH))[:, None, :]
    overlap = np.minimum(lower[..., None] + step, begin + 1) - np.maximum(lower[..., None], begin)
    overlap[overlap < 1e-9] = 0  # else rounding would carry ink over an edge
    return (overlap / step).astype(np.float32)


def flatten(bank: Bytes, patches: Numbers, places: Numbers, labels: Numbers, side: int) -> Canvases:
    """Canvases on which patches were laid one over the other, made of patches that do not hide another.

    A later patch hides what lies under it, its black pixels too, as in the reference. Patches that are hidden
    in part join the bank as what is left of them. Afterwards order does not matter: tiles and averages
    are plain sums.

    Parameters
    ----------
    bank, patches, places, labels, side
        See :class:`Canvases`, with each canvas' patches in the order in which they were laid.
    """
    patches, cut = patches.copy(), []
    later = np.triu(np.ones((patches.shape[1],) * 2, bool), 1)
    for canvas, place in enumerate(places):
        shift = place[None] - place[:, None]
        under, over = np.nonzero((np.abs(shift) < PATCH).all(2) & later)
        for one in np.unique(under):
            left = bank[patches[canvas, one]].copy()
            for row, column in shift[one, over[under == one]]:
                left[max(row, 0) : row + PATCH, max(column, 0) : column + PATCH] = 0
            patches[canvas, one] = len(bank) + len(cut)
            cut.append(left)
    return Canvases(np.concatenate([bank, *(each[None] for each in cut)]), patches, places, labels, side)


def make_canvases(
    count: int, digits: Bytes, classes: Bytes, rng: np.random.Generator, *, side: int = SIDE
) -> Canvases:
    """Make canvases as the reference does.

    Parameters
    ----------
    count
        How many.
    digits
        Images of digits, shape (D, 28, 28).
    classes
        Their classes, shape (D,).
    rng
        Source of randomness: digits, places and noise patterns.
    side
        Pixels a side of a canvas.

    Raises
    ------
    SettingsError
        When a canvas is too small for five digits to be kept apart.
    """
    if side < 8 * PATCH:
        raise SettingsError(
            f"a canvas for Megapixel MNIST has at least {8 * PATCH} pixels a side, not {side}"
        )
    labels = rng.integers(CLASSES, size=count)
    of_class = [np.flatnonzero(classes == c) for c in range(CLASSES)]
    of_others = [np.flatnonzero(classes != c) for c in range(CLASSES)]
    chosen = [
        np.concatenate([rng.choice(of_class[c], OF_LABEL), rng.choice(of_others[c], DIGITS - OF_LABEL)])
        for c in labels
    ]
    noise = len(digits) + rng.integers(PATTERNS, size=(count, NOISE))
    where = [_apart(rng, side) for _ in range(count)]
    scattered = rng.integers(PATCH, side - PATCH, size=(count, NOISE, 2))
    bank = np.concatenate([digits, noise_patterns(rng)])
    return flatten(
        bank,
        np.concatenate([np.array(chosen).reshape(count, DIGITS), noise], 1),
        np.concatenate([np.array(where).reshape(count, DIGITS, 2), scattered], 1),
        labels,
        side,
    )


def _apart(rng: np.random.Generator, side: int) -> Numbers:
    """Places for five digits that do not overlap."""
    while True:
        places = rng.integers(side - PATCH + 1, size=(DIGITS, 2))
        close = (np.abs(places[None] - places[:, None]) < PATCH).all(2)
        if close.sum() == DIGITS:
            return places


def noise_patterns(rng: np.random.Generator) -> Bytes:
    """Crossed strokes that might be digits at a glance, shape (50, 28, 28), as in the reference."""
    slopes = np.tan(rng.random(PATTERNS) * np.pi / 2.5)
    strokes = np.zeros((PATTERNS, PATCH, PATCH), bool)
    for stroke, slope in zip(strokes, slopes, strict=True):
        x = np.linspace(0, min(27.49, 27.49 / slope), 2 * PATCH)
        stroke[np.round(x).astype(int), np.round(slope * x).astype(int)] = True
    crossing = rng.permutation(strokes)
    for axis in (2, 1):
        turned = rng.random(PATTERNS) < 0.33
        crossing[turned] = np.flip(crossing[turned], axis)
    shades = rng.uniform(0.8, 1.0, strokes.shape)
    return ((strokes | crossing) * shades * 255).astype(np.uint8)


def read_digits(folder: Path, *, train: bool) -> tuple[Bytes, Bytes]:
    """Read the images (D, 28, 28) and classes (D,) of MNIST from its four ``idx`` files.

    Raises
    ------
    SettingsError
        When a file is missing or is none of MNIST's.
    """
    name = "train" if train else "t10k"
    digits = _read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    classes = _read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
    if digits.shape != (len(classes), PATCH, PATCH):
        raise SettingsError(f"{folder}: images of shape {digits.shape} do not fit {len(classes)} labels")
    return digits, classes


def _read_idx(path: Path) -> Bytes:
    try:
        content = gzip.decompress(path.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read: {error}; put MNIST's four gz files there or say where they are (--data)"
        ) from error
    # Two zero bytes, 8 for bytes, the number of dimensions, then each as a big-endian integer.
    if content[:3] != b"\0\0\x08":
        raise SettingsError(f"{path}: is no idx file of bytes: it begins with {content[:4]!r}")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").astype(int)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
