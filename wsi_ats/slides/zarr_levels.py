"""Levels of a Zarr image as arrays: reading of parts, and the stored bytes of chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import ZarrFormat

from wsi_ats.geometry import IntArray
from wsi_ats.slides.base import Pixels

_TOO_MANY = 1 << 31  # pixels along a side; metadata with this many are damaged


@dataclass(frozen=True)
class LevelArray:
    """One level of a Zarr image.

    Parameters
    ----------
    array
        Its Zarr array.
    places
        Numbers of the axes y, x and c.
    chunk
        Width and height of a compressed chunk.
    index
        The sizes of the chunks in each shard, if known.
    """

    array: zarr.Array[Any]
    places: tuple[int, int, int]
    chunk: tuple[int, int]
    index: ShardIndex | None

    @classmethod
    def of(cls, store: Store, path: str, axes: tuple[str, ...], zarr_format: ZarrFormat) -> LevelArray:
        """Open the array of one level.

        Parameters
        ----------
        store
            The store.
        path
            Key of the array.
        axes
            Names of its axes.
        zarr_format
            2 or 3.

        Raises
        ------
        ValueError
            When it is not an RGB image of uint8. Errors of Zarr are not translated.
        """
        array = zarr.open_array(store, path=path, mode="r", zarr_format=zarr_format)
        y, x, c = (axes.index(name) for name in "yxc")
        shape = array.shape
        if array.dtype != np.uint8:
            raise ValueError(f"level {path} has type {array.dtype}, expected uint8: it is not an RGB image")
        if len(shape) != len(axes):
            raise ValueError(f"level {path} has {len(shape)} axes, expected {len(axes)} ({', '.join(axes)})")
        others = [length for i, length in enumerate(shape) if i not in (y, x, c)]
        if shape[c] != 3 or min(shape[y], shape[x]) < 1 or set(others) > {1}:
            sizes = dict(zip(axes, shape, strict=True))
            raise ValueError(
                f"level {path} has size {sizes}, expected three channels and length 1 on all axes but x and y"
            )
        if min(array.chunks) < 1 or max(shape) >= _TOO_MANY:
            raise ValueError(f"level {path} has an impossible size, {shape} in chunks of {array.chunks}")
        return cls(array, (y, x, c), (array.chunks[x], array.chunks[y]), ShardIndex.of(array, (y, x, c)))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.array.shape[self.places[1]], self.array.shape[self.places[0]]

    async def read(self, left: int, top: int, right: int, bottom: int) -> Pixels:
        """Read a part of the level.

        Parameters
        ----------
        left, top, right, bottom
            The part in pixels of the level; it must lie inside.

        Returns
        -------
        ndarray of uint8, shape (bottom - top, right - left, 3)
        """
        y, x, c = self.places
        selection: list[slice] = [slice(0, 1)] * self.array.ndim
        selection[y], selection[x], selection[c] = slice(top, bottom), slice(left, right), slice(0, 3)
        pixels = np.asarray(await self.array.async_array.getitem(tuple(selection)))
        others = [i for i in range(self.array.ndim) if i not in self.places]
        return pixels.transpose([*self.places, *others]).reshape(bottom - top, right - left, 3)


@dataclass(frozen=True)
class ShardIndex:
    """The stored sizes of the chunks in each shard, from the end of the shard; each shard's are read once.

    Parameters
    ----------
    array
        The level.
    places
        Numbers of the axes y, x and c.
    chunks
        Chunks in a shard, along each axis.
    """

    array: zarr.Array[Any]
    places: tuple[int, int, int]
    chunks: tuple[int, ...]
    _known: dict[tuple[int, int], IntArray] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, array: zarr.Array[Any], places: tuple[int, int, int]) -> ShardIndex | None:
        """Return the index if the shards have the usual form; otherwise ``None``.

        Parameters
        ----------
        array
            The level.
        places
            Numbers of the axes y, x and c.
        """
        if array.shards is None:
            return None
        codec = array.metadata.codecs[0]  # type: ignore[union-attr]  # arrays of Zarr 2 have no shards
        if not isinstance(codec, ShardingCodec):
            return None
        # A string in later releases of Zarr, a member of an enumeration in earlier ones.
        if getattr(codec.index_location, "value", codec.index_location) != "end":
            return None
        chunks = tuple(shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True))
        alone = all(
            array.shape[i] <= array.chunks[i] and chunks[i] == 1
            for i in range(array.ndim)
            if i not in places[:2]
        )
        plain = [type(each) for each in codec.index_codecs] == [BytesCodec, Crc32cCodec]
        return cls(array, places, chunks) if alone and plain else None

    async def bytes_of(self, wanted: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
        """Return the stored bytes of chunks, given by a mask of shape (rows, columns)."""
        rows, columns = self.chunks[self.places[0]], self.chunks[self.places[1]]
        total = 0
        for row in range(0, wanted.shape[0], rows):
            for column in range(0, wanted.shape[1], columns):
                inside = wanted[row : row + rows, column : column + columns]
                if inside.any():
                    sizes = await self._sizes(row // rows, column // columns)
                    total += int(sizes[: inside.shape[0], : inside.shape[1]][inside].sum())
        return total

    async def _sizes(self, row: int, column: int) -> IntArray:
        """Return the bytes of the chunks of one shard, shape (rows, columns)."""
        if (row, column) not in self._known:
            place = [0] * self.array.ndim
            place[self.places[0]], place[self.places[1]] = row, column
            key = f"{self.array.path}/{self.array.metadata.encode_chunk_key(tuple(place))}"
            count = math.prod(self.chunks)
            tail = await self.array.store.get(
                key, default_buffer_prototype(), SuffixByteRequest(16 * count + 4)
            )
            shape = (self.chunks[self.places[0]], self.chunks[self.places[1]])
            if self.places[0] > self.places[1]:
                shape = shape[::-1]
            sizes = np.zeros(shape, dtype=np.int64)
            if tail is not None:
                index = np.frombuffer(tail.to_bytes()[:-4], dtype="<u8").reshape(*shape, 2)
                sizes = np.where(index[..., 0] == 2**64 - 1, 0, index[..., 1]).astype(np.int64)
            self._known[row, column] = sizes if self.places[0] < self.places[1] else sizes.T
        return self._known[row, column]
