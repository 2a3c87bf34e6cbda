"""Stores of Zarr: opening, reading and writing, and the errors of Zarr."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync  # private, but stores have no other way to be used without asyncio
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from wsi_ats.slides.answers import raised
from wsi_ats.slides.storage import is_remote

_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


def zarr_errors() -> tuple[type[Exception], ...]:
    """Return the errors that Zarr raises for damaged data, and its stores for missing files."""
    # All errors that damaged metadata and chunks were seen to raise, in Zarr 3.1 and 3.4. fsspec raises
    # ImportError if the package for a kind of URL is missing.
    return (
        *(EOFError, TypeError, LookupError, AttributeError, ArithmeticError),
        *(RuntimeError, MemoryError, ExceptionGroup, ImportError),
        *raised(),
    )


def open_store(path: str, *, read_only: bool) -> Store:
    """Open a folder, or a URL through fsspec, without reading its contents."""
    if is_remote(path):
        return FsspecStore.from_url(path, read_only=read_only)
    return LocalStore(Path(path), read_only=read_only)


def text_of(error: Exception) -> str:
    """Return the text of an error in one line, with its type if the text alone is unclear."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(f"{error}".split())
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) or not text else text


def get_bytes(store: Store, key: str) -> bytes | None:
    """Read the value of a key; return ``None`` if there is none."""
    value = sync(store.get(key, default_buffer_prototype()))
    return None if value is None else value.to_bytes()


def set_bytes(store: Store, key: str, value: bytes) -> None:
    """Write the value of a key to a store."""
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(value)))


def list_keys(store: Store) -> list[str]:
    """List all keys of a store, sorted."""

    async def find() -> list[str]:
        return [key async for key in store.list()]

    names: list[str] = sync(find())
    return sorted(names)


class CheckedStore(WrapperStore[Store]):
    """A store in which missing bytes of chunks are errors; Zarr would fill them with a constant.

    The ends of files, where shards have their index, are cached, because Zarr requests them at each read.

    Parameters
    ----------
    store
        The store.
    complete
        Whether every chunk must exist.
    """

    def __init__(self, store: Store, *, complete: bool) -> None:
        super().__init__(store)
        self._complete = complete
        self._ends: dict[tuple[str, int], Buffer] = {}

    def _with_store(self, store: Store) -> CheckedStore:
        return type(self)(store, complete=self._complete)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read the value of a key, or a part of it, and check its length.

        Parameters
        ----------
        key, prototype, byte_range
            See :class:`zarr.abc.store.Store`.
        """
        end = (key, byte_range.suffix) if isinstance(byte_range, SuffixByteRequest) else None
        if end in self._ends:
            return self._ends[end]
        value = await self._store.get(key, prototype, byte_range)
        if key.endswith(_METADATA):
            return value
        if value is None:
            if self._complete:
                raise FileNotFoundError(f"{key} is missing")
            return None
        wanted = max(1, len(value))
        if isinstance(byte_range, RangeByteRequest):
            wanted = byte_range.end - byte_range.start
        elif isinstance(byte_range, SuffixByteRequest):
            wanted = byte_range.suffix
        if len(value) != wanted:  # a server without ranges sends more
            raise EOFError(f"{len(value)} bytes of {key} arrived, but {wanted} were requested")
        if end is not None:
            self._ends[end] = value
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of several keys, each as :meth:`get` does."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))
