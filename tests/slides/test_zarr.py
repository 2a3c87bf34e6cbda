"""OME-Zarr: pyramids written by hand and by this library, read by this library and by others; and damage."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zarr
from fsspec.implementations.http import HTTPFileSystem
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from wsi_ats.errors import ArtifactError, MppError, SettingsError, SlideError, SlideOpenError, SlideReadError
from wsi_ats.geometry import Region
from wsi_ats.slides import jpeg, open_slide
from wsi_ats.slides import shards as writing
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import is_complete, remove_pyramid, write_pyramid
from wsi_ats.slides.shards import halved
from wsi_ats.slides.zarr import ZarrSlide
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.testing.contract import SlideContract

ROOT = Path(__file__).parents[2]
CHANNELS = [{"color": colour, "window": {"start": 0, "end": 255, "min": 0, "max": 255}} for colour in
            ("FF0000", "00FF00", "0000FF")]  # fmt: skip


def write_by_hand(
    path, pyramid, *, axes="cyx", mpp=0.5, unit="micrometer", version="0.5", shards=None, **extra
):
    """Write a pyramid as another program might, by the zarr package alone."""
    zarr_format = 3 if version == "0.5" else 2
    group = zarr.open_group(LocalStore(path), mode="w", zarr_format=zarr_format)
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": name, "type": kinds.get(name, "space")} for name in axes]
    for axis in described:
        if axis["type"] == "space" and unit is not None:
            axis["unit"] = unit
    datasets = []
    for number, pixels in enumerate(pyramid):
        height, width, _ = pixels.shape
        sizes = {"y": height, "x": width, "c": 3}
        chunks = {"y": 64, "x": 48, "c": 3}
        options = {"dimension_names": list(axes)} if zarr_format == 3 else {}
        if shards:
            options["shards"] = [{"y": 256, "x": 192, "c": 3}.get(name, 1) for name in axes]
        array = group.create_array(
            str(number),
            shape=[sizes.get(name, 1) for name in axes],
            chunks=[chunks.get(name, 1) for name in axes],
            dtype="uint8",
            fill_value=7,
            **options,
        )
        order = ["yxc".index(name) for name in axes if name in "yxc"]
        array[:] = pixels.transpose(order).reshape(array.shape)
        first = pyramid[0].shape
        steps = {"y": mpp * first[0] / height, "x": mpp * first[1] / width}
        scale = [steps.get(name, 1.0) for name in axes]
        datasets.append(
            {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    multiscales = [{"name": "by hand", "axes": described, "datasets": datasets}]
    ome = {"multiscales": multiscales, "omero": {"channels": CHANNELS}, **extra}
    if zarr_format == 3:
        group.attrs.update({"ome": {"version": version, **ome}})
    else:
        multiscales[0]["version"] = version
        group.attrs.update(ome)
    return str(path)


def averages(pixels):
    """Averages of 2 x 2 pixels, of fewer where there are no more, another way."""
    height, width, _ = pixels.shape
    rows, columns = np.arange(0, height, 2), np.arange(0, width, 2)
    total = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=0), columns, axis=1)
    counts = np.minimum(2, height - rows)[:, None] * np.minimum(2, width - columns)
    return np.rint(total / counts[..., None]).astype(np.uint8)


def averaged_pyramid(pixels, smallest=512):
    levels = [pixels]
    while max(levels[-1].shape[:2]) > smallest:
        levels.append(averages(levels[-1]))
    return levels


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(slide, level=0):
    size = slide.levels[level]
    return slide.read_regions(level, np.zeros((1, 2), dtype=np.int64), size.width, size.height)[0]


def tree(folder):
    """Every file of a folder and what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small_shards():
    """Shards, chunks and last levels so small that small slides have many."""
    with mock.patch.multiple(writing, _CHUNK=16, _SHARD=64, _SMALLEST=40):
        yield


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


# --- what is written ---


