"""Shards of a pyramid: each is made from the slide or the previous level, encoded, written and read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.geometry import Region
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.zarr_jpeg import JpegCodec
from wsi_ats.slides.zarr_store import get_bytes, set_bytes, text_of, zarr_errors

CODECS = ("zstd", "jpeg")
QUALITY = 90  # default of jpeg

_CHUNK = 256
_SHARD = 2048
_SMALLEST = 512  # levels are added until the longer side has at most this many pixels
_ONLY = "c/0/0/0"  # the key of the only shard of an array


@dataclass(frozen=True)
class PyramidForm:
    """The codec of a pyramid and its quality.

    Parameters
    ----------
    codec, quality
        As in :func:`wsi_ats.slides.pyramid.write_pyramid`.
    """

    codec: str
    quality: int | None

    @classmethod
    def of(cls, codec: str, quality: int | None) -> PyramidForm:
        """Check a codec and its quality, which is 90 by default for ``jpeg``.

        Raises
        ------
        SettingsError
            For an unknown codec, or a quality that it does not allow.
        """
        if codec not in CODECS:
            raise SettingsError(f"codec is {codec!r}, expected one of {', '.join(CODECS)}")
        if codec != "jpeg" and quality is not None:
            raise SettingsError(
                f"codec {codec} is lossless and has no quality; leave out the quality, or choose jpeg"
            )
        if codec == "jpeg":
            quality = QUALITY if quality is None else quality
            if not 1 <= quality <= 100:
                raise SettingsError(f"quality is {quality}, expected 1 to 100")
        return cls(codec, quality)

    def array(self, store: Store, size: tuple[int, int], **attributes: Any) -> zarr.Array[Any]:
        """Create an array at the root of a store.

        Parameters
        ----------
        store
            The store.
        size
            Width and height in pixels.
        **attributes
            Attributes of the array.
        """
        codecs: dict[str, Any] = {"compressors": ZstdCodec(level=3, checksum=True)}
        if self.quality is not None:
            codecs = {
                "filters": TransposeCodec(order=(1, 2, 0)),
                "serializer": JpegCodec(self.quality),
                "compressors": Crc32cCodec(),
            }
        return zarr.create_array(
            store,
            shape=(3, size[1], size[0]),
            dtype="uint8",
            chunks=(3, _CHUNK, _CHUNK),
            shards=(3, _SHARD, _SHARD),
            fill_value=255,
            dimension_names=("c", "y", "x"),
            config={"write_empty_chunks": True},
            attributes=attributes,
            **codecs,
        )

    def encode(self, pixels: Pixels) -> bytes:
        """Encode pixels, uint8 of shape (height, width, 3), as one shard."""
        memory = MemoryStore()
        array = self.array(memory, (pixels.shape[1], pixels.shape[0]))
        array[:] = pixels.transpose(2, 0, 1)
        shard = get_bytes(memory, _ONLY)
        assert shard is not None
        return shard

    def decode(self, shard: bytes, size: tuple[int, int]) -> Pixels:
        """Decode a shard to pixels, shape (height, width, 3); damage raises one of Zarr's errors.

        Parameters
        ----------
        shard
            Bytes from :meth:`encode`.
        size
            Width and height in pixels.
        """
        if not shard:
            raise EOFError("the shard is empty")
        memory = MemoryStore()
        array = self.array(memory, size)
        set_bytes(memory, _ONLY, shard)
        pixels: Pixels = np.asarray(array[:]).transpose(1, 2, 0)
        return pixels


@dataclass(frozen=True)
class _Shard:
    """One shard: its level, its position among the level's shards, and its size in pixels."""

    level: int
    row: int
    column: int
    size: tuple[int, int]

    @property
    def key(self) -> str:
        return f"{self.level}/c/0/{self.row}/{self.column}"


