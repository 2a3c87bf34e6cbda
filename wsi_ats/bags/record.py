"""A bag: the features of all tiles of a slide, of which any rows can be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import FeatureError
from wsi_ats.geometry import IntArray

Features = npt.NDArray[np.float32]
"""Features of tiles, shape (N, D)."""


class Rows(Protocol):
    """The stored rows of a bag, in one kind of file.

    They have a path and no open file, so they can be sent to other processes.
    """

    @property
    def count(self) -> int:
        """Number of rows."""

    @property
    def width(self) -> int:
        """Values in a row."""

    @property
    def dtype(self) -> str:
        """Type of a value in NumPy's notation, for example ``<f4``."""

    def read(self, rows: IntArray) -> npt.NDArray[Any]:
        """Read rows that are sorted and unique; several threads may read at once.

        Parameters
        ----------
        rows
            Numbers of rows, sorted and unique, shape (n,).

        Returns
        -------
        ndarray of any floating type, shape (n, width)
            The values.

        Raises
        ------
        FeatureError
            When the file cannot be read or has changed.
        """


@dataclass(frozen=True, eq=False)
class Bag:
    """The features of all tiles of a slide.

    Parameters
    ----------
    path
        The file of features.
    corners
        Top-left corner of each tile, level-0 pixels (x, y), int64, shape (N, 2); tiles may overlap.
    side
        Side of a tile in level-0 pixels; may be fractional.
    stored
        The rows in the file.
    encoder
        Name of the encoder, as :func:`wsi_ats.bags.encoders.encoder_name` gives it; empty if unknown.
    pixels
        Side of a tile in pixels of the encoder's input, if the file is one of ours.
    digest
        Fingerprint of the encoder's weights, if the file is one of ours.

    Raises
    ------
    FeatureError
        When corners and rows differ in number, or the side is no positive number.

    Examples
    --------
    >>> import tempfile
    >>> from wsi_ats.bags.opening import open_bag
    >>> from wsi_ats.bags.writing import BagWriter
    >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
    >>> with BagWriter(path, name="slide", size=(1000, 800), mpp=0.5, side=256, width=3) as writer:
    ...     writer.append(np.array([[0, 0], [256, 0]]), np.arange(6).reshape(2, 3))
    >>> open_bag(path, mpp=0.5).read(np.array([1, 0, 1])).tolist()
    [[3.0, 4.0, 5.0], [0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """

    path: Path
    corners: IntArray
    side: float
    stored: Rows
    encoder: str = ""
    pixels: int | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        if self.corners.ndim != 2 or self.corners.shape[1] != 2 or self.corners.dtype != np.int64:
            raise FeatureError(
                str(self.path),
                f"expected coordinates as int64 (N, 2), not {self.corners.dtype} {self.corners.shape}",
            )
        if len(self.corners) != self.stored.count:
            raise FeatureError(
                str(self.path),
                f"has {self.stored.count} rows of features for {len(self.corners)} coordinates; extract the "
                "features of this slide again",
            )
        if not 0 < self.side < float("inf"):
            raise FeatureError(str(self.path), f"a tile needs a side > 0 level-0 pixels, not {self.side}")

    @property
    def width(self) -> int:
        """Features of a tile."""
        return self.stored.width

    @property
    def is_plain(self) -> bool:
        """True if single rows can be read without decoding others."""
        return isinstance(self.stored, PlainRows)

    def read(self, rows: IntArray) -> Features:
        """Read the features of tiles; only the needed parts of the file are read.

        Parameters
        ----------
        rows
            Numbers of tiles in any order, shape (n,); duplicates are allowed.

        Returns
        -------
        ndarray of float32, shape (n, width)
            Features in the order of ``rows``.

        Raises
        ------
        FeatureError
            When a row does not exist, cannot be read, or has values that are NaN or infinite.
        """
        wanted, places = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if wanted.size and not 0 <= wanted[0] <= wanted[-1] < len(self.corners):
            raise FeatureError(
                str(self.path), f"has {len(self.corners)} tiles, but tile {wanted[-1]} was asked for"
            )
        # A float64 beyond the range of float32 becomes infinite, and is refused below.
        with np.errstate(over="ignore"):
            features = self.stored.read(wanted).astype(np.float32, copy=False)
        finite = np.asarray(np.isfinite(features).all(axis=1))
        if not finite.all():
            bad = int(wanted[np.argmin(finite)])
            x, y = self.corners[bad].tolist()
            raise FeatureError(
                str(self.path),
                f"tile {bad} at level-0 pixel ({x}, {y}) has features that are NaN or infinite, and so have "
                f"{len(finite) - int(finite.sum()) - 1} others of those read; extract the features again",
            )
        return features[places]


@dataclass(frozen=True)
class Stamp:
    """The size and time of a file, by which a change is noticed.

    Parameters
    ----------
    size
        Bytes.
    modified
        Time of the last change in nanoseconds.
    """

    size: int
    modified: int

    @classmethod
    def of(cls, file: Path | int) -> Stamp:
        """Return the stamp of a path or an open file."""
        found = os.stat(file)  # noqa: PTH116  (an open file has no Path)
        return cls(found.st_size, found.st_mtime_ns)

    def check(self, path: Path, file: Path | int) -> None:
        """Compare with a path or an open file.

        Parameters
        ----------
        path
            The file's name in the error.
        file
            The path, or the number of an open file.

        Raises
        ------
        FeatureError
            When the file has changed.
        """
        if Stamp.of(file) != self:
            raise FeatureError(str(path), "changed while it was in use; run the command again")


@dataclass(frozen=True, eq=False)
class PlainRows:
    """Rows that lie uncompressed in a file, each in one piece; they are read without a library.

    Most files are like this. It is faster than HDF5, which looks for each chunk in an index and reads for one
    thread at a time.

    Parameters
    ----------
    path
        The file.
    dtype
        Type of a value in NumPy's notation, for example ``<f4``.
    width
        Values in a row.
    offsets
        First byte of each row in the file, shape (N,).
    stamp
        The file's stamp when the offsets were found.
    """

    path: Path
    dtype: str
    width: int
    offsets: IntArray
    stamp: Stamp

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.offsets)

    def read(self, rows: IntArray) -> npt.NDArray[Any]:
        """See :class:`Rows`."""
        dtype = np.dtype(self.dtype)
        content = np.empty((len(rows), self.width * dtype.itemsize), np.uint8)
        if not len(rows):
            return content.view(dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                self.stamp.check(self.path, file.fileno())
                for row, offset in zip(content, self.offsets[rows].tolist(), strict=True):
                    if os.preadv(file.fileno(), [row.data], offset) != row.nbytes:
                        raise FeatureError(str(self.path), "is truncated; copy it again")
        except OSError as error:
            raise FeatureError(str(self.path), f"cannot be read: {error.strerror or error}") from error
        return content.view(dtype)
