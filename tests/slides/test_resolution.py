"""Micrometres per pixel, in all the ways that files store it."""

from __future__ import annotations

import pytest
import tifffile

from wsi_ats.errors import MppError
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.resolution import find_mpp


def both(axis_x, value, unit=None):
    found = {axis_x: value, axis_x.replace("X", "Y"): value}
    return found | ({f"{axis_x}Unit": unit, f"{axis_x.replace('X', 'Y')}Unit": unit} if unit else {})


@pytest.mark.parametrize(
    ("properties", "value", "source"),
    [
        ({"aperio.MPP": "0.2520"}, 0.252, "aperio.MPP"),
        ({"aperio.MPP": "0,252"}, 0.252, "aperio.MPP"),
        ({"aperio.MPP": "0.25", "openslide.mpp-x": "0.26", "openslide.mpp-y": "0.26"}, 0.25, "aperio.MPP"),
        ({"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5"}, 0.5, "openslide.mpp-x"),
        (both("ome.PhysicalSizeX", "0.5"), 0.5, "ome.PhysicalSizeX"),  # micrometres where no unit is given
        (both("ome.PhysicalSizeX", "250", "nm"), 0.25, "ome.PhysicalSizeX"),
        (both("ome.PhysicalSizeX", "0.00025", "mm"), 0.25, "ome.PhysicalSizeX"),
        (both("ome.PhysicalSizeX", "0.25", "\N{GREEK SMALL LETTER MU}m"), 0.25, "ome.PhysicalSizeX"),
        ({"tiff.XResolution": "20000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}, 0.5,
         "tiff.XResolution"),
        ({"tiff.XResolution": "50800", "tiff.YResolution": "50800", "tiff.ResolutionUnit": "inch"}, 0.5,
         "tiff.XResolution"),
    ],
)  # fmt: skip
def test_the_resolution_is_found_with_its_source(properties, value, source):
    found = find_mpp(properties, None)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.source == source


def test_the_error_names_every_tag_read_and_rejects_objective_power():
    with pytest.raises(ValueError, match="does not give its micrometres per pixel") as caught:
        find_mpp({"aperio.AppMag": "40", "tiff.ResolutionUnit": "none"}, None)
    text = str(caught.value)
    for key in ("aperio.MPP", "openslide.mpp-x", "ome.PhysicalSizeX", "tiff.XResolution", "tiff.YResolution"):
        assert f"{key} = absent" in text
    assert "tiff.ResolutionUnit = none" in text
    assert "aperio.AppMag = 40 is not a resolution" in text
    assert "--mpp" in text


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"aperio.MPP": "0"}, "aperio.MPP says 0.0"),
        ({"aperio.MPP": "forty"}, "aperio.MPP = 'forty' is not a number"),
        (
            both("ome.PhysicalSizeX", "1", "pixel"),
            "PhysicalSizeXUnit = 'pixel' is not a known unit of length",
        ),
        (both("ome.PhysicalSizeX", "25", "mm"), "says 25000.0"),
        ({"ome.PhysicalSizeX": "0.25", "ome.PhysicalSizeY": "0.5"}, "pixels are not square"),
    ],
)
def test_an_impossible_resolution_is_an_error_and_not_ignored(properties, message):
    tags = {"tiff.XResolution": "20000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}
    with pytest.raises(ValueError, match=message):
        find_mpp(properties | tags, None)


APERIO = "Aperio Image Library v11.2.1 \r\n300x200 [0,0 300x200] (64x64) JPEG/RGB Q=70|AppMag = 40"


@pytest.mark.parametrize(("extra", "mpp"), [("|MPP = 0.2525", 0.2525), ("|MPP = 0,2525", 0.2525)])
@pytest.mark.parametrize("reader", ["direct", "openslide"])
def test_readers_find_the_same_in_a_written_file(pattern, tmp_path, reader, extra, mpp):
    path = aperio(tmp_path / "s.svs", pattern(300, 200), APERIO + extra)
    with open_slide(SlideRef("s", str(path), "s", reader=reader)) as slide:
        assert slide.vendor == "aperio"
        assert slide.mpp.value == pytest.approx(mpp)


@pytest.mark.parametrize("reader", ["direct", "openslide"])
def test_a_missing_resolution_is_an_error_that_both_readers_word_alike(pattern, tmp_path, reader):
    path = aperio(tmp_path / "s.svs", pattern(300, 200), APERIO)
    ref = SlideRef("s", str(path), "s", reader=reader)
    with open_slide(ref) as slide, pytest.raises(MppError, match=r"aperio.AppMag = 40 is not a resolution"):
        _ = slide.mpp
    with open_slide(SlideRef("s", str(path), "s", reader=reader, mpp=0.25)) as slide:
        assert (slide.mpp.value, slide.mpp.source) == (0.25, "override")


@pytest.mark.parametrize("unit", ["CENTIMETER", "INCH"])
@pytest.mark.parametrize("resolution", [(20_000, 20_000), (43_826, 43_826), (39_682.539, 39_700.25)])
def test_resolution_tags_give_both_readers_the_same_number_to_the_last_bit(
    pattern, write_tiff, tmp_path, unit, resolution
):
    path = write_tiff(tmp_path / "s.tif", [pattern(99, 80)], resolution=resolution, unit=unit)
    found = []
    for reader in ("direct", "openslide"):
        with open_slide(SlideRef("s", str(path), "s", reader=reader)) as slide:
            found.append(slide.mpp.value)
    assert found[0] == found[1]


def aperio(path, pixels, description):
    with tifffile.TiffWriter(path) as file:
        file.write(
            pixels,
            tile=(64, 64),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": 90, "outcolorspace": "rgb"},
            description=description,
            metadata=None,
            software=False,
        )
    return path


@pytest.mark.parametrize("dots", [72, 96, 150, 300, 600])
def test_resolutions_of_screens_and_printers_are_rejected(dots):
    tags = {"tiff.XResolution": str(dots), "tiff.YResolution": f"{dots}.0"}
    with pytest.raises(ValueError, match=rf"says {dots} dots per inch, a default for screens .* with --mpp"):
        find_mpp({**tags, "tiff.ResolutionUnit": "inch"}, None)
    assert find_mpp({**tags, "tiff.ResolutionUnit": "inch"}, 0.5).value == 0.5


def test_the_same_number_for_a_centimetre_is_taken():
    tags = {"tiff.XResolution": "300", "tiff.YResolution": "300", "tiff.ResolutionUnit": "centimeter"}
    assert find_mpp(tags, None).value == pytest.approx(1e4 / 300)
