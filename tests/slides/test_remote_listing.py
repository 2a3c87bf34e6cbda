"""Slides found in stores."""

from __future__ import annotations

import os

import fsspec
import pytest

from wsi_ats.errors import ManifestError
from wsi_ats.slides import open_slide
from wsi_ats.slides.remote import find_files


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


def test_listings_are_not_cached(scans):
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
def test_urls_that_cannot_be_listed(s3, url, said):
    with pytest.raises(ManifestError, match=said) as caught:
        find_files(url)
    assert url in str(caught.value)
