"""HDF5 files of features and coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from wsi_ats.bags.record import PlainRows, Rows, Stamp
from wsi_ats.errors import FeatureError
from wsi_ats.geometry import IntArray

# All errors that a changed byte was seen to raise; the last two by an impossible number of rows.
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)

FEATURES = ("features", "feats")
"""Names of the dataset of features: CLAM's and TRIDENT's, and STAMP's."""


@dataclass(frozen=True, eq=False)
class Stored:
    """The contents of an HDF5 file.

    Parameters
    ----------
    path
        The file.
    features
        The rows of features; ``None`` if the file has coordinates alone.
    coords
        The coordinates as stored, shape (N, 2); ``None`` if the file has none.
    attributes
        Attributes of the file, of the features and of the coordinates, by name; the last are preferred.
    pixels
        Side of the tiles' images in pixels, if the file has these, as those of the first versions of CLAM.
    """

    path: Path
    features: Rows | None
    coords: npt.NDArray[Any] | None
    attributes: dict[str, Any]
    pixels: int | None = None


def read_stored(path: Path) -> Stored:
    """Read the coordinates and attributes of a file, but no features.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FeatureError
        When the file is missing, damaged, or no HDF5 file with features or coordinates.
    """
    with _opened(path) as file:
        sets = {name: file[name] for name in (*FEATURES, "coords", "imgs") if name in file}
        features = next((sets[name] for name in FEATURES if name in sets), None)
        coords = sets["coords"][()] if "coords" in sets else None
        attributes: dict[str, Any] = {}
        for source in (file, features, sets.get("imgs"), sets.get("coords")):
            # A damaged name is bytes.
            attributes |= {str(name): value for name, value in (source.attrs.items() if source else ())}
        if features is None and coords is None:
            raise FeatureError(
                str(path),
                f"has neither features nor coordinates, but {', '.join(map(str, file)) or 'nothing'}; "
                "expected datasets named features or feats, and coords",
            )
        pixels = int(sets["imgs"].shape[1]) if "imgs" in sets else None
        rows = (
            _rows(path, features, None if coords is None else len(coords)) if features is not None else None
        )
    if coords is not None and (coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf"):
        raise FeatureError(
            str(path), f"expected coords of shape (N, 2), not {coords.shape} of {coords.dtype}"
        )
    return Stored(path, rows, coords, attributes, pixels)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        # Without a lock, because some network file systems have none; finished files do not change.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except _DAMAGE as error:
        raise FeatureError(
            str(path), f"cannot be read as HDF5: {error}; if it is there, copy it or extract it again"
        ) from error


def _rows(path: Path, features: Any, tiles: int | None) -> Rows:
    """Return the rows of a dataset: (N, D), or (1, N, D) as some scripts store it."""
    shape = features.shape
    if len(shape) == 1 and shape[0] == 0 and tiles == 0:
        shape = (0, 1)  # TRIDENT's file of a slide without tiles, if the encoder does not tell its width
    if features.dtype.kind != "f" or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise FeatureError(
            str(path),
            f"expected features of tiles as float16 or float32 (N, D), not {features.dtype} {features.shape}"
            "; features of slides or cases cannot be used",
        )
    count, width = shape[-2:]
    if width < 1:
        raise FeatureError(str(path), "has tiles without features; extract them again")
    stamp = Stamp.of(path)
    offsets = _offsets(features, count, width) if count else np.empty(0, np.int64)
    if offsets is None:
        return DecodedRows(path, features.name, features.dtype.str, count, width, stamp)
    return PlainRows(path, features.dtype.str, width, offsets, stamp)


def _offsets(features: Any, count: int, width: int) -> IntArray | None:
    """Return the first byte of each row, or ``None`` if rows are compressed or in pieces."""
    stored_otherwise = features.is_virtual or features.external or features.file.userblock_size
    if stored_otherwise or features.id.get_create_plist().get_nfilters():
        return None
    size = width * features.dtype.itemsize
    if features.chunks is None:
        start = features.id.get_offset()
        return None if start is None else start + size * np.arange(count)
    if features.chunks[-1] != width:
        return None
    chunks: list[tuple[int, int]] = []
    features.id.chunk_iter(lambda chunk: chunks.append((chunk.chunk_offset[-2], chunk.byte_offset)))
    if not chunks:
        return None
    firsts, starts = np.array(chunks, np.int64).T
    inner = np.arange(features.chunks[-2])
    # The last chunk has room for more rows than there are.
    rows = (firsts[:, None] + inner).ravel()
    offsets = np.full(max(count, int(rows.max()) + 1), -1, np.int64)
    offsets[rows] = (starts[:, None] + size * inner).ravel()
    offsets = offsets[:count]
    # A chunk that was never written has no place in the file.
    return None if (offsets < 0).any() else offsets


@dataclass(frozen=True)
class DecodedRows:
    """Rows of an HDF5 dataset that only the library can decode, for example compressed ones.

    Parameters
    ----------
    path
        The file.
    name
        Name of the dataset.
    dtype
        Type of a value in NumPy's notation, for example ``<f4``.
    count
        Number of rows.
    width
        Values in a row.
    stamp
        The file's stamp when it was opened.
    """

    path: Path
    name: str
    dtype: str
    count: int
    width: int
    stamp: Stamp

    def read(self, rows: IntArray) -> npt.NDArray[Any]:
        """See :class:`wsi_ats.bags.record.Rows`; each chunk is decoded once."""
        with _opened(self.path) as file:
            self.stamp.check(self.path, self.path)
            features = file[self.name]
            tall = features.chunks[-2] if features.chunks else self.count
            starts = np.flatnonzero(np.diff(rows // tall, prepend=-1))
            values = np.empty((len(rows), self.width), features.dtype)
            for start, stop in pairwise([*starts.tolist(), len(rows)]):
                first, last = int(rows[start]), int(rows[stop - 1])
                part = (0,) * (features.ndim - 2) + (slice(first, last + 1),)
                values[start:stop] = features[part][rows[start:stop] - first]
        return values
