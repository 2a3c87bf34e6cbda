"""Slides in TIFF files, read directly."""

from __future__ import annotations

import gc
import os
import threading

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, choose_reader, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide
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


def write(path, pyramid, *, byteorder=None, bigtiff=False, **options):
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as file:
        for number, pixels in enumerate(pyramid):
            file.write(pixels, photometric="rgb", subfiletype=1 if number else 0, metadata=None, **options)
    return path


def read(slide, x, y, width=16, height=16, level=0):
    return slide.read_regions(level, np.array([[x, y]]), width, height)[0]


# --- who reads what ---


@pytest.mark.parametrize(
    ("name", "reader", "reason"),
    [
        ("aperio_cmu-1-small-region.svs", "direct", "the same as OpenSlide's"),
        ("hamamatsu_test3-DAPI.ndpi", "openslide", "further levels"),
        ("ometiff_OS-1-detail_HE.ome.tif", "direct", "or only its finest level"),
        ("tiff_slaid_patch.tif", "openslide", "transparency"),
    ],
)
def test_real_slides_go_the_way_that_gives_true_pixels(shared_data, name, reader, reason):
    choice = choose_reader(shared_data / "slides" / name)
    assert choice.reader == reader
    assert reason in choice.reason


def test_a_reader_can_be_forced(awkward_tiff, tmp_path):
    for name, kind in (("direct", "TiffSlide"), ("openslide", "OpenSlideSlide")):
        with open_slide(SlideRef("s", str(awkward_tiff), "s", reader=name)) as slide:
            assert type(slide).__name__ == kind
    assert choose_reader(SlideRef("s", str(awkward_tiff), "s", reader="direct")).reason == "requested"


def test_what_cannot_be_read_directly_says_why(shared_data):
    path = str(shared_data / "slides" / "tiff_slaid_patch.tif")
    with pytest.raises(SlideOpenError, match="transparency"):
        open_slide(SlideRef("s", path, "s", reader="direct"))


def test_what_no_reader_reads_names_both_reasons(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", pixels, photometric="rgb", metadata=None)
    with pytest.raises(SlideOpenError, match=r"OpenSlide does not know.*16 bits per colour"):
        open_slide(tmp_path / "s.tif")


def test_labels_and_overviews_are_no_levels(shared_data, pattern, tmp_path):
    with open_slide(shared_data / "slides" / "aperio_cmu-1-small-region.svs") as slide:
        assert len(slide.levels) == 1
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(pattern(300, 200), tile=(64, 64), photometric="rgb", metadata=None)
        file.write(pattern(90, 40, 1), photometric="rgb", metadata=None)  # a label
        file.write(pattern(80, 60, 1), tile=(64, 64), photometric="rgb", metadata=None)  # not reduced
    with open_slide(path) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(300, 200)]


@pytest.mark.parametrize(
    ("shape", "axes", "options", "planes"),
    [
        ((3, 96, 128), "CYX", {"photometric": "minisblack"}, 3),
        ((2, 96, 128, 3), "ZYXS", {"photometric": "rgb"}, 2),
        ((2, 3, 96, 128), "TCYX", {"photometric": "minisblack"}, 6),
    ],
)
def test_of_several_channels_or_depths_none_is_taken_for_the_slide(tmp_path, shape, axes, options, planes):
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    path = tmp_path / "s.ome.tif"
    tifffile.imwrite(path, pixels, tile=(32, 32), metadata={"axes": axes}, **options)
    for reader in ("auto", "direct"):
        with pytest.raises(SlideOpenError, match=f"{planes} channels, depths or times"):
            open_slide(SlideRef("s", str(path), "s", reader=reader))


