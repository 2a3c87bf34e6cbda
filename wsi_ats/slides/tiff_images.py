"""The images of a TIFF file: conversion of tifffile's pages to :class:`StoredImage`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.slides import jpeg
from wsi_ats.slides.codecs import Coding, Compression
from wsi_ats.slides.stored_image import StoredImage
from wsi_ats.slides.tiff_tags import bytes_of, is_reduced, orientation_of

# Compressions that are decoded here, by TIFF's numbers. Aperio's other kind of JPEG 2000 stores luma and
# chroma, which OpenSlide converts by its own rule.
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
_GREY, _RGB, _YCBCR = 1, 2, 6

# Largest tile or strip in pixels, because each is decoded whole. A larger one is a whole image, or damage
# that would fill the memory.
_LARGEST_TILE = 1 << 26

# An uncompressed image in one strip can be read by rows: this many pixels at a time.
_STRIP = 1 << 20


def images_of(
    pages: Sequence[tuple[Any, bool]], vendor: str, channels: Mapping[int, int]
) -> Iterator[StoredImage]:
    """Describe the images of a file, in order; labels and overviews of unknown forms are left out.

    Parameters
    ----------
    pages
        Pages from :func:`wsi_ats.slides.tiff_tags.pages_of`.
    vendor
        The file's vendor.
    channels
        Channel of each page that shows one, by the page's number.

    Raises
    ------
    ValueError
        When the first image, or a tiled one, is damaged. Errors of tifffile are not translated.
    """
    for number, (page, below) in enumerate(pages):
        try:
            yield replace(_image(page, vendor), below=below, channel=channels.get(number))
        except ValueError:
            # Labels and overviews come in many forms, and are not read.
            if number == 0 or page.is_tiled:
                raise


def _image(page: Any, vendor: str) -> StoredImage:
    width, height, tile_width, tile_height, tiled = _layout(page)
    coding, refused = _coding(page, vendor)
    offsets = np.asarray(page.dataoffsets, dtype=np.uint64)
    sizes = np.asarray(page.databytecounts, dtype=np.uint64)
    if coding is not None and not tiled and coding.compression is Compression.NONE and len(offsets) == 1:
        row = width * coding.samples
        if row * height > page.parent.filehandle.size:
            raise ValueError(f"an image of {width} x {height} pixels in a file with fewer bytes")
        tile_height = min(height, max(1, _STRIP // width))
        offsets, sizes = _strips(int(offsets[0]), row, height, tile_height)
    rows, columns = -(-height // tile_height), -(-width // tile_width)
    if tile_width * tile_height > _LARGEST_TILE:
        size = f"{tile_width} x {tile_height}"
        if tiled:
            # No reader may try, because OpenSlide ends the whole process if memory runs out.
            raise ValueError(f"tiles of {size} pixels, but at most {_LARGEST_TILE} are decoded")
        if coding is not None:
            coding, refused = None, f"its strips of {size} pixels can only be decoded whole"
    if coding is not None and len(offsets) == len(sizes) > rows * columns and tiled:
        # There are several layers or planes, and the first alone is not the whole image.
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
        reduced=is_reduced(page),
    )


def _layout(page: Any) -> tuple[int, int, int, int, bool]:
    """Return the size of an image, the size of its tiles or strips, and whether they are tiles."""
    width, height, tiled = int(page.imagewidth), int(page.imagelength), bool(page.is_tiled)
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels")
    tile_width = int(page.tilewidth) if tiled else width
    tile_height = int(page.tilelength) if tiled else min(int(page.rowsperstrip) or height, height)
    if tile_width < 1 or tile_height < 1:
        raise ValueError(f"tiles of {tile_width} x {tile_height} pixels")
    return width, height, tile_width, tile_height, tiled


def _strips(
    start: int, row: int, height: int, strip_height: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Divide an uncompressed image in one strip into lower strips, and return their offsets and sizes.

    Parameters
    ----------
    start
        Offset of the image.
    row
        Bytes of a row of pixels.
    height, strip_height
        Rows of the image, and of a strip.
    """
    first = np.arange(0, height, strip_height, dtype=np.uint64)
    rows = np.minimum(np.uint64(strip_height), np.uint64(height) - first)
    return np.uint64(start) + first * np.uint64(row), rows * np.uint64(row)


def _coding(page: Any, vendor: str) -> tuple[Coding | None, str]:
    """Return the coding of a page's tiles, or the reason why they are not decoded."""
    number, photometric, samples = int(page.compression), int(page.photometric), int(page.samplesperpixel)
    compression = _COMPRESSIONS.get(number)
    if compression is None:
        return None, f"its compression {_name(page.compression)} is not decoded directly"
    depth = page.bitspersample
    if depth != 8 or int(page.imagedepth) != 1:
        return None, f"it has {depth} bits per colour, not 8" if depth != 8 else "it has several layers"
    if int(page.sampleformat) != 1:
        return None, "its pixels are not whole numbers"
    if samples > 1 and int(page.planarconfig) != 1:
        return None, "it stores each colour separately"
    if page.extrasamples:
        return None, "its pixels have transparency or further channels"
    expected = {1: {_GREY}, 3: {_RGB, _YCBCR} if compression is Compression.JPEG else {_RGB}}
    if photometric not in expected.get(samples, set()):
        return None, f"its colours are {samples} of {_name(page.photometric)}"
    predictor = int(page.predictor)
    differences = predictor == _DIFFERENCES
    understood = {_NO_PREDICTOR, _DIFFERENCES} if compression in _DIFFERENCED else {_NO_PREDICTOR}
    if predictor not in understood and compression is not Compression.JPEG:
        # Readers disagree on predictors of compressions that are not meant to have them.
        return (
            None,
            f"its pixels are stored as differences (predictor {predictor}) that are not read directly",
        )
    if int(page.fillorder) != 1 or orientation_of(page) != 1:
        return None, "its pixels are stored in an order that is not decoded directly"
    if compression is not Compression.JPEG:
        return Coding(compression, samples, differences), ""
    if page.jpegheader is not None:
        # NDPI: tiles are parts of one image; each ends with a restart marker instead of an end marker.
        return Coding(compression, samples, prefix=bytes(page.jpegheader), suffix=b"\xff\xd9"), ""
    colours: jpeg.Colours = "Gray" if samples == 1 else "RGB" if photometric == _RGB else "YCbCr"
    start = jpeg.prefix(bytes_of(page, 347), colours)
    # OpenSlide uses the colour space of the file, even if the stream differs. In files of Bio-Formats only
    # the streams are right, if they specify it.
    believed = None if vendor == "ome-tiff" else colours
    return Coding(compression, samples, prefix=start, skipped=2, colours=believed), ""


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))
