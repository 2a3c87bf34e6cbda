"""Which reader opens a TIFF file, and which of its pictures is the slide."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from slides.tiff_files import read
from wsi_ats.errors import SlideOpenError
from wsi_ats.slides import SlideRef, choose_reader, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide

# --- choice of the reader ---


@pytest.mark.parametrize(
    ("name", "reader", "reason"),
    [
        ("aperio_cmu-1-small-region.svs", "direct", "the same as OpenSlide's"),
        ("hamamatsu_test3-DAPI.ndpi", "openslide", "further levels"),
        ("ometiff_OS-1-detail_HE.ome.tif", "direct", "or only its finest level"),
        ("tiff_slaid_patch.tif", "openslide", "transparency"),
    ],
)
def test_real_slides_are_opened_by_the_reader_that_gives_true_pixels(shared_data, name, reader, reason):
    choice = choose_reader(shared_data / "slides" / name)
    assert choice.reader == reader
    assert reason in choice.reason


def test_a_reader_can_be_forced(awkward_tiff, tmp_path):
    for name, kind in (("direct", "TiffSlide"), ("openslide", "OpenSlideSlide")):
        with open_slide(SlideRef("s", str(awkward_tiff), "s", reader=name)) as slide:
            assert type(slide).__name__ == kind
    assert choose_reader(SlideRef("s", str(awkward_tiff), "s", reader="direct")).reason == "requested"


def test_a_forced_direct_reader_is_refused_with_the_reason(shared_data):
    path = str(shared_data / "slides" / "tiff_slaid_patch.tif")
    with pytest.raises(SlideOpenError, match="transparency"):
        open_slide(SlideRef("s", path, "s", reader="direct"))


def test_a_file_no_reader_opens_is_an_error_with_both_reasons(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", pixels, photometric="rgb", metadata=None)
    with pytest.raises(SlideOpenError, match=r"OpenSlide does not know.*16 bits per colour"):
        open_slide(tmp_path / "s.tif")


def test_labels_and_overviews_are_not_levels(shared_data, pattern, tmp_path):
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
def test_several_channels_or_depths_are_refused(tmp_path, shape, axes, options, planes):
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


def test_levels_unknown_to_openslide_are_reported(pattern, tmp_path):
    path, pixels = tmp_path / "s.tif", pattern(256, 192)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(64, 64), photometric="rgb", subifds=1, metadata=None)
        file.write(pixels[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None)
    assert choose_reader(path).reason == "OpenSlide does not find its coarser levels, which are in SubIFDs"
    for reader, levels in (("auto", 2), ("openslide", 1)):
        with open_slide(SlideRef("s", str(path), "s", reader=reader)) as slide:
            assert len(slide.levels) == levels


# --- reading ---


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
    """As each file records it, whatever its present name."""
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
