"""What is measured of a slide is what was read of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wsi_ats.tables.files import read_csv

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_small_slide_is_scored_on_both_levels(tmp_path):
    command = [sys.executable, "-m", "benchmarks.slide_size", "--sides", "6000", "--slides", "slides"]
    command += ["--set", "sampling.tiles=4", "sampling.regions=2"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    table = read_csv(tmp_path / "results" / "slide_size.csv")
    assert table["side"] == ["6000", "6000"]
    assert table["levels"] == ["1", "2"]
    assert table["tiles_read"] == ["4", "4"]
    file = float(table["file_mb"][0])  # so small a slide is no case for two levels, which may read more of it
    assert all(0 < float(read) < file for read in table["read_mb"])
