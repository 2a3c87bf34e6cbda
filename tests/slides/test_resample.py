"""Averages over areas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.slides import resample as module
from wsi_ats.slides.resample import resample


@given(
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.integers(0, 2**32 - 1),
)
def test_whole_squares_are_averaged_to_the_last_bit_as_any_others_are(step, width, height, start, seed):
    left, top = start
    pixels = np.random.default_rng(seed).integers(0, 256, (top + height * step, left + width * step, 3))
    box = (left, top, left + width * step, top + height * step)
    fast = resample(pixels.astype(np.uint8), width, height, box)
    rows = module._average(pixels.astype(np.uint8), top, box[3], height)
    slow = module._average(rows.swapaxes(0, 1), left, box[2], width).swapaxes(0, 1)
    np.testing.assert_array_equal(fast, np.floor(slow + np.float32(0.5)).astype(np.uint8))


@pytest.mark.parametrize("value", [0, 1, 254, 255])
@pytest.mark.parametrize("step", [1, 1.5, 2, 3, 16])
def test_a_uniform_colour_is_unchanged(value, step):
    side = int(step * 10)
    assert (resample(np.full((side, side, 3), value, np.uint8), 10, 10) == value).all()


def test_a_region_may_start_between_two_pixels():
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, 2:] = 100
    np.testing.assert_array_equal(resample(pixels, 1, 1, (1.5, 0, 2.5, 2))[0, 0], [50, 50, 50])


def test_a_large_image_is_averaged_in_parts(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 40, 3), dtype=np.uint8)
    whole = resample(pixels, 20, 35)
    monkeypatch.setattr(module, "_PIXELS_AT_A_TIME", 200)
    np.testing.assert_array_equal(resample(pixels, 20, 35), whole)
