"""OME-Zarr slides written by hand and by this library: the reader contract and the resolution."""

from __future__ import annotations

import pytest
import zarr

from slides.zarr_files import averaged_pyramid, write_by_hand
from wsi_ats.errors import MppError
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import remove_pyramid, write_pyramid
from wsi_ats.slides.zarr import ZarrSlide
from wsi_ats.testing.contract import SlideContract

# --- the contract ---


@pytest.fixture(scope="session", params=[None, "sharded"])
def by_hand(request, awkward_pyramid, tmp_path_factory):
    return write_by_hand(tmp_path_factory.mktemp("hand") / "s.zarr", awkward_pyramid, shards=request.param)


@pytest.fixture(scope="session")
def ours(awkward_pyramid, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("ours") / "s.ome.zarr")
    write_pyramid(MemorySlide(awkward_pyramid[:1], mpp=0.5), path)
    return path


class TestWrittenByHand(SlideContract):
    @pytest.fixture
    def pyramid(self, awkward_pyramid):
        return awkward_pyramid

    @pytest.fixture
    def slide(self, by_hand):
        with ZarrSlide(by_hand) as slide:
            yield slide


class TestAxesInAnotherOrder(SlideContract):
    @pytest.fixture
    def pyramid(self, pattern):
        return [pattern(331, 217), pattern(83, 54, 1)]

    @pytest.fixture(params=[("yxc", "0.5", None), ("tczyx", "0.4", None), ("yxc", "0.5", "sharded"),
                            ("cxy", "0.5", "sharded"), ("tczyx", "0.5", "sharded")], ids=str)  # fmt: skip
    def slide(self, request, pyramid, tmp_path):
        axes, version, shards = request.param
        path = write_by_hand(tmp_path / "s.zarr", pyramid, axes=axes, version=version, shards=shards)
        with ZarrSlide(path) as slide:
            yield slide


class TestWrittenByThisLibrary(SlideContract):
    @pytest.fixture
    def pyramid(self, awkward_pyramid):
        return averaged_pyramid(awkward_pyramid[0])

    @pytest.fixture
    def slide(self, ours):
        with ZarrSlide(ours) as slide:
            yield slide


class TestJpegInMemory(SlideContract):
    @pytest.fixture
    def slide(self, pattern):
        write_pyramid(MemorySlide([pattern(700, 900)], mpp=0.5), "memory://contract/s.ome.zarr", codec="jpeg")
        with ZarrSlide("memory://contract/s.ome.zarr") as slide:
            yield slide
        remove_pyramid("memory://contract/s.ome.zarr")


# --- resolution ---


@pytest.mark.parametrize(
    ("unit", "value"),
    [("micrometer", 0.5), ("nanometer", 500.0), ("millimeter", 5e-4), ("meter", 5e-7), ("angstrom", 5000.0)],
)
def test_the_unit_is_converted(pattern, tmp_path, unit, value):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)], unit=unit, mpp=value)
    with ZarrSlide(path) as slide:
        assert slide.mpp.value == pytest.approx(0.5)
        assert slide.mpp.source == "coordinateTransformations"
    with ZarrSlide(path, mpp=0.3) as slide:
        assert (slide.mpp.value, slide.mpp.source) == (0.3, "override")


@pytest.mark.parametrize("unit", [None, "parsec", "pixel"])
def test_an_unknown_unit_gives_no_resolution(pattern, tmp_path, unit):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)], unit=unit)
    with ZarrSlide(path) as slide, pytest.raises(MppError, match=rf"units = .*'x': {unit!r}.*--mpp"):
        _ = slide.mpp


def with_transformations(path, own, whole=()):
    group = zarr.open_group(path, mode="r+")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"] = own
    ome["multiscales"][0]["coordinateTransformations"] = list(whole)
    group.attrs["ome"] = ome


def test_a_missing_scale_gives_no_resolution(pattern, tmp_path):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)])
    with_transformations(path, [])
    with ZarrSlide(path) as slide, pytest.raises(MppError, match=r"scale = None.*--mpp"):
        _ = slide.mpp


def test_scales_of_all_levels_multiply_those_of_each(pattern, tmp_path):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)])
    with_transformations(
        path, [{"type": "scale", "scale": [1, 0.25, 0.25]}], [{"type": "scale", "scale": [1, 2, 2]}]
    )
    with ZarrSlide(path) as slide:
        assert slide.mpp.value == 0.5


def test_slightly_different_axes_are_averaged_and_very_different_ones_are_an_error(pattern, tmp_path):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)])
    with_transformations(path, [{"type": "scale", "scale": [1, 0.52, 0.50]}])
    with ZarrSlide(path) as slide:
        assert slide.mpp.value == pytest.approx(0.51)
    with_transformations(path, [{"type": "scale", "scale": [1, 0.5, 0.25]}])
    with (
        ZarrSlide(path) as slide,
        pytest.raises(MppError, match=r"0.25 micrometres per pixel across and 0.5 down"),
    ):
        _ = slide.mpp


def test_an_implausible_scale_gives_no_resolution(pattern, tmp_path):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)], mpp=352.8)
    with ZarrSlide(path) as slide, pytest.raises(MppError, match=r"352\.8"):
        _ = slide.mpp
