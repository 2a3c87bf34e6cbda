"""Area averaging of pixels, and images as files: the main import of Pillow.

Pillow's own box filter is used only for whole squares: it takes each pixel wholly or not at all. At a scale
of 1.5, some results would average one pixel and some two, and edges would move by up to half a pixel.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from wsi_ats.errors import ArtifactError
from wsi_ats.slides.codecs import encode_png

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_ONE = 1 << 20

# Sides of squares whose averages are exact in floating-point arithmetic.
_WHOLE = {1, 2, 4, 8, 16}

# Pillow copies its input; a copy of this many pixels fits into the processor's cache.
_PIXELS_AT_A_TIME = 1 << 17


def read_image(path: str | Path) -> Pixels:
    """Read an ordinary image as RGB, uint8, shape (height, width, 3).

    Raises
    ------
    OSError
        When the file is missing or is not an image.
    """
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def resample(
    pixels: Pixels, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Pixels:
    """Reduce an image, or a part of it, to fewer pixels by area averaging.

    Parameters
    ----------
    pixels
        The image, shape (h, w, 3).
    width, height
        Size of the result in pixels.
    box
        The part: ``left, top, right, bottom`` in pixels of the input, which may be fractional and must lie
        within the input; the whole image by default.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Examples
    --------
    >>> resample(np.full((6, 9, 3), 7, np.uint8), 2, 3)[0, 0].tolist()
    [7, 7, 7]
    """
    left, top, right, bottom = box or (0, 0, pixels.shape[1], pixels.shape[0])
    step = (right - left) / width
    if step in _WHOLE and (bottom - top) / height == step and left == int(left) and top == int(top):
        return _reduce(pixels[int(top) : int(bottom), int(left) : int(right)], int(step))
    rows = _average(pixels, top, bottom, height)
    averaged = _average(rows.swapaxes(0, 1), left, right, width).swapaxes(0, 1)
    rounded: Pixels = np.floor(averaged + np.float32(0.5)).astype(np.uint8)  # as Pillow rounds, too
    return rounded


def fitted(pixels: Pixels, width: int, height: int, box: tuple[float, float, float, float]) -> Pixels:
    """Reduce or enlarge a part of an image to so many pixels, smoothly, for people to look at.

    Parameters
    ----------
    pixels, box
        The image, shape (h, w, 3), and its part, as in :func:`resample`.
    width, height
        Size of the result in pixels.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
    """
    left, top = int(box[0]), int(box[1])
    right, bottom = -int(-box[2] // 1), -int(-box[3] // 1)
    part = pixels[top:bottom, left:right]
    # Whole squares first, which costs little; what is left is less than twice as large.
    factor = 1
    while box[2] - box[0] >= 2 * factor * width and box[3] - box[1] >= 2 * factor * height and factor < 16:
        factor *= 2
    within = (
        *((box[0] - left) / factor, (box[1] - top) / factor),
        *((box[2] - left) / factor, (box[3] - top) / factor),
    )
    return np.asarray(
        Image.fromarray(_reduce(part, factor)).resize((width, height), Image.Resampling.BILINEAR, within)
    )


def _reduce(pixels: Pixels, step: int) -> Pixels:
    """Average whole squares: equal to :func:`_average` to the last bit, in a tenth of its time.

    Squares at the right and at the bottom average the pixels that they have.
    """
    height, width = (-(-side // step) for side in pixels.shape[:2])
    reduced = np.empty((height, width, 3), dtype=np.uint8)
    at_a_time = max(1, _PIXELS_AT_A_TIME // (width * step * step))
    for row in range(0, height, at_a_time):
        rows = np.ascontiguousarray(pixels[row * step : (row + at_a_time) * step, : width * step])
        reduced[row : row + at_a_time] = Image.fromarray(rows).reduce(step)
    return reduced


def _average(pixels: npt.NDArray[Any], start: float, stop: float, count: int) -> Floats:
    """Average over ``count`` equal parts of ``[start, stop)`` along the first axis."""
    # Multiples of 2^-20, so that a part is the same regardless of where counting starts.
    edges = np.rint(np.linspace(start, stop, count + 1) * _ONE) / _ONE
    lower, upper = edges[:-1], edges[1:]
    first = np.floor(lower).astype(np.int64)
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    averages = np.zeros((count, flat.shape[1]), dtype=np.float32)
    for i in range(int((np.ceil(upper) - first).max())):
        pixel = first + i
        share = np.clip(np.minimum(pixel + 1, upper) - np.maximum(pixel, lower), 0, None) / (upper - lower)
        averages += share.astype(np.float32)[:, None] * flat[np.minimum(pixel, len(flat) - 1)]
    return averages.reshape(count, *pixels.shape[1:])


def compressed(path: Path, out: BinaryIO, *, widest: int, quality: int) -> None:
    """Write an image file as WebP, reduced to a width.

    Parameters
    ----------
    path
        The image.
    out
        Receives the result.
    widest
        Largest width in pixels; smaller images keep their size.
    quality
        From 0 to 100.

    Raises
    ------
    ArtifactError
        When the image cannot be read.
    """
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read as an image: {error}; delete it to draw it again"
        ) from error
    if small.width > widest:
        small = small.resize((widest, max(1, round(small.height * widest / small.width))))
    small.save(out, format="WEBP", quality=quality, method=4)


def write_png(path: Path, pixels: Pixels, *, dpi: float = 72) -> None:
    """Write an RGB image as PNG.

    Parameters
    ----------
    path
        The file.
    pixels
        The image, shape (h, w, 3).
    dpi
        Pixels per inch, for programs that print it.
    """
    path.write_bytes(encode_png(pixels, dpi))


def write_words(pixels: Pixels, words: Iterable[tuple[float, float, str, str, float, bool]]) -> Pixels:
    """Write lines of text on an image, in black.

    Parameters
    ----------
    pixels
        The image, shape (h, w, 3).
    words
        Of each line: x and y of its beginning on the baseline, in pixels; the text; the font's file; the size
        of type in pixels; and whether x is its middle rather than its beginning.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        A copy with the words.
    """
    image = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(image)
    fonts: dict[tuple[str, float], ImageFont.FreeTypeFont] = {}
    for x, y, text, font, size, centred in words:
        if (font, size) not in fonts:
            # One way to place letters, whatever libraries Pillow was built with.
            fonts[font, size] = ImageFont.truetype(font, size, layout_engine=ImageFont.Layout.BASIC)
        canvas.text((x, round(y)), text, "black", fonts[font, size], "ms" if centred else "ls")
    return np.asarray(image)
