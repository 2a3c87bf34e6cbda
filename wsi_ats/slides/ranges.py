"""Byte ranges of a file in a store: neighbouring ranges joined into requests, and a file read in blocks."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_ats.errors import SlideOpenError

if TYPE_CHECKING:
    from wsi_ats.slides.storage import Fetch

# The wait for the first byte, about 20 ms, is shared by all requests in progress. In one request's share of
# that time, a connection delivers about this much: reading across a gap costs no more than another request.
_GAP = 32 << 10

# Amazon advises 8 to 16 MB: larger requests gain nothing, and are sent again when a connection drops.
_LARGEST = 8 << 20

BLOCK = 64 << 10
"""Bytes of a block. The parts of an index are far apart: blocks four times as large would save one or two of
seven requests, but read two to three times the bytes (docs/reference/remote.md)."""

# The index of ten million tiles needs 160 MB. A damaged index may claim more, up to the whole file.
_LARGEST_INDEX = 256 << 20


def joined(offsets: list[int], sizes: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Join neighbouring ranges.

    Parameters
    ----------
    offsets, sizes
        First byte of each range, and its number of bytes.

    Returns
    -------
    list of tuple
        The first byte of each request, and the byte after its last.
    list of int
        The request that contains each range.

    Examples
    --------
    >>> joined([100, 0, 1 << 20], [10, 10, 10])
    ([(0, 110), (1048576, 1048586)], [0, 0, 1])
    """
    requests: list[tuple[int, int]] = []
    places = [0] * len(offsets)
    for i in np.argsort(np.array(offsets, dtype=np.int64), kind="stable").tolist():
        start, stop = offsets[i], offsets[i] + sizes[i]
        if not sizes[i]:
            continue
        if requests:
            first, last = requests[-1]
            if start - last <= _GAP and max(stop, last) - first <= _LARGEST:
                requests[-1] = first, max(stop, last)
                places[i] = len(requests) - 1
                continue
        requests.append((start, stop))
        places[i] = len(requests) - 1
    return requests, places


class Blocks(io.RawIOBase):
    """A file object for libraries that seek and read; it keeps the blocks that it has read.

    Parameters
    ----------
    path
        The slide's name in errors.
    size
        Size of the file in bytes.
    start
        Its first block.
    fetch
        Function that reads ranges, given their offsets and sizes.
    """

    def __init__(
        self, path: str, size: int, start: memoryview, fetch: Callable[[list[int], list[int]], Fetch]
    ) -> None:
        self._path = path
        self._size = size
        self._fetch = fetch
        self._blocks: dict[int, bytes | memoryview] = {0: start}
        self._at = 0

    def readable(self) -> bool:
        """Return ``True``."""
        return True

    def seekable(self) -> bool:
        """Return ``True``."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See :meth:`io.IOBase.seek`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} is before the start of the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See :meth:`io.RawIOBase.readinto`.

        Raises
        ------
        SlideOpenError
            When more is read than any valid index has, or the store does not return it.
        """
        room = memoryview(buffer).cast("B")  # the buffer may be an array with larger items
        begin, end = self._at, min(self._size, self._at + len(room))
        if begin >= end:
            return 0
        wanted = range(begin // BLOCK, -(-end // BLOCK))
        missing = [block for block in wanted if block not in self._blocks]
        if (len(missing) + len(self._blocks)) * BLOCK > _LARGEST_INDEX:
            raise SlideOpenError(
                self._path, f"its index has more than {_LARGEST_INDEX} bytes, so it is damaged; copy it again"
            )
        sizes = [min(BLOCK, self._size - block * BLOCK) for block in missing]
        part = self._fetch([block * BLOCK for block in missing], sizes)
        self._blocks |= {block: part(i) for i, block in enumerate(missing)}
        for block in wanted:
            low, high = max(begin, block * BLOCK), min(end, (block + 1) * BLOCK)
            data = self._blocks[block]
            room[low - begin : high - begin] = data[low - block * BLOCK : high - block * BLOCK]
        self._at = end
        return end - begin
