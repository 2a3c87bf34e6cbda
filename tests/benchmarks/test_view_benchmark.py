"""A viewer in a process of its own answers all requests of the benchmark."""

from __future__ import annotations

import sys

import pytest

from benchmarks import view
from wsi_ats.tables.files import read_csv


@pytest.mark.slow
def test_tiles_of_a_small_slide_are_asked_for_twice(tmp_path, monkeypatch):
    options = ["--side", "4096", "--requests", "6", "--slides", str(tmp_path / "slides")]
    monkeypatch.setattr(sys, "argv", ["view", *options, "--out", str(tmp_path)])
    view.main()
    table = read_csv(tmp_path / "view.csv")
    assert table["level0_pixels_per_pixel"] == ["1", "1", "2", "2", "4", "4"]
    assert table["asked"] == ["first", "again"] * 3
    assert table["tiles"] == ["6"] * 6
    assert table["mb"][0] == table["mb"][1]
    assert all(float(each) > 0 for each in table["peak_mb"])
