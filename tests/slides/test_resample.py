"""Averages over areas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.slides import resample as module
from wsi_ats.slides.resample import fitted, resample, write_words


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


@pytest.mark.parametrize("size", [(7, 5), (40, 30), (211, 158), (900, 700)])
def test_an_image_is_fitted_where_it_is(size):
    """A slope keeps its values at every size, also in a part that starts between two pixels."""
    slope = np.arange(400, dtype=np.float32) / 2
    pixels = np.broadcast_to(slope[None, :, None], (300, 400, 3)).astype(np.uint8)
    left, right = 20.5, 380.25
    found = fitted(pixels, *size, (left, 10.25, right, 290.5))
    assert found.shape == (size[1], size[0], 3)
    middles = left + (np.arange(size[0]) + 0.5) * (right - left) / size[0]
    inner = slice(1, -1)  # at the border, the slope ends
    np.testing.assert_allclose(found[0, inner, 0], ((middles - 0.5) / 2)[inner], atol=1.5)


def test_words_are_written_where_they_begin_or_around_their_middle():
    findfont = pytest.importorskip("matplotlib.font_manager").findfont
    font, white = findfont("DejaVu Sans"), np.full((60, 200, 3), 255, np.uint8)
    for centred in (False, True):
        written = write_words(white, [(100, 40, "HHH", font, 20.0, centred)])
        rows, columns = np.nonzero((written < 128).any(-1))
        assert rows.max() == 39, "they stand on the line"
        assert rows.min() == pytest.approx(40 - 0.73 * 20, abs=1)
        if centred:
            assert (columns.min() + columns.max()) / 2 == pytest.approx(100, abs=2)
        else:
            assert columns.min() == pytest.approx(102, abs=2)
    assert (white == 255).all()