@profile(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_an_average_is_that_of_the_pixels_that_exist(width, height, seed):
    pixels = noise(width, height, seed)
    np.testing.assert_array_equal(halved(pixels), averages(pixels))


def test_many_levels_do_not_become_brighter():
    pixels = noise(1024, 1024)
    mean = pixels.mean()
    for _ in range(8):
        pixels = halved(pixels)
    assert abs(pixels.mean() - mean) < 0.3


@profile(max_examples=10)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 3))
def test_levels_are_averages_of_the_finer_one_whatever_the_size(width, height, threads):
    target = "memory://sizes/s.ome.zarr"
    pixels = noise(width, height)
    with mock.patch.multiple(writing, _CHUNK=16, _SHARD=64, _SMALLEST=40):
        written = write_pyramid(MemorySlide([pixels], mpp=0.25), target, threads=threads)
    expected = averaged_pyramid(pixels, 40)
    with ZarrSlide(target) as slide:
        assert [(level.width, level.height) for level in slide.levels] == list(written.sizes)
        assert [level.downsample for level in slide.levels] == [2**k for k in range(len(expected))]
        for number, level in enumerate(expected):
            np.testing.assert_array_equal(whole(slide, number), level)
    remove_pyramid(target)


@pytest.fixture
def converted(pattern, tmp_path):
    """A pyramid of 331 x 217 pixels and its source's pixels, with many shards."""
    pixels = pattern(1331, 1217)
    path = tmp_path / "scan.ome.zarr"
    written = write_pyramid(MemorySlide([pixels], mpp=0.4990), str(path), source="abc")
    return path, pixels, written


def test_other_programs_read_the_same_pixels_places_and_axes(converted):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    path, pixels, written = converted
    [image] = list(Reader(parse_url(path, mode="r"))())
    assert [axis["name"] for axis in image.metadata["axes"]] == ["c", "y", "x"]
    assert [axis.get("unit") for axis in image.metadata["axes"]] == [None, "micrometer", "micrometer"]
    assert image.metadata["name"] == "scan"
    assert len(image.data) == len(written.sizes) == 3
    for number, (data, level) in enumerate(zip(image.data, averaged_pyramid(pixels), strict=True)):
        np.testing.assert_array_equal(np.asarray(data).transpose(1, 2, 0), level)
        scale, translation = image.metadata["coordinateTransformations"][number]
        mpp = 0.4990 * 2**number
        assert scale == {"type": "scale", "scale": [1.0, mpp, mpp]}
        # The centre of an average of 2 x 2 pixels lies half a pixel further.
        middle = pytest.approx((mpp - 0.4990) / 2)
        assert translation == {"type": "translation", "translation": [0.0, middle, middle]}


def test_the_models_of_the_format_find_nothing_wrong(converted):
    from ome_zarr_models.v05 import Image

    image = Image.from_zarr(zarr.open_group(converted[0], mode="r"))
    assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["c", "y", "x"]
    channels = image.ome_attributes.omero["channels"]
    assert [channel["color"] for channel in channels] == ["FF0000", "00FF00", "0000FF"]


def test_zarr_alone_reads_shards_and_names_of_the_axes(converted):
    path, pixels, _ = converted
    array = zarr.open_array(path / "0", mode="r")
    np.testing.assert_array_equal(array[:].transpose(1, 2, 0), pixels)
    assert (array.chunks, array.shards) == ((3, 256, 256), (3, 2048, 2048))
    assert array.metadata.dimension_names == ("c", "y", "x")


def test_a_folder_is_a_slide_whatever_the_case_of_its_name(tmp_path):
    write_pyramid(MemorySlide([noise(60, 50)], mpp=0.5), str(tmp_path / "S.OME.ZARR"))
    [ref] = read_manifest(tmp_path)
    with open_slide(ref) as slide:
        assert isinstance(slide, ZarrSlide)


def test_it_notes_where_it_comes_from(converted):
    own = json.loads((converted[0] / "zarr.json").read_text())["attributes"]["wsi_ats"]
    assert own["source"] == {
        "name": "memory", "digest": "abc", "mpp": 0.4990, "mpp_source": "given", "vendor": "memory",
    }  # fmt: skip
    assert own["region"] == [0, 0, 1331, 1217]


def test_it_notes_no_signature_of_a_url_and_goes_on_under_another(tmp_path):
    path, pixels = tmp_path / "s.ome.zarr", noise(60, 50)
    for signature in ("one", "two"):
        url = f"https://host/scans/s.svs?X-Amz-Signature={signature}"
        write_pyramid(MemorySlide([pixels], mpp=0.5, path=url), str(path), source="abc")
    own = json.loads((path / "zarr.json").read_text())["attributes"]["wsi_ats"]
    assert own["source"]["name"] == "s.svs"


