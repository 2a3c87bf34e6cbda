"""Which Zarr hierarchies are slides, and which are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from slides.zarr_files import write_by_hand
from wsi_ats.errors import SlideOpenError
from wsi_ats.slides import open_slide
from wsi_ats.slides.zarr import ZarrSlide
from wsi_ats.tables.manifest import read_manifest


@pytest.mark.parametrize("what", ["missing", "empty", "text", "group"])
def test_a_path_that_is_not_a_zarr_image_is_refused(tmp_path, what):
    path = tmp_path / "s.zarr"
    if what == "text":
        path.write_text("no folder")
    elif what == "empty":
        path.mkdir()
    elif what == "group":
        zarr.open_group(path, mode="w")
    message = {"missing": "no such folder", "group": "no multiscales"}.get(what, "no Zarr group")
    with pytest.raises(SlideOpenError, match=message):
        ZarrSlide(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.3"}, "version is '0.3', expected 0.5 or 0.4"),
        ({"omero": {"channels": [{"color": c} for c in ("0000FF", "00FF00", "FF0000")]}}, "not an RGB image"),
        ({"omero": {"channels": [{"color": "FFFFFF"}]}}, "not an RGB image"),
    ],
)
def test_images_of_other_versions_or_colours_are_refused(pattern, tmp_path, change, message):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)])
    group = zarr.open_group(path, mode="r+")
    group.attrs["ome"] = {**group.attrs["ome"], **change}
    with pytest.raises(SlideOpenError, match=message):
        ZarrSlide(path)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((3, 40, 50), "uint16", "has type uint16, expected uint8"),
        ((4, 40, 50), "uint8", "expected three channels"),
        ((40, 50), "uint8", "has 2 axes, expected 3"),
    ],
)
def test_levels_that_are_not_rgb_are_refused(pattern, tmp_path, shape, dtype, message):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)])
    zarr.open_group(path, mode="r+").create_array("0", shape=shape, dtype=dtype, overwrite=True)
    with pytest.raises(SlideOpenError, match=message):
        ZarrSlide(path)


def gathered(folder, pictures, version, *, listed=True):
    """Write images as bioformats2raw does: in numbered folders below a group that names the layout."""
    zarr_format = 3 if version == "0.5" else 2
    group = zarr.open_group(LocalStore(folder), mode="w", zarr_format=zarr_format)
    for number, picture in enumerate(pictures):
        write_by_hand(folder / str(number), [picture], version=version)
    names = list(map(str, range(len(pictures))))
    said, series = {"bioformats2raw.layout": 3}, {"series": names}
    group.attrs.update({"ome": {"version": version, **said}} if zarr_format == 3 else said)
    if listed:
        below = group.create_group("OME")
        below.attrs.update({"ome": {"version": version, **series}} if zarr_format == 3 else series)
    return folder


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_bioformats2raw_with_one_image_is_a_slide_and_with_several_needs_a_choice(
    pattern, tmp_path, version, listed
):
    one, other = pattern(60, 50), pattern(70, 40)
    alone = gathered(tmp_path / "alone.ome.zarr", [one], version, listed=listed)
    for path in (alone, alone / "0"):
        with open_slide(path) as slide:
            assert (slide.levels[0].width, slide.levels[0].height) == (60, 50)
            np.testing.assert_array_equal(slide.read_regions(0, np.array([[0, 0]]), 60, 50)[0], one)
    both = gathered(tmp_path / "both.zarr", [one, other], version, listed=listed)
    with pytest.raises(SlideOpenError, match=r"it holds 2 images \(0, 1\).*give .*both\.zarr/0, for example"):
        open_slide(both)
    with open_slide(both / "1") as slide:
        assert slide.levels[0].width == 70
    assert [(ref.id, Path(ref.path)) for ref in read_manifest(both / "1")] == [("both_1", both / "1")]
    assert [ref.id for ref in read_manifest(tmp_path)] == ["alone", "both"]
    (tmp_path / "slides.csv").write_text("path,label\nboth.zarr/0,x\nboth.zarr/1,y\n")
    assert [ref.id for ref in read_manifest(tmp_path / "slides.csv")] == ["both_0", "both_1"]


def test_a_group_of_no_images_is_refused(tmp_path):
    with pytest.raises(SlideOpenError, match=r"it holds 0 images \(\), but a slide must be one image"):
        open_slide(gathered(tmp_path / "s.zarr", [], "0.5"))


def test_zarr_is_recognised_by_content(pattern, tmp_path):
    path = write_by_hand(tmp_path / "scan", [pattern(60, 50)])
    with open_slide(path) as slide:
        assert slide.vendor == "ome-zarr"
    zarr.open_array(tmp_path / "features", mode="w", shape=(4,), dtype="uint8")
    assert [ref.id for ref in read_manifest(tmp_path)] == ["scan"]


def test_levels_that_do_not_get_smaller_are_refused(pattern, tmp_path):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50), pattern(60, 50)])
    with pytest.raises(SlideOpenError, match="expected each smaller than the last"):
        ZarrSlide(path)