@pytest.mark.parametrize("channel", ["Cy3", "2"])
def test_a_channel_of_ome_is_read_with_its_levels(tmp_path, channel):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 128, 192), dtype=np.uint8)
    path = tmp_path / "s.ome.tif"
    options = {"photometric": "minisblack", "tile": (64, 64)}
    with tifffile.TiffWriter(path, ome=True) as file:
        named = {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC", "Cy3"]}}
        file.write(pixels, subifds=1, metadata=named, **options)
        file.write(pixels[:, ::2, ::2], subfiletype=1, **options)
    with open_slide(SlideRef("s", str(path), "s", channel=channel)) as slide:
        for level, step in enumerate((1, 2)):
            expected = np.repeat(pixels[2, ::step, ::step, None], 3, 2)
            found = read(slide, 0, 0, 192 // step, 128 // step, level=level)
            np.testing.assert_array_equal(found, expected)


def test_levels_of_another_picture_are_not_those_of_the_slide(pattern, tmp_path):
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for seed in (0, 1):
            pixels = pattern(256, 192, seed)
            file.write(pixels, tile=(64, 64), photometric="rgb", subifds=1, metadata={"axes": "YXS"})
            file.write(pixels[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1)
    with open_slide(path) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(256, 192), (128, 96)]
        np.testing.assert_array_equal(read(slide, 0, 0, 128, 96, level=1), pattern(256, 192)[::2, ::2])


def test_levels_that_openslide_does_not_see_are_told(pattern, tmp_path):
    path, pixels = tmp_path / "s.tif", pattern(256, 192)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(64, 64), photometric="rgb", subifds=1, metadata=None)
        file.write(pixels[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None)
    assert choose_reader(path).reason == "OpenSlide does not find its coarser levels, which are in SubIFDs"
    for reader, levels in (("auto", 2), ("openslide", 1)):
        with open_slide(SlideRef("s", str(path), "s", reader=reader)) as slide:
            assert len(slide.levels) == levels


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


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the open files of Linux")  # noqa: PTH112
def test_closed_slides_and_failed_openings_leave_no_file_open(awkward_tiff, tmp_path):
    (tmp_path / "bad.tif").write_bytes(awkward_tiff.read_bytes()[:100])
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(10):
        open_slide(awkward_tiff).close()
        choose_reader(awkward_tiff)
        with pytest.raises(SlideOpenError):
            open_slide(tmp_path / "bad.tif")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


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


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_colours_that_are_stored_by_themselves_are_read_by_openslide(pattern, tmp_path, compression):
    pixels, path = pattern(200, 130), tmp_path / "s.tif"
    options = {"photometric": "rgb", "planarconfig": "separate", "metadata": None}
    tifffile.imwrite(path, pixels.transpose(2, 0, 1), tile=(64, 64), compression=compression, **options)
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideSlide)
        np.testing.assert_array_equal(read(slide, 0, 0, 200, 130), pixels)


@pytest.mark.parametrize(
    "said",
    [
        "<OME><BinaryOnly MetadataFile='set.companion.ome' UUID='urn:uuid:1'/></OME>",
        "<OME><Image><Pixels SizeZ='2'><TiffData><UUID FileName='z0.ome.tif'>urn:uuid:1</UUID></TiffData>"
        "<TiffData><UUID FileName='z1.ome.tif'>urn:uuid:2</UUID></TiffData></Pixels></Image></OME>",
        "<OME UUID='urn:uuid:2'><Image><Pixels><TiffData><UUID FileName='case_s0.ome.tif'>urn:uuid:1</UUID>"
        "</TiffData></Pixels></Image><Image><Pixels><TiffData><UUID FileName='case_s1.ome.tif'>urn:uuid:2"
        "</UUID></TiffData></Pixels></Image></OME>",
    ],
)
def test_one_of_several_files_of_an_image_is_refused_by_their_names(pattern, tmp_path, said):
    path = tmp_path / "z0.ome.tif"
    tifffile.imwrite(
        path, pattern(128, 96), tile=(64, 64), photometric="rgb", description=said, metadata=None
    )
    with pytest.raises(
        SlideOpenError, match=r"is spread over several OME-TIFF files \((set|z0\.ome\.tif, z1|case_s0)"
    ):
        open_slide(path)


def test_the_first_of_several_pictures_in_files_of_their_own_is_a_slide(pattern, tmp_path):
    """As it is said in each file, under whatever name the file has now."""
    said = (
        "<OME UUID='urn:uuid:1'><Image><Pixels PhysicalSizeX='0.25' PhysicalSizeY='0.25'><TiffData>"
        "<UUID FileName='case_s0.ome.tif'>urn:uuid:1</UUID></TiffData></Pixels></Image>"
        "<Image><Pixels PhysicalSizeX='4' PhysicalSizeY='4'><TiffData>"
        "<UUID FileName='case_s1.ome.tif'>urn:uuid:2</UUID></TiffData></Pixels></Image></OME>"
    )
    path = tmp_path / "renamed.ome.tif"
    tifffile.imwrite(
        path, pattern(128, 96), tile=(64, 64), photometric="rgb", description=said, metadata=None
    )
    with open_slide(path) as slide:
        assert slide.mpp.value == 0.25


def test_channels_whose_pages_are_in_another_order_are_not_chosen_from(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8)
    said = (
        "<OME><Image><Pixels SizeC='2' SizeZ='1' SizeT='1'><Channel Name='DAPI'/><Channel Name='Cy3'/>"
        "<TiffData IFD='0' FirstC='1'/><TiffData IFD='1' FirstC='0'/></Pixels></Image></OME>"
    )
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path) as file:
        for number, page in enumerate(pixels):
            options = {"photometric": "minisblack", "tile": (64, 64), "metadata": None}
            file.write(page, description=said if not number else None, **options)
    with pytest.raises(SlideOpenError, match="does not record the channels of its pages"):
        open_slide(SlideRef("s", str(path), "s", channel="DAPI"))
    with pytest.raises(SlideOpenError, match="2 channels, depths or times"):
        open_slide(path)


def test_a_last_strip_that_is_cut_short_is_told_as_it_is(pattern, tmp_path):
    path = tmp_path / "s.tif"
    options = {"rowsperstrip": 32, "compression": "zlib", "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, pattern(120, 70), **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags[279]
        tag.overwrite((*tag.value[:2], tag.value[2] // 2))
    with open_slide(path) as slide, pytest.raises(SlideReadError, match="120 x 6 pixels") as caught:
        read(slide, 0, 0, 120, 70)
    assert "32" not in str(caught.value).partition("cannot be read")[2]
