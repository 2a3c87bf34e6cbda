"""Byte ranges of a file on a disk or in a store, for readers that decode tiles themselves.

A batch of tiles is announced before it is read. A disk then fetches the whole batch at once instead of tile
by tile, and a store gets few large requests instead of many small ones.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray

Fetch = Callable[[int], bytes | memoryview]

# Ranges at most this far apart on the disk are announced as one: the gap costs less than another call.
_GAP = 4096


class Storage(Protocol):
    """A file that can be read at any position, by several threads.

    Attributes
    ----------
    path : str
        Its name in errors.
    size : int
        Its size in bytes.
    """

    path: str
    size: int

    @property
    def bytes_read(self) -> int:
        """Bytes requested from the disk or the store so far, including the gaps between joined ranges."""
        ...

    def fetch(self, offsets: IntArray, sizes: IntArray) -> Fetch:
        """Announce ranges of bytes.

        Parameters
        ----------
        offsets, sizes
            First byte of each range, and its number of bytes, shape (N,).

        Returns
        -------
        function
            Returns the bytes of the i-th range; may be called from several threads.

        Raises
        ------
        SlideReadError
            Here, or when the function is called: for a range that is beyond the end of the file or cannot be
            read.
        """
        ...

    def open(self) -> BinaryIO:
        """Open the file for a library that seeks and reads itself; for small, scattered reads."""
        ...

    def close(self) -> None:
        """Release the file; reads in progress end normally."""
        ...


def is_remote(path: str) -> bool:
    """Return whether a path is a URL, which is read by :mod:`wsi_ats.slides.remote`.

    Examples
    --------
    >>> is_remote("s3://bucket/a.svs"), is_remote("scans/a.svs"), is_remote("C:/scans/a.svs")
    (True, False, False)
    """
    return "://" in path


def open_storage(path: str) -> Storage:
    """Open a file on this machine, or in a store if the path is a URL.

    Raises
    ------
    SlideOpenError
        When there is no such file, or it cannot be opened.
    """
    if is_remote(path):
        from wsi_ats.slides.remote import RemoteFile

        return RemoteFile(path)
    return LocalFile(path)


def is_zarr(path: str | Path) -> bool:
    """Return whether a path or URL is an OME-Zarr image, by its name or, on this machine, by its contents.

    Parameters
    ----------
    path
        Path of an image, or of the group that bioformats2raw writes around images. It may not exist.
    """
    if re.search(r"\.zarr(/\d+)?/*$", str(path).lower()):
        return True
    if is_remote(str(path)):
        return False
    for name in ("zarr.json", ".zattrs"):
        try:
            content = Path(path, name).read_bytes()
        except OSError:
            continue
        if b'"multiscales"' in content or b'"bioformats2raw.layout"' in content:
            return True
    return False


def file_size(path: str) -> int:
    """Return the size in bytes of a file on this machine or behind a URL.

    Raises
    ------
    SlideOpenError
        When there is no such file, or its store refuses access.
    """
    if is_remote(path):
        return open_storage(path).size
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise SlideOpenError(path, f"cannot be opened: {error.strerror}") from error


class LocalFile:
    """A file on this machine.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    SlideOpenError
        When it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._bytes_read = 0
        try:
            self._descriptor: _Descriptor | None = _Descriptor(path)
            status = os.fstat(self._descriptor.number)
        except FileNotFoundError as error:
            raise SlideOpenError(path, "no such file; check the path in the manifest") from error
        except OSError as error:
            raise SlideOpenError(path, f"cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise SlideOpenError(path, "it is a folder or a device, not a file")
        self.size = status.st_size

    @property
    def bytes_read(self) -> int:
        """See :class:`Storage`."""
        return self._bytes_read

    def fetch(self, offsets: IntArray, sizes: IntArray) -> Fetch:
        """See :meth:`Storage.fetch`."""
        descriptor = self._descriptor
        if descriptor is None:
            raise SlideReadError(self.path, "the slide is closed; open it again to read")
        starts, counts = offsets.tolist(), sizes.tolist()
        self._bytes_read += sum(counts)
        descriptor.announce(starts, counts)

        def read(i: int) -> bytes:
            try:
                data = os.pread(descriptor.number, counts[i], starts[i])
            except OSError as error:
                raise SlideReadError(
                    self.path, f"{counts[i]} bytes at {starts[i]} cannot be read: {error.strerror}"
                ) from error
            if len(data) != counts[i]:
                raise SlideReadError(self.path, f"{counts[i]} bytes at {starts[i]} are beyond its end")
            return data

        return read

    def open(self) -> BinaryIO:
        """See :meth:`Storage.open`; opens the same file that tiles are read from, even if it was renamed."""
        if self._descriptor is None:
            raise SlideReadError(self.path, "the slide is closed; open it again to read")
        try:
            file = os.fdopen(os.dup(self._descriptor.number), "rb")
            file.seek(0)
        except OSError as error:
            raise SlideOpenError(self.path, f"cannot be read: {error.strerror}") from error
        return file

    def close(self) -> None:
        """See :meth:`Storage.close`."""
        self._descriptor = None


class _Descriptor:
    """An open file that is closed when no reference to it is left.

    If it were closed earlier, its number could be reused for another file while a thread still reads from it.
    """

    def __init__(self, path: str) -> None:
        self.number = -1
        # Non-blocking, because opening a pipe instead of a file would wait forever.
        flags = (getattr(os, name, 0) for name in ("O_CLOEXEC", "O_BINARY", "O_NONBLOCK"))
        self.number = os.open(path, sum(flags, os.O_RDONLY))
        self._advises = hasattr(os, "posix_fadvise")
        if self._advises:
            # Otherwise the kernel reads ahead after each tile: seven times as many bytes as needed.
            os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def announce(self, starts: list[int], counts: list[int]) -> None:
        """Ask the kernel to fetch all ranges at once."""
        if not self._advises or not starts:
            return
        first = end = -1
        for start, count in sorted(zip(starts, counts, strict=True)):
            if first >= 0 and start - end <= _GAP:
                end = max(end, start + count)
                continue
            if first >= 0:
                os.posix_fadvise(self.number, first, end - first, os.POSIX_FADV_WILLNEED)
            first, end = start, start + count
        os.posix_fadvise(self.number, first, end - first, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
