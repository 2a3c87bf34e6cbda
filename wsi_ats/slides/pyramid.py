"""Pyramids of slides as OME-Zarr 0.5: writing them, so that a stopped conversion can be gone on with.

A pyramid is done shard by shard. Each is written whole, read back and compared; a later attempt keeps those
that are intact. The image's own ``zarr.json`` comes last: without it nobody takes the folder for a slide.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync  # private, but stores have no other way to be used without asyncio
from zarr.storage import MemoryStore

from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.geometry import Region
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.storage import is_remote
from wsi_ats.slides.zarr import ICC, OWN, open_store, text_of, zarr_errors
from wsi_ats.slides.zarr_jpeg import JpegCodec, register_jpeg

CODECS = ("zstd", "jpeg")
QUALITY = 90  # of jpeg, where none is given

_CHUNK = 256
_SHARD = 2048
_SMALLEST = 512  # levels are made until the longer side has no more pixels
_ONLY = "c/0/0/0"  # the shard of an array that has one
_FILES = re.compile(r"zarr\.json|\d+/(zarr\.json|c/0/\d+/\d+)")  # of a pyramid, and no others
_UNFINISHED = ".partial"  # what a killed process leaves in a folder under a temporary name
_COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}


@dataclass(frozen=True)
class Pyramid:
    """What was written.

    Parameters
    ----------
    region
        The part of the source's level 0 that is the pyramid's level 0.
    sizes
        Width and height of each level.
    stored_bytes
        Of all shards.
    reused
        Shards that an earlier attempt had written.
    """

    region: Region
    sizes: Sequence[tuple[int, int]]
    stored_bytes: int
    reused: int


def write_pyramid(
    slide: Slide,
    target: str,
    *,
    codec: str = "zstd",
    quality: int | None = None,
    source: str = "",
    region: Region | None = None,
    threads: int = 1,
) -> Pyramid:
    """Write a slide as an OME-Zarr 0.5 pyramid.

    Level 0 is the source's, each further level the average of 2 x 2 pixels of the one before (fewer at an odd
    edge), down to 512 pixels. Memory is that of a few shards (2048 x 2048 pixels) for each thread, however
    large the slide. Called again after it was stopped, it goes on; the result is the same to the byte.

    Parameters
    ----------
    slide
        What to convert; it must know its mpp.
    target
        Folder or URL of the pyramid; its name should end in ``.ome.zarr``.
    codec
        ``"zstd"``, which keeps every pixel, or ``"jpeg"``, which does not: levels are then averages of what
        was stored. JPEG is read by this library, and by others where imagecodecs-zarr is installed.
    quality
        Of ``"jpeg"``, 1 to 100; 90 by default.
    source
        Fingerprint of the source's file. It is noted in the pyramid, and another source is refused.
    region
        Part of level 0 to write, in level-0 pixels; by default :attr:`~wsi_ats.slides.base.Slide.bounds`, the
        part that was scanned. Its corner is noted as ``region`` among the attributes ``wsi_ats``: add it to
        go from the pyramid's pixels to those of the source.
    threads
        How many shards are made at a time.

    Returns
    -------
    Pyramid

    Raises
    ------
    SettingsError
        For a codec, quality or region that cannot be.
    ArtifactError
        When the target holds something else, or cannot be written to.
    MppError, SlideReadError
        As the source raises them.

    Examples
    --------
    >>> from wsi_ats.slides.memory import MemorySlide
    >>> slide = MemorySlide([np.zeros((600, 700, 3), np.uint8)], mpp=0.5)
    >>> write_pyramid(slide, "memory://docs/black.ome.zarr").sizes
    [(700, 600), (350, 300)]
    """
    form = _Form.of(codec, quality)
    region = region or slide.bounds
    full = slide.levels[0]
    x, y, width, height = region
    if min(x, y) < 0 or min(width, height) < 1 or x + width > full.width or y + height > full.height:
        raise SettingsError(f"{region} is not within the slide's {full.width} x {full.height} pixels")
    if threads < 1:
        raise SettingsError(f"threads must be at least 1, not {threads}")
    record = _record(slide, region, form, source)
    sizes = _sizes(width, height)
    register_jpeg()
    with _writing(target):
        store = _open_target(target)
        began = _begin(store, target, sizes, form, record)
    writer = _Writer(slide, store, target, region, form, sizes, began=began)
    stored, reused = writer.write(threads)
    with _writing(target):
        # Last, so that its presence means that all is there.
        memory = MemoryStore()
        zarr.create_group(memory, attributes=_attributes(slide, target, sizes, record))
        _copy(memory, store, "zarr.json")
    return Pyramid(region, sizes, stored, reused)


def check_form(codec: str, quality: int | None) -> int | None:
    """Check a codec and its quality, and give the quality; ``None`` where there is none.

    Raises
    ------
    SettingsError
        For what cannot be.
    """
    return _Form.of(codec, quality).quality


def is_complete(target: str) -> bool:
    """Whether a whole pyramid of this library is there.

    Raises
    ------
    ArtifactError
        When that cannot be found out.
    """
    try:
        text = _get(open_store(target, read_only=True), "zarr.json")
    except FileNotFoundError:
        return False
    except zarr_errors() as error:
        raise ArtifactError(f"{target} cannot be read: {text_of(error)}") from error
    try:
        return text is not None and OWN in json.loads(text)["attributes"]
    except (ValueError, LookupError, TypeError):
        return False  # damaged: it is written again


def remove_pyramid(target: str) -> None:
    """Delete a pyramid of this library, or the beginning of one; nothing where there is none.

    Raises
    ------
    ArtifactError
        When something else is there, or in it, or it cannot be deleted; then nothing is.
    """
    with _writing(target):
        store = _open_target(target)
        if _digest_there(store, target) is not None:
            if not is_remote(target) and Path(target).is_symlink():
                raise ArtifactError(
                    f"{target} is a link, and what it leads to is not deleted; delete the link, or choose "
                    "another place"
                )
            others = _other_files(store)
            if others:
                raise ArtifactError(
                    f"{target} holds files that are none of the pyramid's, such as {others[0]}, so it is not "
                    "deleted; move them, or choose another place"
                )
            # The image's own file first, so that no half-emptied pyramid passes for a whole one.
            sync(store.delete("zarr.json"))
            sync(store.delete_dir(""))


@dataclass(frozen=True)
class _Form:
    """How pixels are stored.

    Parameters
    ----------
    codec, quality
        As in :func:`write_pyramid`.
    """

    codec: str
    quality: int | None

    @classmethod
    def of(cls, codec: str, quality: int | None) -> _Form:
        if codec not in CODECS:
            raise SettingsError(f"codec is {codec!r}, expected one of {', '.join(CODECS)}")
        if codec != "jpeg" and quality is not None:
            raise SettingsError(
                f"codec {codec} loses nothing and has no quality; leave it out, or choose jpeg"
            )
        if codec == "jpeg":
            quality = QUALITY if quality is None else quality
            if not 1 <= quality <= 100:
                raise SettingsError(f"quality is {quality}, expected 1 to 100")
        return cls(codec, quality)

    def array(self, store: Store, size: tuple[int, int], **attributes: Any) -> zarr.Array[Any]:
        """Make an array of the given width and height at the root of a store."""
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
        """Make one shard of pixels, shape (height, width, 3), not larger than a shard."""
        memory = MemoryStore()
        array = self.array(memory, (pixels.shape[1], pixels.shape[0]))
        array[:] = pixels.transpose(2, 0, 1)
        shard = _get(memory, _ONLY)
        assert shard is not None
        return shard

    def decode(self, shard: bytes, size: tuple[int, int]) -> Pixels:
        """Give the pixels of a shard, shape (height, width, 3); damage is one of Zarr's errors."""
        if not shard:
            raise EOFError("the shard is empty")
        memory = MemoryStore()
        array = self.array(memory, size)
        _set(memory, _ONLY, shard)
        pixels: Pixels = np.asarray(array[:]).transpose(1, 2, 0)
        return pixels


