"""Slides made of arrays."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ats.errors import MppError, SlideOpenError
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.testing.contract import SlideContract


class TestMemorySlide(SlideContract):
    @pytest.fixture
    def pyramid(self, awkward_pyramid):
        return awkward_pyramid

    @pytest.fixture
    def slide(self, pyramid):
        with MemorySlide(pyramid, mpp=0.5, background=(250, 240, 230)) as slide:
            yield slide


def test_regions_are_copies_that_can_be_changed():
    slide = MemorySlide([np.zeros((50, 50, 3), np.uint8)], mpp=None)
    slide.read_regions(0, np.array([[0, 0]]), 50, 50)[:] = 255
    assert slide.read_regions(0, np.array([[0, 0]]), 50, 50).max() == 0


def test_a_resolution_that_was_not_given_is_an_error_and_never_a_guess():
    with pytest.raises(MppError, match="no mpp was given"):
        _ = MemorySlide([np.zeros((5, 5, 3), np.uint8)], mpp=None).mpp


@pytest.mark.parametrize(
    "pyramid",
    [[], [np.zeros((5, 5), np.uint8)], [np.zeros((5, 5, 4), np.uint8)], [np.zeros((5, 5, 3), np.float32)]],
    ids=["no level", "grey", "RGBA", "float"],
)
def test_arrays_that_are_not_rgb_are_refused(pyramid):
    with pytest.raises(SlideOpenError, match="expected"):
        MemorySlide(pyramid, mpp=0.5)
