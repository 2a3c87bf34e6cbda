"""The index of a TIFF file: the only import of tifffile outside :mod:`wsi_ats.testing`.

The whole index is read once and kept in arrays: 12 bytes for each tile of the file.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from wsi_ats.errors import SlideOpenError
from wsi_ats.slides.advice import advice_on
from wsi_ats.slides.ome_xml import OmeXml
from wsi_ats.slides.storage import Storage
from wsi_ats.slides.stored_image import StoredImage
from wsi_ats.slides.tiff_images import images_of
from wsi_ats.slides.tiff_tags import (
    HEADER_BYTES,
    RATIONAL,
    REAL,
    bytes_of,
    description_of,
    is_reduced,
    is_tiff,
    number_of,
    orientation_of,
    pages_of,
    text_of,
)

# Names of images that are not the slide, at the beginning or in the second line (Aperio) of a description.
_OVERVIEW = re.compile(r"^(?:label|macro|overview)\b", re.IGNORECASE | re.MULTILINE)

# The name of a channel in the pages of PerkinElmer's and Akoya's QPTIFF, and other files.
_NAME = re.compile(r"<(?:Name|channel)>([^<]+)</", re.IGNORECASE)

_Pages = Sequence[tuple[Any, bool]]

_INCH = 2
_UNITS = {1: "none", _INCH: "inch", 3: "centimeter"}

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


@dataclass(frozen=True)
class TiffIndex:
    """The contents of a TIFF file.

    Parameters
    ----------
    vendor
        Kind of the file, by OpenSlide's name (``aperio``, ``hamamatsu``, ``generic-tiff`` ...) or
        ``ome-tiff``.
    images
        The images, in the file's order; images below another one follow it.
    properties
        The file's properties, by OpenSlide's names if there are any.
    icc
        Its colour profile, if it has one.
    pages
        Names of the first image and of all images of its size in the main sequence; an image without a name
        has an empty one. In plain TIFF they are channels, depths or times, in OME-TIFF channels.
    overview
        Name of the only image, if it shows that the image is a label, macro or overview.
    orientation
        TIFF's number for the order of rows and columns; 1 is upright.
    ome_planes
        Number of images of the same place in the file's OME-XML.
    files
        Names of the files that the image is spread over; empty if it is all in this file.
    """

    vendor: str
    images: tuple[StoredImage, ...]
    properties: Mapping[str, str] = field(default_factory=dict)
    icc: bytes | None = None
    pages: tuple[str, ...] = ()
    overview: str = ""
    orientation: int = 1
    ome_planes: int = 1
    files: str = ""

    @classmethod
    def of(cls, storage: Storage) -> Self | None:
        """Read the index of a file; return ``None`` if the file is not TIFF.

        Raises
        ------
        SlideOpenError
            When the index is damaged.
        """
        import tifffile

        try:
            with storage.open() as file:
                if not is_tiff(file.read(HEADER_BYTES)):
                    return None
                file.seek(0)
                with _quiet(), tifffile.TiffFile(file, name=storage.path) as tiff:
                    index = cls._of_pages(pages_of(tiff))
        except (*_DAMAGED, tifffile.TiffFileError) as error:
            raise SlideOpenError(
                storage.path, f"its TIFF index is damaged ({error!r:.200}); {advice_on(str(error))}"
            ) from error
        index._check(storage)
        return index

    @classmethod
    def _of_pages(cls, pages: list[tuple[Any, bool]]) -> Self:
        first, _ = pages[0]
        vendor = _vendor(first)
        ome = OmeXml.of(str(first.description), int(first.samplesperpixel)) if first.is_ome else OmeXml({})
        full = _alike(pages)
        overview = _OVERVIEW.search(description_of(first)) if len(pages) == 1 else None
        index = cls(
            vendor,
            tuple(images_of(pages, vendor, _numbers_of(pages, full))),
            {**dict(_properties(first, vendor)), **ome.sizes},
            bytes_of(first, 34675) or None,
            _names_of(pages, full, vendor, ome.channels),
            overview[0] if overview else "",
            orientation_of(first),
            ome.planes,
            ome.files,
        )
        for page, _ in pages:
            # _Pages refer to each other. Their copy of the index, four times as large as this one, would stay
            # in memory until the next full garbage collection.
            page.tags, page.dataoffsets, page.databytecounts = None, (), ()
        return index

    @property
    def planes(self) -> int:
        """Number of images of the same place (channels, depths and times) that the file records."""
        return max(self.ome_planes, len(self.pages))

    def of_channel(self, path: str, channel: str) -> Self:
        """Return the index of one of several channels.

        Parameters
        ----------
        path
            The slide's name in errors.
        channel
            Name of the channel, or its number from 0.

        Raises
        ------
        SlideOpenError
            When the file has one image, or no such channel.
        """
        known = ", ".join(f"{number} {name}".strip() for number, name in enumerate(self.pages))
        if len(self.pages) < 2:
            raise SlideOpenError(
                path,
                f"tile.channel is {channel!r}, but the file has only one image, or does not record the "
                "channels of its pages",
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
        return replace(self, images=images, pages=(), ome_planes=1)

    def image(self, width: int, height: int) -> StoredImage | None:
        """Return the first tiled image with the given size."""
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
    """Keep tifffile's log messages off the terminal of programs that have not configured logging.

    The messages are not needed: :func:`~wsi_ats.slides.tiff_tags.pages_of` finds the same damage.
    """
    logger, handler = logging.getLogger("tifffile"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _vendor(page: Any) -> str:
    """Return the vendor of a file from its first page, by OpenSlide's rules and in its order."""
    description, software = text_of(page, 270), text_of(page, 305)
    vendors = {
        "hamamatsu": 65420 in page.tags,
        "trestle": software.startswith(b"MedScan"),
        "aperio": page.is_tiled and description.startswith(b"Aperio"),
        "leica": b"leica-microsystems.com/scn" in description,
        "philips": software.startswith(b"Philips"),
        "ventana": page.is_bif or b"iScan" in text_of(page, 700),
        "huron": text_of(page, 271).startswith(b"Huron"),
        "argos": b"Argos.Scan.Metadata" in text_of(page, 65000),
        "ome-tiff": page.is_ome,
    }
    return next((name for name, found in vendors.items() if found), "generic-tiff")