def test_the_shards_are_all_that_is_stored_and_their_index_says_how_much(converted):
    path, _, written = converted
    files = [file.stat().st_size for file in path.rglob("c/*/*/*")]
    assert written.stored_bytes == sum(files)
    with ZarrSlide(str(path)) as slide:
        known = [
            slide.stored_bytes(k, np.zeros((1, 2), dtype=np.int64), level.width, level.height)
            for k, level in enumerate(slide.levels)
        ]
    assert sum(known) == sum(files) - len(files) * (64 * 16 + 4)


def test_the_index_of_a_shard_is_read_once(converted):
    asked = []
    get = LocalStore.get

    async def noted(store, key, prototype, byte_range=None):
        asked.append((key, byte_range))
        return await get(store, key, prototype, byte_range)

    with ZarrSlide(str(converted[0])) as slide, mock.patch.object(LocalStore, "get", noted):
        first = slide.read_regions(0, np.array([[0, 0]]), 100, 100)
        again = slide.read_regions(0, np.array([[0, 0]]), 100, 100)
        assert slide.stored_bytes(0, np.array([[0, 0]]), 100, 100) == asked[1][1].end - asked[1][1].start
    np.testing.assert_array_equal(first, again)
    assert [type(part) for _, part in asked] == [SuffixByteRequest, RangeByteRequest, RangeByteRequest]


def test_only_the_scanned_part_is_written_and_its_place_is_noted(pattern, tmp_path):
    class Margin(MemorySlide):
        bounds = Region(100, 50, 400, 300)

    pixels = pattern(600, 500)
    target = str(tmp_path / "s.ome.zarr")
    written = write_pyramid(Margin([pixels], mpp=0.5), target)
    assert written.region == (100, 50, 400, 300)
    with ZarrSlide(target) as slide:
        np.testing.assert_array_equal(whole(slide), pixels[50:350, 100:500])
    own = json.loads((tmp_path / "s.ome.zarr" / "zarr.json").read_text())["attributes"]["wsi_ats"]
    assert own["region"] == [100, 50, 400, 300]
    everything = write_pyramid(
        Margin([pixels], mpp=0.5), str(tmp_path / "all"), region=Region(0, 0, 600, 500)
    )
    assert everything.sizes[0] == (600, 500)


