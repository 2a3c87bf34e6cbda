"""One image of a TIFF file: the places of its tiles in the file, and their coding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_ats.geometry import IntArray
from wsi_ats.slides.codecs import Coding


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of a TIFF file.

    Parameters
    ----------
    width, height
        Size in pixels.
    tile_width, tile_height
        Size of its tiles in pixels. Strips are stored as tiles as wide as the image.
    tiled
        Whether it has tiles and not strips: tiles at the right and bottom edge are whole; the last strip is
        not.
    offsets, sizes
        Offset of each tile in the file, and its compressed bytes, shape (rows, columns).
    coding
        Coding of the tiles; ``None`` if they are not decoded here.
    refused
        The reason why tiles are not decoded here; otherwise empty.
    reduced
        Whether the file marks the image as a copy of another at a lower resolution.
    below
        Whether it is stored below another image (in a SubIFD) and not in the file's main sequence.
    channel
        Number of its channel, if the file has several; ``None`` for labels and overviews.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    tiled: bool
    offsets: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint32]
    coding: Coding | None
    refused: str = ""
    reduced: bool = False
    below: bool = False
    channel: int | None = None

    def rows_stored(self, row: int) -> int:
        """Return the height in pixels of the stored tiles of one row."""
        return self.tile_height if self.tiled else min(self.tile_height, self.height - row * self.tile_height)

    def decode(self, data: bytes | memoryview, out: npt.NDArray[np.uint8]) -> None:
        """Decode a tile.

        Parameters
        ----------
        data
            The tile as stored.
        out
            Array for the result: contiguous, shape (:meth:`rows_stored` of its row, tile_width, 3).

        Raises
        ------
        ValueError
            When the data are damaged, or not a tile of that size. The last strip may be padded to the full
            height, as some programs do.
        """
        assert self.coding is not None
        try:
            self.coding.decode(data, out)
        except ValueError as error:
            if len(out) == self.tile_height:
                raise
            filled_up = np.empty((self.tile_height, *out.shape[1:]), dtype=np.uint8)
            try:
                self.coding.decode(data, filled_up)
            except ValueError:
                raise error from None  # the error for a strip of the expected height
            out[:] = filled_up[: len(out)]

    def touched(self, corners: IntArray, width: int, height: int) -> int:
        """Return the compressed bytes of the tiles under regions, counting each tile once.

        Parameters
        ----------
        corners
            Top-left ``x, y`` of each region in pixels of the image, shape (N, 2).
        width, height
            Size of each region in pixels of the image.
        """
        wanted = touched_tiles(self.sizes.shape, (self.tile_width, self.tile_height), corners, width, height)
        return int(self.sizes[wanted].sum(dtype=np.int64))


def touched_tiles(
    shape: tuple[int, ...], tile: tuple[int, int], corners: IntArray, width: int, height: int
) -> npt.NDArray[np.bool_]:
    """Return a mask of the tiles under regions.

    Parameters
    ----------
    shape
        Rows and columns of tiles.
    tile
        Width and height of a tile in pixels.
    corners
        Top-left ``x, y`` of each region in pixels of the image, shape (N, 2).
    width, height
        Size of each region in pixels of the image.

    Returns
    -------
    ndarray of bool, shape (rows, columns)

    Examples
    --------
    >>> touched_tiles((1, 3), (10, 10), np.array([[5, 0]]), 10, 10).tolist()
    [[True, True, False]]
    """
    marked = np.zeros(shape, dtype=bool)
    for x, y in corners.tolist():
        rows = slice(max(0, y // tile[1]), max(0, -(-(y + height) // tile[1])))
        columns = slice(max(0, x // tile[0]), max(0, -(-(x + width) // tile[0])))
        marked[rows, columns] = True
    return marked
