"""TIFF files that are damaged, or made to do harm: an error that names the file, or the true pixels.

What may take all memory, end the process or never end is tried in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import struct
import subprocess
import sys
import threading
import zlib
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_ats.errors import MppError, SlideError, SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.tiff import TiffSlide
from wsi_ats.slides.tiff_index import TiffIndex

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


@pytest.fixture(scope="module")
def slides(handmade, jpeg_parts, pattern, tmp_path_factory):
    """By kind: a file, and the pixels of its levels."""
    folder = tmp_path_factory.mktemp("slides")
    _, split = jpeg_parts
    full, half = (pattern(*size, seed) for seed, size in enumerate(SIZES))
    tables, _ = split(jpeg(np.zeros((64, 96, 3), np.uint8)))

    def flat(encode, **rest):
        tags = rest.pop("tags", {})
        return [
            image(full, encode, tags={**RESOLUTION, **tags}, **rest),
            image(half, encode, tags={**REDUCED, **tags}, **rest),
        ]

    below = image(half, tags=REDUCED)
    contents = {
        "none": (handmade(), flat(np.ndarray.tobytes)),
        "big, deflate": (handmade(big=True), flat(deflate, compression=8)),
        "big-endian ome, lzw": (
            handmade(">"),
            [
                image(
                    full,
                    lambda tile: imagecodecs.lzw_encode(tile.tobytes()),
                    compression=5,
                    tags={270: (2, OME)},
                    below=[below],
                )
            ],
        ),
        "jpeg": (
            handmade(),
            flat(
                lambda tile: split(jpeg(tile))[1],
                compression=7,
                photometric=6,
                tags={347: (7, tables), **APERIO},
            ),
        ),
        "jpeg 2000": (handmade(), flat(jpeg_2000, compression=33005, tags=APERIO)),
        "zstd": (
            handmade(),
            flat(lambda tile: imagecodecs.zstd_encode(tile.tobytes()), compression=50000),
        ),
    }
    made = {}
    for number, (kind, (writer, images)) in enumerate(contents.items()):
        made[kind] = writer.write(folder / f"{number}.tif", images)
    made["strips"] = folder / "strips.tif"
    with tifffile.TiffWriter(made["strips"]) as file:
        for pixels in (full, half):
            file.write(
                pixels,
                photometric="rgb",
                compression="zlib",
                predictor=True,
                rowsperstrip=20,
                subfiletype=int(pixels is half),
                metadata=None,
            )
    return {kind: (path, everything(path)) for kind, path in made.items()}


def everything(path):
    with TiffSlide(str(path)) as slide:
        return [
            slide.read_regions(number, np.array([[0, 0]]), level.width, level.height)[0]
            for number, level in enumerate(slide.levels)
        ]


def outcome(path):
    """What is read, or ``None`` for an error of this library that names the file."""
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


# --- cut short ---


@pytest.mark.parametrize("kind", KINDS)
@damage
@given(share=anywhere)
@example(share=0.0)
def test_cut_short_it_is_an_error_or_whole(slides, tmp_path, kind, share):
    path, truth = slides[kind]
    whole = path.read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: int(share * len(whole))])
    read = outcome(cut)
    assert read is None or all(map(np.array_equal, read, truth))
    assert read is None or len(read) == len(truth)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_bytes_are_missed(slides, tmp_path, kind):
    path, truth = slides[kind]
    for missing in range(1, 24):
        cut = tmp_path / "cut.tif"
        cut.write_bytes(path.read_bytes()[:-missing])
        read = outcome(cut)
        assert read is None or all(map(np.array_equal, read, truth))


@pytest.mark.parametrize(
    "name", ["hamamatsu_test3-DAPI.ndpi", "ometiff_OS-1-detail_HE.ome.tif", "aperio_cmu-1-small-region.svs"]
)
def test_a_real_slide_cut_short(shared_data, tmp_path, name):
    whole = (shared_data / "slides" / name).read_bytes()
    draw = random.Random(0)
    for size in [*(draw.randrange(len(whole)) for _ in range(12)), len(whole) - 1]:
        cut = tmp_path / name
        cut.write_bytes(whole[:size])
        with pytest.raises(SlideError, match=name):
            everything(cut)


# --- bits that changed ---


def without_tiles(path):
    """Places in a file that hold no pixels."""
    places = np.ones(path.stat().st_size, dtype=bool)
    with tifffile.TiffFile(path) as file:
        for page in [*file.pages, *(file.pages[0].pages or ())]:
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                places[offset : offset + size] = False
    return np.flatnonzero(places)


@pytest.mark.parametrize("kind", KINDS)
@damage
@given(share=anywhere, bit=st.integers(0, 7), also=st.sampled_from([None, 0, 255, 127]))
def test_changed_in_its_index_it_is_an_error_or_still_an_image(slides, tmp_path, kind, share, bit, also):
    """Of another size, even: an index has no checksum."""
    path, _ = slides[kind]
    content, places = bytearray(path.read_bytes()), without_tiles(path)
    place = int(places[int(share * len(places))])
    content[place] = content[place] ^ 1 << bit if also is None else also
    changed = tmp_path / "changed.tif"
    changed.write_bytes(content)
    with (
        contextlib.suppress(SlideError),
        open_slide(SlideRef("s", str(changed), "s", reader="direct")) as slide,
    ):
        for number, level in enumerate(slide.levels):
            read = slide.read_regions(number, np.array([[0, 0], [level.width - 9, level.height - 9]]), 9, 9)
            assert read.shape == (2, 9, 9, 3)
        with contextlib.suppress(MppError):
            assert 0.01 <= slide.mpp.value <= 100


@pytest.mark.parametrize("kind", KINDS)
@damage
@given(share=anywhere, bit=st.integers(0, 7))
def test_changed_in_a_tile_other_tiles_stay_the_same(slides, tmp_path, kind, share, bit):
    path, truth = slides[kind]
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
        first_height = file.pages[0].chunks[0]
    content[start + int(share * size)] ^= 1 << bit
    changed = tmp_path / "changed.tif"
    changed.write_bytes(content)
    with TiffSlide(str(changed)) as slide:
        below = SIZES[0][1] - first_height
        rest = slide.read_regions(0, np.array([[0, first_height]]), SIZES[0][0], below)[0]
        np.testing.assert_array_equal(rest, truth[0][first_height:])
        try:
            read = slide.read_regions(0, np.array([[0, 0]]), 96, first_height)
        except SlideReadError as error:
            assert "level 0, the tile of" in str(error)  # noqa: PT017  (there need be none)
        else:
            # Deflate has a checksum; the others have none.
            assert kind not in {"big, deflate", "strips"} or np.array_equal(
                read[0], truth[0][:first_height, :96]
            )


def test_half_of_the_changes_in_a_real_jpeg_tile_are_noticed(shared_data):
    """JPEG has no checksum: the rest gives other pixels, here as in any reader."""
    path = shared_data / "slides" / "aperio_cmu-1-small-region.svs"
    storage = LocalFile(str(path))
    index = TiffIndex.of(storage)
    full = index.images[0]
    data = storage.fetch(full.offsets[4, :1].astype(np.int64), full.sizes[4, :1].astype(np.int64))(0)
    draw, noticed, tries = random.Random(0), 0, 400
    for _ in range(tries):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            full.coding.decode(bytes(changed), np.empty((240, 240, 3), np.uint8))
        except ValueError:
            noticed += 1
    storage.close()
    assert 0.3 < noticed / tries < 0.7


@pytest.mark.parametrize("kept", [0, 1, 5], ids="{} of 6 tiles".format)
def test_a_part_of_jpeg_2000_that_is_missing_is_noticed(handmade, pattern, tmp_path, kept):
    """The decoder would leave black."""
    stream = BytesIO()
    tile = tiles_of(pattern(*SIZES[0]))[0]
    Image.fromarray(tile).save(stream, "JPEG2000", no_jp2=True, tile_size=(32, 32))
    data = stream.getvalue()
    start = data.index(b"\xff\x90")
    at, parts = start, []
    while data[at : at + 2] == b"\xff\x90":
        parts.append(data[at : at + int.from_bytes(data[at + 6 : at + 10], "big")])
        at += len(parts[-1])
    assert len(parts) == 6
    content = {"size": TILE, "tile": TILE, "compression": 33005, "tags": APERIO}
    whole = handmade().write(tmp_path / "whole.tif", [content | {"tiles": [data]}])
    np.testing.assert_array_equal(everything(whole)[0], tile)
    cut = data[:start] + b"".join(parts[:kept]) + data[at:]
    damaged = handmade().write(tmp_path / "damaged.tif", [content | {"tiles": [cut]}])
    with pytest.raises(SlideReadError, match=f"{kept} of 6 tiles of a JPEG 2000"):
        everything(damaged)


@pytest.mark.parametrize(
    "damaged", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xdb\x10\x00\xff\xd9", b"\xff\xd8tables"]
)
def test_damaged_jpeg_tables_are_noticed_on_opening(handmade, pattern, tmp_path, damaged):
    tags = {347: (7, damaged + bytes(5))}
    one = image(pattern(*SIZES[0]), jpeg, compression=7, photometric=6, tags=tags)
    with pytest.raises(SlideOpenError, match="JPEG"):
        open_slide(handmade().write(tmp_path / "s.tif", [one]))


@pytest.mark.parametrize(("place", "value"), [(42, 15), (42, 0x87), (43, 2), (46, 2), (50, 2)])
def test_jpeg_2000_of_other_pixels_is_not_taken_for_colours(handmade, pattern, tmp_path, capfd, place, value):
    """The decoder would take them for luma and chroma, and prints what it thinks of them."""
    stream = bytearray(jpeg_2000(tiles_of(pattern(*SIZES[0]))[0]))
    stream[place] = value
    content = {"size": TILE, "tile": TILE, "compression": 33005, "tags": APERIO, "tiles": [bytes(stream)]}
    with pytest.raises(SlideReadError, match="not of 8 bits, or has colours at a lower resolution"):
        everything(handmade().write(tmp_path / "s.tif", [content]))
    assert capfd.readouterr() == ("", "")


# --- claims ---

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
    """What each (reader, path) ended in, and the megabytes that it took, at most, until then."""
    lines = "".join(json.dumps([reader, str(path)]) + "\n" for reader, path in jobs)
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=lines, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr[-600:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def strip(size, **tags):
    none = {322: None, 323: None, 324: None, 325: None}
    return {"size": size, "tags": {**none, 273: (4, [8]), **{int(k[1:]): v for k, v in tags.items()}}}


def claiming(stream, width, height):
    """A JPEG that says it has another size."""
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
    """A JPEG 2000 that says other numbers of itself, by their offset."""
    patched = bytearray(stream)
    for name, value in values.items():
        struct.pack_into(">H" if name == "at40" else ">I", patched, int(name[2:]), value)
    return bytes(patched)


def bombs(pattern):
    base = image(pattern(*SIZES[0]))
    tile = tiles_of(pattern(*SIZES[0]))[0]
    squeeze = zlib.compressobj(1)
    zeros = b"".join(squeeze.compress(bytes(1 << 24)) for _ in range(16)) + squeeze.flush()
    picture, codestream = jpeg(tile), jpeg_2000(tile)
    laughs = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "' + b"ha" * 500 + b'">'
    for before, name in zip(b"abcdefghi", b"bcdefghij", strict=True):
        laughs += b'<!ENTITY %c "%s">' % (name, b"&%c;" % before * 20)
    deep = b"<a>" * 100_000 + b"</a>" * 100_000
    large = {"size": (8000, 8000), "tile": (8000, 8000)}
    wide = (1 << 31, 1 << 31)
    return {
        "2^31 pixels": base | {"size": wide},
        "2^31 pixels in a tile": base | {"size": wide, "tile": wide},
        "2^32 - 1 pixels in a strip": strip(((1 << 32) - 1,) * 2, _279=(4, [(1 << 32) - 1])),
        "one column": strip((1, (1 << 32) - 1), _279=(4, [(1 << 32) - 1]), _278=(4, [1])),
        "2^32 - 1 rows per strip": strip((200, 130), _279=(4, [78_000]), _278=(4, [(1 << 32) - 1])),
        "no rows per strip": strip((200, 130), _279=(4, [78_000]), _278=(4, [0])),
        "no width": base | {"size": (0, 130)},
        "no height": base | {"size": (200, 0)},
        "no tile width": base | {"tile": (0, 64)},
        "no tile height": base | {"tile": (96, 0)},
        "tiles of a pixel": base | {"tile": (1, 1)},
        "a quarter of a gigabyte": base | {"compression": 8, "tiles": [zeros] * 9},
        "the same, zstd": base
        | {"compression": 50000, "tiles": [imagecodecs.zstd_encode(bytes(1 << 28))] * 9},
        "many zeros": base | {"compression": 5, "tiles": [imagecodecs.lzw_encode(bytes(1 << 25))] * 9},
        "jpeg of 65,535": base
        | {"compression": 7, "photometric": 6, "tiles": [claiming(picture, 65_535, 65_535)] * 9},
        "jpeg of 65,500 in a tile": {
            "size": (65_500, 65_500),
            "tile": (65_500, 65_500),
            "compression": 7,
            "photometric": 6,
            "tiles": [claiming(picture, 65_500, 65_500)],
        },
        "jpeg of 100,000 scans": large
        | {"compression": 7, "photometric": 6, "tiles": [claiming(scans(tile, 100_000), 8_000, 8_000)]},
        "jpeg of 8,000": large
        | {"compression": 7, "photometric": 6, "tiles": [claiming(picture, 8_000, 8_000)]},
        "jpeg 2000 of 2^31": base
        | {"compression": 33005, "tags": APERIO, "tiles": [patched(codestream, at8=1 << 31)] * 9},
        "jpeg 2000 of 16,384 colours": base
        | {"compression": 33005, "tags": APERIO, "tiles": [patched(codestream, at40=16_384)] * 9},
        "jpeg 2000 of 62,500 tiles": large
        | {
            "compression": 33005,
            "tags": APERIO,
            "tiles": [patched(codestream, at8=8000, at12=8000, at24=32, at28=32)],
        },
        "a billion laughs": base | {"tags": {270: (2, laughs + b"]><OME>&j;</OME>\0")}},
        "deep": base | {"tags": {270: (2, b"<OME>" + deep + b"</OME>\0")}},
        "malformed": base | {"tags": {270: (2, b"<OME><Pixels></OME>\0")}},
        "no bits": base | {"tags": {258: (3, [])}},
        "words for numbers": base | {"tags": {256: (2, b"wide\0")}},
        "no offsets": base | {"tags": {324: None}},
        "no sizes": base | {"tags": {325: None}},
        "4,500 tags": base | {"tags": {code: (3, [1]) for code in range(40_000, 44_500)}},
        "other bytes than pixels": base | {"tiles": [bytes(10)] * 9},
    }


READ = {"2^32 - 1 rows per strip", "no rows per strip", "deep", "many zeros"}


def test_what_claims_too_much_is_an_error_in_little_memory(handmade, pattern, tmp_path):
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


def test_indices_without_end(handmade, pattern, tmp_path):
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


# --- what is no file ---


def test_what_is_no_file_is_refused_at_once(tmp_path):
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "folder.tif").mkdir()
    os.mkfifo(tmp_path / "pipe.tif")
    paths = [*tmp_path.iterdir(), "/dev/null", "/dev/zero", tmp_path / "missing.tif"]
    jobs = [(reader, path) for path in paths for reader in ("direct", "openslide", "auto")]
    for (_, path), (said, _) in zip(jobs, in_a_process(jobs), strict=True):
        assert said.startswith("SlideOpenError")
        assert str(path) in said


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_that_may_not_be_read_is_an_error(slides, tmp_path):
    path = tmp_path / "s.tif"
    path.write_bytes(slides["none"][0].read_bytes())
    path.chmod(0)
    for reader in ("direct", "openslide", "auto"):
        with pytest.raises(SlideOpenError, match=r"s\.tif"):
            open_slide(SlideRef("s", str(path), "s", reader=reader))


# --- what is advised ---


@pytest.mark.parametrize("kind", ["big, deflate", "jpeg", "zstd"])
def test_whether_a_copy_is_complete_is_asked_where_that_is_likely(slides, tmp_path, kind):
    path, _ = slides[kind]
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    damaged = tmp_path / "damaged.tif"
    for content, asked in ((bytes(size), True), (b"\x55" * size, False)):
        whole = bytearray(path.read_bytes())
        whole[start : start + size] = content
        damaged.write_bytes(whole)
        with TiffSlide(str(damaged)) as slide, pytest.raises(SlideReadError) as caught:
            slide.read_regions(0, np.array([[0, 0]]), 9, 9)
        assert ("is the copy complete?" in str(caught.value)) == asked
        assert ("only zeros" in str(caught.value)) == asked
        assert ("have it written again" in str(caught.value)) != asked
        assert "--reader" not in str(caught.value)


def test_an_index_that_ends_too_early_is_told_from_one_that_makes_no_sense(slides, damaged_tag, tmp_path):
    cut = tmp_path / "cut.tif"
    cut.write_bytes(slides["none"][0].read_bytes()[:-9])
    with pytest.raises(SlideOpenError, match=r"is the copy complete\?"):
        open_slide(cut)
    with pytest.raises(SlideOpenError, match="have it written again"):
        open_slide(damaged_tag)


# --- files that change while they are open ---


def test_a_file_that_another_replaces_is_still_the_one_that_was_opened(slides, tmp_path):
    path, truth = tmp_path / "s.tif", slides["none"][1]
    path.write_bytes(slides["none"][0].read_bytes())
    with TiffSlide(str(path)) as slide:
        (tmp_path / "other").write_bytes(slides["zstd"][0].read_bytes())
        (tmp_path / "other").replace(path)
        np.testing.assert_array_equal(slide.read_regions(0, np.array([[0, 0]]), *SIZES[0])[0], truth[0])
        path.unlink()
        np.testing.assert_array_equal(slide.read_regions(0, np.array([[0, 0]]), *SIZES[0])[0], truth[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_shrinks_names_the_place_that_is_gone(slides, tmp_path, threads):
    path = tmp_path / "s.tif"
    path.write_bytes(slides["none"][0].read_bytes())
    with TiffSlide(str(path), threads=threads) as slide:
        with path.open("r+b") as file:
            file.truncate(30_000)
        np.testing.assert_array_equal(
            slide.read_regions(0, np.array([[0, 0]]), 50, 50)[0], slides["none"][1][0][:50, :50]
        )
        with pytest.raises(SlideReadError, match=r"s\.tif.*level 0, the tile.*\(96, 0\).*beyond its end"):
            slide.read_regions(0, np.array([[100, 5]]), 20, 20)


# --- what it says of itself ---


@pytest.mark.parametrize("value", [(5, [0, 0]), (5, [1, 0]), (11, [float("nan")]), (2, b"72\0"), (5, [0, 1])])
def test_a_resolution_without_sense_is_unknown_and_pixels_are_read(handmade, pattern, tmp_path, value):
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


# --- what is said to the user, and by whom ---


@pytest.fixture
def damaged_tag(handmade, pattern, tmp_path):
    """A file one of whose tags is of a type that does not exist: how its pixels are to be understood."""
    tags = {317: (3, [2])}
    path = handmade().write(
        tmp_path / "s.tif", [image(pattern(*SIZES[0]), deflate, compression=8, tags=tags)]
    )
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags[317].offset
    content = bytearray(path.read_bytes())
    content[entry + 2] = 200
    path.write_bytes(content)
    return path


def test_a_tag_that_cannot_be_read_is_an_error_and_not_left_out(damaged_tag):
    with pytest.raises(SlideOpenError, match=r"index is damaged.*1 of 12 tags of an image cannot be read"):
        open_slide(damaged_tag)


@pytest.fixture(params=["its level", "all", "switched off"])
def silenced(request):
    """Silence tifffile's log, as a program may: what is damaged must not be found by it."""
    logger = logging.getLogger("tifffile")
    if request.param == "all":
        logging.disable(logging.CRITICAL)
    elif request.param == "its level":
        logger.setLevel(logging.CRITICAL)
    else:
        logger.disabled = True
    yield
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.NOTSET)
    logger.disabled = False