def through_jpeg(pixels, quality, side=256):
    """Pixels as they come out of JPEG, chunk by chunk; chunks are filled up with white."""
    height, width, _ = pixels.shape
    padded = np.full((-(-height // side) * side, -(-width // side) * side, 3), 255, np.uint8)
    padded[:height, :width] = pixels
    for y in range(0, height, side):
        for x in range(0, width, side):
            chunk = padded[y : y + side, x : x + side].copy()
            stream = jpeg.encode(chunk, quality)
            jpeg.decode(stream, chunk)
            padded[y : y + side, x : x + side] = chunk
    return padded[:height, :width]


def test_jpeg_is_close_and_levels_are_averages_of_what_is_stored(shared_data, tmp_path):
    from wsi_ats.slides.openslide import OpenSlideSlide

    target = str(tmp_path / "s.ome.zarr")
    with OpenSlideSlide(str(shared_data / "slides" / "aperio_cmu-1-small-region.svs")) as source:
        part = Region(500, 600, 1100, 900)
        write_pyramid(source, target, codec="jpeg", quality=90, region=part)
        pixels = source.read_regions(0, np.array([part[:2]]), 1100, 900)[0]
    with ZarrSlide(target) as slide:
        stored = [whole(slide, number) for number in range(len(slide.levels))]
    difference = np.abs(stored[0].astype(int) - pixels)
    assert 0 < difference.mean() < 3
    for level, expected in zip(stored, [pixels, *map(averages, stored)], strict=False):
        np.testing.assert_array_equal(level, through_jpeg(expected, 90))


def test_the_codec_is_written_as_the_package_imagecodecs_zarr_expects_it(pattern, tmp_path):
    write_pyramid(MemorySlide([pattern(90, 80)], mpp=0.5), str(tmp_path / "s"), codec="jpeg", quality=80)
    [sharding] = json.loads((tmp_path / "s" / "0" / "zarr.json").read_text())["codecs"]
    assert sharding["configuration"]["codecs"] == [
        {"name": "transpose", "configuration": {"order": [1, 2, 0]}},
        {"name": "imagecodecs_jpeg", "configuration": {"level": 80, "subsampling": "444"}},
        {"name": "crc32c"},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "png"}, "codec is 'png', expected one of zstd, jpeg"),
        ({"quality": 90}, "zstd is lossless"),
        ({"codec": "jpeg", "quality": 0}, "quality is 0, expected 1 to 100"),
        ({"region": Region(0, 0, 50, 100)}, "not within the slide's 40 x 30 pixels"),
        ({"region": Region(-1, 0, 5, 5)}, "not within the slide"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(SettingsError, match=message):
        write_pyramid(MemorySlide([noise(40, 30)], mpp=0.5), str(tmp_path / "s"), **options)
    assert not (tmp_path / "s").exists()


def test_without_mpp_nothing_is_written(tmp_path):
    with pytest.raises(MppError):
        write_pyramid(MemorySlide([noise(40, 30)], mpp=None), str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_a_place_that_cannot_be_written_to_is_an_error_of_this_library(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_pyramid(MemorySlide([noise(40, 30)], mpp=0.5), str(tmp_path / "file" / "s"))


# --- going on ---


class Failing(MemorySlide):
    """A slide that cannot be read any more after some regions."""

    def __init__(self, pixels, reads):
        super().__init__([pixels], mpp=0.5)
        self.reads = reads

    def read_regions(self, level, corners, width, height):
        self.reads -= 1
        if self.reads < 0:
            raise SlideReadError(self.path, "gone")
        return super().read_regions(level, corners, width, height)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_was_stopped_goes_on_to_the_same_bytes(small_shards, tmp_path, threads):
    pixels = noise(300, 200)
    uninterrupted, target = tmp_path / "a" / "s.ome.zarr", tmp_path / "b" / "s.ome.zarr"
    assert write_pyramid(MemorySlide([pixels], mpp=0.5), str(uninterrupted)).reused == 0
    with pytest.raises(SlideReadError, match="gone"):
        write_pyramid(Failing(pixels, 7), str(target), threads=threads)
    assert not (target / "zarr.json").exists()
    assert not is_complete(str(target))
    with pytest.raises(SlideOpenError, match="is incomplete; run the same `wsi-ats convert` again"):
        ZarrSlide(str(target))
    # What may be left: a file under a temporary name, a shard that is cut off, one of rubbish, an empty one.
    shards = sorted(target.rglob("c/*/*/*"))
    assert len(shards) == 7
    (shards[0].parent / "0.0123.partial").write_bytes(b"half")
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    shards[1].write_bytes(b"rubbish")
    shards[2].write_bytes(b"")
    written = write_pyramid(Failing(pixels, 5 * 4 - 4), str(target))
    assert written.reused == 4
    assert is_complete(str(target))
    assert tree(target) == tree(uninterrupted)


def test_what_is_complete_is_checked_and_mended(small_shards, tmp_path):
    source, target = Failing(noise(200, 100), 100), tmp_path / "s.ome.zarr"
    write_pyramid(source, str(target))
    before = tree(target)
    source.reads = 0
    assert write_pyramid(source, str(target)).reused == sum("/c/" in f"/{name}" for name in before)
    lost = target / "1" / "c" / "0" / "0" / "0"
    lost.unlink()
    write_pyramid(source, str(target))
    assert tree(target) == before


@pytest.mark.parametrize("stopped", [False, True])
def test_another_source_or_form_is_refused(small_shards, tmp_path, stopped):
    pixels, target = noise(300, 200), tmp_path / "s.ome.zarr"
    write_pyramid(MemorySlide([pixels], mpp=0.5), str(target), source="one")
    if stopped:
        (target / "zarr.json").unlink()
    before = tree(target)
    for options in (
        {"source": "two"},
        {"source": "one", "codec": "jpeg"},
        {"source": "one", "region": (0, 0, 9, 9)},
    ):
        options["region"] = Region(*options.get("region", (0, 0, 300, 200)))
        with pytest.raises(ArtifactError, match="made from another slide or with other settings"):
            write_pyramid(MemorySlide([pixels], mpp=0.5), str(target), **options)
    assert tree(target) == before


@pytest.mark.parametrize("what", ["0.5", "0.4", "a note"])
def test_pyramids_of_others_are_neither_written_over_nor_deleted(pattern, tmp_path, what):
    path = tmp_path / "s.zarr"
    if what == "a note":
        path.mkdir()
        (path / "read me.txt").write_text("kept for the audit")
    else:
        write_by_hand(path, [pattern(60, 50)], version=what)
    before = tree(path)
    with pytest.raises(ArtifactError, match="holds something other"):
        write_pyramid(MemorySlide([noise(60, 50)], mpp=0.5), str(path))
    with pytest.raises(ArtifactError, match="holds something other"):
        remove_pyramid(str(path))
    assert tree(path) == before


def test_a_pyramid_whose_metadata_are_damaged_is_not_complete_and_is_mended(converted):
    path, pixels, written = converted
    before = tree(path)
    for content in (b"", b"{", b"[]", b"{}", b'{"attributes": 3}'):
        (path / "zarr.json").write_bytes(content)
        assert not is_complete(str(path))
    again = write_pyramid(MemorySlide([pixels], mpp=0.4990), str(path), source="abc")
    assert again.reused == len(written.sizes)
    assert is_complete(str(path))
    assert tree(path) == before


def test_own_pyramids_are_deleted_whole_and_nothing_is_no_error(converted):
    path = converted[0]
    remove_pyramid(str(path))
    assert tree(path) == {}
    remove_pyramid(str(path))
    remove_pyramid(str(path / "never"))
    assert not is_complete(str(path))
    assert not is_complete(str(path / "not even a folder"))


def test_what_others_put_into_a_pyramid_is_not_deleted_with_it(converted):
    path, pixels, _ = converted
    (path / "labels").mkdir()
    (path / "labels" / "zarr.json").write_text("{}")
    before = tree(path)
    with pytest.raises(ArtifactError, match=r"do not belong to the pyramid, such as labels/zarr\.json"):
        remove_pyramid(str(path))
    assert tree(path) == before
    write_pyramid(MemorySlide([pixels], mpp=0.4990), str(path), source="abc")  # it may be gone on with
    assert tree(path) == before


@pytest.mark.parametrize("name", ["scan[1]", "scan*", "scan?", "memory::scan"])
def test_a_name_that_stores_take_for_a_pattern_is_refused_and_harms_nobody(name):
    slide = MemorySlide([noise(60, 50)], mpp=0.5)
    write_pyramid(slide, "memory://patterns/scan1.ome.zarr")
    for work in (partial(write_pyramid, slide), remove_pyramid):
        with pytest.raises(ArtifactError, match="give the slide another slide_id"):
            work(f"memory://patterns/{name}.ome.zarr")
    assert is_complete("memory://patterns/scan1.ome.zarr")


def test_a_pyramid_behind_a_link_is_not_deleted(converted, tmp_path):
    path = converted[0]
    link = tmp_path / "link.ome.zarr"
    link.symlink_to(path)
    before = tree(path)
    with pytest.raises(ArtifactError, match="is a link"):
        remove_pyramid(str(link))
    assert tree(path) == before


def test_a_shard_that_is_read_back_otherwise_is_noticed(small_shards, tmp_path):
    class Forgetful(LocalStore):
        async def set(self, key, value):
            if key.endswith("/1") and "/c/" in key:
                value = type(value).from_bytes(value.to_bytes()[:-1] + b"?")
            await super().set(key, value)

    with (
        mock.patch("wsi_ats.slides.pyramid.open_store", lambda path, read_only: Forgetful(path)),
        pytest.raises(ArtifactError, match=r"0/c/0/0/1 differs from what was written"),
    ):
        write_pyramid(MemorySlide([noise(100, 60)], mpp=0.5), str(tmp_path / "s"))


# --- damage ---


@pytest.fixture(scope="session", params=["zstd", "jpeg"])
def whole_pyramid(request, tmp_path_factory):
    """A pyramid and its pixels, in shards of 4 x 4 chunks."""
    path = tmp_path_factory.mktemp(request.param) / "s.ome.zarr"
    with mock.patch.multiple(writing, _CHUNK=16, _SHARD=64, _SMALLEST=40):
        write_pyramid(MemorySlide([noise(150, 100)], mpp=0.5), str(path), codec=request.param)
    with ZarrSlide(str(path)) as slide:
        return path, whole(slide)


@pytest.fixture
def damaged(whole_pyramid, tmp_path):
    """A copy to be damaged, its first shard, and the pixels it had."""
    path = tmp_path / "s.ome.zarr"
    shutil.copytree(whole_pyramid[0], path)
    return path, path / "0" / "c" / "0" / "0" / "0", whole_pyramid[1]


def reads(path, x=0, y=0, width=40, height=40):
    with ZarrSlide(str(path)) as slide:
        return slide.read_regions(0, np.array([[x, y]]), width, height)[0]


def test_a_missing_shard_of_ours_is_an_error_and_never_pixels(damaged):
    path, shard, pixels = damaged
    shard.unlink()
    with pytest.raises(SlideReadError) as caught:
        reads(path)
    assert str(path) in str(caught.value)
    assert "level 0, 40 x 40 pixels at (0, 0) of that level cannot be read: 0/c/0/0/0 is missing" in str(
        caught.value
    )
    np.testing.assert_array_equal(reads(path, 64, 0), pixels[:40, 64:104])  # the others stay readable
    with ZarrSlide(str(path)) as slide, pytest.raises(SlideReadError, match="is missing"):
        slide.stored_bytes(0, np.zeros((1, 2), dtype=np.int64), 9, 9)


@pytest.mark.parametrize("size", [0, 1, 100, 0.3, 0.9, -1, -4, -200])
@pytest.mark.parametrize("side", [9, 64])
def test_a_shard_that_is_cut_off_is_an_error(damaged, size, side):
    path, shard, _ = damaged
    content = shard.read_bytes()
    shard.write_bytes(content[: int(size * len(content)) if isinstance(size, float) else size])
    with pytest.raises(SlideReadError, match="cannot be read"):
        reads(path, 0, 0, side, side)  # one chunk, or all of the shard


def test_a_changed_index_is_an_error(damaged):
    path, shard, _ = damaged
    content = bytearray(shard.read_bytes())
    for place in (-1, -4, -5, -16 * 16 - 4):
        changed = content.copy()
        changed[place] ^= 1
        shard.write_bytes(changed)
        for side in (9, 64):
            with pytest.raises(SlideReadError, match="cannot be read"):
                reads(path, 0, 0, side, side)


def test_any_changed_byte_is_an_error_or_changes_nothing(whole_pyramid, tmp_path_factory):
    path = tmp_path_factory.mktemp("changed") / "s.ome.zarr"
    shutil.copytree(whole_pyramid[0], path)
    shard, pixels = path / "0" / "c" / "0" / "0" / "0", whole_pyramid[1]
    content = shard.read_bytes()
    errors = []

    @profile(max_examples=80)
    @given(st.integers(0, len(content) - 1), st.integers(1, 255))
    def change(place, difference):
        changed = bytearray(content)
        changed[place] ^= difference
        shard.write_bytes(changed)
        try:
            np.testing.assert_array_equal(reads(path, 0, 0, 64, 64), pixels[:64, :64])
        except SlideReadError:
            errors.append(place)

    change()
    assert len(errors) > 60


def test_missing_chunks_of_others_are_what_zarr_says(pattern, tmp_path):
    pixels = pattern(100, 90)
    path = tmp_path / "s.zarr"
    write_by_hand(path, [pixels])
    (path / "0" / "c" / "0" / "0" / "0").unlink()
    expected = pixels.copy()
    expected[:64, :48] = 7
    with ZarrSlide(str(path)) as slide:
        np.testing.assert_array_equal(whole(slide), expected)


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json", "1/zarr.json"])
def test_metadata_cut_off_anywhere_is_an_error_of_opening(whole_pyramid, tmp_path_factory, name):
    path = tmp_path_factory.mktemp("cut") / "s.ome.zarr"
    shutil.copytree(whole_pyramid[0], path)
    content = (path / name).read_bytes().rstrip()

    @profile(max_examples=40)
    @given(st.integers(0, len(content) - 1))
    def cut(size):
        (path / name).write_bytes(content[:size])
        with pytest.raises(SlideOpenError) as caught:
            ZarrSlide(str(path))
        assert str(path) in str(caught.value)

    cut()


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=3),
                   st.just([]), st.just({}), st.just([1]), st.just([None]), st.just({"a": 1}))  # fmt: skip


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_metadata_that_say_anything_else_are_errors_of_this_library(whole_pyramid, tmp_path_factory, name):
    path = tmp_path_factory.mktemp("else") / "s.ome.zarr"
    shutil.copytree(whole_pyramid[0], path)
    record = json.loads((path / name).read_text())
    places = list(_places(record))

    @profile(max_examples=150)
    @given(st.sampled_from(places), VALUES)
    def change(place, value):
        changed = json.loads(json.dumps(record))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (path / name).write_text(json.dumps(changed))
        with suppress(SlideError), ZarrSlide(str(path)) as slide:
            slide.read_regions(0, np.zeros((1, 2), dtype=np.int64), 20, 20)
            assert slide.mpp.value > 0

    change()


def _places(value, before=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from _places(inner, (*before, key))


@pytest.mark.parametrize("what", ["missing", "empty", "text", "group"])
def test_what_is_no_image_is_refused(tmp_path, what):
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
def test_what_is_no_rgb_of_a_known_version_is_refused(pattern, tmp_path, change, message):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)])
    group = zarr.open_group(path, mode="r+")
    group.attrs["ome"] = {**group.attrs["ome"], **change}
    with pytest.raises(SlideOpenError, match=message):
        ZarrSlide(path)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((3, 40, 50), "uint16", "of uint16, expected uint8"),
        ((4, 40, 50), "uint8", "expected three channels"),
        ((40, 50), "uint8", "has 2 axes, expected 3"),
    ],
)
def test_levels_that_are_no_rgb_are_refused(pattern, tmp_path, shape, dtype, message):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)])
    zarr.open_group(path, mode="r+").create_array("0", shape=shape, dtype=dtype, overwrite=True)
    with pytest.raises(SlideOpenError, match=message):
        ZarrSlide(path)


