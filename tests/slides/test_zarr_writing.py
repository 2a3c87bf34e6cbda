"""OME-Zarr pyramids as this library writes them, read by other programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import LocalStore

from slides.zarr_files import averaged_pyramid, averages, noise, whole
from wsi_ats.errors import ArtifactError, MppError, SettingsError
from wsi_ats.geometry import Region
from wsi_ats.slides import jpeg, open_slide
from wsi_ats.slides import shards as writing
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import remove_pyramid, write_pyramid
from wsi_ats.slides.shards import halved
from wsi_ats.slides.zarr import ZarrSlide
from wsi_ats.tables.manifest import read_manifest

ROOT = Path(__file__).parents[2]


# --- pixels and metadata ---


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


def test_the_pyramid_validates_against_ome_zarr_models(converted):
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


def test_the_pyramid_records_its_source(converted):
    own = json.loads((converted[0] / "zarr.json").read_text())["attributes"]["wsi_ats"]
    assert own["source"] == {
        "name": "memory", "digest": "abc", "mpp": 0.4990, "mpp_source": "given", "vendor": "memory",
    }  # fmt: skip
    assert own["region"] == [0, 0, 1331, 1217]


def test_url_signatures_are_not_recorded_and_may_change(tmp_path):
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
def test_invalid_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(SettingsError, match=message):
        write_pyramid(MemorySlide([noise(40, 30)], mpp=0.5), str(tmp_path / "s"), **options)
    assert not (tmp_path / "s").exists()


def test_without_mpp_nothing_is_written(tmp_path):
    with pytest.raises(MppError):
        write_pyramid(MemorySlide([noise(40, 30)], mpp=None), str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_an_unwritable_target_is_an_artifact_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_pyramid(MemorySlide([noise(40, 30)], mpp=0.5), str(tmp_path / "file" / "s"))


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
