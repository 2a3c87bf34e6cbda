"""Slides in stores and on web servers: the same pixels as from a file, for few bytes."""

from __future__ import annotations

import multiprocessing
import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from slides.remote_files import BLOCK, CORNERS
from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.slides import open_slide
from wsi_ats.slides.remote import RemoteFile
from wsi_ats.slides.tiff import TiffSlide
from wsi_ats.slides.tiff_index import TiffIndex
from wsi_ats.testing.contract import SlideContract


class RemoteContract(SlideContract):
    @pytest.fixture
    def pyramid(self, pattern):
        return [pattern(331, 217), pattern(83, 54, 1)]

    @pytest.fixture
    def path(self, pyramid, write_tiff, tmp_path):
        return write_tiff(tmp_path / "s.tif", pyramid, resolution=(20_000, 20_000), unit="CENTIMETER")

    @pytest.fixture
    def slide(self, url):
        with open_slide(url) as slide:
            assert isinstance(slide, TiffSlide)
            yield slide
            assert slide.bytes_read > 0


class TestMemory(RemoteContract):
    @pytest.fixture
    def url(self, path):
        fsspec.filesystem("memory").pipe_file("/s.tif", path.read_bytes())
        return "memory://s.tif"


class TestS3(RemoteContract):
    @pytest.fixture
    def url(self, s3, path):
        fsspec.filesystem("s3").pipe_file(f"{s3}/s.tif", path.read_bytes())
        return f"{s3}/s.tif"


class TestWeb(RemoteContract):
    @pytest.fixture
    def url(self, web, path):
        web.files["/s.tif"] = path
        return f"{web.address}/s.tif?signature=a/b"


# --- bytes and requests ---


TILE = 256 * 256 * 3


def test_a_few_tiles_cost_their_bytes_and_little_more(web, on_web, large):
    with open_slide(large) as local, open_slide(on_web) as slide:
        index = len(web.requests)
        assert slide.bytes_read == web.sent <= 3 * BLOCK
        assert index <= 3
        stored = slide.stored_bytes(0, CORNERS, 256, 256)
        np.testing.assert_array_equal(
            slide.read_regions(0, CORNERS, 256, 256), local.read_regions(0, CORNERS, 256, 256)
        )
        assert slide.bytes_read == web.sent <= stored + 3 * BLOCK
        assert len(web.requests) == index + 3  # two are neighbours
        assert web.sent < 0.15 * large.stat().st_size


def test_neighbours_are_one_request_and_large_ones_are_shared_out(web):
    web.files["/f"] = data = np.random.default_rng(0).bytes(20 << 20)
    file = RemoteFile(f"{web.address}/f")

    def requests(offsets, sizes):
        web.forget()
        before = file.bytes_read
        fetch = file.fetch(np.array(offsets), np.array(sizes))
        for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            assert bytes(fetch(i)) == data[offset : offset + size]
        assert file.bytes_read - before == web.sent
        return [tuple(map(int, asked.removeprefix("bytes=").split("-"))) for _, asked in web.requests]

    assert requests([500, 0, 100], [50, 10, 10]) == [(0, 549)]
    assert sorted(requests([0, 1 << 20], [100, 100])) == [(0, 99), (1 << 20, (1 << 20) + 99)]
    assert requests([7, 7, 10], [100, 100, 3]) == [(7, 106)]  # the same twice, and one within
    assert requests([7, 50], [0, 0]) == []
    assert requests([], []) == []
    rows = list(range(0, 20 << 20, 1 << 20))
    assert sorted(requests(rows, [1 << 20] * 20)) == [
        (0, (8 << 20) - 1),
        (8 << 20, (16 << 20) - 1),
        (16 << 20, (20 << 20) - 1),
    ]