def gathered(folder, pictures, version, *, listed=True):
    """Write images as bioformats2raw does: in folders with numbers, below one that says so."""
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
def test_the_one_image_of_bioformats2raw_is_the_slide_and_of_several_one_is_named(
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


def test_zarr_is_known_by_what_it_holds(pattern, tmp_path):
    path = write_by_hand(tmp_path / "scan", [pattern(60, 50)])
    with open_slide(path) as slide:
        assert slide.vendor == "ome-zarr"
    zarr.open_array(tmp_path / "features", mode="w", shape=(4,), dtype="uint8")
    assert [ref.id for ref in read_manifest(tmp_path)] == ["scan"]


def test_levels_that_do_not_get_smaller_are_refused(pattern, tmp_path):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50), pattern(60, 50)])
    with pytest.raises(SlideOpenError, match="expected each smaller than the last"):
        ZarrSlide(path)


def test_a_damaged_slide_elsewhere_does_not_close_this_one(damaged):
    path, shard, pixels = damaged
    shard.write_bytes(b"")
    with ZarrSlide(str(path)) as slide:
        for _ in range(3):
            with pytest.raises(SlideReadError):
                slide.read_regions(0, np.array([[0, 0], [64, 0]]), 10, 10)
            read = slide.read_regions(0, np.array([[64, 0]]), 10, 10)[0]
            np.testing.assert_array_equal(read, pixels[:10, 64:74])


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
def test_without_a_known_unit_there_is_no_resolution(pattern, tmp_path, unit):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)], unit=unit)
    with ZarrSlide(path) as slide, pytest.raises(MppError, match=rf"units = .*'x': {unit!r}.*--mpp"):
        _ = slide.mpp


