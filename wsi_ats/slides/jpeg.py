"""JPEG in slides, and for transport between machines: the only import of simplejpeg.

simplejpeg decodes as OpenSlide does (libjpeg-turbo, exact DCT, smooth colour), but refuses streams for which
libjpeg only logs a warning: damage becomes an error instead of grey or smeared pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]

# Colour is stored at full resolution (4:4:4), because stain is colour. Tiles of a real slide, cut across the
# blocks of its own JPEG, shrink to 26 % of their bytes at this quality. They differ by 2 grey levels on
# average, by 9 or more for one value in a hundred, and by at most 24; encoding and decoding take 0.3 and 0.4
# ms per tile.
QUALITY = 95

Colours = Literal["RGB", "YCbCr", "Gray"]

_START = b"\xff\xd8"
_MARKER, _END, _SCAN = 0xFF, 0xD9, 0xDA
# Each scan of a progressive image takes the time of all its pixels, but may need only a few bytes in a
# damaged or hostile file. Encoders write about ten scans.
_MOST_SCANS = 200
_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}
# Marks of programs: JFIF means luma and chroma; Adobe specifies the colour space.
_JFIF, _ADOBE = 0xE0, 0xEE
# Followed by 0: the three colours are stored directly; by 1: as luma and chroma. Without it, decoders guess.
_SAYS = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


def encode(pixels: Pixels, quality: int = QUALITY) -> bytes:
    """Encode an RGB image, shape (height, width, 3), with colour at full resolution."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "444", fastdct=False))


def decode(stream: bytes | memoryview, out: Pixels, colours: Colours | None = None) -> None:
    """Decode an image into an array.

    Parameters
    ----------
    stream
        The JPEG.
    out
        Array for the result: contiguous, shape (height, width, 3); grey images become grey RGB.
    colours
        Colour space, which overrides that of the stream; by default that of the stream.

    Raises
    ------
    ValueError
        When the stream is damaged, or an image of another size or number of colours.

    Examples
    --------
    >>> out = np.empty((16, 8, 3), np.uint8)
    >>> decode(encode(np.full((16, 8, 3), 90, np.uint8)), out)
    >>> out[0, 0].tolist()
    [90, 90, 90]
    """
    height, width, form, _ = simplejpeg.decode_jpeg_header(stream)
    if (height, width) != out.shape[:2]:
        # Checked before decoding, because a few bytes can claim 65,535 x 65,535 pixels.
        raise ValueError(f"a JPEG of {width} x {height} pixels, expected {out.shape[1]} x {out.shape[0]}")
    if colours is not None and form != colours:
        stream = _saying(colours, bytes(stream))
        form = simplejpeg.decode_jpeg_header(stream)[2]
        if form != colours:
            raise ValueError(f"a JPEG of {form} pixels, expected {colours}")
    scans = bytes(stream).count(bytes([_MARKER, _SCAN]))
    if scans > _MOST_SCANS:
        raise ValueError(f"a JPEG of {scans} scans, but at most {_MOST_SCANS} are decoded")
    simplejpeg.decode_jpeg(stream, "RGB", fastdct=False, fastupsample=False, buffer=out)


def prefix(tables: bytes | None, colours: Colours) -> bytes:
    """Return the bytes that replace the first two of an abbreviated stream in a TIFF file, to complete it.

    Parameters
    ----------
    tables
        The tables shared by all tiles of the file: a JPEG stream without an image.
    colours
        Colour space.

    Raises
    ------
    ValueError
        When the tables are damaged.
    """
    kept = (part for marker, part in _parts(tables or _START) if marker in _TABLES)
    return b"".join((_START, _says(colours), *kept))


def _says(colours: Colours) -> bytes:
    return b"" if colours == "Gray" else _SAYS + bytes([1 if colours == "YCbCr" else 0])


def _saying(colours: Colours, stream: bytes) -> bytes:
    """Return the stream with a mark for the given colour space as its only mark."""
    kept = (part for marker, part in _parts(stream) if marker not in {_JFIF, _ADOBE})
    return b"".join((_START, _says(colours), *kept))


def _parts(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a stream into markers and their bytes, except those of start and end; pixels come last."""
    if stream[:2] != _START:
        raise ValueError("not the start of a JPEG")
    at = 2
    while at < len(stream):
        if stream[at] != _MARKER or at + 1 == len(stream):
            raise ValueError(f"no JPEG marker after {at} of {len(stream)} bytes")
        marker = stream[at + 1]
        if marker == _MARKER:  # a fill byte
            at += 1
            continue
        if marker == _END:
            return
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if not at + 4 <= end <= len(stream):
            raise ValueError(f"a JPEG marker reaches from {at} to {end} of {len(stream)} bytes")
        if marker == _SCAN:
            end = len(stream)
        yield marker, stream[at:end]
        at = end


@dataclass(frozen=True, slots=True)
class JpegTiles:
    """Tiles encoded one by one; created by :meth:`of`.

    Parameters
    ----------
    shape
        Shape of the pixels, (N, height, width, 3).
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
        """Decode the tiles to uint8, shape (N, height, width, 3); the result is the same on every machine."""
        pixels = np.empty(self.shape, dtype=np.uint8)
        for tile, stream in zip(pixels, self.streams, strict=True):
            decode(stream, tile)
        return pixels
