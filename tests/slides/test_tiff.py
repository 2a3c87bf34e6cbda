"""Slides in TIFF files, read directly."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from slides.tiff_files import read, write
from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, choose_reader, open_slide
from wsi_ats.slides.tiff import TiffSlide
from wsi_ats.testing.contract import SlideContract


class TestWrittenTiff(SlideContract):
    @pytest.fixture
    def pyramid(self, awkward_pyramid):
        return awkward_pyramid

    @pytest.fixture(params=[1, 3], ids="{} threads".format)
    def slide(self, awkward_tiff, request):
        with open_slide(awkward_tiff, threads=request.param) as slide:
            assert isinstance(slide, TiffSlide)
            yield slide


CODINGS = {
    "none": {"compression": None},
    "lzw": {"compression": "lzw"},
    "lzw, differences": {"compression": "lzw", "predictor": True},
    "deflate, differences": {"compression": "zlib", "predictor": True},
    "zstd": {"compression": "zstd"},
    "adobe deflate, big-endian": {"compression": "adobe_deflate", "byteorder": ">"},
    "bigtiff": {"compression": "zlib", "bigtiff": True},
    "jpeg2000": {"compression": "APERIO_JP2000_RGB", "compressionargs": {"level": 0}},
}


class TestCodings(SlideContract):
    """Everything that keeps pixels as they are, in tiles."""

    @pytest.fixture(params=CODINGS)
    def coding(self, request):
        return CODINGS[request.param]

    @pytest.fixture
    def pyramid(self, pattern):
        return [pattern(331, 217), pattern(83, 54, 1)]

    @pytest.fixture
    def slide(self, coding, pyramid, tmp_path):
        with open_slide(write(tmp_path / "s.tif", pyramid, tile=(64, 48), **coding)) as slide:
            assert isinstance(slide, TiffSlide)
            yield slide


class TestStrips(TestCodings):
    """The same in strips, which OpenSlide refuses."""

    @pytest.fixture
    def slide(self, coding, pyramid, tmp_path):
        with open_slide(write(tmp_path / "s.tif", pyramid, rowsperstrip=20, **coding)) as slide:
            assert slide.tile_shape(0) == (331, 20)
            yield slide


class TestOneUncompressedStrip(SlideContract):
    """A whole image in one piece, of which rows can be read by themselves."""

    @pytest.fixture
    def pyramid(self, pattern):
        return [pattern(1500, 1700)]

    @pytest.fixture
    def slide(self, pyramid, tmp_path):
        with open_slide(write(tmp_path / "s.tif", pyramid, rowsperstrip=1700)) as slide:
            assert slide.tile_shape(0) == (1500, 699)  # a million pixels at a time
            yield slide


class TestGrey(SlideContract):
    @pytest.fixture
    def grey(self, pattern):
        return pattern(331, 217)[..., 0]

    @pytest.fixture
    def pyramid(self, grey):
        return [np.repeat(grey[..., None], 3, axis=2)]

    @pytest.fixture
    def slide(self, grey, tmp_path):
        tifffile.imwrite(tmp_path / "s.tif", grey, tile=(64, 48), compression="zlib", metadata=None)
        with open_slide(tmp_path / "s.tif") as slide:
            yield slide


class TestOmeTiffWithLevelsBelow(SlideContract):
    """Levels in SubIFDs, as Bio-Formats, QuPath and libvips write them."""

    @pytest.fixture
    def pyramid(self, pattern):
        return [pattern(640, 420), pattern(320, 210, 1), pattern(160, 105, 2)]

    @pytest.fixture
    def slide(self, pyramid, tmp_path):
        path = tmp_path / "s.ome.tif"
        with tifffile.TiffWriter(path, ome=True) as file:
            facts = {"axes": "YXS", "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm"}
            facts |= {"PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
            options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
            file.write(pyramid[0], subifds=2, metadata=facts, **options)
            for level in pyramid[1:]:
                file.write(level, subfiletype=1, **options)
        with open_slide(path) as slide:
            assert slide.vendor == "ome-tiff"
            assert (slide.mpp.value, slide.mpp.source) == (0.5, "ome.PhysicalSizeX")
            yield slide


class TestRealSlides(SlideContract):
    @pytest.fixture(
        params=[
            "aperio_cmu-1-small-region.svs",
            "hamamatsu_test3-DAPI.ndpi",
            "ometiff_OS-1-detail_HE.ome.tif",
            "ometiff_OS-2-ndpi_Ki67.ome.tif",
        ]
    )
    def slide(self, request, shared_data):
        with TiffSlide(str(shared_data / "slides" / request.param)) as slide:
            yield slide


# --- reading ---


def test_places_without_a_tile_are_background(pattern, tmp_path):
    pixels = pattern(192, 128)
    path = write(tmp_path / "s.tif", [pixels], tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["TileByteCounts"].overwrite((0, *file.pages[0].databytecounts[1:]))
    expected = pixels.copy()
    expected[:64, :64] = 255
    for reader in ("direct", "openslide"):
        with open_slide(SlideRef("s", str(path), "s", reader=reader)) as slide:
            np.testing.assert_array_equal(read(slide, 0, 0, 192, 128), expected)


def test_a_tile_under_several_regions_is_read_once(pattern, tmp_path):
    path = write(tmp_path / "s.tif", [pattern(192, 128)], tile=(64, 64))
    with open_slide(path) as slide:
        corners = np.array([[0, 0], [3, 5], [0, 0], [10, 10]])
        regions = slide.read_regions(0, corners, 20, 20)
        assert slide.bytes_read == slide.stored_bytes(0, corners, 20, 20) == 64 * 64 * 3
        for region, (x, y) in zip(regions, corners.tolist(), strict=True):
            np.testing.assert_array_equal(region, pattern(192, 128)[y : y + 20, x : x + 20])


def test_a_slide_closed_while_it_is_read_from_ends_the_read_and_not_another_file(pattern, tmp_path):
    """The number of a closed file is given to the next that is opened."""
    path = write(tmp_path / "s.tif", [pattern(640, 640)], tile=(64, 64))
    expected = pattern(640, 640)
    for _ in range(20):
        slide = open_slide(path, threads=2)
        results = []

        def whole(slide=slide, results=results):
            try:
                results.append(read(slide, 0, 0, 640, 640))
            except SlideReadError:
                results.append(None)

        reader = threading.Thread(target=whole)
        reader.start()
        slide.close()
        others = [(tmp_path / f"{i}").open("w+b") for i in range(8)]
        for other in others:
            other.write(bytes(1 << 16))
        reader.join()
        for other in others:
            other.close()
        (result,) = results
        assert result is None or (result == expected).all()


def test_closed_slides_and_failed_openings_leave_no_file_open(awkward_tiff, tmp_path):
    (tmp_path / "bad.tif").write_bytes(awkward_tiff.read_bytes()[:100])
    for _ in range(10):
        open_slide(awkward_tiff).close()
        choose_reader(awkward_tiff)
        with pytest.raises(SlideOpenError):
            open_slide(tmp_path / "bad.tif")
    gc.collect()
    opened = {Path(each.path) for each in psutil.Process().open_files()}  # other threads have theirs
    assert not opened & {awkward_tiff.resolve(), (tmp_path / "bad.tif").resolve()}


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_a_last_strip_that_is_filled_up_is_read(pattern, tmp_path, compression):
    """Some programs write it as high as the others, which Pillow and libtiff understand."""
    pixels, path = pattern(120, 70), tmp_path / "s.tif"
    tifffile.imwrite(path, pixels, rowsperstrip=32, compression=compression, photometric="rgb", metadata=None)
    filled_up = np.concatenate([pixels[64:], np.full((26, 120, 3), 7, np.uint8)]).tobytes()
    encode = {
        None: bytes,
        "zlib": imagecodecs.zlib_encode,
        "lzw": imagecodecs.lzw_encode,
        "zstd": imagecodecs.zstd_encode,
    }[compression]
    strip = encode(filled_up)
    with path.open("ab") as file:
        start = file.tell()
        file.write(strip)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[0].tags
        for code, value in ((273, start), (279, len(strip))):
            tags[code].overwrite((*tags[code].value[:2], value))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(read(slide, 0, 0, 120, 70), pixels)
    with Image.open(path) as other:
        np.testing.assert_array_equal(np.asarray(other), pixels)


def test_a_truncated_last_strip_is_reported(pattern, tmp_path):
    path = tmp_path / "s.tif"
    options = {"rowsperstrip": 32, "compression": "zlib", "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, pattern(120, 70), **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags[279]
        tag.overwrite((*tag.value[:2], tag.value[2] // 2))
    with open_slide(path) as slide, pytest.raises(SlideReadError, match="120 x 6 pixels") as caught:
        read(slide, 0, 0, 120, 70)
    assert "32" not in str(caught.value).partition("cannot be read")[2]