def with_transformations(path, own, whole=()):
    group = zarr.open_group(path, mode="r+")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"] = own
    ome["multiscales"][0]["coordinateTransformations"] = list(whole)
    group.attrs["ome"] = ome


def test_without_a_scale_there_is_no_resolution(pattern, tmp_path):
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


def test_an_implausible_scale_is_no_resolution(pattern, tmp_path):
    path = write_by_hand(tmp_path / "s.zarr", [pattern(60, 50)], mpp=352.8)
    with ZarrSlide(path) as slide, pytest.raises(MppError, match=r"352\.8"):
        _ = slide.mpp


# --- elsewhere ---


@pytest.fixture
def bucket(s3):
    """A place in a store on this machine that speaks S3."""
    yield f"{s3}/zarr"
    # Zarr's own way to the store, which it keeps for all that is there.
    files = FsspecStore.from_url(s3).fs

    async def close():
        await (await files.set_session()).close()

    sync(close())
    files.clear_instance_cache()


def test_an_object_store_is_written_to_and_read_from(bucket, small_shards):
    pixels, target = noise(200, 150), f"{bucket}/below/s.ome.zarr"
    with pytest.raises(SlideOpenError, match="no Zarr group"):
        ZarrSlide(target)
    with pytest.raises(SlideReadError):
        write_pyramid(Failing(pixels, 5), target)
    assert write_pyramid(MemorySlide([pixels], mpp=0.5), target, threads=2).reused == 5
    with ZarrSlide(target) as slide:
        for number, level in enumerate(averaged_pyramid(pixels, 40)):
            np.testing.assert_array_equal(whole(slide, number), level)
        import s3fs

        s3fs.S3FileSystem().rm(f"{target}/0/c/0/0/0")
        with pytest.raises(SlideReadError, match="0/c/0/0/0 is missing"):
            whole(slide)
    remove_pyramid(target)
    assert not is_complete(target)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # which this test is about
