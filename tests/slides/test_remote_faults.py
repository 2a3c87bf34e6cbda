"""Stores and web servers that fail: retries, then an error that names the cause."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from slides.remote_files import CORNERS, PATIENT, QUICK
from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, choose_reader, open_slide
from wsi_ats.slides.remote import Patience, RemoteFile
from wsi_ats.slides.tiff import TiffSlide


@pytest.fixture(params=["http", "s3"])
def opened(request, web, large, monkeypatch):
    """A server that can misbehave, and a function that opens a slide on it."""
    web.files["/slides/large.tif"] = large
    url = f"{web.address}/slides/large.tif"
    if request.param == "s3":
        request.getfixturevalue("s3")  # its credentials; they are for any server
        monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
        url = "s3://slides/large.tif"
        fsspec.filesystem("s3").clear_instance_cache()
    open_slide(url).close()  # the first request to a store takes longer
    web.forget()

    def open_it(patience=PATIENT):
        return TiffSlide(url, storage=RemoteFile(url, patience=patience))

    yield web, url, open_it
    if request.param == "s3":
        fsspec.filesystem("s3").clear_instance_cache()


FOREVER = {
    "drop": r"dropped the connection \(ClientPayloadError\) \(tried 3 times\); check the network",
    "short": r"only \d+ of \d+ bytes arrived \(tried 3 times\)",
    "whole": r"its server would send all \d+ bytes; copy the slide",
    "endless": r"its server would send all its bytes; copy the slide",
    "shifted": r"bytes from \d+ were requested, but its server sent 'bytes ",
    "long": r"more bytes than were requested",
    403: r"access is refused \(.*check the credentials",
    404: r"no such file \(.*check the URL",
    416: r"beyond its end \(.*is the file complete\?",
}


@pytest.mark.parametrize("trouble", FOREVER)
def test_a_permanent_failure_is_an_error(opened, trouble):
    web, url, open_it = opened
    with open_it() as slide:
        web.misbehave(trouble)
        web.forget()
        with pytest.raises(SlideReadError, match=FOREVER[trouble]) as caught:
            slide.read_regions(0, CORNERS, 256, 256)
        assert caught.value.path == url
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        web.misbehave(0, times=0)
        assert slide.read_regions(0, CORNERS, 256, 256).shape == (4, 256, 256, 3)  # it stays usable
        web.misbehave(trouble)
        with pytest.raises(SlideOpenError, match=FOREVER[trouble]) as caught:
            open_it()
        assert caught.value.path == url
    assert web.sent < 4 * web.files["/slides/large.tif"].stat().st_size


@pytest.mark.parametrize("trouble", ["silent", "drip", 500, 503])
def test_waiting_for_a_store_has_a_time_limit(opened, trouble):
    web, _, open_it = opened
    web.misbehave(trouble)
    begin = time.monotonic()
    with pytest.raises(SlideOpenError, match=r"(server answered 50|no answer within 0\.3).*tried 2 times"):
        open_it(QUICK)
    assert time.monotonic() - begin < 20  # the library of S3 alone would wait for minutes
    web.misbehave(0, times=0)
    slide = open_it(Patience(tries=1, seconds=2, bytes_per_second=1 << 30))
    web.misbehave(trouble)
    with pytest.raises(
        SlideReadError, match=r"server answered 50|no answer within|OSError.* \(tried 1 times\)"
    ):
        slide.read_regions(0, CORNERS, 256, 256)


@pytest.mark.parametrize("trouble", ["drop", "short", 503])
def test_a_transient_failure_is_retried(opened, trouble, large):
    web, _, open_it = opened
    web.misbehave(trouble, times=1)
    with open_it() as slide, open_slide(large) as local:
        web.misbehave(trouble, times=1)
        np.testing.assert_array_equal(
            slide.read_regions(0, CORNERS, 256, 256), local.read_regions(0, CORNERS, 256, 256)
        )
        assert slide.bytes_read == web.sent


def test_a_server_without_ranges_is_refused(web, on_web, large):
    web.misbehave("whole")
    with pytest.raises(SlideOpenError, match="would send all"):
        open_slide(on_web)
    assert web.sent < large.stat().st_size  # bytes in flight when the connection was closed
    web.files["/small.tif"] = b"II*\0" + bytes(100)
    file = RemoteFile(f"{web.address}/small.tif")  # it is no more than was asked for
    assert (file.size, file.bytes_read) == (104, 104)


def test_a_file_of_unknown_size(web, on_web):
    web.misbehave("no size")
    with pytest.raises(SlideOpenError, match="does not report its size"):
        open_slide(on_web)


@pytest.mark.parametrize("marked", [True, False], ids=["with an ETag", "by its size"])
def test_a_file_that_changes_is_an_error(web, marked, write_tiff, pattern, tmp_path):
    web.mark = marked
    web.files["/s.tif"] = one = write_tiff(tmp_path / "1.tif", [pattern(300, 200)]).read_bytes()
    with open_slide(f"{web.address}/s.tif") as slide:
        web.files["/s.tif"] = other = write_tiff(tmp_path / "2.tif", [pattern(300, 200, 1)]).read_bytes()
        assert marked or len(one) != len(other)
        with pytest.raises(SlideReadError, match="it has changed since it was opened"):
            slide.read_regions(0, np.array([[0, 0]]), 64, 64)


def test_an_object_that_changes_is_an_error(s3, write_tiff, pattern, tmp_path):
    store = fsspec.filesystem("s3")
    for seed in (0, 1):
        path = write_tiff(tmp_path / f"{seed}.tif", [pattern(300, 200, seed)], compression=None)
        store.pipe_file(f"{s3}/changed.tif", path.read_bytes())
        if seed == 0:
            slide = open_slide(f"{s3}/changed.tif")
    with pytest.raises(SlideReadError, match="it has changed since it was opened"):
        slide.read_regions(0, np.array([[0, 0]]), 64, 64)


def test_an_index_that_cannot_be_read_to_its_end(web, large):
    web.files["/cut.tif"] = large.read_bytes()[:1_000_000]
    with pytest.raises(SlideOpenError, match=r"cut.tif: .*is the copy complete\?"):
        open_slide(f"{web.address}/cut.tif")
    web.files["/empty.tif"] = b""
    with pytest.raises(SlideOpenError, match="beyond its end"):
        open_slide(f"{web.address}/empty.tif")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://none.tif", "no such file"),
        ("nosuch://bucket/a.svs", r"nosuch:// is not a known protocol .* expected s3://, https://"),
        ("http://127.0.0.1:9/a.svs", r"ClientConnectorError.*\(tried 2 times\)"),
        ("http://no.such.host.invalid/a.svs", r"ClientConnector.*\(tried 2 times\)"),
        ("http:///a.svs", "cannot be read: InvalidU"),
    ],
)
def test_missing_urls(url, said):
    with pytest.raises(SlideOpenError, match=said) as caught:
        RemoteFile(url, patience=QUICK)
    assert caught.value.path == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/nothing.tif", "no such file"),
        ("", "Invalid length for parameter Key"),
        ("-of-another/a.tif", "no such file .*bucket does not exist"),
    ],
)
def test_missing_s3_objects(s3, url, said):
    with pytest.raises(SlideOpenError, match=said):
        open_slide(s3 + url)


def test_no_credentials(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(SlideOpenError, match=r"no credentials .*AWS_ACCESS_KEY_ID.*FSSPEC_S3_ANON"):
        open_slide(f"{s3}/a.tif")
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize(("package", "url"), [("s3fs", "s3://b/a.svs"), ("aiohttp", "https://b/a.svs")])
def test_a_missing_package_is_named_with_its_install_command(package, url):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from wsi_ats import open_slide\n"
        "from wsi_ats.errors import SlideOpenError\n"
        f"try: open_slide({url!r})\n"
        "except SlideOpenError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f'{package} is not installed; pip install "wsi-ats[remote]"' in ran.stdout


def test_openslide_is_not_tried_on_urls(on_web, web):
    with pytest.raises(SlideOpenError, match="OpenSlide reads only files on this machine"):
        open_slide(SlideRef("s", on_web, "s", reader="openslide"))
    assert choose_reader(on_web).reader == "direct"
    web.files["/a.mrxs"] = b"not a TIFF"
    with pytest.raises(
        SlideOpenError, match="only OME-Zarr and plain TIFF pyramids can be read from a store"
    ):
        open_slide(f"{web.address}/a.mrxs")
