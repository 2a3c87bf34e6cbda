"""Colours by a file's profile."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from wsi_ats.errors import SlideOpenError
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.colour import SrgbSlide
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.testing.contract import SlideContract


def red_for_blue() -> bytes:
    """The profile of a sensor whose red is the blue of sRGB and the other way round."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    places = {bytes(profile[p : p + 4]): p + 4 for p in range(132, 132 + 12 * count, 12)}
    red, blue = (slice(places[name], places[name] + 8) for name in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile)


@pytest.fixture(params=["direct", "openslide"])
def ref(request, pattern, tmp_path):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as file:
        options = {"tile": (64, 48), "photometric": "rgb", "compression": "zlib", "metadata": None}
        file.write(pattern(331, 217), iccprofile=red_for_blue(), **options)
    return SlideRef("s", str(path), "s", reader=request.param, colour="srgb")


class TestSrgbSlide(SlideContract):
    @pytest.fixture
    def slide(self, ref):
        with open_slide(ref) as slide:
            assert isinstance(slide, SrgbSlide)
            yield slide


def test_a_profile_that_swaps_red_and_blue_is_applied_except_to_the_background(ref, pattern):
    with open_slide(ref) as slide:
        region = slide.read_regions(0, np.array([[100, 100]]), 300, 50)[0].astype(int)
    expected = pattern(331, 217)[100:150, 100:].astype(int)
    assert np.abs(region[:, :231] - expected[..., ::-1]).max() <= 2
    assert (region[:, 231:] == 255).all()


def test_a_slide_without_a_profile_is_as_stored(awkward_tiff):
    with open_slide(SlideRef("s", str(awkward_tiff), "s", colour="srgb")) as slide:
        assert slide.icc is None
        assert not isinstance(slide, SrgbSlide)


def test_an_invalid_profile_is_an_error(pattern):
    slide = MemorySlide([pattern(20, 20)], mpp=0.5)
    with pytest.raises(SlideOpenError, match="no colour profile"):
        SrgbSlide(slide)
    slide.icc = b"rubbish"
    with pytest.raises(SlideOpenError, match="cannot be used"):
        SrgbSlide(slide)


def test_a_pyramid_keeps_the_profile_and_the_pixels_as_stored(ref, tmp_path):
    from dataclasses import replace

    from wsi_ats.slides.pyramid import write_pyramid

    target = str(tmp_path / "s.ome.zarr")
    corner = np.array([[50, 60]])
    with open_slide(replace(ref, colour="stored", mpp=0.5)) as slide:
        write_pyramid(slide, target)
        profile = slide.icc
        stored = slide.read_regions(0, corner, 90, 80)
    with open_slide(ref) as slide:
        shown = slide.read_regions(0, corner, 90, 80)
    with open_slide(target) as slide:
        assert slide.icc == profile
        np.testing.assert_array_equal(slide.read_regions(0, corner, 90, 80), stored)
    with open_slide(SlideRef("s", target, "s", colour="srgb")) as slide:
        np.testing.assert_array_equal(slide.read_regions(0, corner, 90, 80), shown)
    assert (stored != shown).any()