def _properties(page: Any, vendor: str) -> Iterator[tuple[str, str]]:
    for name, code in (("tiff.XResolution", 282), ("tiff.YResolution", 283)):
        tag = page.tags.get(code)
        if tag is not None and tag.dtype in RATIONAL and tag.value[1]:
            yield name, repr(tag.value[0] / tag.value[1])
        elif tag is not None and tag.dtype in REAL:
            yield name, repr(tag.value[0])
    yield "tiff.ResolutionUnit", _UNITS.get(number_of(page, 296, _INCH), "unknown")
    if vendor == "aperio":
        for part in description_of(page).split("|")[1:]:
            name, equals, value = part.partition("=")
            if equals:
                yield f"aperio.{name.strip()}", value.strip()


def _alike(pages: _Pages) -> list[int]:
    """Return the numbers of the first page and all pages of its size that are not reduced copies.

    Parameters
    ----------
    pages
        _Pages from :func:`wsi_ats.slides.tiff_tags.pages_of`.
    """
    first = pages[0][0]
    return [
        number
        for number, (page, below) in enumerate(pages)
        if not below and page.shape == first.shape and (page is first or not is_reduced(page))
    ]


def _names_of(pages: _Pages, full: Sequence[int], vendor: str, channels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the channels; empty if there are also depths or times.

    Parameters
    ----------
    pages
        All pages.
    full
        Numbers of the pages that show a channel at full resolution.
    vendor
        The file's vendor.
    channels
        Names in the file's OME-XML.
    """
    if vendor == "generic-tiff":
        found = (_NAME.search(description_of(pages[number][0])) for number in full)
        return tuple(each[1].strip() if each else "" for each in found)
    if vendor == "ome-tiff" and len(full) > 1 and len(channels) == len(full):
        return channels
    return ()


def _numbers_of(pages: _Pages, full: Sequence[int]) -> dict[int, int]:
    """Return the channel of each page that shows one, by the page's number.

    Coarser levels are below the page of their channel, or in sequence in the order of the channels.

    Parameters
    ----------
    pages
        All pages.
    full
        Numbers of the pages that show a channel at full resolution.
    """
    known = set(full)
    groups: dict[Any, list[int]] = {}
    for number, (page, below) in enumerate(pages):
        if number not in known and not below and page.is_tiled == pages[0][0].is_tiled:
            groups.setdefault(page.shape, []).append(number)
    channels = {
        number: channel
        for places in (full, *groups.values())
        if len(places) == len(full)
        for channel, number in enumerate(places)
    }
    owner = 0
    for number, (_, below) in enumerate(pages):
        if not below:
            owner = number
        elif owner in channels:
            channels[number] = channels[owner]
    return channels
