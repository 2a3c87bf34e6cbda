"""Slides through OpenSlide: real files, awkward files and broken files."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from wsi_ats.errors import MppError, SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide
from wsi_ats.testing.contract import SlideContract


def opened(path):
    """The slide through OpenSlide, also where another reader would be chosen."""
    ref = path if isinstance(path, SlideRef) else SlideRef.from_path(path)
    return open_slide(replace(ref, reader="openslide"))


class TestWrittenTiff(SlideContract):
    exact = False

    @pytest.fixture
    def pyramid(self, awkward_pyramid):
        return awkward_pyramid

    @pytest.fixture
    def slide(self, awkward_tiff):
        with opened(awkward_tiff) as slide:
            yield slide


class TestRealSlides(SlideContract):
    @pytest.fixture(
        params=["aperio_cmu-1-small-region.svs", "hamamatsu_test3-DAPI.ndpi", "tiff_slaid_patch.tif"]
    )
    def slide(self, request, shared_data):
        with opened(shared_data / "slides" / request.param) as slide:
            yield slide


def read(slide, x, y, width=16, height=16, level=0):
    return slide.read_regions(level, np.array([[x, y]]), width, height)[0]


# --- resolution ---


@pytest.fixture
def with_properties(pattern, write_tiff, tmp_path, monkeypatch):
    """A function that opens a slide whose file has only the given properties."""
    path = write_tiff(tmp_path / "s.tif", [pattern(100, 80)])

    def open_with(*, mpp=None, **properties):
        named = {key.replace("__", "."): value for key, value in properties.items()}
        monkeypatch.setattr("wsi_ats.slides.openslide.properties_of", lambda _: named)
        return OpenSlideSlide(str(path), mpp=mpp)

    return open_with


def both(value, x="openslide.mpp-x", y="openslide.mpp-y"):
    return {x: value, y: value}


def test_the_override_wins_over_the_file(with_properties):
    slide = with_properties(mpp=0.25, **both("0.5"))
    assert (slide.mpp.value, slide.mpp.source) == (0.25, "override")


def test_the_file_s_own_value_wins_over_its_resolution_tags(with_properties):
    tags = {"tiff.ResolutionUnit": "inch", **both("72", "tiff.XResolution", "tiff.YResolution")}
    slide = with_properties(**both("0.5"), **tags)
    assert (slide.mpp.value, slide.mpp.source) == (0.5, "openslide.mpp-x")


def test_a_decimal_comma_is_read(with_properties):
    assert with_properties(**both("0,25")).mpp.value == 0.25


@pytest.mark.parametrize("value", ["0", "352.8", "-0.5", "nan", "inf", "1e-9"])
def test_an_implausible_value_is_an_error_that_names_it(with_properties, value):
    with pytest.raises(MppError, match=r"openslide.mpp-x says .* expected 0.01 to 100.0; give the true"):
        _ = with_properties(**both(value)).mpp


@pytest.mark.parametrize("value", ["", "40x", "0.5 um"])
def test_a_resolution_that_is_not_a_number_is_an_error_naming_it(with_properties, value):
    with pytest.raises(MppError, match=f"openslide.mpp-x = '{value}' is not a number"):
        _ = with_properties(**both(value)).mpp


def test_the_error_names_the_axis_that_is_not_a_number(with_properties):
    with pytest.raises(MppError, match=r"openslide.mpp-y = 'bad' is not a number"):
        _ = with_properties(**{"openslide.mpp-x": "0.5", "openslide.mpp-y": "bad"}).mpp


def test_slightly_different_axes_are_averaged_and_very_different_ones_are_an_error(with_properties):
    slide = with_properties(**{"openslide.mpp-x": "0.50", "openslide.mpp-y": "0.52"})
    assert slide.mpp.value == pytest.approx(0.51)
    with pytest.raises(MppError, match=r"0.25 micrometres per pixel across and 0.5 down"):
        _ = with_properties(**{"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.5"}).mpp


def test_objective_power_alone_gives_no_resolution(with_properties):
    with pytest.raises(MppError, match=r"openslide.mpp-x = absent"):
        _ = with_properties(**{"openslide.objective-power": "40"}).mpp


@pytest.mark.parametrize(
    ("unit", "resolution", "mpp"),
    [("CENTIMETER", 20_000, 0.5), ("INCH", 50_800, 0.5), ("INCH", 101_600, 0.25)],
)
def test_resolution_tags_with_a_unit_are_used(pattern, write_tiff, tmp_path, unit, resolution, mpp):
    path = write_tiff(tmp_path / "s.tif", [pattern(99, 80)], resolution=(resolution,) * 2, unit=unit)
    with opened(path) as slide:
        assert slide.mpp.value == pytest.approx(mpp)


def test_resolution_tags_without_a_unit_give_no_resolution(pattern, write_tiff, tmp_path):
    path = write_tiff(tmp_path / "s.tif", [pattern(99, 80)], resolution=(20_000, 20_000), unit="NONE")
    with opened(path) as slide, pytest.raises(MppError, match=r"tiff.ResolutionUnit = none.*--mpp"):
        _ = slide.mpp


def test_72_dots_per_inch_gives_no_resolution(pattern, write_tiff, tmp_path):
    path = write_tiff(tmp_path / "s.tif", [pattern(99, 80)], resolution=(72, 72), unit="INCH")
    with opened(path) as slide, pytest.raises(MppError, match=r"352\.7"):
        _ = slide.mpp


def test_a_resolution_of_zero_does_not_divide_by_zero(with_properties):
    tags = {"tiff.ResolutionUnit": "inch", **both("0", "tiff.XResolution", "tiff.YResolution")}
    with pytest.raises(MppError, match="does not give its micrometres per pixel"):
        _ = with_properties(**tags).mpp


def test_a_reference_carries_its_resolution_into_the_slide(pattern, write_tiff, tmp_path):
    path = write_tiff(tmp_path / "s.tif", [pattern(99, 80)])
    with opened(SlideRef("s", str(path), "s", mpp=0.3)) as slide:
        assert slide.mpp.value == 0.3


# --- background and bounds ---


def test_transparent_pixels_become_background_and_half_transparent_ones_mix(write_tiff, tmp_path):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:32, :, :3], rgba[:32, :, 3] = 200, 255
    rgba[48:, :, :3], rgba[48:, :, 3] = 100, 128
    with opened(write_tiff(tmp_path / "s.tif", [rgba])) as slide:
        assert read(slide, 0, 0).min() == read(slide, 0, 0).max() == 200
        assert (read(slide, 0, 32) == slide.background).all()
        mixed = read(slide, 0, 48).astype(int)
        assert abs(mixed - (100 * 128 + 255 * 127) / 255).max() <= 2


def test_no_seams_show_between_tiles_where_the_downsample_is_not_whole(write_tiff, tmp_path):
    pyramid = [np.full((h, w, 3), 50, np.uint8) for w, h in ((3999, 1200), (1000, 300))]
    with opened(write_tiff(tmp_path / "s.tif", pyramid)) as slide:
        assert slide.levels[1].downsample == pytest.approx(3.9995)
        for x in (1, 7, 101, 333):
            region = read(slide, x, 1, 600, 290, level=1).astype(int)
            assert abs(region - 50).max() <= 1


def test_the_file_s_background_colour_fills_what_is_outside(with_properties):
    slide = with_properties(**{"openslide.background-color": "0A141E"})
    assert slide.background == (10, 20, 30)
    assert (read(slide, 5000, 0) == (10, 20, 30)).all()


def test_bounds_are_taken_from_the_file(with_properties):
    sides = {"x": "10", "y": "20", "width": "30", "height": "40"}
    slide = with_properties(**{f"openslide.bounds-{name}": value for name, value in sides.items()})
    assert slide.bounds == (10, 20, 30, 40)
    assert with_properties().bounds == (0, 0, 100, 80)
    assert slide.scanned == (slide.bounds,)


def test_several_regions_are_scanned_where_the_file_names_them(with_properties):
    regions = [(0, 5, 30, 40), (60, 10, 20, 30)]
    slide = with_properties(
        **{
            f"openslide.region[{number}].{side}": str(value)
            for number, region in enumerate(regions)
            for side, value in zip(("x", "y", "width", "height"), region, strict=True)
        }
    )
    assert slide.scanned == tuple(regions)


# --- broken files ---


@pytest.fixture
def damaged(pattern, write_tiff, tmp_path):
    """A slide of 4 x 4 tiles, the first of which is overwritten with rubbish."""
    pixels = pattern(256, 256)
    path = write_tiff(tmp_path / "damaged.tif", [pixels], tile=(64, 64))
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    return path, pixels


def test_a_damaged_tile_is_an_error_and_never_pixels(damaged):
    path, _ = damaged
    with opened(path) as slide, pytest.raises(SlideReadError) as caught:
        read(slide, 0, 0)
    assert str(path) in str(caught.value)
    assert "level 0, 16 x 16 pixels at level-0 (0, 0) cannot be read" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_after_a_failed_read_the_other_tiles_can_still_be_read(damaged):
    path, pixels = damaged
    with opened(path) as slide:
        for _ in range(3):
            with pytest.raises(SlideReadError):
                read(slide, 0, 0)
            np.testing.assert_array_equal(read(slide, 128, 64), pixels[64:80, 128:144])


def test_a_batch_with_one_damaged_tile_fails_whole(damaged):
    with opened(damaged[0]) as slide, pytest.raises(SlideReadError):
        slide.read_regions(0, np.array([[128, 64], [0, 0]]), 16, 16)


def test_a_truncated_file_fails_on_opening_or_on_reading_and_never_gives_pixels(damaged, tmp_path):
    whole = damaged[0].read_bytes()
    for share in (0.02, 0.5, 0.9):
        path = tmp_path / f"cut{share}.tif"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises((SlideOpenError, SlideReadError)), opened(path) as slide:
            read(slide, 0, 0, 256, 256)


def test_a_truncated_real_slide_never_gives_pixels_past_its_end(shared_data, tmp_path):
    whole = (shared_data / "slides" / "aperio_cmu-1-small-region.svs").read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((SlideOpenError, SlideReadError)), opened(path) as slide:
        read(slide, 0, 0, slide.levels[0].width, slide.levels[0].height)


def test_a_text_file_named_as_a_slide_is_refused(tmp_path):
    (tmp_path / "text.svs").write_text("not a slide")
    with pytest.raises(SlideOpenError, match="does not know this format"):
        opened(tmp_path / "text.svs")


def test_an_empty_file_a_missing_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "empty.svs").write_bytes(b"")
    with pytest.raises(SlideOpenError):
        opened(tmp_path / "empty.svs")
    with pytest.raises(SlideOpenError, match="no such file"):
        opened(tmp_path / "missing.svs")
    with pytest.raises(SlideOpenError):
        opened(tmp_path)


def test_a_file_that_disappears_is_an_error_of_this_library(damaged):
    path, _ = damaged
    with opened(path) as slide:
        path.unlink()
        with pytest.raises(SlideReadError):
            read(slide, 0, 0)
        with pytest.raises((SlideOpenError, SlideReadError)):
            read(slide, 128, 64)


def test_a_mirax_slide_without_its_folder_says_what_is_missing(tmp_path):
    path = tmp_path / "case7.mrxs"
    path.write_bytes(b"")
    with pytest.raises(SlideOpenError, match=r"case7\.mrxs: .* folder 'case7' beside it"):
        open_slide(path)
