"""TIFF files made to do harm: an error in little time and memory.

Files that may take all memory, end the process or never end are read in a process of their own.
"""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from slides.hostile_files import (
    APERIO,
    SIZES,
    everything,
    image,
    in_a_process,
    jpeg,
    jpeg_2000,
    strip,
    tiles_of,
)
from wsi_ats.errors import MppError
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.tiff import TiffSlide

# --- claims ---


def claiming(stream, width, height):
    """A JPEG that claims another size."""
    at = max(stream.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2"))
    return stream[: at + 5] + struct.pack(">HH", height, width) + stream[at + 9 :]


def scans(tile, number):
    """A progressive JPEG with scans of nothing after those of its pixels."""
    stream = BytesIO()
    Image.fromarray(tile).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last : last + 12] * number + data[-2:]


def patched(stream, **values):
    """A JPEG 2000 with other numbers in its header, by their offset."""
    patched = bytearray(stream)
    for name, value in values.items():
        struct.pack_into(">H" if name == "at40" else ">I", patched, int(name[2:]), value)
    return bytes(patched)


def bombs(pattern):
    """Files that claim more than they hold, by name."""
    base = image(pattern(*SIZES[0]))
    tile = tiles_of(pattern(*SIZES[0]))[0]
    return {**wrong_sizes(base), **wrong_tiles(base), **jpeg_bombs(base, tile), **wrong_tags(base)}


def wrong_sizes(base):
    wide, most = (1 << 31, 1 << 31), (1 << 32) - 1
    return {
        "2^31 pixels": base | {"size": wide},
        "2^31 pixels in a tile": base | {"size": wide, "tile": wide},
        "2^32 - 1 pixels in a strip": strip((most, most), _279=(4, [most])),
        "one column": strip((1, most), _279=(4, [most]), _278=(4, [1])),
        "2^32 - 1 rows per strip": strip((200, 130), _279=(4, [78_000]), _278=(4, [most])),
        "no rows per strip": strip((200, 130), _279=(4, [78_000]), _278=(4, [0])),
        "no width": base | {"size": (0, 130)},
        "no height": base | {"size": (200, 0)},
        "no tile width": base | {"tile": (0, 64)},
        "no tile height": base | {"tile": (96, 0)},
        "tiles of a pixel": base | {"tile": (1, 1)},
    }


def wrong_tiles(base):
    squeeze = zlib.compressobj(1)
    zeros = b"".join(squeeze.compress(bytes(1 << 24)) for _ in range(16)) + squeeze.flush()
    return {
        "a quarter of a gigabyte": base | {"compression": 8, "tiles": [zeros] * 9},
        "the same, zstd": base
        | {"compression": 50000, "tiles": [imagecodecs.zstd_encode(bytes(1 << 28))] * 9},
        "many zeros": base | {"compression": 5, "tiles": [imagecodecs.lzw_encode(bytes(1 << 25))] * 9},
        "other bytes than pixels": base | {"tiles": [bytes(10)] * 9},
    }


def jpeg_bombs(base, tile):
    picture, codestream = jpeg(tile), jpeg_2000(tile)
    large = {"size": (8000, 8000), "tile": (8000, 8000)}
    largest = {"size": (65_500, 65_500), "tile": (65_500, 65_500)}
    coded = {"compression": 7, "photometric": 6}
    coded_2000 = {"compression": 33005, "tags": APERIO}
    many = patched(codestream, at8=8000, at12=8000, at24=32, at28=32)
    return {
        "jpeg of 65,535": base | coded | {"tiles": [claiming(picture, 65_535, 65_535)] * 9},
        "jpeg of 65,500 in a tile": largest | coded | {"tiles": [claiming(picture, 65_500, 65_500)]},
        "jpeg of 100,000 scans": large | coded | {"tiles": [claiming(scans(tile, 100_000), 8_000, 8_000)]},
        "jpeg of 8,000": large | coded | {"tiles": [claiming(picture, 8_000, 8_000)]},
        "jpeg 2000 of 2^31": base | coded_2000 | {"tiles": [patched(codestream, at8=1 << 31)] * 9},
        "jpeg 2000 of 16,384 colours": base | coded_2000 | {"tiles": [patched(codestream, at40=16_384)] * 9},
        "jpeg 2000 of 62,500 tiles": large | coded_2000 | {"tiles": [many]},
    }


def wrong_tags(base):
    laughs = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "' + b"ha" * 500 + b'">'
    for before, name in zip(b"abcdefghi", b"bcdefghij", strict=True):
        laughs += b'<!ENTITY %c "%s">' % (name, b"&%c;" % before * 20)
    deep = b"<a>" * 100_000 + b"</a>" * 100_000
    tags = {
        "a billion laughs": {270: (2, laughs + b"]><OME>&j;</OME>\0")},
        "deep": {270: (2, b"<OME>" + deep + b"</OME>\0")},
        "malformed": {270: (2, b"<OME><Pixels></OME>\0")},
        "no bits": {258: (3, [])},
        "words for numbers": {256: (2, b"wide\0")},
        "no offsets": {324: None},
        "no sizes": {325: None},
        "4,500 tags": {code: (3, [1]) for code in range(40_000, 44_500)},
    }
    return {name: base | {"tags": each} for name, each in tags.items()}


