"""TIFF files and Zarr pyramids that several files of tests read, made once."""

from __future__ import annotations

import shutil
from unittest import mock

import numpy as np
import pytest
import tifffile

from slides.encoded_tiles import crop, decoded, random_regions, value
from slides.handmade import HandmadeTiff, segments, split_tables
from slides.hostile_files import SIZES, deflate, everything, image, tiled, write_strips
from slides.zarr_files import noise, whole
from wsi_ats.slides import choose_reader
from wsi_ats.slides import shards as writing
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.openslide import OpenSlideSlide
from wsi_ats.slides.pyramid import write_pyramid
from wsi_ats.slides.tiff import TiffSlide
from wsi_ats.slides.zarr import ZarrSlide


@pytest.fixture(scope="session")
def handmade():
    """The class that writes TIFF files byte by byte."""
    return HandmadeTiff


@pytest.fixture(scope="session")
def jpeg_parts():
    """The functions ``segments`` and ``split_tables``."""
    return segments, split_tables


@pytest.fixture
def small_shards():
    """Shards, chunks and last levels so small that small slides have many."""
    with mock.patch.multiple(writing, _CHUNK=16, _SHARD=64, _SMALLEST=40):
        yield


@pytest.fixture
def converted(pattern, tmp_path):
    """A pyramid of 1331 x 1217 pixels and its source's pixels, with many shards."""
    pixels = pattern(1331, 1217)
    path = tmp_path / "scan.ome.zarr"
    written = write_pyramid(MemorySlide([pixels], mpp=0.4990), str(path), source="abc")
    return path, pixels, written


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


@pytest.fixture(scope="session")
def codings(handmade, jpeg_parts, pattern, tmp_path_factory):
    """By coding: a file, and the pixels of its levels."""
    folder = tmp_path_factory.mktemp("codings")
    full, half = (pattern(*size, seed) for seed, size in enumerate(SIZES))
    made = {"strips": write_strips(folder / "strips.tif", full, half)}
    contents = tiled(full, half, handmade, jpeg_parts[1])
    for number, (kind, (writer, images)) in enumerate(contents.items()):
        made[kind] = writer.write(folder / f"{number}.tif", images)
    return {kind: (path, everything(path)) for kind, path in made.items()}


@pytest.fixture
def damaged_tag(handmade, pattern, tmp_path):
    """A file with a tag of a type that does not exist: the one for the predictor."""
    tags = {317: (3, [2])}
    path = handmade().write(
        tmp_path / "s.tif", [image(pattern(*SIZES[0]), deflate, compression=8, tags=tags)]
    )
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags[317].offset
    content = bytearray(path.read_bytes())
    content[entry + 2] = 200
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def count():
    """Regions compared so far; ``pytest -s`` shows the sum."""
    counted = {"with OpenSlide": 0, "with tifffile": 0}
    yield counted
    print(f"\nregions compared: {counted}")  # noqa: T201


@pytest.fixture
def same(count):
    """The function that compares a file's direct reader with OpenSlide."""

    def compare(path, *, exact=("levels", "mpp", "bounds", "background"), regions=24):
        assert choose_reader(path).reader == "direct"
        with TiffSlide(str(path), threads=2) as direct, OpenSlideSlide(str(path)) as other:
            for name in exact:
                assert value(direct, name) == value(other, name), name
            for number, level in enumerate(other.levels):
                assert direct.levels[number] == level
                whole = level.downsample.is_integer()
                truth = None if whole else decoded(path, level)
                for corners, width, height in random_regions(level, regions):
                    read = direct.read_regions(number, corners, width, height)
                    if truth is None:
                        expected = other.read_regions(number, corners, width, height)
                    else:
                        expected = np.stack([crop(truth, corner, width, height) for corner in corners])
                    np.testing.assert_array_equal(read, expected, err_msg=f"{level} {corners.tolist()}")
                    count["with OpenSlide" if whole else "with tifffile"] += len(corners)

    return compare


@pytest.fixture(scope="module")
def large(write_tiff, tmp_path_factory):
    """Six by eight tiles of 196608 bytes, and one of a quarter of the size."""
    noise = np.random.default_rng(0).integers(0, 256, (2048, 1536, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("large") / "large.tif"
    return write_tiff(path, [noise, noise[::4, ::4]], tile=(256, 256), compression=None)


@pytest.fixture
def on_web(web, large):
    web.files["/large.tif"] = large
    return f"{web.address}/large.tif"