@dataclass(frozen=True)
class _Shard:
    """One shard: its level, its place among the level's shards, and its size in pixels."""

    level: int
    row: int
    column: int
    size: tuple[int, int]

    @property
    def key(self) -> str:
        return f"{self.level}/c/0/{self.row}/{self.column}"


class _Writer:
    """Makes the shards of one pyramid."""

    def __init__(
        self,
        slide: Slide,
        store: Store,
        target: str,
        region: Region,
        form: _Form,
        sizes: Sequence[tuple[int, int]],
        *,
        began: bool,
    ) -> None:
        self._slide = slide
        self._store = store
        self._target = target
        self._region = region
        self._form = form
        self._sizes = sizes
        self._began = began

    def write(self, threads: int) -> tuple[int, int]:
        """Write all that is not there: bytes of all shards, and how many were there."""
        stored = reused = 0
        with ThreadPoolExecutor(threads) as pool:
            # A level is made of the one before, so one after the other.
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
        if self._began:
            there = self._intact(shard)
            if there is not None:
                return there, True
        pixels = self._pixels(shard)
        with _writing(self._target):
            encoded = self._form.encode(pixels)
            _set(self._store, shard.key, encoded)
            if _get(self._store, shard.key) != encoded:
                raise OSError(f"{shard.key} is read back otherwise than it was written")
            same = np.array_equal if self._form.quality is None else _same_shape
            if not same(self._form.decode(encoded, shard.size), pixels):
                raise OSError(f"{shard.key} is decoded to other pixels than were encoded")
        return len(encoded), False

    def _intact(self, shard: _Shard) -> int | None:
        """Bytes of a shard of an earlier attempt; ``None`` if it has to be made."""
        with _writing(self._target):
            stored = _get(self._store, shard.key)
        if stored is None:
            return None
        try:
            self._form.decode(stored, shard.size)
        except zarr_errors():
            return None  # cut off or changed: it is made again
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
        with _writing(self._target):
            stored = _get(self._store, shard.key)
            if stored is None:
                raise FileNotFoundError(f"{shard.key} has vanished")
            return self._form.decode(stored, shard.size)


