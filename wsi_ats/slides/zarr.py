"""Slides in OME-Zarr, in a folder or in a store."""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.sync import sync  # private, but stores have no other way to be used without asyncio

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray
from wsi_ats.slides.advice import advice_on
from wsi_ats.slides.base import Mpp, Pixels, Slide, SlideInfo
from wsi_ats.slides.ome_zarr import ICC, OWN, OmeImage
from wsi_ats.slides.resolution import mpp_or_problem
from wsi_ats.slides.storage import is_remote
from wsi_ats.slides.stored_image import touched_tiles
from wsi_ats.slides.zarr_jpeg import register_jpeg
from wsi_ats.slides.zarr_levels import LevelArray
from wsi_ats.slides.zarr_store import CheckedStore, open_store, text_of, zarr_errors

# Regions of a batch that are read at a time: enough to hide the latency of an object store.
_AT_ONCE = 16

# Attribute that bioformats2raw sets on a group of images.
_LAYOUT = "bioformats2raw.layout"


class ZarrSlide(Slide):
    """A slide in OME-Zarr 0.5 (or 0.4).

    It must be an RGB image of uint8: axes ``c, y, x`` in any order, three channels, all other axes of length
    1. Chunks are read when needed, those of a batch together, from a folder or any store that fsspec
    supports.

    Zarr fills missing chunks with a constant. In pyramids of this library every chunk is stored, so a missing
    chunk is an error; in all others Zarr's rule applies.

    Parameters
    ----------
    path
        Folder or URL (``s3://bucket/slide.ome.zarr``) of the image, or of the group that bioformats2raw
        writes around it.
    mpp
        Micrometres per level-0 pixel, if the file's own value is missing or wrong.

    Raises
    ------
    SlideOpenError
        When there is no OME-Zarr image, or it is damaged or not RGB.
    """

    bytes_read = None  # Zarr does not count bytes

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
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
            image = OmeImage.of(attributes)
            own = attributes.get(OWN)
            own = own if isinstance(own, Mapping) else {}
            complete = own.get("every_chunk_is_stored") is True
            self._icc = b64decode(own[ICC], validate=True) if ICC in own else None
            checked = CheckedStore(store, complete=complete)
            self._arrays = [
                LevelArray.of(checked, name, image.axes, group.metadata.zarr_format) for name in image.paths
            ]
        except zarr_errors() as error:
            raise SlideOpenError(
                path, f"cannot be opened as OME-Zarr: {text_of(error)}; {advice_on(text_of(error))}"
            ) from error
        try:
            levels = image.levels([array.size for array in self._arrays])
        except ValueError as error:
            raise SlideOpenError(path, str(error)) from error
        resolution = mpp_or_problem(image.mpp if mpp is None else partial(Mpp, mpp, "override"))
        self.info = SlideInfo(
            path, "ome-zarr", levels, tuple(array.chunk for array in self._arrays), resolution
        )

    @property
    def icc(self) -> bytes | None:
        """The colour profile of the source, if this library wrote the pyramid and the source had one."""
        return self._icc

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """See :meth:`wsi_ats.slides.base.Slide.read_regions`."""
        self._check_open()
        regions = np.empty((len(corners), height, width, 3), dtype=np.uint8)
        regions[:] = self.background
        places = corners.tolist()

        async def read_all() -> None:
            limit = asyncio.Semaphore(_AT_ONCE)
            reads = (self._read(level, x, y, regions[i], limit) for i, (x, y) in enumerate(places))
            tasks = [asyncio.ensure_future(read) for read in reads]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

        sync(read_all())
        return regions

    async def _read(self, level: int, x: int, y: int, region: Pixels, limit: asyncio.Semaphore) -> None:
        """Read one region, as far as it is inside the level, into an array of shape (height, width, 3)."""
        size, (height, width, _) = self.levels[level], region.shape
        left, right = max(0, x), min(size.width, x + width)
        top, bottom = max(0, y), min(size.height, y + height)
        if left >= right or top >= bottom:
            return
        async with limit:
            try:
                pixels = await self._arrays[level].read(left, top, right, bottom)
            except zarr_errors() as error:
                raise SlideReadError(
                    self.path,
                    f"level {level}, {width} x {height} pixels at ({x}, {y}) of that level cannot be "
                    f"read: {text_of(error)}; {advice_on(text_of(error))}",
                ) from error
        region[top - y : bottom - y, left - x : right - x] = pixels

    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """See :meth:`wsi_ats.slides.base.Slide.stored_bytes`; known for shards that end with their index."""
        self._check_open()
        array, size = self._arrays[level], self.levels[level]
        if array.index is None:
            return None
        shape = (-(-size.height // array.chunk[1]), -(-size.width // array.chunk[0]))
        wanted = touched_tiles(shape, array.chunk, corners, width, height)
        try:
            return sync(array.index.bytes_of(wanted))
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
            # Connections belong to one process.
            raise SlideReadError(self.path, "it was opened by another process; open it again in this one")

    def close(self) -> None:
        """Refuse further reads; folders and connections are not held open between reads."""
        self._closed = True


def _group(path: str, store: Store) -> zarr.Group:
    try:
        # One after the other, because a request for both would read six more files, and again for each level.
        with suppress(FileNotFoundError):
            return zarr.open_group(store, mode="r", zarr_format=3)
        return zarr.open_group(store, mode="r", zarr_format=2)
    except FileNotFoundError as error:
        if _is_unfinished(store):
            raise SlideOpenError(
                path, "its conversion is incomplete; run the same `wsi-ats convert` again to continue it"
            ) from error
        raise SlideOpenError(
            path, "there is no Zarr group (no zarr.json); is this the image's own folder?"
        ) from error


def _only_image(path: str, group: zarr.Group) -> str:
    """Return the name of the only image in a group written by bioformats2raw."""
    try:
        attributes: Any = group["OME"].attrs.asdict()
        names = [str(each) for each in attributes.get("ome", attributes)["series"]]
    except KeyError:  # written by an older version or another program
        names = sorted(name for name in group.group_keys() if name.isdigit())
    if len(names) != 1:
        raise SlideOpenError(
            path,
            f"it holds {len(names)} images ({', '.join(names)}), but a slide must be one image"
            + (f"; give {path.rstrip('/')}/{names[0]}, for example" if names else ""),
        )
    return names[0]


def _is_unfinished(store: Store) -> bool:
    """Return whether a store holds an unfinished pyramid of this library."""
    try:
        return OWN in zarr.open_array(store, path="0", mode="r").attrs
    except FileNotFoundError:
        return False
