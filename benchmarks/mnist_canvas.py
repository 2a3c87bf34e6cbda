"""Megapixel MNIST: canvases that are stored as patches and painted when they are read.

The recipe is that of Katharopoulos & Fleuret (2019). A black canvas of 1500 x 1500 pixels has five MNIST
digits that do not overlap: three of one class, which is the label, and two of others. Then 50 patches of
crossed strokes, from 50 patterns shared by all canvases of a set, are laid over them, including their black
pixels.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from wsi_ats.errors import SettingsError

PATCH = 28
"""Pixels a side of a digit and of a noise patch."""
SIDE = 1500
"""Pixels a side of a canvas."""
CLASSES = 10
DIGITS, OF_LABEL, NOISE, PATTERNS = 5, 3, 50, 50

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Canvases:
    """A set of canvases.

    Parameters
    ----------
    bank
        Images of patches, shape (P, 28, 28).
    patches, places
        Numbers (M, Q) into the bank in the order in which patches are laid, digits first, and row and column
        of their upper left pixels, (M, Q, 2).
    labels, side
        Class of each canvas, shape (M,), and pixels a side.
    """

    bank: Bytes
    patches: Numbers
    places: Numbers
    labels: Numbers
    side: int = SIDE

    def paint(self, number: int, margin: int = 0) -> Bytes:
        """Return a canvas, (side, side), with a black margin below and to the right."""
        canvas = np.zeros((self.side + margin,) * 2, np.uint8)
        for patch, (row, column) in zip(self.patches[number], self.places[number].tolist(), strict=True):
            canvas[row : row + PATCH, column : column + PATCH] = self.bank[patch]
        return canvas

    def tiles(self, number: int, corners: Numbers, size: int) -> Bytes:
        """Cut tiles (T, size, size) out of a canvas, by row and column of their upper left pixels, (T, 2).

        Corners lie within the canvas; beyond its lower and right edges it is black.
        """
        canvas = self.paint(number, size)
        return np.stack(
            [canvas[row : row + size, column : column + size] for row, column in corners.tolist()]
        )


def smaller(canvas: Bytes, size: int) -> npt.NDArray[np.float32]:
    """Average a canvas over the area of each of (size, size) pixels, whose sides need not be whole."""
    edges, pixels = np.linspace(0, len(canvas), size + 1)[:, None], np.arange(len(canvas))
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    share = csr_array(np.where(overlap > 1e-9, overlap, 0) * size / len(canvas), dtype=np.float32)
    down = share @ canvas.astype(np.float32)
    return np.ascontiguousarray((share @ down.T).T)


def make_canvases(
    count: int, digits: Bytes, classes: Bytes, rng: np.random.Generator, *, side: int = SIDE
) -> Canvases:
    """Make canvases as the reference does, of images of digits (D, 28, 28) and their classes (D,)."""
    labels = rng.integers(CLASSES, size=count)
    of_class = [np.flatnonzero(classes == c) for c in range(CLASSES)]
    of_others = [np.flatnonzero(classes != c) for c in range(CLASSES)]
    chosen = [
        np.concatenate([rng.choice(of_class[c], OF_LABEL), rng.choice(of_others[c], DIGITS - OF_LABEL)])
        for c in labels
    ]
    noise = len(digits) + rng.integers(PATTERNS, size=(count, NOISE))
    where = np.array([_apart(rng, side) for _ in range(count)])
    scattered = rng.integers(PATCH, side - PATCH, size=(count, NOISE, 2))
    bank = np.concatenate([digits, noise_patterns(rng)])
    patches = np.concatenate([np.array(chosen), noise], 1)
    return Canvases(bank, patches, np.concatenate([where, scattered], 1), labels, side)


def _apart(rng: np.random.Generator, side: int) -> Numbers:
    """Draw places for five digits that do not overlap."""
    while True:
        places = rng.integers(side - PATCH + 1, size=(DIGITS, 2))
        close = (np.abs(places[None] - places[:, None]) < PATCH).all(2)
        if close.sum() == DIGITS:
            return places


def noise_patterns(rng: np.random.Generator) -> Bytes:
    """Draw crossed strokes that resemble digits, shape (50, 28, 28), as in the reference."""
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
    """Read the images (D, 28, 28) and classes (D,) of MNIST from its ``idx`` files."""
    name = "train" if train else "t10k"
    digits = _read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    return digits, _read_idx(folder / f"{name}-labels-idx1-ubyte.gz")


def _read_idx(path: Path) -> Bytes:
    try:
        content = gzip.decompress(path.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read: {error}; put MNIST's four gz files there or name their folder by --data"
        ) from error
    # Two zero bytes, 8 for bytes, the number of dimensions, then each as a big-endian integer.
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">u4"))
