"""The benchmark of training on features, small."""

from __future__ import annotations

import sys

import pytest

from benchmarks import bags
from wsi_ats.tables.files import read_csv


def test_all_sides_train_on_the_same_files(tmp_path, monkeypatch):
    pytest.importorskip("torchmil")
    small = ("--slides", "2", "--cells", "9", "--width", "6", "--rounds", "1")
    words = ["bags", *small, "--data", tmp_path / "data", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    bags.main()
    table = read_csv(tmp_path / "bags.csv")
    assert table["side"] == [
        *(bags.TORCHMIL, "attention sampling, 64 tiles", "its classifier, 64 tiles", "reading")
    ]
    assert table["speed"][0] == "1.0"
    assert all(float(each) > 0 for each in table["ms_a_slide"])
