"""A slide is scored on one level and on two, each in a process of its own."""

from __future__ import annotations

import sys

import pytest

from benchmarks import slide_size
from wsi_ats.tables.files import read_csv


@pytest.mark.slow
def test_one_small_slide_is_scored_on_both_levels(tmp_path, monkeypatch):
    options = ["--sides", "6000", "--slides", str(tmp_path / "slides"), "--out", str(tmp_path)]
    options += ["--set", "sampling.tiles=4", "sampling.regions=2"]
    monkeypatch.setattr(sys, "argv", ["slide_size", *options])
    slide_size.main()
    table = read_csv(tmp_path / "slide_size.csv")
    assert table["levels"] == ["1", "2"]
    assert table["tiles_read"] == ["4", "4"]
    file = float(table["file_mb"][0])  # so small a slide is no case for two levels, which may read more of it
    assert all(0 < float(read) < file for read in table["read_mb"])
