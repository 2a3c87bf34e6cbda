"""Codecs of tiles and of PNG: the only import of imagecodecs. JPEG, the most common, has its own module."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from zlib import crc32

import numpy as np

from wsi_ats.slides import jpeg
from wsi_ats.slides.base import Pixels

# The head of a JPEG 2000 codestream: markers of its start and of its size; width, height and their offsets;
# the same for its tiles; and the number of colours.
_CODESTREAM = struct.Struct(">I4xIIIIIIIIH")
_CODESTREAM_START = 0xFF4FFF51
_TILE_PART = b"\xff\x90"
# A colour of 8 bits with a value at each pixel. The decoder would treat others as luma and chroma.
_EIGHT_BITS = b"\x07\x01\x01"


class Compression(StrEnum):
    """Compressions of tiles."""

    NONE = "none"
    JPEG = "jpeg"
    JPEG_2000 = "jpeg2000"
    DEFLATE = "deflate"
    LZW = "lzw"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Coding:
    """The coding of the tiles of one image.

    Parameters
    ----------
    compression
        Compression of each tile.
    samples
        Colours per pixel: 3 for RGB, 1 for grey.
    differences
        Whether pixels are stored as differences from their left neighbour (TIFF's predictor 2).
    prefix
        Bytes that replace the first ``skipped`` bytes of a JPEG stream.
    skipped
        See ``prefix``.
    suffix
        Bytes that replace the last bytes of a JPEG stream.
    colours
        Colour space of JPEG tiles, if the file specifies it; ``None`` to use that of the stream.
    """

    compression: Compression
    samples: int
    differences: bool = False
    prefix: bytes = b""
    skipped: int = 0
    suffix: bytes = b""
    colours: jpeg.Colours | None = None

    def decode(self, data: bytes | memoryview, out: Pixels) -> None:
        """Decode one tile.

        Parameters
        ----------
        data
            The tile as stored.
        out
            Array for the result: contiguous, shape (height, width, 3).

        Raises
        ------
        ValueError
            When the data are damaged or not a tile of that size.

        Examples
        --------
        >>> out = np.empty((2, 1, 3), np.uint8)
        >>> Coding(Compression.NONE, samples=1).decode(bytes([7, 9]), out)
        >>> out.tolist()
        [[[7, 7, 7]], [[9, 9, 9]]]
        """
        if self.compression is Compression.JPEG:
            stream = data[self.skipped : len(data) - len(self.suffix)]
            jpeg.decode(b"".join((self.prefix, stream, self.suffix)), out, self.colours)
            return
        height, width = out.shape[:2]
        if self.compression is Compression.JPEG_2000:
            tile = _decode_jpeg_2000(bytes(data), height, width, self.samples)
        else:
            expected = height * width * self.samples
            stored = _decompress(self.compression, data, expected)
            if len(stored) != expected:
                raise ValueError(f"{len(stored)} bytes when decoded, expected {expected}")
            tile = np.frombuffer(stored, dtype=np.uint8).reshape(height, width, self.samples)
        # The sum of bytes wraps around, as the differences did.
        out[:] = np.cumsum(tile, axis=1, dtype=np.uint8) if self.differences else tile


def encode_png(pixels: Pixels, dpi: float) -> bytes:
    """Encode an RGB image, shape (h, w, 3), as PNG with a resolution, in half of Pillow's time or less."""
    import imagecodecs

    encoded = imagecodecs.png_encode(np.ascontiguousarray(pixels), level=1, filter=imagecodecs.PNG.FILTER.UP)
    # imagecodecs takes no resolution, which is a chunk of its own after the header of 33 bytes.
    resolution = struct.pack(">4sIIB", b"pHYs", *2 * [round(dpi / 0.0254)], 1)  # per metre
    chunk = struct.pack(">I", len(resolution) - 4) + resolution + struct.pack(">I", crc32(resolution))
    return bytes(encoded[:33] + chunk + encoded[33:])


def _decompress(
    compression: Compression, data: bytes | memoryview, expected: int
) -> bytes | bytearray | memoryview:
    if compression is Compression.NONE:
        return data
    import imagecodecs

    decoders = {
        Compression.DEFLATE: imagecodecs.deflate_decode,
        Compression.LZW: imagecodecs.lzw_decode,
        Compression.ZSTD: imagecodecs.zstd_decode,
    }
    try:
        # The limit keeps a few damaged bytes from filling the memory.
        decoded: bytes | bytearray = decoders[compression](bytes(data), out=expected)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return decoded


def _decode_jpeg_2000(data: bytes, height: int, width: int, samples: int) -> Pixels:
    import imagecodecs

    if len(data) < _CODESTREAM.size:
        raise ValueError(f"{len(data)} bytes are not a JPEG 2000 codestream")
    start, *box, colours = _CODESTREAM.unpack_from(data)
    right, bottom, left, top, across, down, first_left, first_top = box
    # Checked before decoding, because a few bytes can claim 2^32 x 2^32 pixels of 16,384 colours.
    if start != _CODESTREAM_START or (right - left, bottom - top, colours) != (width, height, samples):
        raise ValueError(f"not a JPEG 2000 codestream of {width} x {height} pixels in {samples} colours")
    if not data.startswith(_EIGHT_BITS * samples, _CODESTREAM.size):
        raise ValueError("its JPEG 2000 codestream is not of 8 bits, or has colours at a lower resolution")
    # The decoder leaves black where a tile of the codestream is missing.
    expected = -((first_left - right) // max(across, 1)) * -((first_top - bottom) // max(down, 1))
    found = _count_tiles(data)
    if found != expected:
        raise ValueError(f"{found} of {expected} tiles of a JPEG 2000 codestream are there")
    try:
        tile: Pixels = imagecodecs.jpeg2k_decode(data)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if tile.shape != (height, width, samples)[: 2 + (samples > 1)] or tile.dtype != np.uint8:
        raise ValueError(f"JPEG 2000 gave {tile.dtype} {tile.shape}, expected {samples} colours of 8 bits")
    return tile.reshape(height, width, samples)


def _count_tiles(data: bytes) -> int:
    """Count the tiles that have at least one part in a JPEG 2000 codestream."""
    at, end, seen = 2, len(data), set()
    while at < end and data[at : at + 2] != _TILE_PART:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    while data[at : at + 2] == _TILE_PART:
        seen.add(data[at + 4 : at + 6])
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        at += length if length else end  # a part without a length is the last
    return len(seen)
