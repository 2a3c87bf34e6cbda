"""Processes that end at once."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from conftest import ROOT

from pipelines import _process

EARLIER = """
import atexit, sys, threading
from pipelines import _process

atexit.register(print, "registered earlier")
"""
LATER = """
    atexit.register(print, "registered later")
    thread = threading.Timer(0.2, print, ["thread"])
    thread.start()
    print("output", end=" ")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", EARLIER + code]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", [0, 1, 70])
def test_a_process_keeps_its_exit_code_and_its_output(code):
    ran = run(f"with _process.quick():{LATER}    sys.exit({code})")
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, "output thread\nregistered later\n", "")


@pytest.mark.parametrize(("end", "code"), [("", 0), ("    sys.exit('words')", 1), ("    1 / 0", 1)])
def test_without_an_exit_code_a_process_ends_as_usual(end, code):
    ran = run(f"with _process.quick():{LATER}{end}")
    assert ran.returncode == code
    assert ran.stdout == "output thread\nregistered later\nregistered earlier\n"


def test_a_worker_ends_at_once():
    ran = run(f"if True:{LATER}    _process.dask_setup(None)")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "output thread\n", "")


def test_workers_of_a_local_cluster_are_quick(client):
    assert list(client.run(gc.get_threshold).values()) == [(_process._NEW_OBJECTS, 10, 10)]
