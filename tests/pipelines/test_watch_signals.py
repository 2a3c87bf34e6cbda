"""Requests to end a watch: real signals, to this process and to others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import LIMIT, files, start, table
from test_arrivals import Clock
from test_watch import assert_like_a_plain_run

from pipelines._runs import Execution
from pipelines._watch import stop_on_signals
from pipelines.score import score
from wsi_ats.files import read_json
from wsi_ats.tables.manifest import read_manifest

# --- requests to end ---------------------------------------------------------------------------------------


def test_the_first_signal_asks_to_stop_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    clock = Clock()
    with stop_on_signals(clock) as stop:
        assert not stop()
        assert not stop.wait(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.wait(1000)
        os.kill(os.getpid(), signal.SIGTERM)  # `timeout` sends it twice
        clock.now += 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# --- real signals to real processes ------------------------------------------------------------------------


@pytest.fixture
def watching() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a watch; it does not outlive a test that failed."""
    started = []

    def watching(*arguments: object) -> subprocess.Popen[str]:
        started.append(start(*arguments))
        return started[-1]

    yield watching
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_waiting_watch_ends_on_a_signal(watching, run, model, address, tmp_path, number):
    (tmp_path / "scans").mkdir()
    command = ("score", tmp_path / "scans", "--model", model, "--out", tmp_path / "scores", "--watch")
    process = watching(*command, "--every", 10 * LIMIT, "--scheduler", address)
    lines = []
    while "waiting for slides" not in "".join(lines):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    refused = run(*command, code=2)
    assert f"is in use by process {process.pid}" in refused.stderr
    process.send_signal(number)
    _, complaints = process.communicate(timeout=LIMIT)  # a tenth of the time to the next scan
    assert (process.returncode, complaints) == (0, "score: stopping\n")
    assert read_json(tmp_path / "scores" / "run.json")["end"] is not None


def test_a_busy_watch_ends_on_a_signal(watching, slides, model, client, address, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    for i in range(36):
        (folder / f"case_{i:02}.tif").symlink_to(slides / f"slide_{i % 6:03}.tif")
    command = ("score", folder, "--model", model, "--out", out, "--watch", "--json")
    command += ("--every", 0.05, "--settle", 0, "--scheduler", address)
    process = watching(*command)
    wait_for(process, lambda: len(list((out / "records").glob("*.json"))) >= 3)
    process.send_signal(signal.SIGTERM)
    result, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, complaints
    summary = json.loads(result)
    done = summary["counts"]["done"]
    assert 3 <= done < 36
    assert summary["notes"]["left_for_the_next_time"] == 36 - done
    [stopping] = [line for line in complaints.splitlines() if "stopping" in line]
    under_way = int(re.search(r"(\d+) slides? to finish first", stopping).group(1))
    assert 0 < under_way <= done
    rows = table(out / "predictions.csv")
    assert {f"{row['slide_id']}.json" for row in rows} == {*files(out / "records")}
    assert read_json(out / "run.json")["end"] is not None

    again = watching(*command)
    wait_for(again, lambda: len(table(out / "predictions.csv")) == 36)
    again.send_signal(signal.SIGTERM)
    result, _ = again.communicate(timeout=LIMIT)
    assert (again.returncode, json.loads(result)["reused"]) == (0, done)
    assert_like_a_plain_run(out, folder, model, client)


@pytest.mark.slow
def test_workers_that_receive_the_signal_too(watching, slides, model, client, tmp_path):
    """As by a service manager that signals every process: slides are interrupted and none is corrupted."""
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    for i in range(36):
        (folder / f"case_{i:02}.tif").symlink_to(slides / f"slide_{i % 6:03}.tif")
    command = ("score", folder, "--model", model, "--out", out, "--watch", "--every", 0.05, "--settle", 0)
    process = watching(*command, "--workers", 2)
    wait_for(process, lambda: len(list((out / "records").glob("*.json"))) >= 3)
    os.killpg(process.pid, signal.SIGTERM)
    _, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, complaints
    rows = table(out / "predictions.csv")
    assert {f"{row['slide_id']}.json" for row in rows} == {*files(out / "records")}
    score(read_manifest(folder), model, out, execution=Execution(scheduler=client))
    assert_like_a_plain_run(out, folder, model, client)
