"""Files in object stores and on web servers: the only import of fsspec.

Only the ranges of bytes that are needed are asked for; neighbours are joined, and all are fetched at once.
"""

from __future__ import annotations

from typing import BinaryIO, cast

import fsspec

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray
from wsi_ats.slides.storage import Fetch

# What a request costs in time, a store delivers about so many bytes meanwhile: nearer ranges are one.
_GAP = 32 << 10

# Of the index, read piece by piece, so many bytes at a time.
_BLOCK = 256 << 10


class RemoteFile:
    """A file behind a URL.

    Parameters
    ----------
    path
        Its URL.

    Raises
    ------
    SlideOpenError
        When there is no such file, or the server does not give it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._bytes_read = 0
        self._closed = False
        try:
            self._files, self._name = fsspec.core.url_to_fs(path)
            self.size = int(self._files.info(self._name)["size"])
        except FileNotFoundError as error:
            raise SlideOpenError(path, "no such file; check the URL in the manifest") from error
        except (OSError, ValueError, ImportError) as error:
            raise SlideOpenError(path, f"cannot be opened: {error}") from error

    @property
    def bytes_read(self) -> int:
        """See :class:`wsi_ats.slides.storage.Storage`."""
        return self._bytes_read

    def fetch(self, offsets: IntArray, sizes: IntArray) -> Fetch:
        """See :meth:`wsi_ats.slides.storage.Storage.fetch`."""
        if self._closed:
            raise SlideReadError(self.path, "the slide is closed; open it again to read")
        starts = offsets.tolist()
        ends = (offsets + sizes).tolist()
        try:
            parts = self._files.cat_ranges([self._name] * len(starts), starts, ends, max_gap=_GAP)
        except OSError as error:
            raise SlideReadError(self.path, f"cannot be read: {error}") from error
        self._bytes_read += sum(map(len, parts))

        def part(i: int) -> bytes:
            return cast(bytes, parts[i])

        return part

    def open(self) -> BinaryIO:
        """See :meth:`wsi_ats.slides.storage.Storage.open`."""
        return cast(BinaryIO, self._files.open(self._name, block_size=_BLOCK))

    def close(self) -> None:
        """See :meth:`wsi_ats.slides.storage.Storage.close`."""
        self._closed = True
