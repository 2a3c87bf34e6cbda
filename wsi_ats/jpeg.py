"""JPEG, in slides and on the way from one machine to another: the only import of simplejpeg.

simplejpeg decodes as OpenSlide does (libjpeg-turbo, exact DCT, smooth colour), and refuses streams that
libjpeg only warns about: damage becomes an error and not grey or smeared pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]

# With colour at full resolution (4:4:4), for stain is colour. `benchmarks/jpeg.py` says what that costs and
# loses: a quarter of the bytes, 2 grey levels on average and 9 for a value in a hundred, under a millisecond.
QUALITY = 95

_START = b"\xff\xd8"
# Says whether three colours are stored as they are (0) or as luma and chroma (1); decoders guess otherwise.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


def encode(pixels: Pixels, quality: int = QUALITY) -> bytes:
    """Encode an RGB image, shape (height, width, 3), with colour at full resolution."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "444", fastdct=False))


def decode(stream: bytes | memoryview, out: Pixels) -> None:
    """Decode an image into an array.

    Parameters
    ----------
    stream
        The JPEG.
    out
        Where to: contiguous, shape (height, width, 3); grey images become grey RGB.

    Raises
    ------
    ValueError
        When the stream is damaged, or an image of another size.

    Examples
    --------
    >>> out = np.empty((16, 8, 3), np.uint8)
    >>> decode(encode(np.full((16, 8, 3), 90, np.uint8)), out)
    >>> out[0, 0].tolist()
    [90, 90, 90]
    """
    height, width, _, _ = simplejpeg.decode_jpeg_header(stream)
    if (height, width) != out.shape[:2]:
        # Before anything is decoded: a few bytes can claim 65,535 x 65,535 pixels.
        raise ValueError(f"a JPEG of {width} x {height} pixels, expected {out.shape[1]} x {out.shape[0]}")
    simplejpeg.decode_jpeg(stream, "RGB", fastdct=False, fastupsample=False, buffer=out)


def prefix(tables: bytes | None, *, rgb: bool, grey: bool = False) -> bytes:
    """What turns an abbreviated stream of a TIFF file into a whole one, in place of its first two bytes.

    Parameters
    ----------
    tables
        The file's tables for all of its tiles: a JPEG stream without image.
    rgb
        Whether colours are stored as they are, not as luma and chroma.
    grey
        Whether there is but one colour.
    """
    colours = b"" if grey else _ADOBE + bytes([0 if rgb else 1])
    return _START + colours + (b"" if tables is None else tables[2:-2])


@dataclass(frozen=True, slots=True)
class JpegTiles:
    """Tiles, encoded one by one; made by :meth:`of`.

    Parameters
    ----------
    shape
        Of the pixels, (N, height, width, 3).
    streams
        The JPEG of each tile.

    Examples
    --------
    >>> tiles = np.full((2, 16, 16, 3), (200, 120, 180), np.uint8)
    >>> coded = JpegTiles.of(tiles)
    >>> len(coded.streams), int(np.abs(coded.pixels().astype(int) - tiles).max()) <= 2
    (2, True)
    """

    shape: tuple[int, ...]
    streams: Sequence[bytes]

    @classmethod
    def of(cls, pixels: Pixels) -> JpegTiles:
        """Encode tiles, uint8, shape (N, height, width, 3)."""
        return cls(pixels.shape, [encode(tile) for tile in pixels])

    def pixels(self) -> Pixels:
        """Decode them, uint8, shape (N, height, width, 3); the same on every machine."""
        pixels = np.empty(self.shape, dtype=np.uint8)
        for tile, stream in zip(pixels, self.streams, strict=True):
            decode(stream, tile)
        return pixels
