"""The record of reads."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ats.slides import open_slide
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.wrappers import CountingSlide, Request
from wsi_ats.testing.contract import SlideContract


class TestCountingSlide(SlideContract):
    exact = False  # as OpenSlide is

    @pytest.fixture
    def pyramid(self, awkward_pyramid):
        return awkward_pyramid

    @pytest.fixture
    def slide(self, awkward_tiff):
        with CountingSlide(open_slide(awkward_tiff)) as slide:
            yield slide


def test_every_read_is_noted_in_order_and_bytes_add_up(pattern, write_tiff, tmp_path):
    path = write_tiff(tmp_path / "s.tif", [pattern(256, 256)], tile=(64, 64), compression=None)
    with CountingSlide(open_slide(path)) as slide:
        assert slide.stored_bytes_read == 0
        slide.read_regions(0, np.array([[0, 0], [64, 64]]), 64, 64)
        slide.read_regions(0, np.array([[1, 0]]), 64, 64)
        tile = 64 * 64 * 3
        assert slide.requests == [
            Request(level=0, regions=2, pixels=2 * 64 * 64, stored_bytes=2 * tile),
            Request(level=0, regions=1, pixels=64 * 64, stored_bytes=2 * tile),
        ]
        assert slide.stored_bytes_read == 4 * tile


def test_total_bytes_are_unknown_once_any_read_is():
    slide = CountingSlide(MemorySlide([np.zeros((50, 50, 3), np.uint8)], mpp=0.5))
    slide.read_regions(0, np.array([[0, 0]]), 5, 5)
    assert slide.stored_bytes_read is None
