"""Ranges of bytes of a file on a disk or in a store, for a reader that decodes tiles by itself.

A batch of tiles is announced before it is read. A disk then fetches all of it at once instead of tile by
tile, and a store gets few large requests instead of many small ones.
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

# Neighbours this close on the disk are announced as one: the gap costs less than another call.
_GAP = 4096


class Storage(Protocol):
    """A file that can be read at any place, by several threads.

    Attributes
    ----------
    path : str
        Its name in errors.
    size : int
        Bytes.
    """

    path: str
    size: int

    @property
    def bytes_read(self) -> int:
        """Bytes requested from the disk or the store so far, those between joined ranges included."""
        ...

    def fetch(self, offsets: IntArray, sizes: IntArray) -> Fetch:
        """Announce ranges of bytes.

        Parameters
        ----------
        offsets, sizes
            Shape (N,): first byte of each range, and its bytes.

        Returns
        -------
        function
            Returns the bytes of the i-th range; may be called from several threads.

        Raises
        ------
        SlideReadError
            Here or when the function is called: for a range beyond the end of the file, or one that
            cannot be read.
        """
        ...

    def open(self) -> BinaryIO:
        """Open the file for a library that seeks and reads by itself; for small, scattered reads."""
        ...

    def close(self) -> None:
        """Release the file; reads that are under way end normally."""
        ...


def is_remote(path: str) -> bool:
    """Return whether a path is a URL, which only :mod:`wsi_ats.slides.remote` can read.

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
        Of an image, or of the group that bioformats2raw writes around one or several. It need not exist.
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
        When there is no such file, or its store refuses it.
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
                raise SlideReadError(
                    self.path,
                    f"{counts[i]} bytes at {starts[i]} are beyond its end",
                )
            return data

        return read

    def open(self) -> BinaryIO:
        """See :meth:`Storage.open`; the very file that tiles are read from, even if it has been renamed."""
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

    Closed any earlier, its number could become another file's while a thread still reads with it.
    """

    def __init__(self, path: str) -> None:
        self.number = -1
        # Not blocking: to open a pipe in place of a file would wait forever.
        flags = (getattr(os, name, 0) for name in ("O_CLOEXEC", "O_BINARY", "O_NONBLOCK"))
        self.number = os.open(path, sum(flags, os.O_RDONLY))
        self._advises = hasattr(os, "posix_fadvise")
        if self._advises:
            # Otherwise the kernel reads ahead after each tile: seven times the wanted bytes.
            os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def announce(self, starts: list[int], counts: list[int]) -> None:
        """Make the kernel fetch ranges, all at once."""
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
