"""What TIFF files store where: the only import of tifffile outside :mod:`wsi_ats.testing`.

A file's index is read once, whole, and kept in arrays: 12 bytes for each tile of the file.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SlideOpenError
from wsi_ats.geometry import IntArray
from wsi_ats.slides import jpeg
from wsi_ats.slides.base import advice_on
from wsi_ats.slides.codecs import Coding, Compression
from wsi_ats.slides.storage import Storage

# How TIFF numbers what we decode. Of Aperio's two kinds of JPEG 2000 the other stores luma and chroma, which
# OpenSlide turns into colours by a rule of its own.
_COMPRESSIONS = {
    1: Compression.NONE,
    5: Compression.LZW,
    7: Compression.JPEG,
    8: Compression.DEFLATE,
    32946: Compression.DEFLATE,
    33005: Compression.JPEG_2000,
    50000: Compression.ZSTD,
}
_DIFFERENCED = {Compression.DEFLATE, Compression.LZW, Compression.ZSTD}
_NO_PREDICTOR, _DIFFERENCES = 1, 2
_ORIENTATION, _UPRIGHT = "tiff.Orientation", 1
_GREY, _RGB, _YCBCR = 1, 2, 6

# A tile or strip is decoded whole. What is larger is no tile but an image, or a claim to fill the memory.
_LARGEST_TILE = 1 << 26

# Of an uncompressed image in one strip, any rows can be read by themselves: so many pixels at a time.
_STRIP = 1 << 20

# How many images of different channels, depths or times an OME-TIFF has of the same place.
_PLANES = "ome.planes"

# The files that an OME-TIFF is spread over, where they are several.
_FILES = "ome.files"

# How pages of several channels are named: by PerkinElmer's and Akoya's QPTIFF, and by others.
_NAME = re.compile(r"<(?:Name|channel)>([^<]+)</", re.IGNORECASE)

# Aperio, for one, calls them so, in the second line or at the beginning.
_OVERVIEW = re.compile(r"^(?:label|macro|overview)\b", re.IGNORECASE | re.MULTILINE)

# Pages in sequence are what a file with a damaged index seems to have without end.
_MOST_PAGES = 10_000

_INCH = 2
_UNITS = {1: "none", _INCH: "inch", 3: "centimeter"}
_BYTES, _WHOLE, _RATIONAL, _REAL = {1, 2, 7}, {1, 3, 4, 13, 16, 18}, {5, 10}, {11, 12}

# Bytes of a value, by the number of its type.
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}

# Of a text that tells whose file it is, so much is looked at.
_MOST_TEXT = 1 << 20

# Where DICOM says that it is DICOM, whatever comes before.
_DICOM = slice(128, 132)

_DAMAGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of a TIFF file.

    Parameters
    ----------
    width, height
        Size in pixels.
    tile_width, tile_height
        Size of its tiles in pixels. Strips are tiles as wide as the image.
    tiled
        Whether they are tiles indeed: those at the right and bottom edge are whole, the last strip is not.
    offsets, sizes
        Where in the file each tile begins, and its compressed bytes, shape (rows, columns).
    coding
        How tiles are decoded; ``None`` if not by us.
    refused
        Why not.
    reduced
        Whether the file says that it is another image at a lower resolution.
    below
        Whether it is kept below another image (in a SubIFD) and not in the file's own sequence.
    channel
        Number of the channel that it is of, where the file has several; ``None`` for labels and overviews.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    tiled: bool
    offsets: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint32]
    coding: Coding | None
    refused: str = ""
    reduced: bool = False
    below: bool = False
    channel: int | None = None

    def rows_stored(self, row: int) -> int:
        """Rows of pixels in the tiles of one row."""
        return self.tile_height if self.tiled else min(self.tile_height, self.height - row * self.tile_height)

    def decode(self, data: bytes | memoryview, out: npt.NDArray[np.uint8]) -> None:
        """Decode a tile.

        Parameters
        ----------
        data
            The tile as stored.
        out
            Where to: contiguous, shape (:meth:`rows_stored` of its row, tile_width, 3).

        Raises
        ------
        ValueError
            When the data are damaged, or not a tile of that size. Some programs fill up the last strip, which
            is understood.
        """
        assert self.coding is not None
        try:
            self.coding.decode(data, out)
        except ValueError as error:
            if len(out) == self.tile_height:
                raise
            filled_up = np.empty((self.tile_height, *out.shape[1:]), dtype=np.uint8)
            try:
                self.coding.decode(data, filled_up)
            except ValueError:
                raise error from None  # of the strip as it should be
            out[:] = filled_up[: len(out)]

    def touched(self, corners: IntArray, width: int, height: int) -> int:
        """Bytes of the tiles under regions, each tile once.

        Parameters
        ----------
        corners
            Shape (N, 2): top-left ``x, y`` in pixels of the image.
        width, height
            Size of each region in pixels of the image.
        """
        wanted = np.zeros(self.sizes.shape, dtype=bool)
        for x, y in corners.tolist():
            rows = slice(max(0, y // self.tile_height), max(0, -(-(y + height) // self.tile_height)))
            columns = slice(max(0, x // self.tile_width), max(0, -(-(x + width) // self.tile_width)))
            wanted[rows, columns] = True
        return int(self.sizes[wanted].sum(dtype=np.int64))


@dataclass(frozen=True)
class TiffIndex:
    """What a TIFF file holds.

    Parameters
    ----------
    vendor
        Whose kind of file it is, in OpenSlide's words where it has one: ``aperio``, ``hamamatsu``,
        ``generic-tiff`` ...; ``ome-tiff``.
    images
        The images, in the file's order; those below another one follow it.
    properties
        What the file says of itself, by OpenSlide's names where it has one.
    icc
        Its colour profile, if it has one.
    overview
        What the only image is called, where that says that it is a label, macro or overview.
    pages
        Names of the images in sequence that are as large as the first, it included, empty for those without:
        of plain TIFF they are channels, depths or times, of OME-TIFF channels.
    """

    vendor: str
    images: tuple[StoredImage, ...]
    properties: Mapping[str, str] = field(default_factory=dict)
    icc: bytes | None = None
    pages: tuple[str, ...] = ()
    overview: str = ""

    @classmethod
    def of(cls, storage: Storage) -> Self | None:
        """Read the index of a file; ``None`` where the file is no TIFF.

        Raises
        ------
        SlideOpenError
            When the index is damaged.
        """
        import tifffile

        try:
            with storage.open() as file:
                if not _is_tiff(file.read(_DICOM.stop)):
                    return None
                file.seek(0)
                with _quiet(), tifffile.TiffFile(file, name=storage.path) as tiff:
                    pages = _pages(tiff)
                    first, _ = pages[0]
                    vendor = _vendor(first)
                    properties = dict(_properties(first, vendor))
                    icc = _bytes(first, 34675)
                    alike = _alike(pages)
                    images = tuple(_images(pages, vendor, _channels(pages, alike)))
                    said = _text(first, 270).decode(errors="replace")
                    overview = _OVERVIEW.search(said) if len(pages) == 1 else None
                    names = tuple(_names(pages, vendor, alike))
                    for page, _ in pages:
                        # Pages refer to each other, and with them four times the bytes of the index would
                        # stay until the garbage collector next looks at everything.
                        page.tags, page.dataoffsets, page.databytecounts = None, (), ()
        except (*_DAMAGED, tifffile.TiffFileError) as error:
            raise SlideOpenError(
                storage.path,
                f"its TIFF index is damaged ({error!r:.200}); {advice_on(str(error))}",
            ) from error
        index = cls(vendor, images, properties, icc or None, names, overview[0] if overview else "")
        index._check(storage)
        return index

    @property
    def orientation(self) -> int:
        """How its rows and columns are stored, as TIFF numbers it; 1 is upright."""
        return int(self.properties.get(_ORIENTATION, _UPRIGHT))

    @property
    def planes(self) -> int:
        """Images of the same place, in other channels, depths or times, as far as the file tells."""
        return max(int(self.properties.get(_PLANES, 1)), len(self.pages))

    def of_channel(self, path: str, channel: str) -> Self:
        """Choose one of several channels.

        Parameters
        ----------
        path
            Named in errors.
        channel
            Its name, or its number from 0.

        Raises
        ------
        SlideOpenError
            When the file has one picture, or no such channel.
        """
        known = ", ".join(f"{number} {name}".strip() for number, name in enumerate(self.pages))
        if len(self.pages) < 2:
            raise SlideOpenError(
                path,
                f"tile.channel is {channel!r}, but the file has one picture, or does not tell which page is "
                "of which channel",
            )
        names = [name.lower() for name in self.pages]
        if names.count(channel.lower()) > 1:
            raise SlideOpenError(
                path, f"several channels are called {channel!r}: {known}; give tile.channel a number"
            )
        number = names.index(channel.lower()) if channel.lower() in names else -1
        if number < 0 and channel.isdecimal():
            number = int(channel)
        images = tuple(each for each in self.images if each.channel == number)
        if not images:
            raise SlideOpenError(
                path, f"tile.channel is {channel!r}, but its channels are {known}; give one of them"
            )
        properties = {name: value for name, value in self.properties.items() if name != _PLANES}
        return replace(self, images=images, pages=(), properties=properties)

    @property
    def files(self) -> str:
        """Names of the files that the image is spread over; empty where it is all in this one."""
        return self.properties.get(_FILES, "")

    def image(self, width: int, height: int) -> StoredImage | None:
        """Find a tiled image by its size."""
        found = (each for each in self.images if each.tiled and (each.width, each.height) == (width, height))
        return next(found, None)

    def _check(self, storage: Storage) -> None:
        for image in (each for i, each in enumerate(self.images) if each.tiled or i == 0):
            ends = image.offsets + image.sizes
            outside = (ends > storage.size) | (image.offsets > ends)
            beyond = int(np.count_nonzero(outside & (image.sizes > 0)))
            if beyond:
                raise SlideOpenError(
                    storage.path,
                    f"{beyond} of the {ends.size} tiles of its level of {image.width} x {image.height} "
                    f"pixels lie beyond the end of the file, {storage.size} bytes; is the copy complete?",
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the user's terminal what tifffile logs of a file where a program has set up no log.

    Nothing rests on the log: what is wrong with tags and pages is found by :func:`_check_tags` and
    :func:`_check_sequence`.
    """
    logger, handler = logging.getLogger("tifffile"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _is_tiff(start: bytes) -> bool:
    """Whether a file that begins so is TIFF; DICOM may begin as TIFF does, for others to open it."""
    return start[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"} and start[_DICOM] != b"DICM"


def _pages(tiff: Any) -> list[tuple[Any, bool]]:
    """All pages, and whether they are below another one."""
    pages: list[tuple[Any, bool]] = []
    _check_sequence(tiff)
    for page in tiff.pages:
        pages.append((page, False))
        below = len(page.subifds or ())
        if len(pages) + below > _MOST_PAGES:
            raise ValueError(f"more than {_MOST_PAGES} images")
        if below:
            found = list(page.pages or ())
            if len(found) < below:
                raise ValueError(f"{len(found)} of {below} images below another one")
            pages += [(each, True) for each in found]
    if not pages:
        raise ValueError("no image")
    for page, _ in pages:
        _check_tags(page)
    return pages


def _check_sequence(tiff: Any) -> None:
    """Follow the images in sequence to their end; tifffile stops where it cannot go on, and logs it."""
    file, form, seen, place = tiff.filehandle, tiff.tiff, set[int](), int(tiff.pages.first.offset)
    while place:
        if place in seen:
            raise ValueError(f"image {len(seen) + 1} in sequence is an earlier one again")
        seen.add(place)
        if len(seen) > _MOST_PAGES:
            raise ValueError(f"more than {_MOST_PAGES} images")
        file.seek(place)
        (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        file.seek(place + form.tagnosize + count * form.tagsize)
        (place,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))


def _vendor(page: Any) -> str:
    """As OpenSlide tells them apart, in its order, by what the first page says."""
    description, software = _text(page, 270), _text(page, 305)
    vendors = {
        "hamamatsu": 65420 in page.tags,
        "trestle": software.startswith(b"MedScan"),
        "aperio": page.is_tiled and description.startswith(b"Aperio"),
        "leica": b"leica-microsystems.com/scn" in description,
        "philips": software.startswith(b"Philips"),
        "ventana": page.is_bif or b"iScan" in _text(page, 700),
        "huron": _text(page, 271).startswith(b"Huron"),
        "argos": b"Argos.Scan.Metadata" in _text(page, 65000),
        "ome-tiff": page.is_ome,
    }
    return next((name for name, found in vendors.items() if found), "generic-tiff")


def _text(page: Any, code: int) -> bytes:
    """The beginning of a text as it is stored."""
    tag = page.tags.get(code)
    if tag is None or tag.dtype not in _BYTES:
        return b""
    file = page.parent.filehandle
    file.seek(tag.valueoffset)
    return cast(bytes, file.read(min(tag.valuebytecount, _MOST_TEXT))).partition(b"\0")[0]


def _bytes(page: Any, code: int) -> bytes | None:
    """What a tag of bytes holds; ``None`` without it."""
    tag = page.tags.get(code)
    if tag is None:
        return None
    file = page.parent.filehandle
    if tag.dtype not in {1, 7} or tag.valueoffset + tag.valuebytecount > file.size:
        raise ValueError(
            f"tag {code} has {tag.count} values of type {tag.dtype}, and should be bytes of the file"
        )
    file.seek(tag.valueoffset)
    return cast(bytes, file.read(tag.valuebytecount))


def _number(page: Any, code: int, default: int) -> int:
    """The first of the whole numbers that a tag has."""
    tag = page.tags.get(code)
    if tag is None or tag.dtype not in _WHOLE or not tag.count:
        return default
    value = tag.value
    return int(value[0] if isinstance(value, bytes | tuple) else value)


def _properties(page: Any, vendor: str) -> Iterator[tuple[str, str]]:
    for name, code in (("tiff.XResolution", 282), ("tiff.YResolution", 283)):
        tag = page.tags.get(code)
        if tag is not None and tag.dtype in _RATIONAL and tag.value[1]:
            yield name, repr(tag.value[0] / tag.value[1])
        elif tag is not None and tag.dtype in _REAL:
            yield name, repr(tag.value[0])
    yield _ORIENTATION, str(_number(page, 274, _UPRIGHT))
    yield "tiff.ResolutionUnit", _UNITS.get(_number(page, 296, _INCH), "unknown")
    if vendor == "aperio":
        for part in _text(page, 270).decode(errors="replace").split("|")[1:]:
            name, equals, value = part.partition("=")
            if equals:
                yield f"aperio.{name.strip()}", value.strip()
    if page.is_ome:
        yield from _ome_properties(str(page.description), int(page.samplesperpixel))


def _ome_properties(text: str, samples: int) -> Iterator[tuple[str, str]]:
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError(f"its OME-XML cannot be read: {error}") from error
    named = {_name_of(each): each for each in reversed(list(root.iter()))}
    # Of several pictures, the first is the slide; the others may be in other files.
    parts = [each for each in named.get("Image", root).iter() if _name_of(each) == "UUID"]
    files = {each.get("FileName", "") for each in parts} - {""}
    elsewhere = bool(parts) and root.get("UUID", "") not in {
        "",
        *((each.text or "").strip() for each in parts),
    }
    if "BinaryOnly" in named:
        files.add(named["BinaryOnly"].get("MetadataFile", "another"))
    if len(files) > 1 or elsewhere or "BinaryOnly" in named:
        yield _FILES, ", ".join(sorted(files)) or "another"
    pixels = named.get("Pixels")
    if pixels is not None:
        for name in ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeXUnit", "PhysicalSizeYUnit"):
            if name in pixels.attrib:
                yield f"ome.{name}", pixels.attrib[name]
        colours, depths, times = (int(pixels.attrib.get(f"Size{axis}", 1)) for axis in "CZT")
        yield _PLANES, str(max(1, colours // samples) * depths * times)


def _name_of(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _images(pages: list[tuple[Any, bool]], vendor: str, channels: Mapping[int, int]) -> Iterator[StoredImage]:
    for number, (page, below) in enumerate(pages):
        try:
            yield replace(_image(page, vendor), below=below, channel=channels.get(number))
        except ValueError:
            # Labels and overviews come in many forms, and are not what is read.
            if number == 0 or page.is_tiled:
                raise


def _alike(pages: list[tuple[Any, bool]]) -> list[int]:
    """Number the pages that are as large as the first and not said to be another version of it."""
    first = pages[0][0]
    return [
        number
        for number, (page, below) in enumerate(pages)
        if not below and page.shape == first.shape and (page is first or not _number(page, 254, 0) & 1)
    ]


def _names(pages: list[tuple[Any, bool]], vendor: str, alike: list[int]) -> Iterator[str]:
    """Name the channels, which are the pages ``alike``; none where there are depths or times as well."""
    first = pages[0][0]
    if vendor == "generic-tiff":
        for number in alike:
            named = _NAME.search(_text(pages[number][0], 270).decode(errors="replace"))
            yield named[1].strip() if named else ""
    elif vendor == "ome-tiff":
        root = ET.fromstring(str(first.description))
        pixels = next((each for each in root.iter() if _name_of(each) == "Pixels"), None)
        if pixels is not None and len(alike) > 1:
            names = [each.get("Name", "") for each in pixels if _name_of(each) == "Channel"]
            flat = pixels.get("SizeZ", "1") == pixels.get("SizeT", "1") == "1"
            # Pages may be assigned to channels in any order; in all files that we know it is theirs.
            in_order = all(
                each.get("IFD", "0") == each.get("FirstC", "0")
                for each in pixels
                if _name_of(each) == "TiffData"
            )
            if flat and in_order and len(names) == len(alike):
                yield from names


def _channels(pages: list[tuple[Any, bool]], alike: list[int]) -> dict[int, int]:
    """Number the channels of pages, by the page's number.

    Coarser levels are below the page of their channel, or follow one another as the channels do.
    """
    full = set(alike)
    groups: dict[Any, list[int]] = {}
    for number, (page, below) in enumerate(pages):
        if number not in full and not below and page.is_tiled == pages[0][0].is_tiled:
            groups.setdefault(page.shape, []).append(number)
    channels = {
        number: channel
        for places in (alike, *groups.values())
        if len(places) == len(alike)
        for channel, number in enumerate(places)
    }
    owner = 0
    for number, (_, below) in enumerate(pages):
        if not below:
            owner = number
        elif owner in channels:
            channels[number] = channels[owner]
    return channels


def _check_tags(page: Any) -> None:
    """Refuse an image some of whose tags cannot be read; tifffile leaves them out, and logs it."""
    tiff, file = page.parent.tiff, page.parent.filehandle
    file.seek(page.offset)
    (count,) = struct.unpack(tiff.tagnoformat, file.read(tiff.tagnosize))
    if len(page.tags) != count:
        entries = file.read(count * tiff.tagsize)
        where = "" if tiff.is_ndpi else _where_cut(entries, tiff, file.size)
        raise ValueError(f"{count - len(page.tags)} of {count} tags of an image cannot be read{where}")


def _where_cut(entries: bytes, form: Any, size: int) -> str:
    """Whether the values of some tags lie beyond the end of a file of so many bytes."""
    for place in range(0, len(entries), form.tagsize):
        _, kind, count, value = struct.unpack(form.tagheaderformat, entries[place : place + form.tagsize])
        (start,) = struct.unpack(form.offsetformat, value)
        length = count * _SIZES.get(kind, 0)
        if length > form.tagoffsetthreshold and start + length > size:
            return f": values at {start} lie beyond the end of the file, {size} bytes"
    return ""


def _image(page: Any, vendor: str) -> StoredImage:
    width, height, tiled = int(page.imagewidth), int(page.imagelength), bool(page.is_tiled)
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels")
    tile_width = int(page.tilewidth) if tiled else width
    tile_height = int(page.tilelength) if tiled else min(int(page.rowsperstrip) or height, height)
    if tile_width < 1 or tile_height < 1:
        raise ValueError(f"tiles of {tile_width} x {tile_height} pixels")
    coding, refused = _coding(page, vendor)
    offsets = np.asarray(page.dataoffsets, dtype=np.uint64)
    sizes = np.asarray(page.databytecounts, dtype=np.uint64)
    if coding is not None and not tiled and coding.compression is Compression.NONE and len(offsets) == 1:
        row = width * coding.samples
        if row * height > page.parent.filehandle.size:
            raise ValueError(f"an image of {width} x {height} pixels in a file of fewer bytes")
        tile_height = min(height, max(1, _STRIP // width))
        starts = np.arange(0, height, tile_height, dtype=np.uint64)
        offsets, sizes = offsets[0] + starts * np.uint64(row), np.full(len(starts), tile_height * row)
        sizes[-1] = (height - int(starts[-1])) * row
    rows, columns = -(-height // tile_height), -(-width // tile_width)
    if tile_width * tile_height > _LARGEST_TILE:
        size = f"{tile_width} x {tile_height}"
        if tiled:
            # Nobody is to try: OpenSlide ends the whole process where memory does not suffice.
            raise ValueError(f"tiles of {size} pixels, at most {_LARGEST_TILE} are decoded")
        if coding is not None:
            coding, refused = None, f"its strips of {size} pixels must be decoded whole"
    if coding is not None and len(offsets) == len(sizes) > rows * columns and tiled:
        # Of several layers or planes: the first is not all that there is to see.
        coding, refused = None, f"it has {len(sizes)} tiles for {rows} x {columns} places"
    if len(offsets) != len(sizes) or len(sizes) < rows * columns:
        raise ValueError(f"{len(offsets)} offsets and {len(sizes)} sizes of {rows} x {columns} tiles")
    shape, count = (rows, columns), rows * columns
    if sizes.max(initial=0) > np.iinfo(np.uint32).max:
        raise ValueError(f"a tile of {sizes.max()} bytes")
    return StoredImage(
        width,
        height,
        tile_width,
        tile_height,
        tiled,
        offsets[:count].reshape(shape),
        sizes[:count].astype(np.uint32).reshape(shape),
        coding,
        refused,
        reduced=bool(_number(page, 254, 0) & 1),
    )


def _coding(page: Any, vendor: str) -> tuple[Coding | None, str]:
    """How the tiles of a page are decoded, or why they are not."""
    number, photometric, samples = int(page.compression), int(page.photometric), int(page.samplesperpixel)
    compression = _COMPRESSIONS.get(number)
    if compression is None:
        return None, f"its compression {_name(page.compression)} is not one that is decoded directly"
    depth = page.bitspersample
    if depth != 8 or int(page.imagedepth) != 1:
        return None, f"it has {depth} bits per colour, not 8" if depth != 8 else "it has several layers"
    if int(page.sampleformat) != 1:
        return None, "its pixels are not whole numbers"
    if samples > 1 and int(page.planarconfig) != 1:
        return None, "it stores each colour by itself"
    if page.extrasamples:
        return None, "its pixels have transparency or further channels"
    expected = {1: {_GREY}, 3: {_RGB, _YCBCR} if compression is Compression.JPEG else {_RGB}}
    if photometric not in expected.get(samples, set()):
        return None, f"its colours are {samples} of {_name(page.photometric)}"
    predictor = int(page.predictor)
    differences = predictor == _DIFFERENCES
    understood = {_NO_PREDICTOR, _DIFFERENCES} if compression in _DIFFERENCED else {_NO_PREDICTOR}
    if predictor not in understood and compression is not Compression.JPEG:
        # Where a compression is not meant to have them, readers do not agree on what they mean.
        return None, f"its pixels are stored as differences of a kind ({predictor}) that is not read directly"
    if int(page.fillorder) != 1 or _number(page, 274, _UPRIGHT) != _UPRIGHT:
        return None, "its pixels are stored in an order that is not decoded directly"
    if compression is not Compression.JPEG:
        return Coding(compression, samples, differences), ""
    if page.jpegheader is not None:
        # NDPI: one image, whose parts are tiles; each has a restart marker where a tile has an end.
        return Coding(compression, samples, prefix=bytes(page.jpegheader), suffix=b"\xff\xd9"), ""
    colours: jpeg.Colours = "Gray" if samples == 1 else "RGB" if photometric == _RGB else "YCbCr"
    start = jpeg.prefix(_bytes(page, 347), colours)
    # OpenSlide believes the file, whatever a stream says. Bio-Formats writes files of which only its streams
    # are to be believed, where they say anything.
    believed = None if vendor == "ome-tiff" else colours
    return Coding(compression, samples, prefix=start, skipped=2, colours=believed), ""


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))
