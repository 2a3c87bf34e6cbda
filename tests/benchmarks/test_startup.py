"""CPU time of a process is counted, and the commands are measured beside the floor."""

from __future__ import annotations

import sys

import pytest

from benchmarks import startup
from wsi_ats.tables.files import read_csv


def test_processor_time_is_that_of_the_process_and_of_its_children():
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    assert startup.processor_seconds(["-c", child]) >= 0.5


@pytest.mark.slow
def test_all_commands_are_measured_beside_the_floor(tmp_path, monkeypatch):
    options = ["--side", "1024", "--evaluated", "6", "9", "--rounds", "1"]
    places = ["--slides", str(tmp_path / "slides"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["startup", *options, *places])
    startup.main()
    table = read_csv(tmp_path / "startup.csv")
    names = ["--help", "info", "score", "export", "evaluate 6", "evaluate 9"]
    assert table["command"] == ["python -c 'import torch, timm'", *names]
    assert table["times_floor"][0] == "1.0"
    assert all(float(each) > 0 for each in table["processor_seconds"])
