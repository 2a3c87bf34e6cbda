"""Slides as OME-Zarr, in a folder or on a network: reading them, and where Zarr's errors are translated."""

from __future__ import annotations

import asyncio
import math
import os
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.common import ZarrFormat
from zarr.core.sync import sync  # private, but stores have no other way to be used without asyncio
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from wsi_ats.errors import MppError, SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray, Level, Region
from wsi_ats.slides.answers import raised
from wsi_ats.slides.base import Closable, Mpp, Pixels, advice_on
from wsi_ats.slides.resolution import ADVICE, MICROMETRES, given_mpp, square_mpp
from wsi_ats.slides.storage import is_remote
from wsi_ats.slides.zarr_jpeg import register_jpeg

# Key of what this library says about its own pyramids, among the attributes of the image.
OWN = "wsi_ats"
# And there, the source's colour profile in base 64; OME-Zarr has no place for one.
ICC = "icc_profile"

# Regions of one batch that are read at a time: enough to hide the way to an object store.
_READ_TOGETHER = 16

_TOO_MANY = 1 << 31  # pixels along a side; what says so is damaged
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


def zarr_errors() -> tuple[type[Exception], ...]:
    """Errors that Zarr raises for damaged metadata and chunks, and its stores for missing ones."""
    # All that changed metadata and chunks were seen to raise, in Zarr 3.1 and 3.4; and ImportError by fsspec,
    # where the package for a kind of URL is missing.
    return (
        *(EOFError, TypeError, LookupError, AttributeError, ArithmeticError),
        *(RuntimeError, MemoryError, ExceptionGroup, ImportError),
        *raised(),
    )


def open_store(path: str, *, read_only: bool) -> Store:
    """Open a folder, or a URL through fsspec; what it holds is not looked at."""
    if is_remote(path):
        return FsspecStore.from_url(path, read_only=read_only)
    return LocalStore(Path(path), read_only=read_only)


# What bioformats2raw says of a group that holds images.
_LAYOUT = "bioformats2raw.layout"