def huge(path, side, *, index_first):
    """A BigTIFF of ``side`` x ``side`` tiles of 4096 bytes, all of them holes of the file."""
    count, size = side * side, 4096
    tags = [(256, 4, 1, side * 256), (257, 4, 1, side * 256), (258, 3, 3, 8 | 8 << 16 | 8 << 32)]
    tags += [
        (259, 3, 1, 8),
        (262, 3, 1, 2),
        (277, 3, 1, 3),
        (284, 3, 1, 1),
        (322, 4, 1, 256),
        (323, 4, 1, 256),
    ]
    header = 16 + 20 * (len(tags) + 2)
    where = 16 if index_first else 16 + count * size
    first = 16 + header + 12 * count if index_first else 16
    tags += [(324, 16, count, where + header), (325, 4, count, where + header + 8 * count)]
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, where))
        file.seek(where)
        file.write(struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", *tag) for tag in tags))
        file.write(struct.pack("<Q", 0))
        file.write((first + np.arange(count, dtype="<u8") * size).tobytes())
        file.write(np.full(count, size, "<u4").tobytes())
        file.truncate(max(file.tell(), first + count * size))
    return path


@pytest.mark.parametrize("index_first", [True, False], ids=["index first", "index last"])
def test_the_index_of_a_huge_slide_costs_few_requests(web, tmp_path, index_first):
    web.files["/huge.tif"] = huge(tmp_path / "huge.tif", 632, index_first=index_first)
    file = RemoteFile(f"{web.address}/huge.tif")
    index = TiffIndex.of(file)
    (image,) = index.images
    assert image.sizes.size == 399_424
    assert file.size > 1.6e9
    assert image.offsets.flat[-1] == image.offsets.flat[0] + 399_423 * 4096
    assert len(web.requests) <= 4
    assert file.bytes_read == web.sent <= 12 * 399_424 + 3 * BLOCK


def test_an_index_that_claims_the_whole_file_is_refused(web, tmp_path):
    path = huge(tmp_path / "huge.tif", 632, index_first=True)
    with path.open("r+b") as file:
        file.seek(16 + 8 + 9 * 20 + 4)
        file.write(struct.pack("<Q", 180_000_000))  # offsets of so many tiles
    web.files["/huge.tif"] = path
    with pytest.raises(SlideOpenError, match="index"):
        open_slide(f"{web.address}/huge.tif")
    assert web.sent < 1 << 20


def test_concurrent_requests_are_limited(web, on_web):
    under_way = most = 0
    lock = threading.Lock()
    with open_slide(on_web) as slide:
        part = web.RequestHandlerClass.part

        def counted(self, *arguments):
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            time.sleep(0.01)
            yield from part(self, *arguments)
            with lock:
                under_way -= 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(web.RequestHandlerClass, "part", counted)
            corners = np.array([[x, y] for y in range(0, 2048, 512) for x in range(0, 1536, 512)])
            slide.read_regions(0, corners, 256, 256)
        assert 2 <= most <= 10


# --- threads and processes ---


def test_threads_share_a_slide_and_its_count(web, on_web, large):
    with open_slide(large) as local, open_slide(on_web, threads=2) as slide:
        expected = local.read_regions(0, CORNERS, 256, 256)
        with ThreadPoolExecutor(8) as threads:
            for found in threads.map(lambda _: slide.read_regions(0, CORNERS, 256, 256), range(16)):
                np.testing.assert_array_equal(found, expected)
        assert slide.bytes_read == web.sent


def test_several_slides_in_memory_do_not_disturb_each_other(large):
    """Files of this kind have one position for all readers."""
    fsspec.filesystem("memory").pipe_file("/large.tif", large.read_bytes())
    with open_slide(large) as local, ThreadPoolExecutor(4) as threads:
        expected = local.read_regions(0, CORNERS, 256, 256)
        slides = [open_slide("memory://large.tif") for _ in range(4)]
        for _ in range(5):
            for found in threads.map(lambda slide: slide.read_regions(0, CORNERS, 256, 256), slides):
                np.testing.assert_array_equal(found, expected)


def sum_of_a_region(url):
    with open_slide(url) as slide:
        return int(slide.read_regions(0, CORNERS, 256, 256).sum())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # which this test is about
def test_a_forked_process_must_reopen_the_slide(s3, large):
    url = f"{s3}/forked.tif"
    fsspec.filesystem("s3").pipe_file(url, large.read_bytes())
    expected = sum_of_a_region(url)
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    with open_slide(url) as slide:

        def child():
            try:
                slide.read_regions(0, CORNERS, 256, 256)
            except SlideReadError as error:
                theirs.send((str(error), sum_of_a_region(url)))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        assert ours.poll(20)
        told, found = ours.recv()
        process.join()
    assert "it was opened by another process" in told
    assert found == expected
    ours.close()
    theirs.close()
