"""Features of a frozen backbone in place of pixels: each tile is read and encoded once, then stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from wsi_ats.errors import ModelError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.batches import Pending, Reader, Wanted
from wsi_ats.models.encoding import TileBatches
from wsi_ats.models.features import FeatureFile, FeatureFolder, Features
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.slides.base import Pixels, Slide, SlideRef

T = TypeVar("T")


class FrozenFeatures(Reader):
    """Reader of tile features from disk, which encodes tiles whose features are not stored yet.

    Tiles are encoded in batches of one size, so that a feature depends neither on other tiles nor on
    features left by an interrupted run.

    Parameters
    ----------
    inner
        Reader of tiles.
    encoder
        The encoder, with a frozen backbone.
    folder
        Folder of the features; several processes and runs may share it. If two of them need a tile at the
        same time, both read it.
    device
        Device of the encoder.
    precision
        See :func:`wsi_ats.nn.precision.resolve`.
    """

    def __init__(
        self, inner: Reader, encoder: TileEncoder, folder: Path, *, device: torch.device, precision: str
    ) -> None:
        self._inner = inner
        self._folder = FeatureFolder(folder, fingerprint(encoder.network), encoder.width)
        self._files: dict[tuple[str, Grid], FeatureFile] = {}
        self._batches = TileBatches(encoder.raw, device=device, precision=precision)
        self._read = 0

    def read(self, wanted: Sequence[Wanted]) -> Sequence[Pending[Pixels | Features]]:
        """See :meth:`wsi_ats.models.batches.Reader.read`; the results are features, shape (N, D)."""
        files = [self._file(ref, grid) for ref, grid, _ in wanted]
        unknown = [cells[~file.load(cells)[1]] for file, (_, _, cells) in zip(files, wanted, strict=True)]
        missing = [
            (ref, grid, cells) for (ref, grid, _), cells in zip(wanted, unknown, strict=True) if len(cells)
        ]
        reads = iter(self._inner.read(missing))
        return [
            _Awaited(self, file, cells, new, next(reads) if len(new) else None)
            for file, (_, _, cells), new in zip(files, wanted, unknown, strict=True)
        ]

    def run(self, jobs: Sequence[tuple[SlideRef, Callable[[Slide], T]]]) -> Any:
        """See :meth:`wsi_ats.models.batches.Reader.run`; the inner reader runs the jobs."""
        return self._inner.run(jobs)

    def take_count(self) -> int:
        """Return the number of tiles that were read since the last call."""
        count, self._read = self._read, 0
        return count

    def finish(self, file: FeatureFile, cells: IntArray, new: IntArray, tiles: Pixels) -> Features:
        """Encode the ``tiles`` of ``new`` cells, store them in a ``file``; return features of ``cells``."""
        self._read += len(new)
        encoded = self._batches.encode(tiles).result()
        file.save(new, encoded.float().cpu().numpy())
        return self.known(file, cells)

    def known(self, file: FeatureFile, cells: IntArray) -> Features:
        """Return the stored features of ``cells`` from a ``file``."""
        features, there = file.load(cells)
        if not there.all():
            raise ModelError(f"{file.path} lost features while it was in use; run the same command again")
        return features

    def _file(self, ref: SlideRef, grid: Grid) -> FeatureFile:
        key = (ref.id, grid)
        if key not in self._files:
            self._files[key] = self._folder.file(ref, grid)
        return self._files[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches.close()


@dataclass(frozen=True)
class _Awaited:
    """Features that wait for tiles still being read."""

    source: FrozenFeatures
    file: FeatureFile
    cells: IntArray
    new: IntArray
    tiles: Pending[Any] | None

    def result(self) -> Features:
        """Wait for the tiles, and encode them."""
        if self.tiles is None:
            return self.source.known(self.file, self.cells)
        return self.source.finish(self.file, self.cells, self.new, self.tiles.result())


def fingerprint(network: torch.nn.Module) -> str:
    """Return a digest of a network's weights and statistics, on which its outputs depend."""
    return _digest(chain(network.named_parameters(), network.named_buffers()))


def published_fingerprint(encoder: TileEncoder) -> str:
    """Return the :func:`fingerprint` that an encoder had before its constants were measured.

    Files of features name this one: their features are those of the backbone, before standardisation.
    """
    before = {"centre": torch.zeros_like(encoder.centre), "scale": torch.ones_like(encoder.scale)}
    named = chain(encoder.named_parameters(), encoder.named_buffers())
    return _digest((name, before.get(name, value)) for name, value in named)


def _digest(named: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
