"""Every reader gives the same pixels, and the floor reads exactly the tiles touched."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import reading
from benchmarks.synthetic import slide_of


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


def test_a_process_that_prepares_a_slide_has_no_torch_in_its_memory():
    code = "import sys, benchmarks.reading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_opening_and_peak_memory_are_measured(slide, monkeypatch, capsys):
    found = reading.opening(slide, 1)
    assert found["thumbnail_megapixels"] == pytest.approx(128**2 / 1e6)
    assert min(found["open_ms"], found["both_ns_a_pixel"]) > 0
    monkeypatch.setattr(sys, "argv", ["reading", "--prepare", str(slide), "8"])
    reading.main()
    assert json.loads(capsys.readouterr().out)["pixels"] == 128**2
