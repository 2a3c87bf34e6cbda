"""TIFF files made byte by byte: those that no library would write."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "I", 7: "s", 11: "f", 12: "d", 13: "I", 16: "Q", 18: "Q"}


class HandmadeTiff:
    """Writes images of tiles that are encoded already.

    Each image is a mapping: ``size`` and ``tile`` (width, height), ``tiles`` (bytes, row by row), ``tags``
    (number: (type, values), ``None`` to leave out a default), ``below`` (images in SubIFDs).
    """

    def __init__(self, order: str = "<", *, big: bool = False) -> None:
        self._order, self._big = order, big
        self._word = "Q" if big else "I"
        magic = {"<": b"II", ">": b"MM"}[order]
        head = self._pack("HHHQ", 43, 8, 0, 0) if big else self._pack("HI", 42, 0)
        self._data = bytearray(magic + head)
        self._link = 8 if big else 4  # where the offset of the next directory is to be written

    def _pack(self, form: str, *values: Any) -> bytes:
        return struct.pack(self._order + form, *values)

    def write(self, path: Path, images: Sequence[Mapping[str, Any]]) -> Path:
        """Write a file."""
        link = self._link
        for image in images:
            link = self._image(image, link)
        path.write_bytes(self._data)
        return path

    def _image(self, image: Mapping[str, Any], link: int) -> int:
        (width, height), (tile_width, tile_height) = image["size"], image["tile"]
        offsets = []
        for tile in image["tiles"]:
            offsets.append(len(self._data) if tile else 0)
            self._data += tile + bytes(len(tile) % 2)
        samples = image.get("samples", 3)
        tags: dict[int, tuple[int, Any] | None] = {
            256: (4, [width]),
            257: (4, [height]),
            258: (3, [8] * samples),
            259: (3, [image.get("compression", 1)]),
            262: (3, [image.get("photometric", 2)]),
            277: (3, [samples]),
            284: (3, [1]),
            322: (4, [tile_width]),
            323: (4, [tile_height]),
            324: (16 if self._big else 4, offsets),
            325: (4, [len(tile) for tile in image["tiles"]]),
        }
        below = image.get("below", ())
        if below:
            tags[330] = (18 if self._big else 13, [0] * len(below))
        tags |= image.get("tags", {})
        link, places = self._directory(tags, link)
        for number, each in enumerate(below):
            self._image(each, places[330] + number * (8 if self._big else 4))
        return link

    def _directory(self, tags: Mapping[int, tuple[int, Any] | None], link: int) -> tuple[int, dict[int, int]]:
        start = len(self._data)
        struct.pack_into(self._order + self._word, self._data, link, start)
        kept = [(number, tag) for number, tag in sorted(tags.items()) if tag is not None]
        count, size, inline = ("Q", 20, 8) if self._big else ("H", 12, 4)
        self._data += self._pack(count, len(kept))
        entries = len(self._data)
        self._data += bytes(size * len(kept) + inline)
        places = {}
        for i, (number, (kind, values)) in enumerate(kept):
            form = _FORMATS[kind]
            stored = values if form == "s" else b"".join(self._pack(form, value) for value in values)
            entry = entries + i * size
            head = self._pack("HH" + self._word, number, kind, len(values) // (2 if kind == 5 else 1))
            self._data[entry : entry + len(head)] = head
            at = entry + len(head)
            if len(stored) > inline:
                struct.pack_into(self._order + self._word, self._data, at, len(self._data))
                at = len(self._data)
                self._data += stored + bytes(len(stored) % 2)
            else:
                self._data[at : at + len(stored)] = stored
            places[number] = at
        return entries + size * len(kept), places


def segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts of a JPEG: marker and bytes, the last with all pixels."""
    yield 0xD8, stream[:2]
    at = 2
    while stream[at + 1] != 0xDA:
        size = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        yield stream[at + 1], stream[at : at + size]
        at += size
    yield 0xDA, stream[at:]


def split_tables(stream: bytes, *, markers: bool = True) -> tuple[bytes, bytes]:
    """Take the tables off a JPEG, and without ``markers`` also those of applications."""
    tables, rest = bytearray(), bytearray()
    for marker, part in segments(stream):
        if marker in {0xDB, 0xC4}:
            tables += part
        elif markers or not 0xE0 <= marker <= 0xEF:
            rest += part
    return b"\xff\xd8" + bytes(tables) + b"\xff\xd9", bytes(rest)
