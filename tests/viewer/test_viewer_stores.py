"""Slides in a store, and pyramids in Zarr: the page has their pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import fsspec
import pytest
from results.scored_folder import write_folder, write_slide
from slides.zarr_files import averaged_pyramid, write_by_hand

from viewer.folder import TARGET, made, pixels
from viewer.serving import ask, running
from wsi_ats.results.scores import Scores
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.jpeg import encode
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import write_pyramid
from wsi_ats.viewer.collection import Collection, pyramid_of
from wsi_ats.viewer.tiles import read_tile

IMAGE = pixels()
QUARTERS = [IMAGE[:: 4**number, :: 4**number] for number in range(3)]


def write_tiff(folder: Path):
    return write_slide(folder / "a.tif", IMAGE, mpp=0.5, levels=3), QUARTERS


def write_ome_zarr(folder: Path):
    path = folder / "a.ome.zarr"
    write_pyramid(MemorySlide([IMAGE], mpp=0.5), str(path))
    return path, averaged_pyramid(IMAGE)


def write_zarr_2(folder: Path):
    return Path(write_by_hand(folder / "a.zarr", QUARTERS, axes="tczyx", version="0.4")), QUARTERS


def at_s3(path: Path, bucket: str) -> str:
    """Copy a slide to a folder of its own in a store."""
    there = f"{bucket}/viewed/{path.parents[1].name}/{path.name}"
    fsspec.filesystem("s3").put(str(path), there, recursive=path.is_dir())
    return there


def scores_of(folder: Path, path: str) -> Scores:
    return write_folder(folder / "scores", TARGET, [made(SlideRef("a", path, "case"))])


@contextmanager
def viewer(scores: Scores) -> Iterator[tuple[Collection, str]]:
    collection = Collection(scores, {})
    with running(collection) as url:
        yield collection, url


def check_tiles(url: str, levels) -> None:
    """Ask for corners, edges and middle at every zoom: the tiles of a slide in memory, to the byte."""
    with MemorySlide(levels, mpp=0.5) as known:
        pyramid = pyramid_of(known)
        for zoom in range(pyramid.top + 1):
            rows, columns = ({0, count // 2, count - 1} for count in pyramid.shape(zoom))
            for row, column in product(rows, columns):
                status, headers, body = ask(url, f"slides/0/{zoom}/{column}_{row}.jpg")
                assert (status, headers["Content-Type"]) == (200, "image/jpeg"), body[:500]
                assert body == encode(read_tile(known, zoom, column, row), 85), (zoom, column, row)


@pytest.mark.parametrize(
    ("write", "remote"),
    [(write_ome_zarr, False), (write_zarr_2, False), (write_tiff, True), (write_ome_zarr, True)],
)
def test_tiles_of_the_page_have_the_pixels_of_the_slide(tmp_path, request, write, remote):
    path, levels = write(tmp_path / "slides")
    place = at_s3(path, request.getfixturevalue("s3")) if remote else str(path)
    with viewer(scores_of(tmp_path, place)) as (_, url):
        page = json.loads(ask(url, "slides/0.json")[2])
        assert (page["error"], page["mpp"], page["size"]) == (None, 0.5, [3000, 2000])
        assert [each["name"] for each in page["overlays"]] == ["attention", "tissue", "tiles"]
        check_tiles(url, levels)


def test_scores_of_files_are_shown_from_the_store_to_which_they_were_moved(tmp_path, s3):
    path, levels = write_tiff(tmp_path / "slides")
    scores = scores_of(tmp_path, str(path))
    there = at_s3(path, s3)
    path.unlink()
    with viewer(scores.moved_to(there.rpartition("/")[0])) as (_, url):
        check_tiles(url, levels)


def test_a_slide_that_is_gone_from_its_store_says_so_and_comes_back(tmp_path, s3):
    path, _ = write_tiff(tmp_path / "slides")
    there = at_s3(path, s3)
    with viewer(scores_of(tmp_path, there)) as (_, url):
        fsspec.filesystem("s3").rm(there)
        page = json.loads(ask(url, "slides/0.json")[2])
        assert page["plot"] is None
        assert f"it cannot be shown: a: {there} cannot be read now, or has changed" in page["error"]
        assert ask(url, "slides/0/0/0_0.jpg")[1]["Content-Type"] == "image/svg+xml"
        at_s3(path, s3)
        assert json.loads(ask(url, "slides/0.json")[2])["error"] is None
        assert ask(url, "slides/0/0/0_0.jpg")[1]["Content-Type"] == "image/jpeg"


def test_the_cache_alone_keeps_tiles_of_a_slide_in_a_store_and_stays_below_its_limit(tmp_path, s3):
    path, levels = write_tiff(tmp_path / "slides")
    with viewer(scores_of(tmp_path, at_s3(path, s3))) as (collection, url):
        collection.cache.most_bytes = 20_000
        sizes = []
        for column in range(12):
            for row in range(8):
                ask(url, f"slides/0/4/{column}_{row}.jpg")
                sizes.append(collection.cache.size)
        assert 10_000 < max(sizes) <= 20_000
        assert collection.cache.size == sum(map(len, collection.cache._tiles.values()))
        check_tiles(url, levels)  # also those that were dropped
