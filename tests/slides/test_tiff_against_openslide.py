"""Tiles read directly, against OpenSlide: the same pixels, levels, resolution and bounds, or another reader.

OpenSlide takes whole level-0 pixels, and interpolates at levels whose downsample is not whole. There, and for
OME-TIFF, of which OpenSlide sees the first level at most, the truth is what tifffile decodes."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile

from slides.encoded_tiles import (
    APERIO,
    REDUCED,
    SIZE,
    crop,
    deflate,
    grey,
    image,
    jpeg,
    jpeg_2000,
    random_regions,
    smooth,
)
from wsi_ats.errors import SlideOpenError
from wsi_ats.slides import choose_reader, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide
from wsi_ats.slides.tiff import TiffSlide

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
    """OpenSlide interpolates at the second, whose downsample is 3.99: the pixels read are those stored."""
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
def test_levels_out_of_order_are_left_to_openslide_which_refuses_them(handmade, tmp_path, vendor):
    said = APERIO if vendor == "aperio" else {}
    second = {"size": (350, 220) if vendor == "generic" else (900, 600)}
    path = handmade().write(
        tmp_path / "s.tif", [image(size=(350, 500), tags=said), image(**second, tags=REDUCED)]
    )
    assert choose_reader(path).reason == "its levels are not in order"
    if vendor == "aperio":
        with pytest.raises(SlideOpenError, match="and not read directly: its levels are not in order"):
            open_slide(path)


# --- missing tiles and bounds ---


@pytest.mark.parametrize(
    "missing",
    [[0], range(8), [7, 15, 23, 31, 39, 47, 55], range(48, 56), [i for i in range(56) if i != 18], [27, 28]],
    ids=["first", "first row", "last column", "last row", "all but one", "inside"],
)
@pytest.mark.parametrize("way", ["none", "jpeg", "grey"])
def test_tiles_that_are_left_out(handmade, same, tmp_path, missing, way):
    """They are background, and the scanned area ends with the tiles that exist."""
    options = {
        "none": {},
        "jpeg": {"encode": jpeg(), "compression": 7, "photometric": 6},
        "grey": {"encode": grey, "photometric": 1, "samples": 1},
    }[way]
    same(handmade().write(tmp_path / "s.tif", [image(missing=missing, **options)]), regions=24)


def test_a_slide_without_any_tile_has_bounds_still(handmade, tmp_path):
    """For OpenSlide its bounds are empty, and no tissue could be found in them."""
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
def test_aperio_descriptions(handmade, same, tmp_path, text):
    said = {270: (2, text + b"\0"), 282: (5, [20123, 7]), 283: (5, [20123, 7]), 296: (3, [3])}
    images = [image(size=(300, 200), tags=said), image(size=(150, 100), seed=1)]
    same(handmade().write(tmp_path / "s.tif", images), regions=8)


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
