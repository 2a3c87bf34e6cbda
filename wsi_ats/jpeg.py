"""Tiles as JPEG, for their way from one machine to another: the only step of reading that loses anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from imagecodecs import jpeg8_decode, jpeg8_encode

# With colour at full resolution (4:4:4), for stain is colour. `benchmarks/jpeg.py` says what that costs and
# loses: a quarter of the bytes, 2 grey levels on average and 9 for a value in a hundred, under a millisecond.
QUALITY = 95


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
    def of(cls, pixels: npt.NDArray[np.uint8]) -> JpegTiles:
        """Encode tiles, uint8, shape (N, height, width, 3)."""
        streams = [bytes(jpeg8_encode(tile, level=QUALITY, subsampling="444")) for tile in pixels]
        return cls(pixels.shape, streams)

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Decode them, uint8, shape (N, height, width, 3); the same on every machine."""
        pixels = np.empty(self.shape, dtype=np.uint8)
        for tile, stream in zip(pixels, self.streams, strict=True):
            jpeg8_decode(stream, out=tile)
        return pixels
