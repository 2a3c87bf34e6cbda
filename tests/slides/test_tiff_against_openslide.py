"""Tiles read directly, against OpenSlide: the same pixels, levels, resolution and bounds, or another reader.

OpenSlide takes whole level-0 pixels, and interpolates at levels whose downsample is not whole. There, and for
OME-TIFF, of which OpenSlide sees the first level at most, the truth is what tifffile decodes.
"""

from __future__ import annotations

import contextlib
import io
import random

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image

from wsi_ats.errors import MppError, SlideError, SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, choose_reader, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide
from wsi_ats.slides.tiff import TiffSlide

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


# --- ways to encode a tile ---


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
    """The same, with what it says of itself replaced."""
    segments, _ = jpeg_parts

    def encode_and_mark(tile):
        kept = [part for marker, part in segments(encode(tile)) if not 0xE0 <= marker <= 0xEF]
        return b"".join([kept[0], *markers, *kept[1:]])

    return encode_and_mark


# --- comparing ---


@pytest.fixture(scope="module")
def count():
    """Regions compared so far; ``pytest -s`` shows the sum."""
    counted = {"with OpenSlide": 0, "with tifffile": 0}
    yield counted
    print(f"\nregions compared: {counted}")  # noqa: T201


@pytest.fixture
def same(count):
    """The function that compares a file's direct reader with OpenSlide."""

    def compare(path, *, exact=("levels", "mpp", "bounds", "background"), regions=24):
        assert choose_reader(path).reader == "direct"
        with TiffSlide(str(path), threads=2) as direct, OpenSlideSlide(str(path)) as other:
            for name in exact:
                assert value(direct, name) == value(other, name), name
            for number, level in enumerate(other.levels):
                assert direct.levels[number] == level
                whole = level.downsample.is_integer()
                truth = None if whole else decoded(path, level)
                for corners, width, height in random_regions(level, regions):
                    read = direct.read_regions(number, corners, width, height)
                    if truth is None:
                        expected = other.read_regions(number, corners, width, height)
                    else:
                        expected = np.stack([crop(truth, corner, width, height) for corner in corners])
                    np.testing.assert_array_equal(read, expected, err_msg=f"{level} {corners.tolist()}")
                    count["with OpenSlide" if whole else "with tifffile"] += len(corners)

    return compare


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


# --- JPEG ---


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "411", "440"])
@pytest.mark.parametrize("photometric", [6, 2], ids=["YCbCr", "RGB"])
@pytest.mark.parametrize("says", ["nothing", "JFIF", "Adobe 0", "Adobe 1", "JFIF, Adobe 0"])
def test_jpeg_is_what_the_file_says_whatever_the_stream_says(
    handmade, jpeg_parts, same, tmp_path, subsampling, photometric, says
):
    """Aperio writes colours as they are, and programs that copy its tiles mark them as luma and chroma."""
    markers = {
        "nothing": [],
        "JFIF": [JFIF],
        "Adobe 0": [adobe(0)],
        "Adobe 1": [adobe(1)],
        "JFIF, Adobe 0": [JFIF, adobe(0)],
    }[says]
    encode = marked(jpeg(subsampling), jpeg_parts, *markers)
    same(
        handmade().write(
            tmp_path / "s.tif",
            [image(encode, compression=7, photometric=photometric, size=(300, 200))],
        ),
        regions=8,
    )


@pytest.mark.parametrize("photometric", [6, 2], ids=["YCbCr", "RGB"])
def test_jpeg_in_ome_tiff_is_what_the_stream_says(handmade, tmp_path, photometric):
    """Bio-Formats writes luma and chroma, marked as such, and says in the file that they are RGB."""
    said = {270: (2, b"<OME></OME>\0")}
    one = image(jpeg(), size=(300, 200), compression=7, photometric=photometric, tags=said)
    with open_slide(handmade().write(tmp_path / "s.tif", [one])) as slide:
        region = slide.read_regions(0, np.array([[0, 0]]), 300, 200)[0]
    assert np.abs(region.astype(int) - smooth((300, 200))).mean() < 3


