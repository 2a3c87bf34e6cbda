"""Pictures are timed beside scoring."""

from __future__ import annotations

import sys

from benchmarks import pictures
from wsi_ats.tables.files import read_csv


def test_a_small_slide_is_drawn_and_timed(tmp_path, monkeypatch):
    options = [
        "--sides",
        "5000",
        "--rounds",
        "1",
        "--slides",
        str(tmp_path / "slides"),
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["pictures", *options, "--set", "sampling.tiles=4"])
    pictures.main()
    table = read_csv(tmp_path / "pictures.csv")
    assert table["side"] == ["5000"]
    slide, tiles, both, export = (
        float(table[f"{name}"][0]) for name in ("slide_s", "tiles_s", "seconds", "export_s")
    )
    assert 0 < slide + tiles <= both * 1.001 < export * 1.001
    assert float(table["kilobytes"][0]) > 10
