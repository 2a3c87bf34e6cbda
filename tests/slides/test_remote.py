"""Slides in stores and on web servers: the same pixels for few bytes, and errors for what goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from wsi_ats.errors import ManifestError, SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, choose_reader, open_slide
from wsi_ats.slides.remote import Patience, RemoteFile, find_files
from wsi_ats.slides.tiff import TiffSlide
from wsi_ats.slides.tiff_index import TiffIndex
from wsi_ats.testing.contract import SlideContract

# Where nobody answers; and where there is an answer, late perhaps on a busy machine.
QUICK = Patience(tries=2, pause=0.01, seconds=0.3, bytes_per_second=1 << 30)
PATIENT = Patience(tries=3, pause=0.01)
BLOCK = 64 << 10


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


# --- what is transferred ---


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


CORNERS = np.array([[0, 0], [512, 768], [1280, 1792], [256, 0]])
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


def test_few_requests_are_under_way_at_once(web, on_web):
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


# --- what can go wrong ---


@pytest.fixture(params=["http", "s3"])
def opened(request, web, large, monkeypatch):
    """A server that is soon to misbehave, and how a slide on it is opened."""
    web.files["/slides/large.tif"] = large
    url = f"{web.address}/slides/large.tif"
    if request.param == "s3":
        request.getfixturevalue("s3")  # its credentials; they are for any server
        monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
        url = "s3://slides/large.tif"
        fsspec.filesystem("s3").clear_instance_cache()
    open_slide(url).close()  # what is made once for a store takes its time
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
def test_what_goes_wrong_for_good_is_an_error(opened, trouble):
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
def test_nobody_is_waited_for_without_end(opened, trouble):
    web, _, open_it = opened
    web.misbehave(trouble)
    begin = time.monotonic()
    with pytest.raises(SlideOpenError, match=r"(server answers 50|no answer within 0\.3).*tried 2 times"):
        open_it(QUICK)
    assert time.monotonic() - begin < 20  # the library of S3 alone would wait for minutes
    web.misbehave(0, times=0)
    slide = open_it(Patience(tries=1, seconds=2, bytes_per_second=1 << 30))
    web.misbehave(trouble)
    with pytest.raises(
        SlideReadError, match=r"server answers 50|no answer within|OSError.* \(tried 1 times\)"
    ):
        slide.read_regions(0, CORNERS, 256, 256)


@pytest.mark.parametrize("trouble", ["drop", "short", 503])
def test_what_goes_wrong_once_is_tried_again(opened, trouble, large):
    web, _, open_it = opened
    web.misbehave(trouble, times=1)
    with open_it() as slide, open_slide(large) as local:
        web.misbehave(trouble, times=1)
        np.testing.assert_array_equal(
            slide.read_regions(0, CORNERS, 256, 256), local.read_regions(0, CORNERS, 256, 256)
        )
        assert slide.bytes_read == web.sent


def test_a_server_that_ignores_ranges_sends_no_slide(web, on_web, large):
    web.misbehave("whole")
    with pytest.raises(SlideOpenError, match="would send all"):
        open_slide(on_web)
    assert web.sent < large.stat().st_size  # what was under way when the connection was closed
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
def test_what_is_not_there(url, said):
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
def test_what_is_not_in_s3(s3, url, said):
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
def test_a_package_that_is_missing(package, url):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from wsi_ats import open_slide\n"
        "from wsi_ats.errors import SlideOpenError\n"
        f"try: open_slide({url!r})\n"
        "except SlideOpenError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f'{package} is not installed; pip install "wsi-ats[remote]"' in ran.stdout


def test_openslide_is_not_asked_for_what_it_cannot_reach(on_web, web):
    with pytest.raises(SlideOpenError, match="OpenSlide reads only files on this machine"):
        open_slide(SlideRef("s", on_web, "s", reader="openslide"))
    assert choose_reader(on_web).reader == "direct"
    web.files["/a.mrxs"] = b"not a TIFF"
    with pytest.raises(
        SlideOpenError, match="only OME-Zarr and plain TIFF pyramids can be read from a store"
    ):
        open_slide(f"{web.address}/a.mrxs")


# --- threads and processes ---


def test_threads_share_a_slide_and_its_count(web, on_web, large):
    with open_slide(large) as local, open_slide(on_web, threads=2) as slide:
        expected = local.read_regions(0, CORNERS, 256, 256)
        with ThreadPoolExecutor(8) as threads:
            for found in threads.map(lambda _: slide.read_regions(0, CORNERS, 256, 256), range(16)):
                np.testing.assert_array_equal(found, expected)
        assert slide.bytes_read == web.sent


def test_several_slides_in_memory_do_not_disturb_each_other(large):
    """Files of this kind have one position for whoever reads them."""
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
def test_a_forked_process_is_told_to_open_anew(s3, large):
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


# --- listing ---


@pytest.fixture
def scans(s3):
    store = fsspec.filesystem("s3")
    for name in ("a.svs", "b.tif", "deep/er/c.svs", "note.txt"):
        store.pipe_file(f"{s3}/scans/{name}", b"x")
    return f"{s3}/scans"


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("", ["a.svs", "b.tif", "deep/er/c.svs", "note.txt"]),
        ("/", ["a.svs", "b.tif", "deep/er/c.svs", "note.txt"]),
        ("/*.svs", ["a.svs"]),
        ("/**/*.svs", ["a.svs", "deep/er/c.svs"]),
        ("/[ab].*", ["a.svs", "b.tif"]),
        ("/a.svs", ["a.svs"]),
    ],
)
def test_files_are_found(scans, what, names):
    assert find_files(scans + what) == [f"{scans}/{name}" for name in names]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(s3):
    store = fsspec.filesystem("s3")
    for name in ("odd[1].svs", "odd1.svs"):
        store.pipe_file(f"{s3}/odd/{name}", b"x")
    assert find_files(f"{s3}/odd/odd[1].svs") == [f"{s3}/odd/odd[1].svs"]
    assert find_files(f"{s3}/odd/odd[12].svs") == [f"{s3}/odd/odd1.svs"]


def test_an_older_version_of_an_object(s3, large):
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="versions")
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    older = client.put_object(Bucket="versions", Key="a.tif", Body=large.read_bytes())["VersionId"]
    client.put_object(Bucket="versions", Key="a.tif", Body=b"another")
    url = f"s3://versions/a.tif?versionId={older}"
    assert find_files(url) == [url]
    with open_slide(url) as slide, open_slide(large) as same:
        assert slide.levels == same.levels


def test_a_listing_is_never_that_of_before(scans):
    before = find_files(scans)
    fsspec.filesystem("s3").pipe_file(f"{scans}/new.svs", b"x")
    try:
        assert find_files(scans) == sorted([*before, f"{scans}/new.svs"])
    finally:
        fsspec.filesystem("s3").rm_file(f"{scans}/new.svs")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://slides/nothing/", "no such file or folder"),
        ("s3://no-such-bucket/", "no such file"),
        ("nosuch://a", "nosuch:// is not a known protocol"),
        ("https://host/scans/", "web servers do not list their files"),
        ("https://host/scans/*.svs", "web servers do not list their files"),
    ],
)
def test_what_cannot_be_listed(s3, url, said):
    with pytest.raises(ManifestError, match=said) as caught:
        find_files(url)
    assert url in str(caught.value)