def test_a_forked_process_is_told_to_open_anew(bucket):
    pixels, target = noise(60, 50), f"{bucket}/forked.ome.zarr"
    write_pyramid(MemorySlide([pixels], mpp=0.5), target)
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    with ZarrSlide(target) as slide:

        def child():
            try:
                whole(slide)
            except SlideReadError as error:
                with ZarrSlide(target) as again:
                    theirs.send((str(error), whole(again)))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        assert ours.poll(20)
        told, found = ours.recv()
        process.join()
    assert "it was opened by another process" in told
    np.testing.assert_array_equal(found, pixels)
    ours.close()
    theirs.close()


def test_a_bucket_that_is_not_there_is_an_error_of_this_library(bucket):
    with pytest.raises(SlideOpenError, match="s3://nowhere"):
        ZarrSlide("s3://nowhere/s.ome.zarr")
    with pytest.raises(ArtifactError, match=r"s3://nowhere/s.ome.zarr cannot be written"):
        write_pyramid(MemorySlide([noise(40, 30)], mpp=0.5), "s3://nowhere/s.ome.zarr")


class WithRanges(SimpleHTTPRequestHandler):
    """A server of files and of parts of them."""

    def send_head(self):
        path, part = Path(self.translate_path(self.path)), self.headers.get("Range")
        if part is None or not path.is_file():
            return super().send_head()
        start, end = part.removeprefix("bytes=").split("-")
        content = path.read_bytes()
        content = content[int(start) : int(end) + 1] if start else content[-int(end) :]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)

    def log_message(self, *arguments):
        pass