@pytest.mark.usefixtures("silenced")
def test_damage_is_found_where_a_program_has_silenced_the_log(damaged_tag, slides, tmp_path):
    with pytest.raises(SlideOpenError, match="1 of 12 tags of an image cannot be read"):
        open_slide(damaged_tag)
    for path, truth in slides.values():
        whole = path.read_bytes()
        for share in np.linspace(0, 1, 40, endpoint=False):
            cut = tmp_path / "cut.tif"
            cut.write_bytes(whole[: int(share * len(whole))])
            read = outcome(cut)
            assert read is None or (len(read) == len(truth) and all(map(np.array_equal, read, truth))), (
                f"{path.name}, {share:.0%}"
            )


@pytest.mark.parametrize(
    ("tag", "value"),
    [(258, (3, [9, 8, 8])), (284, (3, [3])), (277, (3, [4]))],
    ids=["bits", "planes", "samples"],
)
@pytest.mark.parametrize("kind", ["zstd", "deflate"])
def test_a_level_that_is_damaged_is_not_left_out(handmade, pattern, tmp_path, kind, tag, value):
    """OpenSlide would leave it out, and read all of level 0 for a thumbnail: 10 seconds at 10,000 pixels."""
    encode, number = {
        "zstd": (lambda tile: imagecodecs.zstd_encode(tile.tobytes()), 50000),
        "deflate": (deflate, 8),
    }[kind]
    full, half = (pattern(*size, seed) for seed, size in enumerate(SIZES))
    images = [
        image(full, encode, compression=number, tags=RESOLUTION),
        image(half, encode, compression=number, tags={**REDUCED, tag: value}),
    ]
    path = handmade().write(tmp_path / "s.tif", images)
    with pytest.raises(
        SlideOpenError, match="its level of 100 x 65 pixels is stored in a different form from level 0: "
    ):
        open_slide(path)


