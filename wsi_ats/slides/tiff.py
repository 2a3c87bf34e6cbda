"""What TIFF files store where: the only import of tifffile outside :mod:`wsi_ats.testing`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
import tifffile

from wsi_ats.geometry import IntArray, Level


@dataclass(frozen=True)
class TileIndex:
    """Compressed size of every tile of a TIFF slide, by level.

    Parameters
    ----------
    levels
        Keyed by the level's ``(width, height)``: the tile's width and height, and the bytes of each tile,
        shape (rows, columns). Levels that are not tiled are absent; so are all, for other formats.
    """

    levels: dict[tuple[int, int], tuple[int, int, IntArray]]

    @classmethod
    def of(cls, path: str) -> Self:
        """Read the index of a file; empty where the file is no TIFF or its index is damaged."""
        try:
            with tifffile.TiffFile(path) as file:
                pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
                return cls({(p.imagewidth, p.imagelength): _tiles(p) for p in pages if p.is_tiled})
        except (tifffile.TiffFileError, ValueError, LookupError, OSError, struct.error):
            # No TIFF, or so damaged that its sizes are not known; whether its pixels can be read is
            # for the reader to say.
            return cls({})

    def touched(self, level: Level, corners: IntArray, width: int, height: int) -> int | None:
        """Bytes of the tiles under regions of one level, each tile once; ``None`` if not known.

        Parameters
        ----------
        level
            The level.
        corners
            Shape (N, 2): top-left ``x, y`` in pixels of the level.
        width, height
            Size of each region in pixels of the level.
        """
        if (level.width, level.height) not in self.levels:
            return None
        tile_width, tile_height, sizes = self.levels[level.width, level.height]
        wanted = np.zeros(sizes.shape, dtype=bool)
        for x, y in corners.tolist():
            rows = slice(max(0, y // tile_height), max(0, -(-(y + height) // tile_height)))
            columns = slice(max(0, x // tile_width), max(0, -(-(x + width) // tile_width)))
            wanted[rows, columns] = True
        return int(sizes[wanted].sum())


def _tiles(page: tifffile.TiffPage) -> tuple[int, int, IntArray]:
    rows, columns = -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)
    sizes = np.asarray(page.databytecounts, dtype=np.int64)[: rows * columns]
    return page.tilewidth, page.tilelength, sizes.reshape(rows, columns)