def _same_shape(one: Pixels, other: Pixels) -> bool:
    return one.shape == other.shape


def halved(pixels: Pixels) -> Pixels:
    """Average 2 x 2 pixels each; at an odd edge, those that exist.

    Halves are rounded to even numbers, so that many levels do not become brighter step by step.

    Parameters
    ----------
    pixels
        Shape (height, width, 3).

    Returns
    -------
    ndarray of uint8, shape (ceil(height / 2), ceil(width / 2), 3)

    Examples
    --------
    >>> halved(np.array([[[10], [20], [7]]], np.uint8).repeat(3, axis=2))[..., 0].tolist()
    [[15, 7]]
    """
    height, width, _ = pixels.shape
    # A pixel that is counted twice along an axis has the weight of the two that are not there.
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    total = even[0::2, 0::2].astype(np.uint16)
    for part in (even[1::2, 0::2], even[0::2, 1::2], even[1::2, 1::2]):
        total += part
    rounded: Pixels = ((total + 1 + (total // 4) % 2) // 4).astype(np.uint8)
    return rounded


def _sizes(width: int, height: int) -> list[tuple[int, int]]:
    sizes = [(width, height)]
    while max(sizes[-1]) > _SMALLEST:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _record(slide: Slide, region: Region, form: _Form, source: str) -> dict[str, Any]:
    """What is said of a conversion: all that its bytes depend on, and a fingerprint of it."""
    # What follows "?" in a URL may be a signature, which is neither the slide's name nor to be handed on.
    path = slide.path.partition("?")[0] if is_remote(slide.path) else slide.path
    facts = {
        "source": {
            "name": PurePath(path).name,
            "digest": source,
            "mpp": slide.mpp.value,
            "mpp_source": slide.mpp.source,
            "vendor": slide.vendor,
        },
        "region": list(region),
        "codec": form.codec,
        "quality": form.quality,
        "every_chunk_is_stored": True,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return {**facts, "digest": digest}


def _attributes(
    slide: Slide, target: str, sizes: Sequence[tuple[int, int]], record: Mapping[str, Any]
) -> dict[str, Any]:
    """The attributes of the image: OME-Zarr's, and our own."""
    name = PurePath(target).name.removesuffix(".zarr").removesuffix(".ome")
    mpp = slide.mpp.value
    datasets = []
    for level in range(len(sizes)):
        scale = mpp * 2**level
        # Places are those of the pixels' centres: the centre of an average lies between its pixels.
        middle = (scale - mpp) / 2
        transformations = [
            {"type": "scale", "scale": [1.0, scale, scale]},
            {"type": "translation", "translation": [0.0, middle, middle]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [
                {
                    "name": name,
                    "axes": [
                        {"name": "c", "type": "channel"},
                        {"name": "y", "type": "space", "unit": "micrometer"},
                        {"name": "x", "type": "space", "unit": "micrometer"},
                    ],
                    "datasets": datasets,
                    "type": "mean",
                }
            ],
            "omero": {
                "name": name,
                "channels": [
                    {"label": label, "color": colour, "active": True, "window": window}
                    for label, colour in _COLOURS.items()
                ],
                "rdefs": {"model": "color"},
            },
        },
        OWN: record if slide.icc is None else {**record, ICC: b64encode(slide.icc).decode()},
    }


def _open_target(target: str) -> Store:
    """Open a place for writing, unless what is deleted there would be something else.

    Stores take the name of what they are to delete for a pattern: ``scan[1].ome.zarr`` is ``scan1.ome.zarr``.
    """
    odd = [each for each in ("*", "?", "[", "::") if each in target]
    if is_remote(target) and odd:
        raise ArtifactError(
            f"{target} cannot be written: in URLs {', '.join(odd)} means something else; choose another "
            "place, or give the slide another slide_id in a table"
        )
    return open_store(target, read_only=False)


def _begin(
    store: Store, target: str, sizes: Sequence[tuple[int, int]], form: _Form, record: Mapping[str, Any]
) -> bool:
    """Make the arrays, without pixels; whether an earlier attempt had begun."""
    there = _digest_there(store, target)
    if there is not None and there != record["digest"]:
        raise ArtifactError(
            f"{target} was made of another slide or with other settings; choose another place, or delete it "
            "(--overwrite)"
        )
    if there is not None:
        for key in _files(store):
            if key.endswith(_UNFINISHED):
                sync(store.delete(key))
    # Whatever is looked at is checked again before the image counts as complete.
    sync(store.delete("zarr.json"))
    for level, size in enumerate(sizes):
        if there is None or _get(store, f"{level}/zarr.json") is None:
            # In memory first: a store would be given the image's own zarr.json, too, with nothing in it.
            memory = MemoryStore()
            form.array(memory, size, **{OWN: {"digest": record["digest"]}})
            _copy(memory, store, "zarr.json", f"{level}/zarr.json")
    return there is not None


def _digest_there(store: Store, target: str) -> str | None:
    """Fingerprint of the conversion that a place holds; ``None`` for an empty place.

    Anything else is an ArtifactError: files of others among a pyramid's could not be told apart later.
    """
    for key in ("0/zarr.json", "zarr.json"):
        text = _get(store, key)
        if text is not None:
            try:
                return str(json.loads(text)["attributes"][OWN]["digest"])
            except (ValueError, LookupError, TypeError) as error:
                raise ArtifactError(
                    f"{target} holds something else than a pyramid of wsi-ats, which is left as it is; "
                    "choose another place"
                ) from error
    others = _other_files(store)
    if others:
        raise ArtifactError(
            f"{target} holds something else than a pyramid of wsi-ats ({others[0]}), which is left as it is; "
            "choose another place"
        )
    return None


def _files(store: Store) -> list[str]:
    async def find() -> list[str]:
        return [key async for key in store.list()]

    names: list[str] = sync(find())
    return sorted(names)


def _other_files(store: Store) -> list[str]:
    """What no conversion writes."""
    return [key for key in _files(store) if not (_FILES.fullmatch(key) or key.endswith(_UNFINISHED))]


def _get(store: Store, key: str) -> bytes | None:
    value = sync(store.get(key, default_buffer_prototype()))
    return None if value is None else value.to_bytes()


def _set(store: Store, key: str, value: bytes) -> None:
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(value)))


def _copy(memory: MemoryStore, store: Store, key: str, target: str | None = None) -> None:
    value = _get(memory, key)
    assert value is not None
    _set(store, target or key, value)


@contextmanager
def _writing(target: str) -> Iterator[None]:
    """Translate whatever goes wrong with a target."""
    try:
        yield
    except zarr_errors() as error:
        raise ArtifactError(
            f"{target} cannot be written: {text_of(error)}; check the free space and the permissions there"
        ) from error