@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
@pytest.mark.parametrize("says", ["nothing", "JFIF", "padded"])
def test_jpeg_with_common_tables(handmade, jpeg_parts, same, tmp_path, subsampling, says):
    _, split = jpeg_parts
    encode = jpeg(subsampling)
    tables, _ = split(encode(np.zeros((64, 96, 3), np.uint8)))
    if says == "JFIF":
        tables = tables[:2] + JFIF + tables[2:]
    if says == "padded":
        tables += bytes(6)
    for photometric in (2, 6):
        images = [
            image(
                lambda tile: split(encode(tile), markers=False)[1],
                size=size,
                compression=7,
                photometric=photometric,
                tags={347: (7, tables), **(REDUCED if number else {})},
            )
            for number, size in enumerate([SIZE, (350, 220)])
        ]
        same(handmade().write(tmp_path / "s.tif", images), regions=24)


@pytest.mark.parametrize("tile", [(240, 240), (512, 256), (16, 16), (96, 64)], ids=str)
@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_jpeg_tiles_of_any_shape(handmade, same, tmp_path, tile, subsampling):
    encode = jpeg(subsampling)
    one = image(encode, size=(1100, 700), tile=tile, compression=7, photometric=6)
    same(handmade().write(tmp_path / "s.tif", [one]), regions=48)


def test_jpeg_of_colours_as_they_are(handmade, same, tmp_path):
    one = image(jpeg("444", colour="RGB"), compression=7, photometric=2)
    same(handmade().write(tmp_path / "s.tif", [one]))


def test_progressive_jpeg(handmade, same, tmp_path):
    one = image(jpeg(progressive=True), compression=7, photometric=6)
    same(handmade().write(tmp_path / "s.tif", [one]))


def restarts(tile):
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "JPEG", quality=90, restart_marker_blocks=2, subsampling=2)
    return stream.getvalue()


def lossless(tile):
    return imagecodecs.jpeg8_encode(tile, lossless=True, predictor=1)


def optimised(tile):
    return imagecodecs.jpeg8_encode(tile, 60, optimize=True, subsampling="420", smoothing=30)


@pytest.mark.parametrize(("encode", "photometric"), [(restarts, 6), (lossless, 2), (optimised, 6)])
def test_less_common_jpeg(handmade, same, tmp_path, encode, photometric):
    one = image(encode, size=(300, 200), compression=7, photometric=photometric)
    same(handmade().write(tmp_path / "s.tif", [one]))