class WithoutRanges(WithRanges):
    def send_head(self):
        return SimpleHTTPRequestHandler.send_head(self)


@pytest.mark.parametrize("handler", [WithRanges, WithoutRanges])
def test_a_web_server_gives_the_same_pixels_or_an_error(whole_pyramid, handler):
    path, pixels = whole_pyramid
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(path.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/{path.name}"
    try:
        with ZarrSlide(url) as slide:
            assert slide.mpp.value == 0.5
            if handler is WithRanges:
                np.testing.assert_array_equal(whole(slide), pixels)
                corners = np.array([[3, 4], [70, 20]])
                for region, (x, y) in zip(slide.read_regions(0, corners, 9, 8), corners, strict=True):
                    np.testing.assert_array_equal(region, pixels[y : y + 8, x : x + 9])
            else:
                with pytest.raises(SlideReadError, match="were requested"):
                    slide.read_regions(0, np.array([[3, 4]]), 9, 8)
        with pytest.raises(SlideOpenError, match="no Zarr group"):
            ZarrSlide(f"{url}/nothing")
        files = FsspecStore.from_url(url).fs

        async def close():
            await (await files.set_session()).close()

        sync(close())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    HTTPFileSystem.clear_instance_cache()


def test_an_unknown_kind_of_url_is_an_error_of_this_library():
    with pytest.raises(SlideOpenError, match="cannot be opened"):
        ZarrSlide("nonsense://s.ome.zarr")


# --- memory ---


CONVERT = """
import sys
import numpy as np
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import write_pyramid
from wsi_ats.testing.memory import peak_memory

class Endless(MemorySlide):
    # A slide that is larger than memory: its pixels are made when they are read.
    def __init__(self, width, height):
        super().__init__([np.broadcast_to(np.uint8(0), (height, width, 3))], mpp=0.5)

    def read_regions(self, level, corners, width, height):
        x, y = np.arange(width) + corners[0, 0], np.arange(height) + corners[0, 1]
        pixels = np.empty((1, height, width, 3), np.uint8)
        pixels[0] = ((x[None, :] * y[:, None]) >> 7).astype(np.uint8)[..., None]
        return pixels

width, height, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
write_pyramid(Endless(width, height), target)
print(peak_memory() >> 20)
"""


def test_a_larger_slide_needs_no_more_memory(tmp_path):
    def peak(width, height):
        target = tmp_path / f"{width}x{height}.ome.zarr"
        command = [sys.executable, "-c", CONVERT, str(width), str(height), str(target)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        shutil.rmtree(target)
        return int(ran.stdout)

    assert peak(8192, 4096) <= peak(4096, 2048) + 32  # MiB, for four times the pixels
