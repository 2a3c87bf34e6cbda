"""PNG files that any program can read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from wsi_ats.slides.resample import write_png


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (33, 17), (300, 211)])
def test_pixels_and_resolution_are_those_written(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", pixels, dpi=300)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()  # of every part, its sum
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_part_of_an_image_can_be_written(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    write_png(tmp_path / "a.png", pixels[5:30, ::2, :3])
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[5:30, ::2, :3])
