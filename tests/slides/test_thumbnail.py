"""Slides of which only a thumbnail is left."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from wsi_ats.errors import ManifestError, SlideOpenError, SlideReadError
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.thumbnail import ThumbnailSlide
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.testing.contract import SlideContract


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)


@pytest.fixture
def ref(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "case7.png")
    return SlideRef("case7", str(tmp_path / "case7.png"), "case7", mpp=0.25, downsample=32.5)


class TestThumbnailSlide(SlideContract):
    first = 1

    @pytest.fixture
    def slide(self, ref):
        with open_slide(ref) as slide:
            assert isinstance(slide, ThumbnailSlide)
            yield slide

    @pytest.fixture
    def pyramid(self, pixels):
        return [None, pixels]


def test_coordinates_are_those_of_the_whole_slide(ref):
    with open_slide(ref) as slide:
        assert (slide.levels[0].width, slide.levels[0].height) == (3900, 2925)
        assert slide.bounds == (0, 0, 3900, 2925)
        assert slide.mpp.value == 0.25


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_without_a_downsample_is_refused_with_what_it_needs(pixels, tmp_path, kind):
    path = tmp_path / f"case7.{kind.lower()}"
    Image.fromarray(pixels).save(path)
    said = f"it is a {kind} image, not a slide; .* columns path, mpp and downsample, which is the number"
    with pytest.raises(SlideOpenError, match=said):
        open_slide(SlideRef("case7", str(path), "case7", mpp=0.25))


def test_its_overview_is_that_of_the_slide(tmp_path):
    """Of a slide with the same level; a finer level is not needed."""
    settings = Settings().with_values(["tile.size=128", "tile.mpp=0.5", "thumbnail.tissue=none"])
    coarse = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    fine = coarse.repeat(32, 0).repeat(32, 1)
    Image.fromarray(coarse).save(tmp_path / "a.png")
    expected = read_overview(MemorySlide([fine, coarse], mpp=0.5), settings)
    with open_slide(SlideRef("a", str(tmp_path / "a.png"), "a", mpp=0.5, downsample=32)) as slide:
        found = read_overview(slide, settings.with_values(["thumbnail.pixels_per_cell=4"]))
    assert found.tissue.grid == expected.tissue.grid
    np.testing.assert_array_equal(found.thumbnail, coarse)


def test_a_thumbnail_too_coarse_for_the_settings_is_an_error_with_its_resolution(ref):
    settings = Settings().with_values(["thumbnail.pixels_per_cell=32"])
    with (
        open_slide(ref) as slide,
        pytest.raises(SlideReadError, match=r"a thumbnail of 8\.125 micrometres per pixel is left"),
    ):
        read_overview(slide, settings)


def test_a_table_names_thumbnails_by_their_downsample(ref, tmp_path):
    (tmp_path / "slides.csv").write_text("slide_id,path,mpp,downsample\ncase7,case7.png,0.25,32.5\n")
    assert read_manifest(tmp_path / "slides.csv") == [ref]


@pytest.mark.parametrize(("value", "message"), [("0.5", "downsample is 0.5"), ("32x", "downsample is '32x'")])
def test_an_impossible_downsample_is_an_error(ref, tmp_path, value, message):
    (tmp_path / "slides.csv").write_text(f"slide_id,path,mpp,downsample\ncase7,case7.png,0.25,{value}\n")
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "slides.csv")


def test_a_file_that_is_no_image_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(SlideOpenError, match="the thumbnail cannot be read"):
        open_slide(SlideRef("a", str(tmp_path / "a.png"), "a", mpp=0.5, downsample=32))
