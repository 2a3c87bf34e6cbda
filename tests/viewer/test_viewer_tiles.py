"""Tiles of the page show the slide's own pixels, and few tiles and slides are kept."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.errors import SlideReadError
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.viewer import tiles
from wsi_ats.viewer.tiles import SIZE, OpenSlides, Pyramid, TileCache, read_tile


def all_tiles(slide: MemorySlide, zoom: int) -> np.ndarray:
    """The whole slide at a zoom, put together from tiles."""
    level = slide.levels[0]
    rows, columns = Pyramid(level.width, level.height).shape(zoom)
    return np.vstack(
        [np.hstack([read_tile(slide, zoom, column, row) for column in range(columns)]) for row in range(rows)]
    )


def averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width = (side // factor * factor for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return np.floor(blocks.mean((1, 3)) + 0.5)


def test_tiles_of_the_highest_zoom_are_the_pixels_of_the_slide(awkward_pyramid):
    slide = MemorySlide(awkward_pyramid, mpp=0.5, background=(1, 2, 3))
    height, width, _ = awkward_pyramid[0].shape
    shown = all_tiles(slide, Pyramid(width, height).top)
    assert np.array_equal(shown[:height, :width], awkward_pyramid[0])
    assert (shown[height:] == (1, 2, 3)).all()
    assert (shown[:, width:] == (1, 2, 3)).all()


def test_a_lower_zoom_is_the_average_of_level_0_where_there_is_no_other_level(pattern):
    pixels = pattern(1500, 1100)
    shown = all_tiles(MemorySlide([pixels], mpp=0.5), 1)  # a quarter of level 0
    expected = averaged(pixels, 4)
    assert np.array_equal(shown[: expected.shape[0], : expected.shape[1]], expected)


def test_a_lower_zoom_comes_from_the_coarsest_level_that_is_fine_enough(pattern):
    pixels = pattern(2048, 1024)
    quarter = pattern(512, 256, seed=3)
    slide = MemorySlide([pixels, quarter], mpp=0.5)
    assert np.array_equal(all_tiles(slide, 1)[:256], quarter)
    assert np.array_equal(all_tiles(slide, 2)[:512], averaged(pixels, 2))
    assert np.array_equal(all_tiles(slide, 0)[:128], averaged(quarter, 2))


def test_tiles_of_uneven_downsamples_fit_together():
    """A smooth slide with a level of 1/3.8: no jump at the border of two tiles."""

    def ramp(width: int, height: int) -> np.ndarray:
        one = np.linspace(0, 255, width).astype(np.uint8)
        return np.broadcast_to(one[None, :, None], (height, width, 3))

    slide = MemorySlide([ramp(3040, 760), ramp(800, 200)], mpp=0.5)
    assert slide.levels[1].downsample == 3.8
    row = all_tiles(slide, 2)[50, :760, 0].astype(int)
    assert set(np.diff(row)) <= {0, 1}
    assert np.abs(row - np.linspace(0, 255, 760)).max() < 1.5  # ramps are rounded down


def test_a_view_that_would_read_a_whole_huge_slide_is_refused_with_advice(monkeypatch, pattern):
    slide = MemorySlide([pattern(2000, 1500)], mpp=0.5)
    monkeypatch.setattr(tiles, "_MOST_PIXELS", 1_000_000)
    assert read_tile(slide, 2, 0, 0).shape == (SIZE, SIZE, 3)
    with pytest.raises(SlideReadError, match=r"needs 4 million pixels .* no coarser level.*wsi-ats convert"):
        read_tile(slide, 0, 0, 0)


def test_large_areas_are_read_in_bands_of_bounded_size(monkeypatch, pattern):
    pixels = pattern(2048, 2048)
    sizes = []

    class Watched(MemorySlide):
        def read_regions(self, level, corners, width, height):
            sizes.append(width * height)
            return super().read_regions(level, corners, width, height)

    monkeypatch.setattr(tiles, "_PIXELS_AT_ONCE", 100_000)
    shown = read_tile(Watched([pixels], mpp=0.5), 0, 0, 0)
    assert np.array_equal(shown, averaged(pixels, 8))
    assert max(sizes) <= 100_000
    assert len(sizes) == 43


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_zoom_0_is_one_tile_and_the_last_tiles_hold_the_last_pixels(width, height):
    pyramid = Pyramid(width, height)
    assert pyramid.shape(0) == (1, 1)
    rows, columns = pyramid.shape(pyramid.top)
    assert (rows - 1) * SIZE < height <= rows * SIZE
    assert (columns - 1) * SIZE < width <= columns * SIZE
    assert (pyramid.top, columns - 1, rows - 1) in pyramid
    for beyond in [(pyramid.top, columns, 0), (pyramid.top, 0, rows), (pyramid.top + 1, 0, 0), (0, -1, 0)]:
        assert beyond not in pyramid


# Memory


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40))))
def test_the_cache_never_holds_more_than_its_bytes(requests):
    cache = TileCache(most_bytes=100)
    for place, size in requests:
        cache.get(place, lambda size=size: b"x" * size)
        assert cache.size == sum(map(len, cache._tiles.values())) <= 100


def test_the_cache_keeps_the_tiles_used_last_and_no_failure():
    cache, made = TileCache(most_bytes=2), []

    def make(name):
        made.append(name)
        return b"x"

    for name in "abacab":  # c replaces b, which was used least recently
        cache.get(name, lambda name=name: make(name))
    assert made == ["a", "b", "c", "b"]
    with pytest.raises(SlideReadError):
        cache.get("d", lambda: (_ for _ in ()).throw(SlideReadError("slide", "damaged")))
    assert cache.get("d", lambda: b"y") == b"y"


def test_few_slides_stay_open_and_none_is_closed_while_it_is_in_use(pattern):
    opened: dict[int, MemorySlide] = {}

    def open_one(number):
        opened[number] = MemorySlide([pattern(8, 8)], mpp=0.5)
        return opened[number]

    slides = OpenSlides(open_one, most=2)
    with slides.use(0) as first:
        for number in (1, 2, 3, 1):
            with slides.use(number):
                pass
        first.read_regions(0, np.array([[0, 0]]), 2, 2)  # still open
        assert len(slides) == 2
    closed = [number for number, slide in opened.items() if not slide._pyramid]
    assert closed == [2, 3]  # 1 was opened again
    slides.close()
    assert not any(slide._pyramid for slide in opened.values())


def test_a_slide_asked_for_by_many_threads_is_opened_once(pattern):
    opened = []
    barrier = threading.Barrier(8)

    def open_one(number):
        opened.append(number)
        return MemorySlide([pattern(8, 8)], mpp=0.5)

    slides = OpenSlides(open_one, most=1)

    def ask():
        barrier.wait()
        with slides.use(7) as slide:
            slide.read_regions(0, np.array([[0, 0]]), 2, 2)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert opened == [7]
    slides.close()


def test_a_slide_that_cannot_be_opened_is_tried_again_at_the_next_request(pattern):
    tries = []

    def open_one(number):
        tries.append(number)
        if len(tries) == 1:
            raise SlideReadError("slide", "the disk is away")
        return MemorySlide([pattern(8, 8)], mpp=0.5)

    slides = OpenSlides(open_one, most=1)
    with pytest.raises(SlideReadError), slides.use(0):
        pass
    with slides.use(0) as slide:
        assert slide.levels[0].width == 8
    slides.close()
