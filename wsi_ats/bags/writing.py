"""Writing of a bag as an HDF5 file that CLAM, TRIDENT and torchmil read, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
import numpy.typing as npt

from wsi_ats.bags.record import Bag
from wsi_ats.errors import ArtifactError, FeatureError, SettingsError
from wsi_ats.files import atomic
from wsi_ats.geometry import Grid, IntArray

# Bytes of a chunk. Rows are not compressed, so a reader finds each row by itself; larger chunks only shorten
# the index.
_CHUNK = 1 << 16

_BATCH = 1024  # rows in memory while a bag is copied


Precision = Literal["float32", "float16"]
"""Types of stored features."""


class _Disk(FileIO):
    """A file that keeps its first error to itself: HDF5 ends the process if it cannot write, or crashes."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of some data, unless the disk is full."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Change the size, unless the disk is full."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


class BagWriter:
    """A file of features that grows by batches and appears when it is complete.

    It is a context manager. After an error, or if the process is killed, there is no file under its name.

    Attributes of both tools describe tiles in level-0 pixels, so CLAM (``patch_size`` in pixels of
    ``patch_level`` 0) and TRIDENT (``patch_size_level0``) find the same tiles. Our own attributes add what
    these cannot hold: ``side`` is not rounded, and ``tile_size`` pixels of ``tile_mpp`` micrometres are what
    the encoder saw.

    Parameters
    ----------
    path
        The file; ``<slide id>.h5``, by which other tools find the slide.
    name
        The slide's id.
    size
        Width and height of the slide in level-0 pixels.
    mpp
        Micrometres per level-0 pixel.
    side
        Side of a tile in level-0 pixels.
    width
        Features of a tile.
    overlap
        Level-0 pixels that neighbouring tiles share.
    tile_size
        Side of a tile in pixels of the encoder's input; unknown by default.
    encoder
        Name of the encoder.
    digest
        Fingerprint of the encoder.
    precision
        Number format in which the encoder computed, for example ``bfloat16``.
    dtype
        Type of the stored features. ``float16`` halves the file, and rounds to three digits.

    Raises
    ------
    SettingsError
        For a size, side or width that cannot be.
    ArtifactError
        When the file cannot be written.

    Examples
    --------
    See :class:`wsi_ats.bags.record.Bag`.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        size: tuple[int, int],
        mpp: float,
        side: float,
        width: int,
        overlap: float = 0,
        tile_size: int | None = None,
        encoder: str = "",
        digest: str = "",
        precision: str = "",
        dtype: Precision = "float32",
    ) -> None:
        if not (min(*size, width) >= 1 and side >= 1 and mpp > 0 and 0 <= overlap < side):
            raise SettingsError(
                f"a bag needs a size, width and side >= 1, an mpp > 0 and an overlap < side, not size "
                f"{size}, width {width}, side {side}, mpp {mpp}, overlap {overlap}"
            )
        self.path = path
        self._width, self._dtype = width, np.dtype(dtype)
        ours = {"encoder": encoder, "encoder_digest": digest, "precision": precision}
        ours["wsi_ats_version"] = version("wsi-ats")
        self._attributes = _attributes(
            path, name=name, size=size, mpp=mpp, side=side, overlap=overlap, tile_size=tile_size
        )
        self._encoder = ours
        self._stack = ExitStack()
        self._file: Any = None
        self._disk: Any = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic(self.path))
            self._disk = stack.enter_context(_Disk(temporary, "w+"))
            stack.callback(self._check)  # after the file is closed, which writes the rest
            self._file = stack.enter_context(h5py.File(self._disk, "w"))
            rows = max(1, _CHUNK // (self._width * self._dtype.itemsize))
            for name, dtype, width in (("features", self._dtype, self._width), ("coords", np.int64, 2)):
                self._file.create_dataset(
                    name, (0, width), dtype, maxshape=(None, width), chunks=(rows, width)
                )
            self._file["coords"].attrs.update(self._attributes)
            self._file["features"].attrs.update({"name": self._attributes["name"], **self._encoder})
            self._stack = stack.pop_all()
        return self

    def append(self, corners: IntArray, features: npt.NDArray[Any]) -> None:
        """Append tiles.

        Parameters
        ----------
        corners
            Top-left corner of each tile, level-0 pixels (x, y), whole numbers, shape (n, 2).
        features
            Their features, shape (n, width).

        Raises
        ------
        SettingsError
            When the shapes do not fit.
        FeatureError
            When a feature is NaN or infinite, or too large for float16.
        ArtifactError
            When the file cannot be written, for example on a full disk.
        """
        corners, count = np.asarray(corners), len(features)
        if (
            corners.shape != (count, 2)
            or features.shape != (count, self._width)
            or corners.dtype.kind not in "iu"
        ):
            raise SettingsError(
                f"expected whole-numbered corners (n, 2) and features (n, {self._width}), not "
                f"{corners.dtype} {corners.shape} and {features.shape}"
            )
        with np.errstate(over="ignore"):
            values = features.astype(self._dtype, copy=False)
        if not np.isfinite(values).all():
            bad = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise FeatureError(
                str(self.path),
                f"the tile at level-0 pixel {tuple(corners[bad].tolist())} has features that are NaN, "
                f"infinite or too large for {self._dtype}",
            )
        for name, batch in (("features", values), ("coords", corners)):
            stored = self._file[name]
            stored.resize(len(stored) + count, axis=0)
            if count:
                stored[-count:] = batch
        self._check()

    def _check(self) -> None:
        _check(self._disk, self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _attributes(
    path: Path,
    *,
    name: str,
    size: tuple[int, int],
    mpp: float,
    side: float,
    overlap: float,
    tile_size: int | None,
) -> dict[str, Any]:
    """Return the attributes of coordinates that :class:`BagWriter` describes."""
    pixels, magnification = round(side), round(10 / mpp)
    return {
        "name": name,
        "savetodir": str(path.parent),
        "save_path": str(path.parent),
        "patch_size": pixels,
        "patch_level": 0,
        "downsample": (1.0, 1.0),
        "level_dim": size,
        "downsampled_level_dim": size,
        "patch_size_level0": pixels,
        "level0_magnification": magnification,
        "target_magnification": magnification,
        "overlap": round(overlap),
        "level0_width": size[0],
        "level0_height": size[1],
        "side": float(side),
        "mpp": float(mpp),
        **({} if tile_size is None else {"tile_size": tile_size, "tile_mpp": side * mpp / tile_size}),
    }


def write_coordinates(path: Path, corners: IntArray, *, name: str, grid: Grid, mpp: float) -> None:
    """Write the places of tiles without features, as CLAM and TRIDENT keep them in their folders ``patches``.

    Parameters
    ----------
    path
        The file.
    corners
        Top-left corner of each tile, level-0 pixels (x, y), shape (n, 2).
    name
        The slide's id.
    grid
        The slide's grid, which has the size of a tile.
    mpp
        Micrometres per level-0 pixel.

    Raises
    ------
    ArtifactError
        When the file cannot be written.
    """
    attributes = _attributes(
        path,
        name=name,
        size=(grid.width, grid.height),
        mpp=mpp,
        side=grid.cell,
        overlap=grid.cell - grid.pitch,
        tile_size=grid.tile_size,
    )
    with _new_file(path) as file:
        file.create_dataset("coords", data=np.asarray(corners, np.int64)).attrs.update(attributes)


def write_micrometres(
    path: Path,
    corners: npt.NDArray[np.float64],
    features: npt.NDArray[np.float32],
    *,
    extractor: str,
    side: float,
    tile_size: int,
) -> None:
    """Write features as STAMP does, with coordinates in micrometres.

    Parameters
    ----------
    path
        The file.
    corners
        Top-left corner of each tile, micrometres (x, y) from the slide's corner, shape (n, 2).
    features
        Features of the tiles, shape (n, D).
    extractor
        Name of the encoder.
    side
        Side of a tile in micrometres.
    tile_size
        Side of a tile in pixels.

    Raises
    ------
    ArtifactError
        When the file cannot be written.
    """
    with _new_file(path) as file:
        file["coords"], file["feats"] = corners, features
        file.attrs.update(
            {
                "extractor": extractor,
                "unit": "um",
                "tile_size_um": side,
                "tile_size_px": tile_size,
                "feat_type": "tile",
            }
        )


@contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    with atomic(path) as temporary, _Disk(temporary, "w+") as disk:
        with h5py.File(disk, "w") as file:
            yield file
        _check(disk, path)


def _check(disk: _Disk, path: Path) -> None:
    if disk.error is not None:
        raise ArtifactError(
            f"{path} cannot be written: {disk.error.strerror}; check the disk's free space"
        ) from disk.error


def copy_bag(bag: Bag, path: Path, *, name: str, size: tuple[int, int], mpp: float) -> None:
    """Write the features of any tool as an uncompressed file of this library.

    Reading random rows of a compressed file takes a thousand times longer than of the copy, because each row
    needs a whole chunk to be decoded. Features of float16 stay so; others are stored as float32.

    Parameters
    ----------
    bag
        The features.
    path
        The new file; ``<slide id>.h5``.
    name
        The slide's id.
    size
        Width and height of the slide in level-0 pixels.
    mpp
        Micrometres per level-0 pixel.

    Raises
    ------
    FeatureError
        When a row cannot be read, or is NaN or infinite.
    ArtifactError
        When the file cannot be written.

    Examples
    --------
    See :class:`wsi_ats.bags.record.Bag` for opening and reading.
    """
    with BagWriter(
        path,
        name=name,
        size=size,
        mpp=mpp,
        side=bag.side,
        width=bag.width,
        encoder=bag.encoder,
        dtype="float16" if np.dtype(bag.stored.dtype) == np.float16 else "float32",
    ) as writer:
        for start in range(0, len(bag.corners), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(bag.corners)))
            writer.append(bag.corners[rows], bag.read(rows))