class ShardWriter:
    """The writer of the shards of one pyramid.

    Parameters
    ----------
    slide
        The source.
    store, target
        The pyramid's store, and its name in errors.
    region
        The part of the source's level 0 to write.
    form
        The pyramid's codec.
    sizes
        Width and height of each level.
    resumed
        Whether an earlier attempt may have written some shards.
    """

    def __init__(
        self,
        slide: Slide,
        store: Store,
        target: str,
        region: Region,
        form: PyramidForm,
        sizes: Sequence[tuple[int, int]],
        *,
        resumed: bool,
    ) -> None:
        self._slide = slide
        self._store = store
        self._target = target
        self._region = region
        self._form = form
        self._sizes = sizes
        self._resumed = resumed

    def write(self, threads: int) -> tuple[int, int]:
        """Write all missing shards.

        Parameters
        ----------
        threads
            Number of shards to make at a time.

        Returns
        -------
        tuple of int
            Bytes of all shards, and the number of reused shards.
        """
        stored = reused = 0
        with ThreadPoolExecutor(threads) as pool:
            # Each level is made from the previous one, so levels are written one by one.
            for level in range(len(self._sizes)):
                results = [pool.submit(self._write, shard) for shard in self._shards(level)]
                try:
                    for result in results:
                        size, was_there = result.result()
                        stored, reused = stored + size, reused + was_there
                finally:
                    for result in results:
                        result.cancel()
        return stored, reused

    def _shards(self, level: int) -> list[_Shard]:
        width, height = self._sizes[level]
        return [
            self._shard(level, row, column)
            for row in range(-(-height // _SHARD))
            for column in range(-(-width // _SHARD))
        ]

    def _shard(self, level: int, row: int, column: int) -> _Shard:
        width, height = self._sizes[level]
        size = (min(_SHARD, width - column * _SHARD), min(_SHARD, height - row * _SHARD))
        return _Shard(level, row, column, size)

    def _write(self, shard: _Shard) -> tuple[int, bool]:
        if self._resumed:
            there = self._intact(shard)
            if there is not None:
                return there, True
        pixels = self._pixels(shard)
        with writing(self._target):
            encoded = self._form.encode(pixels)
            set_bytes(self._store, shard.key, encoded)
            if get_bytes(self._store, shard.key) != encoded:
                raise OSError(f"{shard.key} differs from what was written when it is read back")
            same = np.array_equal if self._form.quality is None else _same_shape
            if not same(self._form.decode(encoded, shard.size), pixels):
                raise OSError(f"{shard.key} decodes to different pixels than were encoded")
        return len(encoded), False

    def _intact(self, shard: _Shard) -> int | None:
        """Return the size of a shard from an earlier attempt; ``None`` if it must be written."""
        with writing(self._target):
            stored = get_bytes(self._store, shard.key)
        if stored is None:
            return None
        try:
            self._form.decode(stored, shard.size)
        except zarr_errors():
            return None  # cut short or changed: it is written again
        return len(stored)

    def _pixels(self, shard: _Shard) -> Pixels:
        x, y = shard.column * _SHARD, shard.row * _SHARD
        width, height = shard.size
        if shard.level == 0:
            corner = np.array([[self._region.x + x, self._region.y + y]], dtype=np.int64)
            source: Pixels = self._slide.read_regions(0, corner, width, height)[0]
            return source
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        below = self._sizes[shard.level - 1]
        half = _SHARD // 2
        for down in range(2):
            for across in range(2):
                row, column = 2 * shard.row + down, 2 * shard.column + across
                if row * _SHARD < below[1] and column * _SHARD < below[0]:
                    part = halved(self._read(self._shard(shard.level - 1, row, column)))
                    top, left = down * half, across * half
                    pixels[top : top + part.shape[0], left : left + part.shape[1]] = part
        return pixels

    def _read(self, shard: _Shard) -> Pixels:
        with writing(self._target):
            stored = get_bytes(self._store, shard.key)
            if stored is None:
                raise FileNotFoundError(f"{shard.key} has disappeared")
            return self._form.decode(stored, shard.size)


def _same_shape(one: Pixels, other: Pixels) -> bool:
    return one.shape == other.shape


def halved(pixels: Pixels) -> Pixels:
    """Halve an image by averaging 2 x 2 pixels; at an odd edge, those that exist.

    Halves are rounded to even numbers, so that levels do not become brighter step by step.

    Parameters
    ----------
    pixels
        The image, shape (height, width, 3).

    Returns
    -------
    ndarray of uint8, shape (ceil(height / 2), ceil(width / 2), 3)

    Examples
    --------
    >>> halved(np.array([[[10], [20], [7]]], np.uint8).repeat(3, axis=2))[..., 0].tolist()
    [[15, 7]]
    """
    height, width, _ = pixels.shape
    # A pixel at an odd edge is counted twice along that axis, to replace its missing neighbour.
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    total = even[0::2, 0::2].astype(np.uint16)
    for part in (even[1::2, 0::2], even[0::2, 1::2], even[1::2, 1::2]):
        total += part
    rounded: Pixels = ((total + 1 + (total // 4) % 2) // 4).astype(np.uint8)
    return rounded


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return the width and height of each level of a pyramid, given those of level 0."""
    sizes = [(width, height)]
    while max(sizes[-1]) > _SMALLEST:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


@contextmanager
def writing(target: str) -> Iterator[None]:
    """Translate errors of a pyramid's store; ``target`` is the pyramid's name in them.

    Raises
    ------
    ArtifactError
        For any error of the store.
    """
    try:
        yield
    except zarr_errors() as error:
        raise ArtifactError(
            f"{target} cannot be written: {text_of(error)}; check its free space and permissions"
        ) from error
