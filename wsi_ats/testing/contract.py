"""Contract of a slide, as tests that each reader inherits.

::

    class TestMyReader(SlideContract):
        @pytest.fixture
        def slide(self):
            with MyReader("scan.svs") as slide:
                yield slide

If the true pixels are known, a fixture ``pyramid`` that returns them makes the test complete.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from wsi_ats.errors import MppError, SlideReadError, without_secrets
from wsi_ats.geometry import IntArray
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.wrappers import CountingSlide

_WIDTH, _HEIGHT = 37, 23  # neither square nor the size of a tile, so that a swap or an off-by-one shows


class SlideContract:
    """Contract of :class:`wsi_ats.slides.base.Slide`; subclass it and override ``slide``.

    Attributes
    ----------
    exact : bool
        Whether pixels are exact at every level. A library that takes positions in whole level-0 pixels cannot
        address the pixels of a level whose downsample is not an integer: it interpolates by up to half a
        level-0 pixel. Its reader must stay within that at such levels, and be exact at all others.
    """

    exact = True

    @pytest.fixture
    def slide(self) -> Iterator[Slide]:
        """Return a newly opened slide."""
        raise NotImplementedError

    @pytest.fixture
    def pyramid(self) -> Sequence[Pixels] | None:
        """Return the pixels of each level, shape (height, width, 3), if known."""
        return None

    def test_levels_begin_with_all_pixels_and_get_coarser(self, slide: Slide) -> None:
        """Check the order of levels, and that downsamples agree with sizes."""
        full = slide.levels[0]
        assert full.downsample == 1
        for finer, coarser in zip(slide.levels, slide.levels[1:], strict=False):
            assert coarser.downsample > finer.downsample
        for level in slide.levels:
            assert level.width <= full.width
            assert level.height <= full.height
            # a writer may round a side up or down, so a side of one pixel proves little
            assert abs(full.width / level.downsample - level.width) <= 0.05 * level.width + 1
            assert abs(full.height / level.downsample - level.height) <= 0.05 * level.height + 1

    def test_pixels_are_the_stored_ones_at_every_level(
        self, slide: Slide, pyramid: Sequence[Pixels] | None
    ) -> None:
        """Check that pixels are neither moved nor interpolated, at the corners and in the middle."""
        for number, level in enumerate(slide.levels):
            corners = _corners(slide, number)
            regions = slide.read_regions(number, corners, _WIDTH, _HEIGHT)
            assert regions.shape == (len(corners), _HEIGHT, _WIDTH, 3)
            assert regions.dtype == np.uint8
            if pyramid is not None:
                assert pyramid[number].shape == (level.height, level.width, 3)
                for region, (x, y) in zip(regions, corners.tolist(), strict=True):
                    expected = _crop(pyramid[number], x, y, slide.background)
                    self._assert_same(slide, number, region, expected)

    def test_a_batch_is_the_same_as_one_by_one(self, slide: Slide) -> None:
        """Check that neither the order nor the other regions of a batch change a region."""
        for number in range(len(slide.levels)):
            corners = _corners(slide, number)
            batch = slide.read_regions(number, corners[::-1], _WIDTH, _HEIGHT)
            for region, corner in zip(batch, corners[::-1], strict=True):
                alone = slide.read_regions(number, corner[None], _WIDTH, _HEIGHT)[0]
                np.testing.assert_array_equal(region, alone)

    def test_overlapping_reads_agree(self, slide: Slide) -> None:
        """Check that a pixel is the same in every region that contains it: nothing is interpolated."""
        for number, level in enumerate(slide.levels):
            x, y = level.width // 3, level.height // 3
            wide = slide.read_regions(number, np.array([[x, y]]), 60, 50)[0]
            for dx, dy in ((0, 0), (1, 0), (0, 1), (7, 5), (23, 27)):
                part = slide.read_regions(number, np.array([[x + dx, y + dy]]), _WIDTH, _HEIGHT)[0]
                expected = wide[dy : dy + _HEIGHT, dx : dx + _WIDTH]
                self._assert_same(slide, number, part, expected)

    def test_outside_the_slide_is_background(self, slide: Slide) -> None:
        """Check pixels beyond each side of each level."""
        for number, level in enumerate(slide.levels):
            margin = 0 if self._is_exact(slide, number) else 1
            beyond = [
                [-_WIDTH - margin, 0],
                [0, -_HEIGHT - margin],
                [level.width + margin, 0],
                [0, level.height + margin],
                [level.width + 5, level.height + 5],
                [-1000, -1000],
            ]
            regions = slide.read_regions(number, np.array(beyond), _WIDTH, _HEIGHT)
            assert (regions == slide.background).all(), f"level {number}"

    def test_a_region_across_the_edge_is_pixels_inside_and_background_outside(self, slide: Slide) -> None:
        """Check regions around the top left and the bottom right corner."""
        for number, level in enumerate(slide.levels):
            width, height = min(11, level.width), min(7, level.height)
            first = slide.read_regions(number, np.array([[0, 0]]), width, height)[0]
            across = slide.read_regions(number, np.array([[-3, -4]]), width + 3, height + 4)[0]
            self._assert_same(slide, number, across, _padded(first, slide, (4, 0), (3, 0)))
            corner = np.array([[level.width - width, level.height - height]])
            last = slide.read_regions(number, corner, width, height)[0]
            across = slide.read_regions(number, corner, width + 3, height + 4)[0]
            self._assert_same(slide, number, across, _padded(last, slide, (0, 4), (0, 3)))

    def test_an_empty_batch_is_an_empty_array(self, slide: Slide) -> None:
        """Check an empty batch, as for slides without tissue."""
        regions = slide.read_regions(0, np.empty((0, 2), dtype=np.int64), _WIDTH, _HEIGHT)
        assert regions.shape == (0, _HEIGHT, _WIDTH, 3)
        assert regions.dtype == np.uint8

    def test_the_smallest_level_can_be_read_whole(self, slide: Slide) -> None:
        """Check a read of a whole level, as for thumbnails."""
        number = len(slide.levels) - 1
        level = slide.levels[number]
        whole = slide.read_regions(number, np.zeros((1, 2), dtype=np.int64), level.width, level.height)
        assert whole.shape == (1, level.height, level.width, 3)

    def test_several_threads_read_what_one_does(self, slide: Slide) -> None:
        """Check concurrent reads, as for prefetching."""
        corners = np.concatenate([_corners(slide, 0)] * 4)
        expected = slide.read_regions(0, corners, _WIDTH, _HEIGHT)
        with ThreadPoolExecutor(4) as threads:
            parts = threads.map(lambda c: slide.read_regions(0, c[None], _WIDTH, _HEIGHT)[0], corners)
            np.testing.assert_array_equal(np.stack(list(parts)), expected)

    def test_closing_is_final_and_can_be_repeated(self, slide: Slide) -> None:
        """Check that a read after closing raises our error, which can be sent to another process."""
        slide.close()
        slide.close()
        with pytest.raises(SlideReadError) as caught:
            slide.read_regions(0, np.zeros((1, 2), dtype=np.int64), _WIDTH, _HEIGHT)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert type(copy) is SlideReadError
        assert str(copy) == str(caught.value)
        assert without_secrets(slide.path) in str(copy)

    def test_a_with_block_closes(self, slide: Slide) -> None:
        """Check that a ``with`` block returns the slide itself, and closes it."""
        with slide as inner:
            assert inner is slide
        with pytest.raises(SlideReadError):
            slide.read_regions(0, np.zeros((1, 2), dtype=np.int64), _WIDTH, _HEIGHT)

    def test_the_resolution_is_plausible_and_has_a_source_or_is_an_error(self, slide: Slide) -> None:
        """Check that the resolution is never guessed."""
        try:
            mpp = slide.mpp
        except MppError as error:
            problem = error
        else:
            assert 0.01 <= mpp.value <= 100
            assert mpp.source
            return
        assert slide.path in str(problem)

    def test_bounds_lie_in_level_0(self, slide: Slide) -> None:
        """Check the bounds in level-0 pixels."""
        x, y, width, height = slide.bounds
        assert x >= 0
        assert y >= 0
        assert 0 < x + width <= slide.levels[0].width
        assert 0 < y + height <= slide.levels[0].height
        assert slide.scanned
        for part in slide.scanned:
            assert x <= part.x < part.x + part.width <= x + width
            assert y <= part.y < part.y + part.height <= y + height

    def test_descriptions_have_the_promised_form(self, slide: Slide) -> None:
        """Check colour, format and tile shapes."""
        assert len(slide.background) == 3
        assert all(0 <= value <= 255 for value in slide.background)
        assert slide.vendor
        for number in range(len(slide.levels)):
            shape = slide.tile_shape(number)
            assert shape is None or min(shape) >= 1

    def test_stored_bytes_are_unknown_or_count_each_tile_once(self, slide: Slide) -> None:
        """Check that more area never costs less, and that reading a place twice costs nothing."""
        for number, level in enumerate(slide.levels):
            corner = np.zeros((1, 2), dtype=np.int64)
            small = slide.stored_bytes(number, corner, 1, 1)
            whole = slide.stored_bytes(number, corner, level.width, level.height)
            if small is None or whole is None:
                assert small is whole
                continue
            half = slide.stored_bytes(number, corner, max(1, level.width // 2), level.height)
            assert half is not None
            assert 0 < small <= half <= whole
            twice = np.zeros((2, 2), dtype=np.int64)
            assert slide.stored_bytes(number, twice, level.width, level.height) == whole
            assert slide.stored_bytes(number, twice[:0], 1, 1) == 0
            beyond = np.array([[level.width + 10_000, 0], [-10_000, -10_000]])
            assert slide.stored_bytes(number, beyond, 5, 5) == 0

    def test_counting_changes_nothing(self, slide: Slide) -> None:
        """Check that the wrapper forwards everything and records reads."""
        counted = CountingSlide(slide)
        for name in ("path", "levels", "background", "bounds", "vendor"):
            assert getattr(counted, name) == getattr(slide, name)
        corners = _corners(slide, 0)
        np.testing.assert_array_equal(
            counted.read_regions(0, corners, _WIDTH, _HEIGHT), slide.read_regions(0, corners, _WIDTH, _HEIGHT)
        )
        [request] = counted.requests
        assert (request.level, request.regions) == (0, len(corners))
        assert request.pixels == len(corners) * _WIDTH * _HEIGHT
        assert counted.stored_bytes_read == slide.stored_bytes(0, corners, _WIDTH, _HEIGHT)

    def _is_exact(self, slide: Slide, number: int) -> bool:
        return self.exact or slide.levels[number].downsample.is_integer()

    def _assert_same(self, slide: Slide, number: int, actual: Pixels, expected: Pixels) -> None:
        if self._is_exact(slide, number):
            np.testing.assert_array_equal(actual, expected, err_msg=f"level {number}")
            return
        # Interpolated values lie between those of the neighbours, but for rounding.
        padded = np.pad(expected.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        least, most = windows.min(axis=(-2, -1)) - 1, windows.max(axis=(-2, -1)) + 1
        inner = (slice(1, -1), slice(1, -1))  # neighbours of the region's edge are not known
        assert ((least <= actual) & (actual <= most))[inner].all(), f"level {number}"


def _padded(pixels: Pixels, slide: Slide, rows: tuple[int, int], columns: tuple[int, int]) -> Pixels:
    """Surround pixels with the slide's background."""
    height, width, _ = pixels.shape
    padded = np.empty((height + sum(rows), width + sum(columns), 3), dtype=np.uint8)
    padded[:] = slide.background
    padded[rows[0] : rows[0] + height, columns[0] : columns[0] + width] = pixels
    return padded


def _corners(slide: Slide, number: int) -> IntArray:
    """Return corners inside, at the edge of and beyond a level."""
    level = slide.levels[number]
    right, bottom = level.width - _WIDTH, level.height - _HEIGHT
    places = [
        [0, 0],
        [right, bottom],
        [right // 2, bottom // 2],
        [right // 3, bottom],
        [-5, -9],
        [right + 9, 1],
    ]
    return np.array(places, dtype=np.int64)


def _crop(pixels: Pixels, x: int, y: int, background: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    region = np.empty((_HEIGHT, _WIDTH, 3), dtype=np.uint8)
    region[:] = background
    for row in range(max(0, -y), min(_HEIGHT, len(pixels) - y)):
        for column in range(max(0, -x), min(_WIDTH, pixels.shape[1] - x)):
            region[row, column] = pixels[y + row, x + column]
    return region