READ = {"2^32 - 1 rows per strip", "no rows per strip", "deep", "many zeros"}


def test_oversized_claims_are_errors_in_little_memory(handmade, pattern, tmp_path):
    """By the direct reader, and where it leaves the file to OpenSlide, which is written in C."""
    contents, jobs = bombs(pattern), []
    for number, content in enumerate(contents.values()):
        if "tile" not in content:
            content |= {"tile": (1, 1), "tiles": [bytes(80_000)]}
        path = handmade().write(tmp_path / f"{number}.tif", [content])
        jobs += [("direct", path), ("auto", path)]
    done = in_a_process(jobs)
    assert len(done) == len(jobs)
    names = [name for name in contents for _ in range(2)]
    for name, (_, path), (said, megabytes) in zip(names, jobs, done, strict=True):
        assert megabytes < 800, name
        if name in READ:
            assert said == "read", name
        else:
            assert said.startswith(("SlideOpenError", "SlideReadError")), f"{name}: {said}"
            assert str(path) in said


def chain(count, *, back_to=None):
    """Images of one pixel each, one after the other; the last may be followed by an earlier one."""
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 4), (277, 1), (278, 1), (279, 1)]
    size = 2 + 12 * len(tags) + 4
    body = struct.pack("<H", len(tags))
    body += b"".join(struct.pack("<HHIHH", code, 3, 1, value, 0) for code, value in tags)
    for number in range(count):
        following = number + 1 if number + 1 < count else back_to
        data += body + struct.pack("<I", 0 if following is None else 8 + following * size)
    return bytes(data)


def test_endless_indices(handmade, pattern, tmp_path):
    base = image(pattern(*SIZES[0]))
    (tmp_path / "long.tif").write_bytes(chain(100_000))
    (tmp_path / "loop.tif").write_bytes(chain(50, back_to=0))
    (tmp_path / "later.tif").write_bytes(chain(300, back_to=150))
    below = handmade().write(tmp_path / "below.tif", [base | {"below": [base]}])
    with tifffile.TiffFile(below, mode="r+b") as file:
        file.pages[0].tags[330].overwrite(file.pages[0].offset)
    many = base | {"tags": {330: (4, [8] * 1_000_000)}}
    counted = handmade().write(tmp_path / "counted.tif", [base])
    with tifffile.TiffFile(counted) as file:
        entry = file.pages[0].tags[325].offset
    content = bytearray(counted.read_bytes())
    content[entry + 4 : entry + 8] = b"\xff" * 4
    counted.write_bytes(content)
    paths = [tmp_path / name for name in ("long.tif", "loop.tif", "later.tif", "counted.tif")]
    paths.append(handmade().write(tmp_path / "many.tif", [many]))
    for path, (said, megabytes) in zip(paths, in_a_process([("direct", p) for p in paths]), strict=True):
        assert said.startswith("SlideOpenError"), path.name
        assert megabytes < 800
    # A level below the image that is the image again is no level.
    (said, _), *_ = in_a_process([("auto", below)])
    assert said == "read" or said.startswith("SlideOpenError")


# --- paths that are not files ---


def test_paths_that_are_not_regular_files_are_refused_at_once(tmp_path):
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "folder.tif").mkdir()
    os.mkfifo(tmp_path / "pipe.tif")
    paths = [*tmp_path.iterdir(), "/dev/null", "/dev/zero", tmp_path / "missing.tif"]
    jobs = [(reader, path) for path in paths for reader in ("direct", "openslide", "auto")]
    for (_, path), (said, _) in zip(jobs, in_a_process(jobs), strict=True):
        assert said.startswith("SlideOpenError")
        assert str(path) in said


# --- descriptions ---


@pytest.mark.parametrize("value", [(5, [0, 0]), (5, [1, 0]), (11, [float("nan")]), (2, b"72\0"), (5, [0, 1])])
def test_a_nonsensical_resolution_is_unknown_and_pixels_are_read(handmade, pattern, tmp_path, value):
    tags = {282: value, 283: value, 296: (3, [3])}
    path = handmade().write(tmp_path / "s.tif", [image(pattern(*SIZES[0]), tags=tags)])
    with open_slide(path) as slide:
        assert isinstance(slide, TiffSlide)
        np.testing.assert_array_equal(everything(path)[0], pattern(*SIZES[0]))
        with pytest.raises(MppError):
            _ = slide.mpp
    with open_slide(SlideRef("s", str(path), "s", mpp=0.5)) as slide:
        assert slide.mpp.value == 0.5


@pytest.mark.parametrize("reader", ["direct", "openslide"])
def test_text_in_another_encoding(handmade, pattern, tmp_path, reader):
    """The name of a property, too: OpenSlide lists it, and finds no value."""
    said = {270: (2, b"Aperio \xb5\x81|Gr\xf6\xdfe = 5\xb5|MPP = 0.25\0")}
    path = handmade().write(tmp_path / "s.tif", [image(pattern(*SIZES[0]), tags=said)])
    with open_slide(SlideRef("s", str(path), "s", reader=reader)) as slide:
        assert slide.vendor == "aperio"
        assert slide.mpp.value == 0.25
