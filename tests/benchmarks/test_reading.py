"""The benchmark of reading reads what it says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import reading
from benchmarks.slide_size import write


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write(tmp_path_factory.mktemp("reading"), 4000)


def test_every_reader_that_is_there_gives_the_same_pixels_and_has_a_figure(slide):
    rows = reading.compare(slide, {}, 4, 1)
    names = [row["reader"] for row in rows if row["regions"] == "4 of 256, aligned"]
    assert {"floor", "direct", "direct, 2 threads", "OpenSlide + Pillow"} <= set(names)
    for row in rows:
        assert row["cpu_ms_a_region"] > 0
        if row["reader"].startswith(("direct", "OpenSlide")):
            assert row["equal"] == 1
    assert len(reading.summary(rows)) == len(reading.CASES)


def test_the_floor_is_of_the_tiles_that_the_regions_touch(slide):
    from wsi_ats.slides.storage import LocalFile
    from wsi_ats.slides.tiff_index import TiffIndex

    image = TiffIndex.of(LocalFile(str(slide))).images[0]
    for side, aligned in reading.CASES:
        corners = reading.regions(image, 5, side, aligned, 0)
        tiles = reading.tiles_under(image, corners, side)
        assert sum(int(image.sizes[tile]) for tile in tiles) == image.touched(corners, side, side)
        assert corners.min() >= 0
        assert (corners + side <= [image.width, image.height]).all()
    assert len(reading.tiles_under(image, np.array([[0, 0], [0, 0]]), 256)) == 1


def test_opening_and_peak_memory_are_measured(slide):
    found = reading.opening(slide, 1)
    assert found["thumbnail_megapixels"] == pytest.approx(128**2 / 1e6)
    assert min(found["open_ms"], found["thumbnail_ms"]) > 0
    assert reading.look_alone(slide, 8)["pixels"] == 128**2
