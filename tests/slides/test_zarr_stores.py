"""OME-Zarr in object stores, on web servers and in forked processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.http import HTTPFileSystem
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from slides.zarr_files import Failing, averaged_pyramid, noise, whole
from wsi_ats.errors import ArtifactError, SlideOpenError, SlideReadError
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import is_complete, remove_pyramid, write_pyramid
from wsi_ats.slides.zarr import ZarrSlide


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
def test_a_forked_process_must_reopen_the_slide(bucket):
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


def test_a_missing_bucket_is_an_error_of_this_library(bucket):
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
