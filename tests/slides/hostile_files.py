"""Small TIFF files of every coding, to be damaged, and processes of little memory that read them."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from wsi_ats.errors import SlideError, SlideOpenError
from wsi_ats.slides.tiff import TiffSlide

SIZES = [(200, 130), (100, 65)]
TILE = (96, 64)
REDUCED = {254: (4, [1])}
APERIO = {270: (2, b"Aperio Image Library v11\r\n200x130 (96x64)|AppMag = 20|MPP = 0.4990\0")}
RESOLUTION = {282: (5, [20_000, 1]), 283: (5, [20_000, 1]), 296: (3, [3])}
OME = b"<OME><Pixels PhysicalSizeX='0.5' PhysicalSizeY='0.5'/></OME>\0"


def tiles_of(pixels):
    (width, height), (rows, columns, _) = TILE, pixels.shape
    padded = np.pad(pixels, ((0, -rows % height), (0, -columns % width), (0, 0)))
    return [
        np.ascontiguousarray(padded[y : y + height, x : x + width])
        for y in range(0, len(padded), height)
        for x in range(0, padded.shape[1], width)
    ]


def image(pixels, encode=np.ndarray.tobytes, **rest):
    tiles = [encode(each) for each in tiles_of(pixels)]
    return {"size": pixels.shape[1::-1], "tile": TILE, "tiles": tiles, **rest}


def deflate(tile):
    return zlib.compress(tile.tobytes())


def jpeg(tile):
    return simplejpeg.encode_jpeg(tile, 90, "RGB", "420")


def jpeg_2000(tile):
    return imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=0)


KINDS = ["none", "big, deflate", "big-endian ome, lzw", "jpeg", "jpeg 2000", "zstd", "strips"]


def tiled(full, half, handmade, split):
    """By coding: a writer, and a slide of two levels in tiles for it."""
    tables, _ = split(jpeg(np.zeros((64, 96, 3), np.uint8)))

    def flat(encode, **rest):
        tags = rest.pop("tags", {})
        return [
            image(full, encode, tags={**RESOLUTION, **tags}, **rest),
            image(half, encode, tags={**REDUCED, **tags}, **rest),
        ]

    def lzw(tile):
        return imagecodecs.lzw_encode(tile.tobytes())

    def zstd(tile):
        return imagecodecs.zstd_encode(tile.tobytes())

    def without_tables(tile):
        return split(jpeg(tile))[1]

    ome = {270: (2, OME)}
    below = image(half, tags=REDUCED)
    common = {347: (7, tables), **APERIO}
    return {
        "none": (handmade(), flat(np.ndarray.tobytes)),
        "big, deflate": (handmade(big=True), flat(deflate, compression=8)),
        "big-endian ome, lzw": (handmade(">"), [image(full, lzw, compression=5, tags=ome, below=[below])]),
        "jpeg": (handmade(), flat(without_tables, compression=7, photometric=6, tags=common)),
        "jpeg 2000": (handmade(), flat(jpeg_2000, compression=33005, tags=APERIO)),
        "zstd": (handmade(), flat(zstd, compression=50000)),
    }


def write_strips(path, full, half):
    """Write the two levels in strips, with differences between pixels."""
    options = {"photometric": "rgb", "compression": "zlib", "predictor": True, "rowsperstrip": 20}
    with tifffile.TiffWriter(path) as file:
        for pixels in (full, half):
            file.write(pixels, subfiletype=int(pixels is half), metadata=None, **options)
    return path


def everything(path):
    with TiffSlide(str(path)) as slide:
        return [
            slide.read_regions(number, np.array([[0, 0]]), level.width, level.height)[0]
            for number, level in enumerate(slide.levels)
        ]


def outcome(path):
    """Return the pixels, or ``None`` for an error of this library that names the file."""
    try:
        return everything(path)
    except SlideError as error:
        assert str(path) in str(error)  # noqa: PT017  (there need be none)
        assert isinstance(error, SlideOpenError) or "at level-0 (" in str(error)  # noqa: PT017
        return None


damage = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
anywhere = st.floats(0, 1, exclude_max=True)


def without_tiles(path):
    """Places in a file that hold no pixels."""
    places = np.ones(path.stat().st_size, dtype=bool)
    with tifffile.TiffFile(path) as file:
        for page in [*file.pages, *(file.pages[0].pages or ())]:
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                places[offset : offset + size] = False
    return np.flatnonzero(places)


CHILD = """
import json, resource, sys, warnings
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import numpy as np
from wsi_ats.errors import SlideError
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.testing.memory import peak_memory
import wsi_ats.slides.openslide, wsi_ats.slides.tiff, imagecodecs
before = peak_memory()
for line in sys.stdin:
    reader, path = json.loads(line)
    print(reader, path, file=sys.stderr, flush=True)
    try:
        with open_slide(SlideRef("s", path, "s", reader=reader)) as slide:
            for number in range(len(slide.levels)):
                slide.read_regions(number, np.array([[0, 0]]), 64, 64)
        said = "read"
    except SlideError as error:
        said = f"{type(error).__name__}: {error}"
    used = (peak_memory() - before) >> 20
    print(json.dumps([said, used]), flush=True)
"""


def in_a_process(jobs):
    """Return the outcome of each (reader, path), and the peak memory in MiB until then."""
    lines = "".join(json.dumps([reader, str(path)]) + "\n" for reader, path in jobs)
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=lines, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr[-600:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def strip(size, **tags):
    none = {322: None, 323: None, 324: None, 325: None}
    return {"size": size, "tags": {**none, 273: (4, [8]), **{int(k[1:]): v for k, v in tags.items()}}}