@pytest.mark.parametrize("photometric", [6, 2], ids=["YCbCr", "RGB"])
@pytest.mark.parametrize(
    "marker",
    [b"\xff\xfe\x00\x06abcd", b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xee\x00\x07Adobe"],
    ids=["comment", "Exif", "Adobe without a transform"],
)
def test_other_markers_say_nothing(handmade, jpeg_parts, same, tmp_path, photometric, marker):
    encode = marked(jpeg(), jpeg_parts, marker)
    one = image(encode, size=(300, 200), compression=7, photometric=photometric)
    same(handmade().write(tmp_path / "s.tif", [one]), regions=8)


def test_grey_jpeg(handmade, same, tmp_path):
    one = image(grey_jpeg, compression=7, photometric=1, samples=1)
    same(handmade().write(tmp_path / "s.tif", [one]))


@pytest.mark.parametrize(
    ("encode", "options", "problem"),
    [
        (grey_jpeg, {"photometric": 6}, "a JPEG of Gray pixels, expected YCbCr"),
        (grey_jpeg, {"photometric": 2}, "a JPEG of Gray pixels, expected RGB"),
        (jpeg(), {"photometric": 1, "samples": 1}, "a JPEG of YCbCr pixels, expected Gray"),
        (lambda tile: jpeg()(tile[:48]), {"photometric": 6}, "a JPEG of 96 x 48 pixels, expected 96 x 64"),
        (lambda tile: jpeg()(np.tile(tile, (2, 1, 1))), {"photometric": 6}, "a JPEG of 96 x 128 pixels"),
        (twelve_bits, {"photometric": 6}, "data precision 12"),
    ],
    ids=[
        "grey as YCbCr",
        "grey as RGB",
        "YCbCr as grey",
        "smaller than the tile",
        "larger than the tile",
        "12 bits",
    ],
)
def test_jpeg_that_contradicts_the_file_is_refused_as_by_openslide(
    handmade, tmp_path, encode, options, problem
):
    path = handmade().write(tmp_path / "s.tif", [image(encode, compression=7, **options)])
    for reader, expected in (("direct", problem), ("openslide", "cannot be read")):
        with (
            open_slide(SlideRef("s", str(path), "s", reader=reader)) as slide,
            pytest.raises(SlideReadError, match=expected),
        ):
            slide.read_regions(0, np.array([[0, 0]]), 10, 10)


# --- other compressions ---

WAYS = {
    "none": (np.ndarray.tobytes, {}),
    "grey": (grey, {"photometric": 1, "samples": 1}),
    "deflate": (deflate, {"compression": 8}),
    "old deflate": (deflate, {"compression": 32946}),
    "deflate, rubbish after it": (lambda tile: deflate(tile) + b"xx", {"compression": 8}),
    "lzw": (lambda tile: imagecodecs.lzw_encode(tile.tobytes()), {"compression": 5}),
    "zstd": (lambda tile: imagecodecs.zstd_encode(tile.tobytes()), {"compression": 50000}),
    "jpeg 2000": (jpeg_2000, {"compression": 33005, "tags": APERIO}),
    "lossy jpeg 2000": (
        lambda tile: jpeg_2000(tile, level=45, reversible=False),
        {"compression": 33005, "tags": APERIO},
    ),
    "jpeg 2000 of luma and chroma": (
        lambda tile: jpeg_2000(tile, mct=True),
        {"compression": 33005, "tags": APERIO},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_compression(handmade, same, tmp_path, way):
    encode, options = WAYS[way]
    same(handmade().write(tmp_path / "s.tif", [image(encode, **options)]))


@pytest.mark.parametrize("code", [8, 5, 50000])
@pytest.mark.parametrize("samples", [1, 3])
def test_differences(handmade, same, tmp_path, code, samples):
    compress = {8: imagecodecs.zlib_encode, 5: imagecodecs.lzw_encode, 50000: imagecodecs.zstd_encode}[code]

    def encode(tile):
        stored = np.diff(tile[..., :samples].astype(int), axis=1, prepend=0) % 256
        return compress(stored.astype(np.uint8).tobytes())

    options = {"samples": samples, "photometric": 2 if samples == 3 else 1, "tags": {317: (3, [2])}}
    same(handmade().write(tmp_path / "s.tif", [image(encode, compression=code, **options)]))


@pytest.mark.parametrize(
    ("order", "big"), [("<", False), ("<", True), (">", True)], ids=["little", "big", "big, big-endian"]
)
def test_every_byte_order_that_openslide_reads(handmade, same, tmp_path, order, big):
    path = handmade(order, big=big).write(
        tmp_path / "s.tif", [image(), image(size=(350, 220), seed=1, tags=REDUCED)]
    )
    same(path)


# --- levels ---


def test_levels_that_do_not_divide(handmade, same, tmp_path):
    """OpenSlide interpolates at the second, whose downsample is 3.99: what is read is what is stored."""
    sizes = [(1099, 703), (275, 176), (137, 88)]
    images = [
        image(deflate, size=size, seed=i, compression=8, tags=REDUCED if i else {})
        for i, size in enumerate(sizes)
    ]
    same(handmade().write(tmp_path / "s.tif", images))


def test_levels_of_different_compressions(handmade, same, tmp_path):
    images = [
        image(jpeg("420"), compression=7, photometric=6),
        image(deflate, size=(350, 220), seed=1, compression=8, tags=REDUCED),
        image(
            jpeg("444"), size=(175, 110), tile=(64, 64), seed=2, compression=7, photometric=6, tags=REDUCED
        ),
    ]
    same(handmade().write(tmp_path / "s.tif", images))


KINDS = {
    "reduced": REDUCED,
    "reduced and more": {254: (4, [9])},
    "reduced mask": {254: (4, [5])},
    "reduced, short": {254: (3, [1])},
    "not reduced": {254: (4, [0])},
    "nothing said": {},
    "reduced, by the old tag": {255: (3, [2])},
    "not reduced, by the new tag": {254: (4, [0]), 255: (3, [2])},
    "reduced, not by the old tag": {254: (4, [1]), 255: (3, [1])},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vendor", ["generic", "aperio", "ome"])
def test_the_same_images_are_levels(handmade, same, tmp_path, kind, vendor):
    said = {"generic": {}, "aperio": APERIO, "ome": {270: (2, b"<OME></OME>\0")}}[vendor]
    path = handmade().write(
        tmp_path / "s.tif", [image(tags=said), image(size=(350, 220), seed=1, tags=KINDS[kind])]
    )
    same(path, regions=8)


def test_the_largest_image_is_the_first_level_wherever_it_is(handmade, same, tmp_path):
    sizes = [(350, 220), (700, 440), (175, 110)]
    images = [
        image(deflate, size=size, seed=i, compression=8, tags=REDUCED if i else {})
        for i, size in enumerate(sizes)
    ]
    same(handmade().write(tmp_path / "s.tif", images))


def test_levels_beside_go_before_levels_below(handmade, same, tmp_path):
    below = [image(size=(350, 220), seed=1, tags=REDUCED)]
    images = [image(below=below), image(size=(175, 110), seed=2, tags=REDUCED)]
    same(handmade().write(tmp_path / "s.tif", images))


def test_aperio_with_thumbnail_label_and_macro(same, tmp_path):
    said = {
        "metadata": None,
        "software": False,
        "photometric": "ycbcr",
        "compression": "jpeg",
        "compressionargs": {"level": 85},
        "subsampling": (2, 2),
    }
    text = "Aperio Image Library v11.2.1 \r\n{} [0,0 {}] (240x240) JPEG/RGB Q=30|AppMag = 40|MPP = 0.2498"
    path = tmp_path / "s.svs"
    with tifffile.TiffWriter(path) as file:
        file.write(smooth((2200, 1500)), tile=(240, 240), description=text.format("1", "2"), **said)
        file.write(smooth((300, 200), 1), description="Aperio thumbnail", rowsperstrip=16, **said)
        file.write(smooth((550, 375), 2), tile=(240, 240), description="Aperio", **said)
        file.write(smooth((137, 93), 3), tile=(240, 240), description="Aperio", **said)
        for name, kind in (("label", 1), ("macro", 9)):
            file.write(smooth((120, 90), 4), description=f"Aperio\r\n{name} 1", subfiletype=kind, **said)
    same(path, regions=96)
    with open_slide(path) as slide:
        assert [level.width for level in slide.levels] == [2200, 550, 137]
        assert slide.mpp.value == 0.2498


@pytest.mark.parametrize("vendor", ["generic", "aperio"])
def test_levels_out_of_order_are_for_openslide_to_refuse(handmade, tmp_path, vendor):
    said = APERIO if vendor == "aperio" else {}
    second = {"size": (350, 220) if vendor == "generic" else (900, 600)}
    path = handmade().write(
        tmp_path / "s.tif", [image(size=(350, 500), tags=said), image(**second, tags=REDUCED)]
    )
    assert choose_reader(path).reason == "its levels are not in order"
    if vendor == "aperio":
        with pytest.raises(SlideOpenError, match="and not read directly: its levels are not in order"):
            open_slide(path)


# --- what is not there, and where it ends ---


@pytest.mark.parametrize(
    "missing",
    [[0], range(8), [7, 15, 23, 31, 39, 47, 55], range(48, 56), [i for i in range(56) if i != 18], [27, 28]],
    ids=["first", "first row", "last column", "last row", "all but one", "inside"],
)
@pytest.mark.parametrize("way", ["none", "jpeg", "grey"])
def test_tiles_that_are_left_out(handmade, same, tmp_path, missing, way):
    """They are background, and the scanned area ends with what is there."""
    options = {
        "none": {},
        "jpeg": {"encode": jpeg(), "compression": 7, "photometric": 6},
        "grey": {"encode": grey, "photometric": 1, "samples": 1},
    }[way]
    same(handmade().write(tmp_path / "s.tif", [image(missing=missing, **options)]), regions=24)


def test_a_slide_without_any_tile_has_bounds_still(handmade, tmp_path):
    """For OpenSlide they are of no size, and nothing could be looked for in them."""
    path = handmade().write(tmp_path / "s.tif", [image(missing=range(56))])
    with open_slide(path) as slide:
        assert slide.bounds == (0, 0, *SIZE)
        assert (slide.read_regions(0, np.array([[0, 0]]), 99, 99) == 255).all()


def test_aperio_with_missing_tiles_is_left_to_openslide(handmade, tmp_path):
    path = handmade().write(tmp_path / "s.tif", [image(missing=[3], tags=APERIO)])
    assert "tiles are missing" in choose_reader(path).reason


def test_places_of_missing_tiles_may_be_anywhere(handmade, same, tmp_path):
    offsets = [(1 << 32) - 1] * 56
    content = image(missing=range(1, 56))
    handmade().write(tmp_path / "s.tif", [content])
    with tifffile.TiffFile(tmp_path / "s.tif", mode="r+b") as file:
        offsets[0] = file.pages[0].dataoffsets[0]
        file.pages[0].tags[324].overwrite(offsets)
    same(tmp_path / "s.tif", regions=8)


# --- resolution ---

RATIOS = {
    "a ratio": (5, [20123, 7]),
    "large numbers": (5, [4294967295, 214748]),
    "a float": (11, [20000.1]),
    "a double": (12, [20000.123]),
    "not a number": (11, [float("nan")]),
    "0 / 0": (5, [0, 0]),
    "1 / 0": (5, [1, 0]),
    "a whole number": (3, [20000]),
    "none": None,
}


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("unit", [1, 2, 3, 9, None])
def test_resolution_tags(handmade, same, tmp_path, ratio, unit):
    tags = {282: RATIOS[ratio], 283: RATIOS[ratio], 296: None if unit is None else (3, [unit])}
    one = image(size=(150, 100), tags=tags)
    same(handmade().write(tmp_path / "s.tif", [one]), regions=8)


@pytest.mark.parametrize(
    "text",
    [
        b"Aperio |MPP = 0.5",
        b"AperioX|MPP=0,25",
        b"Aperio|MPP = 0.5|MPP = 0.25",
        b"Aperio|MPP=|AppMag=20",
        b"Aperio \xb5\xff\x81|MPP=0.5",
        b"Aperio|MPP=0.5=0.25",
        b"Aperio|MPP=wrong",
        b"  Aperio|MPP=0.5",
        b"aperio|MPP=0.5",
    ],
)
def test_what_aperio_says(handmade, same, tmp_path, text):
    said = {270: (2, text + b"\0"), 282: (5, [20123, 7]), 283: (5, [20123, 7]), 296: (3, [3])}
    images = [image(size=(300, 200), tags=said), image(size=(150, 100), seed=1)]
    same(handmade().write(tmp_path / "s.tif", images), regions=8)


# --- what is left to OpenSlide ---

OTHERS = {
    "several layers": {"tags": {32997: (4, [2])}},
    "signed": {"tags": {339: (3, [2] * 3)}},
    "differences without compression": {"tags": {317: (3, [2])}},
    "white is 0": {"encode": grey, "samples": 1, "photometric": 0},
    "differences in jpeg 2000": {
        "encode": jpeg_2000,
        "compression": 33005,
        "tags": {**APERIO, 317: (3, [2])},
    },
    "aperio's other jpeg 2000": {"encode": jpeg_2000, "compression": 33003, "tags": APERIO},
    "hamamatsu": {"tags": {65420: (4, [1])}},
    "trestle": {"tags": {305: (2, b"MedScan\0")}},
    "leica": {
        "tags": {
            270: (2, b"<scn xmlns='http://www.leica-microsystems.com/scn/2010/10/01'></scn>" + b" " * 30)
        }
    },
    "philips": {"tags": {305: (2, b"Philips\0"), 270: (2, b"<DataObject/>\0")}},
    "ventana": {"tags": {700: (1, b"<iScan></iScan>")}},
    "huron": {"tags": {271: (2, b"Huron\0"), 270: (2, b"Resolution=0.25 um\0")}},
    "argos": {"tags": {65000: (2, b"<Argos.Scan.Metadata></Argos.Scan.Metadata>\0")}},
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_openslide_reads_by_rules_of_its_own_is_left_to_it(handmade, tmp_path, other):
    path = handmade().write(tmp_path / "s.tif", [image(**OTHERS[other]), image(size=(350, 220))])
    choice = choose_reader(path)
    assert choice.reader == "openslide"
    assert choice.reason
    with contextlib.suppress(SlideError), open_slide(path) as slide:  # some lack what OpenSlide looks for
        assert isinstance(slide, OpenSlideSlide)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("aperio", [False, True])
def test_what_is_stored_turned_or_mirrored_is_refused(handmade, tmp_path, orientation, aperio):
    """Read tile by tile each tile would be turned in its place, and the picture be scrambled."""
    tags = {274: (3, [orientation])} | (APERIO if aperio else {})
    path = handmade().write(tmp_path / "s.tif", [image(tags=tags), image(size=(350, 220))])
    with pytest.raises(SlideOpenError, match=rf"orientation \(tag 274\) is {orientation}: .*upright"):
        open_slide(path)


@pytest.mark.parametrize(
    ("tag", "names"),
    [
        ("<channel>{}</channel>", r" \(DAPI, FITC, Cy3\)"),
        ("<x><Name>{}</Name></x>", r" \(DAPI,"),
        ("", ", and"),
    ],
)
def test_pages_of_one_size_are_channels_and_refused_by_name(handmade, tmp_path, tag, names):
    texts = [tag.format(each).encode() + b" " * 8 + b"\0" for each in ("DAPI", "FITC", "Cy3")]
    pages = [
        image(grey, samples=1, photometric=1, seed=seed, tags={270: (2, text)})
        for seed, text in enumerate(texts)
    ]
    path = handmade().write(tmp_path / "s.tif", pages)
    with pytest.raises(SlideOpenError, match=rf"3 channels, depths or times of the same place{names}"):
        open_slide(path)


@pytest.fixture
def channels(handmade, tmp_path):
    """A QPTIFF of two channels in two levels, with a thumbnail between them."""
    names = [f"<Name>{each}</Name>".encode() + b"\0" * 8 for each in ("DAPI", "Cy3")]

    def grey_page(seed, size=SIZE, **tags):
        tags = {int(key[1:]): value for key, value in tags.items()}
        return image(grey, samples=1, photometric=1, seed=seed, size=size, tags=tags)

    full = [grey_page(seed, _270=(2, name)) for seed, name in enumerate(names)]
    half = [grey_page(seed, (350, 220), _254=(4, [1])) for seed in (2, 3)]
    thumbnail = image(size=(70, 44), tags={254: (4, [1])})
    return handmade().write(tmp_path / "s.tif", [*full, thumbnail, *half])


@pytest.mark.parametrize("channel", ["Cy3", "cy3", "1"])
@pytest.mark.parametrize("reader", ["auto", "direct"])
def test_a_channel_is_read_at_all_its_levels(channels, channel, reader):
    with open_slide(SlideRef("s", str(channels), "s", channel=channel, reader=reader)) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [SIZE, (350, 220)]
        with tifffile.TiffFile(channels) as file:
            for number, page in enumerate((1, 4)):
                level = slide.levels[number]
                found = slide.read_regions(number, np.array([[0, 0]]), level.width, level.height)[0]
                expected = file.pages[page].asarray()
                np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, 2))


def test_a_channel_that_is_not_there_is_refused_with_those_that_are(channels, handmade, tmp_path):
    with pytest.raises(SlideOpenError, match=r"tile.channel is 'GFP', but its channels are 0 DAPI, 1 Cy3"):
        open_slide(SlideRef("s", str(channels), "s", channel="GFP"))
    with pytest.raises(SlideOpenError, match=r"give one by its name, or its number"):
        open_slide(channels)
    alone = handmade().write(tmp_path / "alone.tif", [image()])
    with pytest.raises(SlideOpenError, match="has only one image"):
        open_slide(SlideRef("s", str(alone), "s", channel="DAPI"))
    with pytest.raises(SlideOpenError, match="the reader is openslide: requested"):
        open_slide(SlideRef("s", str(alone), "s", channel="DAPI", reader="openslide"))


def test_of_channels_with_one_name_one_is_chosen_by_its_number(handmade, tmp_path):
    pages = [
        image(grey, samples=1, photometric=1, seed=seed, tags={270: (2, b"<Name>Opal 520</Name>\0")})
        for seed in (0, 1)
    ]
    path = str(handmade().write(tmp_path / "s.tif", pages))
    with pytest.raises(
        SlideOpenError, match=r"several channels are called 'opal 520': 0 Opal 520, 1 Opal 520"
    ):
        open_slide(SlideRef("s", path, "s", channel="opal 520"))
    with open_slide(SlideRef("s", path, "s", channel="1")) as slide:
        assert slide.levels


def test_a_second_version_of_the_whole_is_no_channel(handmade, tmp_path):
    path = handmade().write(tmp_path / "s.tif", [image(), image(tags={254: (4, [1])}, size=(350, 220))])
    with open_slide(path) as slide:
        assert len(slide.levels) == 2


@pytest.mark.parametrize("name", ["label", "Macro", "Aperio x\nlabel 387x463", "overview of it"])
def test_a_picture_of_the_label_is_no_slide(handmade, tmp_path, name):
    text = {270: (2, name.encode() + b"\0" * 8)}
    path = handmade().write(tmp_path / "s.tif", [image(tags=text)])
    with pytest.raises(SlideOpenError, match=r"only image is called '(?i:label|macro|overview)'"):
        open_slide(path)
    path = handmade().write(tmp_path / "both.tif", [image(tags=text), image(size=(350, 220))])
    with open_slide(path) as slide:
        assert slide.levels


@pytest.mark.parametrize("code", [34675, 347])  # colour profile, JPEG tables
@pytest.mark.parametrize(
    ("kind", "values"), [(4, [3_000_000_000]), (3, [8, 9]), (2, b"text\0"), (5, [1, 2])], ids=str
)
def test_tags_of_bytes_of_another_type_are_damage(handmade, tmp_path, code, kind, values):
    """As a number one would be taken for so many bytes of memory."""
    coded = image(jpeg(), compression=7, photometric=6, tags={code: (kind, values)})
    path = handmade().write(tmp_path / "s.tif", [coded])
    with pytest.raises(SlideOpenError, match=f"tag {code} has . values of type {kind}, expected bytes"):
        open_slide(path)


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "s.svs").write_bytes(b"")
    with pytest.raises(SlideOpenError, match="it is an empty file"):
        open_slide(tmp_path / "s.svs")


def test_an_olympus_overview_is_no_slide(handmade, tmp_path):
    path = handmade().write(tmp_path / "s.vsi", [image()])
    with pytest.raises(SlideOpenError, match=r"an overview and the label.*convert it"):
        open_slide(path)


def test_dicom_that_begins_as_tiff_does_is_no_tiff(handmade, tmp_path):
    path = handmade().write(tmp_path / "s.tif", [image(), image(size=(350, 220))])
    assert choose_reader(path).reader == "direct"
    content = bytearray(path.read_bytes())
    content[128:132] = b"DICM"
    (tmp_path / "s.dcm").write_bytes(content)
    assert choose_reader(tmp_path / "s.dcm").reason == "it is not a TIFF file"


def test_more_tiles_than_places_are_left_to_openslide(handmade, tmp_path):
    content = image()
    content["tiles"].append(content["tiles"][0])
    assert (
        "57 tiles for 7 x 8 places" in choose_reader(handmade().write(tmp_path / "s.tif", [content])).reason
    )


def test_other_compressions_are_left_to_openslide(handmade, tmp_path):
    def encode(tile):
        return imagecodecs.packbits_encode(tile.tobytes())

    path = handmade().write(tmp_path / "s.tif", [image(encode, compression=32773)])
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideSlide)
        region = slide.read_regions(0, np.array([[50, 60]]), 99, 70)[0]
        np.testing.assert_array_equal(region, smooth(SIZE)[60:130, 50:149])


# --- real slides ---


def test_a_real_slide(shared_data, same):
    same(shared_data / "slides" / "aperio_cmu-1-small-region.svs", regions=240)


@pytest.mark.parametrize("name", ["ometiff_OS-1-detail_HE.ome.tif", "ometiff_OS-2-ndpi_Ki67.ome.tif"])
def test_real_ome_tiff(shared_data, count, name):
    path = shared_data / "slides" / name
    with TiffSlide(str(path)) as slide, tifffile.TiffFile(path) as file:
        pages = [file.pages[0], *(file.pages[0].pages or ())]
        for number, level in enumerate(slide.levels):
            truth = next(page.asarray() for page in pages if page.shape[:2] == (level.height, level.width))
            for corners, width, height in random_regions(level, 80):
                expected = np.stack([crop(truth, corner, width, height) for corner in corners])
                np.testing.assert_array_equal(slide.read_regions(number, corners, width, height), expected)
                count["with tifffile"] += len(corners)


def test_hamamatsu_at_the_levels_of_both(shared_data, count):
    path = str(shared_data / "slides" / "hamamatsu_test3-DAPI.ndpi")
    with TiffSlide(path) as direct, OpenSlideSlide(path) as other:
        assert direct.mpp.value == pytest.approx(other.mpp.value, rel=1e-6)
        compared = 0
        for number, level in enumerate(direct.levels):
            if level not in other.levels or not level.downsample.is_integer():
                continue
            for corners, width, height in random_regions(level, 80):
                np.testing.assert_array_equal(
                    direct.read_regions(number, corners, width, height),
                    other.read_regions(other.levels.index(level), corners, width, height),
                )
                compared += len(corners)
        assert compared > 0
        count["with OpenSlide"] += compared
