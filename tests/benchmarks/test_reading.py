"""Every reader gives the same pixels, and the floor reads exactly the tiles touched."""

from __future__ import annotations

import pytest

from benchmarks import reading
from benchmarks.synthetic import slide_of
from benchmarks.timing import in_new_process


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return slide_of(tmp_path_factory.mktemp("reading"), 4000)


def test_every_installed_reader_gives_the_same_pixels_and_has_a_row(slide):
    rows = reading.compare(slide, {}, 4, 1)
    names = [row["reader"] for row in rows if row["regions"] == "4 of 256, aligned"]
    assert {"floor", "direct", "direct, 2 threads", "OpenSlide + Pillow"} <= set(names)
    for row in rows:
        assert row["cpu_ms_a_region"] > 0
        if row["reader"].startswith(("direct", "OpenSlide")):
            assert row["equal"] == 1


def test_the_floor_reads_the_tiles_that_the_regions_touch(slide):
    image = reading.stored_levels(slide)[0]
    for side, aligned in reading.CASES:
        corners = reading.regions(image, 5, side, aligned)
        tiles = reading.tiles_under(image, corners, side, side)
        assert sum(int(image.sizes[tile]) for tile in tiles) == image.touched(corners, side, side)
        assert corners.min() >= 0
        assert (corners + side <= [image.width, image.height]).all()


def test_opening_and_peak_memory_are_measured(slide):
    found = reading.opening(slide, 1)
    assert found["thumbnail_megapixels"] == pytest.approx(128**2 / 1e6)
    assert min(found["open_ms"], found["both_ns_a_pixel"]) > 0
    prepared = in_new_process("benchmarks.reading", "prepare", str(slide), 8)
    assert prepared["pixels"] == 128**2
    assert 50 < prepared["peak_mb"] < 300  # without torch, which alone has more
