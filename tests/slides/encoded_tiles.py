"""TIFF files of tiles in every encoding, and regions of them to compare."""

from __future__ import annotations

import io
import random

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from wsi_ats.errors import MppError

SIZE, TILE = (700, 440), (96, 64)
REDUCED = {254: (4, [1])}
APERIO = {270: (2, b"Aperio Image Library v11\r\n700x440 (96x64) |AppMag = 20|MPP = 0.4990|Left = 1\0")}


def smooth(size, seed=0):
    """Like tissue: JPEG keeps something of it, and its colour changes within a subsampled pixel."""
    width, height = size
    small = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def tiles_of(pixels, tile):
    (width, height), (rows, columns, _) = tile, pixels.shape
    below, right = -rows % height, -columns % width
    padded = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")
    return [
        np.ascontiguousarray(padded[y : y + height, x : x + width])
        for y in range(0, len(padded), height)
        for x in range(0, padded.shape[1], width)
    ]


def image(encode=np.ndarray.tobytes, *, size=SIZE, tile=TILE, seed=0, missing=(), **rest):
    encoded = [encode(each) for each in tiles_of(smooth(size, seed), tile)]
    for number in missing:
        encoded[number] = b""
    return {"size": size, "tile": tile, "tiles": encoded, **rest}


def jpeg(subsampling="444", *, colour="YCbCr", progressive=False):
    def encode(tile):
        if colour == "RGB":
            return imagecodecs.jpeg8_encode(tile, 90, outcolorspace="RGB", subsampling=subsampling)
        if not progressive:
            return simplejpeg.encode_jpeg(tile, 90, "RGB", subsampling)
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, "JPEG", quality=90, progressive=True, subsampling=2)
        return stream.getvalue()

    return encode


def twelve_bits(tile):
    return imagecodecs.jpeg_encode(tile.astype(np.uint16) * 16, 90, bitspersample=12)


def grey_jpeg(tile):
    return simplejpeg.encode_jpeg(tile[..., :1].copy(), 90, "GRAY", "Gray")


def grey(tile):
    return tile[..., 0].tobytes()


def jpeg_2000(tile, **options):
    return imagecodecs.jpeg2k_encode(tile, codecformat="j2k", **{"level": 0, **options})


def deflate(tile):
    return imagecodecs.zlib_encode(tile.tobytes())


def adobe(transform):
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def marked(encode, jpeg_parts, *markers):
    """The same, with another application marker."""
    segments, _ = jpeg_parts

    def encode_and_mark(tile):
        kept = [part for marker, part in segments(encode(tile)) if not 0xE0 <= marker <= 0xEF]
        return b"".join([kept[0], *markers, *kept[1:]])

    return encode_and_mark


def value(slide, name):
    try:
        return slide.mpp.value if name == "mpp" else getattr(slide, name)
    except MppError:
        return "unknown"


def random_regions(level, number):
    """In, across each edge of, and outside the level; of random sizes, aligned with nothing."""
    draw = random.Random(level.width * 1000 + level.height)
    for _ in range(max(1, number // 8)):
        width, height = (draw.randint(1, min(side + 60, 330)) for side in (level.width, level.height))
        inside = [
            (draw.randint(-20, level.width + 20), draw.randint(-20, level.height + 20)) for _ in range(3)
        ]
        x, y = draw.randint(0, level.width), draw.randint(0, level.height)
        edges = [(-width // 2, y), (x, -height // 2), (level.width - width // 2, y)]
        edges += [(x, level.height - height // 2), (level.width + 3, y)]
        yield np.array(inside + edges), width, height


def crop(pixels, corner, width, height):
    region = np.full((height, width, 3), 255, np.uint8)
    (x, y), (rows, columns, _) = corner, pixels.shape
    x0, x1, y0, y1 = max(x, 0), min(x + width, columns), max(y, 0), min(y + height, rows)
    if x0 < x1 and y0 < y1:
        region[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[y0:y1, x0:x1]
    return region


def decoded(path, level):
    with tifffile.TiffFile(path) as file:
        size = (level.height, level.width)
        return next(page.asarray() for page in file.pages if page.shape[:2] == size and page.is_tiled)
