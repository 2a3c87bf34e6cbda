"""JPEG in TIFF files, read directly and by OpenSlide: the same pixels."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from slides.encoded_tiles import (
    JFIF,
    REDUCED,
    SIZE,
    adobe,
    grey_jpeg,
    image,
    jpeg,
    marked,
    smooth,
    twelve_bits,
)
from wsi_ats.errors import SlideReadError
from wsi_ats.slides import SlideRef, open_slide


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "411", "440"])
@pytest.mark.parametrize("photometric", [6, 2], ids=["YCbCr", "RGB"])
@pytest.mark.parametrize("says", ["nothing", "JFIF", "Adobe 0", "Adobe 1", "JFIF, Adobe 0"])
def test_jpeg_colours_follow_the_tags_rather_than_the_stream(
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
            tmp_path / "s.tif", [image(encode, compression=7, photometric=photometric, size=(300, 200))]
        ),
        regions=8,
    )


@pytest.mark.parametrize("photometric", [6, 2], ids=["YCbCr", "RGB"])
def test_jpeg_colours_in_ome_tiff_follow_the_stream(handmade, tmp_path, photometric):
    """Bio-Formats writes luma and chroma, marked as such in the stream, and RGB in the tags."""
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


def test_jpeg_of_rgb_without_conversion(handmade, same, tmp_path):
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
def test_other_jpeg_markers_are_ignored(handmade, jpeg_parts, same, tmp_path, photometric, marker):
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