def test_a_level_that_openslide_alone_reads_is_no_damage(handmade, pattern, tmp_path):
    full, half = (pattern(*size, seed) for seed, size in enumerate(SIZES))
    packed = image(
        half, lambda tile: imagecodecs.packbits_encode(tile.tobytes()), compression=32773, tags=REDUCED
    )
    path = handmade().write(tmp_path / "s.tif", [image(full, tags=RESOLUTION), packed])
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideSlide)
        read = [slide.read_regions(n, np.array([[0, 0]]), *size)[0] for n, size in enumerate(SIZES)]
    for found, expected in zip(read, (full, half), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wrong", ["no place", "no size", "too many strips", "no pixels at all"])
def test_a_label_that_cannot_be_read_keeps_no_slide_from_being_opened(handmade, pattern, tmp_path, wrong):
    label = strip((10, 10), _279=(4, [300]), _278=(4, [10]))
    label |= {"tile": (1, 1), "tiles": [b""]}
    label["tags"] |= {
        "no place": {273: None},
        "no size": {279: None},
        "too many strips": {273: (4, [8] * 3), 279: (4, [300] * 3)},
        "no pixels at all": dict.fromkeys([256, 257, 258, 273, 279]),
    }[wrong]
    pixels = pattern(*SIZES[0])
    path = handmade().write(tmp_path / "s.tif", [image(pixels), label])
    np.testing.assert_array_equal(everything(path), [pixels])


def test_nothing_but_the_error_reaches_the_terminal(damaged_tag, handmade, pattern, tmp_path):
    odd = handmade().write(tmp_path / "odd.tif", [image(pattern(*SIZES[0]), tags={296: (3, [9])})])
    code = f"""
import contextlib
from wsi_ats.errors import SlideError
from wsi_ats.slides import open_slide
for path in ({str(damaged_tag)!r}, {str(odd)!r}):
    with contextlib.suppress(SlideError), open_slide(path):
        pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_what_another_thread_reads_is_no_complaint_about_this_file(slides, damaged_tag):
    path, truth = slides["none"]
    stop = threading.Event()

    def complain():
        while not stop.is_set():
            with contextlib.suppress(SlideError):
                open_slide(damaged_tag)

    other = threading.Thread(target=complain)
    other.start()
    try:
        for _ in range(30):
            assert all(map(np.array_equal, everything(path), truth))
    finally:
        stop.set()
        other.join()
    assert logging.getLogger("tifffile").handlers == []


# --- OpenSlide, which is left with what is not read directly ---


def test_openslide_survives_what_changed(slides, tmp_path):
    """Alone, it would end the process for some: it is asked only where the index makes sense."""
    jobs = []
    draw = random.Random(0)
    for kind in ("none", "jpeg", "jpeg 2000"):
        path, _ = slides[kind]
        places = without_tiles(path)
        for number in range(25):
            content = bytearray(path.read_bytes())
            content[int(draw.choice(places))] ^= 1 << draw.randrange(8)
            if number % 5 == 0:
                content = content[: draw.randrange(len(content))]
            changed = tmp_path / f"{kind}{number}.tif"
            changed.write_bytes(content)
            jobs.append(("auto", changed))
    done = in_a_process(jobs)
    assert len(done) == len(jobs)
    assert {said.split(":")[0] for said, _ in done} <= {"read", "SlideOpenError", "SlideReadError"}


@settings(damage, derandomize=True)
@given(share=anywhere, bit=st.integers(0, 7))
@pytest.mark.parametrize("kind", ["none", "big, deflate", "jpeg"])
def test_changed_files_that_both_read_are_the_same_to_both(slides, tmp_path, kind, share, bit):
    path, _ = slides[kind]
    content, places = bytearray(path.read_bytes()), without_tiles(path)
    content[int(places[int(share * len(places))])] ^= 1 << bit
    changed = tmp_path / "changed.tif"
    changed.write_bytes(content)
    with contextlib.suppress(SlideError), contextlib.ExitStack() as stack:
        slide = stack.enter_context(open_slide(changed))
        other = stack.enter_context(OpenSlideSlide(str(changed)))
        corner = np.array([[0, 0]])
        for number, level in enumerate(other.levels):
            assert slide.levels[number] == level
            size = min(level.width, 1000), min(level.height, 1000)
            if level.downsample.is_integer():
                pixels = (each.read_regions(number, corner, *size) for each in (slide, other))
                np.testing.assert_array_equal(*pixels)
