"""Slides that are bad, each in its own way."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

OPTIONS = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
RESOLUTION = {"resolution": (20000, 20000), "resolutionunit": 3}


def _page(path: Path) -> tuple[int, list[tuple[int, int]], dict[str, int]]:
    """Where a file's first directory, its tiles, and the values of its tags are."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        tiles = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        return page.offset, tiles, {tag.name: tag.valueoffset for tag in page.tags}


def _change(path: Path, offset: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)


def _zeroed(good: Path, path: Path) -> None:
    shutil.copy(good, path)
    for offset, size in _page(path)[1]:
        _change(path, offset, b"\0" * size)


def _truncated(share: float) -> Callable[[Path, Path], None]:
    def make(good: Path, path: Path) -> None:
        whole = good.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return make


def _without_resolution(good: Path, path: Path) -> None:
    tifffile.imwrite(path, tifffile.imread(good), **OPTIONS)


def _resolution(pair: tuple[int, int]) -> Callable[[Path, Path], None]:
    def make(good: Path, path: Path) -> None:
        shutil.copy(good, path)
        tags = _page(path)[2]
        for name in ("XResolution", "YResolution"):
            _change(path, tags[name], struct.pack("<II", *pair))

    return make


def _absurd_size(good: Path, path: Path) -> None:
    shutil.copy(good, path)
    for name in ("ImageWidth", "ImageLength"):
        _change(path, _page(path)[2][name], struct.pack("<I", 4_000_000_000))


def _unknown_compression(good: Path, path: Path) -> None:
    shutil.copy(good, path)
    _change(path, _page(path)[2]["Compression"], struct.pack("<H", 34_567))


def _wrong_magic(good: Path, path: Path) -> None:
    shutil.copy(good, path)
    _change(path, 0, b"XX")


def _aperio_without_number(good: Path, path: Path) -> None:
    text = "Aperio Image Library v1.0\r\n1536x1024|AppMag = 20|MPP = NaN"
    tifffile.imwrite(path, tifffile.imread(good), **OPTIONS, description=text, metadata=None)


def _zarr(parts: dict[str, bytes]) -> Callable[[Path, Path], None]:
    def make(good: Path, path: Path) -> None:
        path.mkdir()
        for name, content in parts.items():
            (path / name).write_bytes(content)

    return make


_OME = (
    b"""{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "multiscales": ["""
)

# name -> suffix, and the function that makes it of a good slide
BAD: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "text": (".svs", lambda good, path: path.write_text("this is no slide")),
    "empty": (".tif", lambda good, path: path.touch()),
    "cut_in_header": (".tif", lambda good, path: path.write_bytes(good.read_bytes()[:6])),
    "cut_early": (".tif", _truncated(0.3)),
    "cut_late": (".tif", _truncated(0.9)),
    "zeroed": (".tif", _zeroed),
    "no_mpp": (".tif", _without_resolution),
    "zero_mpp": (".tif", _resolution((0, 1))),
    "endless_mpp": (".tif", _resolution((1, 0))),
    "not_a_number": (".svs", _aperio_without_number),
    "folder": (".svs", lambda good, path: path.mkdir()),
    "broken_link": (".tif", lambda good, path: path.symlink_to(path.with_name("nowhere.tif"))),
    "absurd_size": (".tif", _absurd_size),
    "wrong_magic": (".tif", _wrong_magic),
    "unknown_compression": (".tif", _unknown_compression),
    "pipe": (".tif", lambda good, path: os.mkfifo(path)),
    "without_metadata": (".zarr", _zarr({"data": b"\0" * 100})),
    "cut_metadata": (".zarr", _zarr({"zarr.json": _OME})),
}


def glass(path: Path) -> None:
    """A slide without tissue: not bad."""
    tifffile.imwrite(path, np.full((512, 768, 3), 240, np.uint8), **OPTIONS, **RESOLUTION)
