"""Features of tiles, kept on disk so that a frozen backbone encodes each tile once.

Several processes may read and write the same file, also over a network: each locks it, so that none sees half
a row. The operating system releases the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import ArtifactError
from wsi_ats.files import digest_of
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import slide_digest

Features = npt.NDArray[np.float32]
"""Features of tiles from a backbone, shape (N, D)."""

# Ends a complete row: a killed process leaves rows without it.
_COMPLETE = np.float32(1)


@dataclass(frozen=True)
class FeatureFile:
    """Features of one slide, in a file that grows with the tiles that are read.

    The file has a row for every cell of the grid, but file systems store only the rows that were written.

    Parameters
    ----------
    path
        Path of the file, which need not exist yet.
    cells
        Number of cells of the grid.
    width
        Number of features of a tile.
    """

    path: Path
    cells: int
    width: int

    def load(self, cells: IntArray) -> tuple[Features, npt.NDArray[np.bool_]]:
        """Load the known features of some cells.

        Parameters
        ----------
        cells
            Flat numbers on the grid, shape (N,).

        Returns
        -------
        float32, shape (N, width), and bool, shape (N,)
            The features, and whether each is known; rows of unknown features are arbitrary.

        Raises
        ------
        ArtifactError
            When the file is damaged or cannot be locked.
        """
        # An empty file is left by a writer that was killed before it set the size.
        if not self.path.exists() or not self.path.stat().st_size:
            return np.zeros((len(cells), self.width), np.float32), np.zeros(len(cells), dtype=np.bool_)
        try:
            with self.path.open("rb") as file:
                _lock(file.fileno(), fcntl.LOCK_SH, self.path)
                # Copied here: the lock is held for as long as the file is mapped.
                rows = np.memmap(file, np.float32, "r", shape=(self.cells, self.width + 1))[cells]
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{self.path} is damaged: {error}; delete it, and run the same command to compute it again"
            ) from error
        return rows[:, :-1], rows[:, -1] == _COMPLETE

    def save(self, cells: IntArray, features: Features) -> None:
        """Store the ``features``, shape (N, width), of some ``cells``, shape (N,).

        Raises
        ------
        ArtifactError
            When they cannot be written, for example on a full disk, or the file cannot be locked.
        """
        rows = np.concatenate([features, np.full((len(features), 1), _COMPLETE)], axis=1, dtype=np.float32)
        size = rows.shape[1] * rows.itemsize
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                _lock(file, fcntl.LOCK_EX, self.path)
                os.ftruncate(file, self.cells * size)
                for cell, row in zip(cells.tolist(), rows, strict=True):
                    _write(file, row.tobytes(), cell * size)
            finally:
                os.close(file)
        except OSError as error:
            raise ArtifactError(
                f"{self.path} cannot be written: {error.strerror or error}; make room on the disk, and run "
                "the same command to continue"
            ) from error


def _lock(file: int, kind: int, path: Path) -> None:
    """Wait for the lock of an open file; closing the file releases it."""
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be locked: {error.strerror or error}; choose an --out on a file system with locks"
        ) from error


def _write(file: int, content: bytes, place: int) -> None:
    """Write all content: a nearly full disk accepts a part without an error; only the next write fails."""
    while content:
        count = os.pwrite(file, content, place)
        content, place = content[count:], place + count


@dataclass(frozen=True)
class FeatureFolder:
    """Folder of features, whose file names depend on slide, grid and encoder.

    Parameters
    ----------
    folder
        Path of the folder.
    encoder
        Fingerprint of the encoder, so that features of another encoder are never used.
    width
        Number of features of a tile.
    """

    folder: Path
    encoder: str
    width: int

    def file(self, ref: SlideRef, grid: Grid) -> FeatureFile:
        """Return the file of a slide on a grid; slow, because its name depends on the slide's content."""
        pixels = (slide_digest(ref.path), ref.colour, ref.channel)
        digest = digest_of(self.encoder, str(self.width), *pixels, repr(grid))
        return FeatureFile(self.folder / f"{ref.id}-{digest}.f32", grid.size, self.width)
