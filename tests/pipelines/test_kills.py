"""Commands whose processes are killed at any moment: real ones, by real signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import LIMIT, SETTINGS, Cluster, start
from interruptions import recorded, results

from pipelines._cluster import connect
from pipelines._runs import Execution
from pipelines.prepare import prepare
from pipelines.score import score
from wsi_ats.tables.manifest import read_manifest


@pytest.fixture(scope="module")
def uninterrupted(some, model, client, tmp_path_factory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("uninterrupted")
    settings = SETTINGS.with_values(["sampling.draws=4"])
    score(read_manifest(some), model, out, settings=settings, execution=Execution(scheduler=client))
    return results(out)


def begin(command: Sequence[object], out: Path, number: int, *options: object) -> subprocess.Popen[str]:
    """Start a command; returns once there are so many records."""
    process = start(*command, "--out", out, *options)
    while process.poll() is None and len(recorded(out)) < number:
        time.sleep(0.005)
    return process


def begin_scoring(some: Path, model: Path, out: Path, number: int, *options: object) -> subprocess.Popen[str]:
    return begin(("score", some, "--model", model, "--draws", 4), out, number, *options)


def scored(log: Path, out: Path) -> list[str]:
    """Slides that were begun to be scored for a folder, in that order."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [name for folder, name, _ in lines if folder == out.name]


def kill_workers(
    elsewhere: Cluster, two: object, command: Sequence[object], out: Path, moment: int, victims: int
) -> None:
    """Kill some workers in the middle of a command; no slide that was done is done again."""
    two.wait_for_workers(2, timeout=LIMIT)
    pids = list(two.run(os.getpid).values())
    process = begin(command, out, moment, "--scheduler", elsewhere.address)
    done = recorded(out)
    before = len(scored(elsewhere.folder / "runs.txt", out))
    for pid in pids[:victims]:
        os.kill(pid, signal.SIGKILL)
    _, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, complaints
    begun_at_all = scored(elsewhere.folder / "runs.txt", out)
    assert not done.intersection(begun_at_all[before:])
    assert set(Counter(begun_at_all).values()) <= {1, 2}


def test_a_worker_is_killed(some, config, elsewhere, two, client, tmp_path):
    moment = random.Random("one").randrange(1, 20)
    command = ("prepare", some, "--config", config)
    kill_workers(elsewhere, two, command, tmp_path / "killed", moment, victims=1)
    prepare(read_manifest(some), tmp_path / "whole", settings=SETTINGS, execution=Execution(scheduler=client))
    assert len(recorded(tmp_path / "whole")) == 24
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("victims", "times"), [(1, 1), (2, 4)])
def test_workers_that_score_are_killed(some, model, elsewhere, two, uninterrupted, tmp_path, victims, times):
    command = ("score", some, "--model", model, "--draws", 4)
    for moment in random.Random(times).sample(range(1, 20), times):
        out = tmp_path / f"after_{moment}"
        kill_workers(elsewhere, two, command, out, moment, victims)
        assert results(out) == uninterrupted


@pytest.mark.slow
def test_the_command_is_killed(some, model, elsewhere, two, uninterrupted, tmp_path):
    """Workers elsewhere outlive it; what is finished is not repeated."""
    log, out = elsewhere.folder / "runs.txt", tmp_path / "scores"
    two.wait_for_workers(2, timeout=LIMIT)
    process = begin_scoring(some, model, out, 7, "--scheduler", elsewhere.address)
    process.kill()
    process.communicate()
    done, before = recorded(out), len(scored(log, out))
    assert done
    again = begin_scoring(some, model, out, 0, "--scheduler", elsewhere.address)
    _, complaints = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, complaints
    assert results(out) == uninterrupted
    # Slides in progress when the client died may be repeated, but no others.
    assert not done.intersection(scored(log, out)[before:])
    assert set(Counter(scored(log, out)).values()) <= {1, 2}


@pytest.mark.slow
def test_the_command_is_killed_with_all_its_processes(some, model, uninterrupted, tmp_path):
    for moment in random.Random(1).sample(range(20), 3):
        out = tmp_path / f"group_after_{moment}"
        process = begin_scoring(some, model, out, moment, "--workers", 2)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        again = begin_scoring(some, model, out, 0, "--workers", 2)
        _, complaints = again.communicate(timeout=LIMIT)
        assert again.returncode == 0, complaints
        assert results(out) == uninterrupted


@pytest.mark.slow
def test_the_scheduler_is_killed(some, model, cluster, uninterrupted, tmp_path):
    cluster.work("--nthreads=1")
    out = tmp_path / "scores"
    moment = random.Random(2).randrange(1, 12)
    process = begin_scoring(some, model, out, moment, "--scheduler", cluster.address)
    cluster.scheduler.kill()
    _, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 2, complaints
    assert "the connection to the Dask scheduler was lost; run the same command again" in complaints
    assert "failed" not in complaints
    assert "Traceback" not in complaints
    assert not (out / "predictions.csv").exists()
    done, before = recorded(out), len(scored(cluster.folder / "runs.txt", out))
    cluster.stop()
    cluster.begin()
    cluster.work("--nthreads=1")
    again = begin_scoring(some, model, out, 0, "--scheduler", cluster.address)
    _, complaints = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, complaints
    assert results(out) == uninterrupted
    assert not done.intersection(scored(cluster.folder / "runs.txt", out)[before:])


@pytest.mark.slow
def test_own_workers_that_die_while_they_start_are_replaced(tmp_path):
    """Dask's own nannies give up then."""
    with connect("local", workers=2) as client:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
            time.sleep(0.3)
        client.wait_for_workers(2, timeout=LIMIT)


@pytest.mark.slow
def test_the_command_times_out_slides_that_hang(some, model, elsewhere, two, uninterrupted, tmp_path):
    """``--timeout`` on the command line; the good slides are as they are without the one that hangs."""
    folder, out = tmp_path / "slides", tmp_path / "scores"
    folder.mkdir()
    for path in some.glob("*.tif"):
        (folder / path.name).symlink_to(path.resolve())
    (folder / "sleeping.tif").symlink_to((some / "case_00.tif").resolve())
    two.wait_for_workers(2, timeout=LIMIT)
    limit = 60  # the others have to import torch within it, on a machine as busy as it may be
    process = begin_scoring(folder, model, out, 0, "--scheduler", elsewhere.address, "--timeout", limit)
    _, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 1, complaints
    assert f"sleeping failed: {folder}/sleeping.tif: it took longer than {limit} s" in complaints
    found = results(out)
    assert len(found["predictions"]) == 1 + 24 + 1
    attention = [name for name in uninterrupted if name.startswith("attention")]
    assert len(attention) == 24  # selections name the slides' paths, which are others here
    assert {name: found[name] for name in attention} == {name: uninterrupted[name] for name in attention}
    assert Counter(scored(elsewhere.folder / "runs.txt", out))["sleeping"] == 1