class ZarrSlide(Closable):
    """A slide in OME-Zarr 0.5 (or 0.4).

    An RGB image of uint8: axes ``c, y, x`` in any order, three channels, all other axes of length 1. Chunks
    are read when they are needed, those of a batch together, from a folder or whatever else fsspec knows.

    Zarr takes a missing chunk for one that is filled with a constant. In pyramids of this library every chunk
    is stored, so that there a missing one is an error; in all others what Zarr says holds.

    Parameters
    ----------
    path
        Folder or URL (``s3://bucket/slide.ome.zarr``) of the image, or of what bioformats2raw writes around
        it.
    mpp
        Micrometres per level-0 pixel, where the file's own value is missing or wrong.

    Raises
    ------
    SlideOpenError
        When there is no OME-Zarr image, it is damaged, or not RGB.
    """

    vendor = "ome-zarr"
    background = (255, 255, 255)

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        self.path = path
        self._override = mpp
        self._closed = False
        self._process = os.getpid()
        register_jpeg()
        try:
            if not is_remote(path) and not Path(path).exists():
                raise SlideOpenError(path, "no such folder; check the path in the manifest")
            store = open_store(path, read_only=True)
            group = _group(path, store)
            attributes: Mapping[str, Any] = group.attrs.asdict()
            if _LAYOUT in attributes.get("ome", attributes):
                store = open_store(f"{path.rstrip('/')}/{_only_image(path, group)}", read_only=True)
                group = _group(path, store)
                attributes = group.attrs.asdict()
            image = _Image.of(attributes)
            own = attributes.get(OWN)
            own = own if isinstance(own, Mapping) else {}
            complete = own.get("every_chunk_is_stored") is True
            self.icc = b64decode(own[ICC], validate=True) if ICC in own else None
            self._store = _Checked(store, complete=complete)
            self._arrays = [
                _Array.of(self._store, name, image.axes, group.metadata.zarr_format) for name in image.paths
            ]
        except zarr_errors() as error:
            raise SlideOpenError(
                path, f"cannot be opened as OME-Zarr: {text_of(error)}; {advice_on(text_of(error))}"
            ) from error
        self._image = image
        self.levels = _levels(path, self._arrays, image.scales)

    @property
    def mpp(self) -> Mpp:
        """The override, else what the scale of level 0 says, else an error that says what was found."""
        if self._override is not None:
            return given_mpp(self.path, self._override)
        source = "coordinateTransformations"
        units = {name: self._image.units.get(name) for name in ("x", "y")}
        scales = self._image.scales[0]
        if scales is None or not set(units.values()) <= MICROMETRES.keys():
            raise MppError(
                self.path,
                f"the file does not say how many micrometres a pixel has ({source} scale = {scales}, "
                f"units = {units}, known units are {', '.join(MICROMETRES)}); {ADVICE}",
            )
        x, y = (scales[name] * MICROMETRES[str(units[name])] for name in ("x", "y"))
        return square_mpp(self.path, x, y, source)

    @property
    def bounds(self) -> Region:
        """All of level 0."""
        return Region(0, 0, self.levels[0].width, self.levels[0].height)

    def tile_shape(self, level: int) -> tuple[int, int] | None:
        """Width and height of a chunk; in shards, of one of the chunks inside."""
        return self._arrays[level].chunk

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """See :meth:`wsi_ats.slides.base.Slide.read_regions`."""
        self._check_open()
        array, size = self._arrays[level], self.levels[level]
        regions = np.empty((len(corners), height, width, 3), dtype=np.uint8)
        regions[:] = self.background
        places = corners.tolist()

        async def read(i: int, together: asyncio.Semaphore) -> None:
            x, y = places[i]
            left, right = max(0, x), min(size.width, x + width)
            top, bottom = max(0, y), min(size.height, y + height)
            if left >= right or top >= bottom:
                return
            async with together:
                try:
                    pixels = await array.read(left, top, right, bottom)
                except zarr_errors() as error:
                    raise SlideReadError(
                        self.path,
                        f"level {level}, {width} x {height} pixels at ({x}, {y}) of that level cannot be "
                        f"read: {text_of(error)}; {advice_on(text_of(error))}",
                    ) from error
            regions[i, top - y : bottom - y, left - x : right - x] = pixels

        async def read_all() -> None:
            together = asyncio.Semaphore(_READ_TOGETHER)
            tasks = [asyncio.ensure_future(read(i, together)) for i in range(len(places))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

        sync(read_all())
        return regions

    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """See :meth:`wsi_ats.slides.base.Slide.stored_bytes`; known for shards that end with their index."""
        self._check_open()
        array, size = self._arrays[level], self.levels[level]
        if array.index is None:
            return None
        wanted = np.zeros((-(-size.height // array.chunk[1]), -(-size.width // array.chunk[0])), dtype=bool)
        for x, y in corners.tolist():
            rows = slice(max(0, y // array.chunk[1]), max(0, -(-(y + height) // array.chunk[1])))
            columns = slice(max(0, x // array.chunk[0]), max(0, -(-(x + width) // array.chunk[0])))
            wanted[rows, columns] = True
        try:
            return sync(array.bytes_of(wanted))
        except zarr_errors() as error:
            raise SlideReadError(
                self.path,
                f"level {level}: an index of chunks cannot be read: {text_of(error)}; "
                f"{advice_on(text_of(error))}",
            ) from error

    def _check_open(self) -> None:
        if self._closed:
            raise SlideReadError(self.path, "the slide is closed; open it again to read")
        if is_remote(self.path) and os.getpid() != self._process:
            # Connections are of one process.
            raise SlideReadError(self.path, "it was opened by another process; open it again in this one")

    def close(self) -> None:
        """Read no more; folders and connections are not held open between reads."""
        self._closed = True


def _group(path: str, store: Store) -> zarr.Group:
    try:
        # One after the other: for both at once a store is asked for six more files, and for each level again.
        with suppress(FileNotFoundError):
            return zarr.open_group(store, mode="r", zarr_format=3)
        return zarr.open_group(store, mode="r", zarr_format=2)
    except FileNotFoundError as error:
        if is_unfinished(store):
            raise SlideOpenError(
                path, "its conversion was not completed; the same `wsi-ats convert` goes on where it stopped"
            ) from error
        raise SlideOpenError(
            path, "there is no Zarr group (no zarr.json); is it the image's own folder?"
        ) from error


def _only_image(path: str, group: zarr.Group) -> str:
    """Name of the image in what bioformats2raw writes, if there is one alone."""
    try:
        said: Any = group["OME"].attrs.asdict()
        names = [str(each) for each in said.get("ome", said)["series"]]
    except KeyError:  # an older one, or by others
        names = sorted(name for name in group.group_keys() if name.isdigit())
    if len(names) != 1:
        raise SlideOpenError(
            path,
            f"it holds {len(names)} images ({', '.join(names)}), and a slide is one of them"
            + (f"; give {path.rstrip('/')}/{names[0]}, for example" if names else ""),
        )
    return names[0]


def is_unfinished(store: Store) -> bool:
    """Whether a store holds the beginning of a pyramid of this library."""
    try:
        return OWN in zarr.open_array(store, path="0", mode="r").attrs
    except FileNotFoundError:
        return False


def text_of(error: Exception) -> str:
    """What an error says, in one line; some say nothing without their name."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(f"{error}".split())
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) or not text else text


@dataclass(frozen=True)
class _Image:
    """What the metadata of OME-Zarr say.

    Parameters
    ----------
    axes
        Names, in the order of the arrays' axes.
    units
        Unit of each axis that has one.
    paths
        The arrays, finest first.
    scales
        Physical size of a pixel along each axis, for each array; ``None`` where it is not given.
    """

    axes: tuple[str, ...]
    units: Mapping[str, str]
    paths: Sequence[str]
    scales: Sequence[Mapping[str, float] | None]

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> _Image:
        """Read them; whatever is wrong is a ValueError or the like."""
        ome = attributes.get("ome", attributes)
        if "multiscales" not in ome:
            raise ValueError("no multiscales in its attributes, so it is no OME-Zarr image")
        first = ome["multiscales"][0]
        version = ome.get("version", first.get("version"))
        if version not in {"0.4", "0.5"}:
            raise ValueError(f"OME-Zarr version is {version!r}, expected 0.5 or 0.4")
        axes = tuple(str(axis["name"]) for axis in first["axes"])
        if len(set(axes)) != len(axes) or not {"c", "y", "x"} <= set(axes):
            raise ValueError(f"axes are {axes}, expected c, y and x: it is no RGB image")
        channels = ome.get("omero", {}).get("channels", [])
        colours = [str(channel.get("color", "")).upper() for channel in channels]
        if all(colours) and colours not in ([], ["FF0000", "00FF00", "0000FF"]):
            raise ValueError(f"channels are {colours}, expected red, green and blue: it is no RGB image")
        units = {str(axis["name"]): str(axis["unit"]) for axis in first["axes"] if axis.get("unit")}
        whole = first.get("coordinateTransformations", [])
        datasets = [
            (str(each["path"]), each.get("coordinateTransformations", [])) for each in first["datasets"]
        ]
        if not datasets:
            raise ValueError("it has no levels")
        return cls(
            axes,
            units,
            [path for path, _ in datasets],
            [_scale(axes, [*own, *whole]) if own else None for _, own in datasets],
        )


def _scale(axes: tuple[str, ...], transformations: Iterable[Mapping[str, Any]]) -> Mapping[str, float] | None:
    """Product of all scales, by axis."""
    scales = [each["scale"] for each in transformations if each["type"] == "scale"]
    if not scales:
        return None
    if any(len(scale) != len(axes) for scale in scales):
        raise ValueError(f"scales {scales} do not fit the axes {axes}")
    return {name: math.prod(float(scale[i]) for scale in scales) for i, name in enumerate(axes)}


@dataclass(frozen=True)
class _Array:
    """One level.

    Parameters
    ----------
    array
        Its Zarr array.
    places
        Numbers of the axes y, x and c.
    chunk
        Width and height of what is compressed as one.
    index
        Which shards hold what, if they tell.
    """

    array: zarr.Array[Any]
    places: tuple[int, int, int]
    chunk: tuple[int, int]
    index: _ShardIndex | None

    @classmethod
    def of(cls, store: Store, path: str, axes: tuple[str, ...], zarr_format: ZarrFormat) -> _Array:
        array = zarr.open_array(store, path=path, mode="r", zarr_format=zarr_format)
        y, x, c = (axes.index(name) for name in "yxc")
        shape = array.shape
        if array.dtype != np.uint8:
            raise ValueError(f"level {path} is of {array.dtype}, expected uint8: it is no RGB image")
        if len(shape) != len(axes):
            raise ValueError(f"level {path} has {len(shape)} axes, expected {len(axes)} ({', '.join(axes)})")
        others = [length for i, length in enumerate(shape) if i not in (y, x, c)]
        if shape[c] != 3 or min(shape[y], shape[x]) < 1 or set(others) > {1}:
            sizes = dict(zip(axes, shape, strict=True))
            raise ValueError(
                f"level {path} is of size {sizes}, expected three channels and 1 of all but x and y"
            )
        if min(array.chunks) < 1 or max(shape) >= _TOO_MANY:
            raise ValueError(f"level {path} is of {shape} pixels in chunks of {array.chunks}")
        return cls(array, (y, x, c), (array.chunks[x], array.chunks[y]), _ShardIndex.of(array, (y, x, c)))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.array.shape[self.places[1]], self.array.shape[self.places[0]]

    async def read(self, left: int, top: int, right: int, bottom: int) -> Pixels:
        """Read a part that lies inside, shape (height, width, 3)."""
        y, x, c = self.places
        selection: list[slice] = [slice(0, 1)] * self.array.ndim
        selection[y], selection[x], selection[c] = slice(top, bottom), slice(left, right), slice(0, 3)
        pixels = np.asarray(await self.array.async_array.getitem(tuple(selection)))
        others = [i for i in range(self.array.ndim) if i not in self.places]
        return pixels.transpose([*self.places, *others]).reshape(bottom - top, right - left, 3)

    async def bytes_of(self, wanted: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
        """Stored bytes of chunks, given by a mask of shape (rows, columns)."""
        assert self.index is not None
        return await self.index.bytes_of(wanted)


@dataclass(frozen=True)
class _ShardIndex:
    """The sizes of the chunks in each shard, as the end of the shard says; each is read once.

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
    _known: dict[tuple[int, int], IntArray] = field(default_factory=dict)

    @classmethod
    def of(cls, array: zarr.Array[Any], places: tuple[int, int, int]) -> _ShardIndex | None:
        """Make it for shards of the usual form; ``None`` for all else."""
        if array.shards is None:
            return None
        codec = array.metadata.codecs[0]  # type: ignore[union-attr]  # arrays of Zarr 2 have no shards
        if not isinstance(codec, ShardingCodec):
            return None
        # A text in later releases of Zarr, a value of an enumeration in earlier ones.
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
        """Bytes of the chunks of one shard, shape (rows, columns)."""
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


def _levels(
    path: str, arrays: Sequence[_Array], scales: Sequence[Mapping[str, float] | None]
) -> tuple[Level, ...]:
    width, height = arrays[0].size
    levels = [Level(width, height, 1.0)]
    for array, scale in zip(arrays[1:], scales[1:], strict=True):
        downsample = _downsample((width, height), array.size, scales[0], scale)
        if downsample <= levels[-1].downsample or array.size[0] > width or array.size[1] > height:
            raise SlideOpenError(
                path,
                f"levels of {[each.size for each in arrays]} pixels, expected each smaller than the last",
            )
        levels.append(Level(*array.size, downsample))
    return tuple(levels)


def _downsample(
    full: tuple[int, int],
    size: tuple[int, int],
    full_scale: Mapping[str, float] | None,
    scale: Mapping[str, float] | None,
) -> float:
    """Level-0 pixels per pixel of a level: ratio of the scales if the sizes agree, else that of the sizes.

    Sizes are rounded to whole pixels and scales are not: half of 331 pixels are 166, which are not 1.994 but
    2 pixels each.
    """
    if full_scale is not None and scale is not None and min(*full_scale.values(), *scale.values()) > 0:
        x, y = (scale[name] / full_scale[name] for name in ("x", "y"))
        if abs(full[0] / x - size[0]) <= 1 and abs(full[1] / y - size[1]) <= 1:
            return (x + y) / 2
    return (full[0] / size[0] + full[1] / size[1]) / 2


class _Checked(WrapperStore[Store]):
    """A store that says so where bytes of chunks are missing; Zarr would fill them with a constant.

    The ends of files, where shards have their index, are kept: Zarr asks for them at each read.

    Parameters
    ----------
    store
        The store.
    complete
        Whether every chunk must be there.
    """

    def __init__(self, store: Store, *, complete: bool) -> None:
        super().__init__(store)
        self._complete = complete
        self._ends: dict[tuple[str, int], Buffer] = {}

    def _with_store(self, store: Store) -> _Checked:
        return type(self)(store, complete=self._complete)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
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
        if len(value) != wanted:  # more come from a server that knows files as a whole only
            raise EOFError(f"{len(value)} bytes of {key} came where {wanted} were asked for")
        if end is not None:
            self._ends[end] = value
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))
