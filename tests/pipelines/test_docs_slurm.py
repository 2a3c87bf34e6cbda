"""The page for SLURM: every script in it, run by commands that stand in for those of SLURM."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import slurm_commands
from conftest import files, table
from documented import DASK, blocks, done


@pytest.fixture
def slurm(desk, tmp_path, monkeypatch) -> Path:
    """SLURM's commands on this machine; gives the folder of jobs."""
    for name, value in slurm_commands.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    yield tmp_path / "slurm" / "jobs"
    left = subprocess.run(["squeue"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["scancel", *left], check=True)
    for name in left:
        wait_for(tmp_path / "slurm" / "jobs" / f"{name}.code")


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} is not there"
        time.sleep(0.05)


def submit(text: str, *replacements: tuple[str, str]) -> None:
    """Save a script under its name, with fewer processes, and submit it."""
    for there, here in (("/data/slides", "slides"), *replacements):
        assert there in text, f"{there!r} is no longer there; replace something else"
        text = text.replace(there, here)
    Path("job.sh").write_text(text)
    subprocess.run(["sbatch", "job.sh"], check=True, stdout=subprocess.DEVNULL)


def script(page: str, having: str) -> str:
    (text,) = (each for each in blocks(page, "bash") if having in each)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prepare", "score"])
def test_slurm_workers_in_one_job(slurm, desk, stage):
    few = (("--nworkers 16", "--nworkers 1"), ("--nodes=4", "--nodes=2"))
    if stage == "prepare":  # without the seconds that each worker takes to load torch
        few += (("score", "prepare"), ("--model run", ""))
    submit(script("slurm", "srun"), *few)
    wait_for(slurm / "1.code")
    assert slurm_commands.ended(slurm) == {"1": 0}, (slurm / "1.out").read_text()
    assert len(re.findall(r"Registered to", (slurm / "1.out").read_text())) == 2
    if stage == "prepare":
        assert len(table(Path("prepares", "slides.csv"))) == 6
    else:
        assert done("scores")


@pytest.mark.slow
def test_slurm_one_node(slurm, desk):
    ((words,),) = ([shlex.split(line)] for line in blocks("slurm", "sh")[0].splitlines())
    subprocess.run([word.replace("/data/slides", "slides") for word in words], check=True)
    wait_for(slurm / "1.code")
    assert slurm_commands.ended(slurm) == {"1": 0}
    assert done("scores")


@pytest.mark.slow
def test_slurm_an_array(slurm, desk):
    submit(script("slurm", "--array"), ("0-7", "0-1"), ("NR % 8", "NR % 2"))
    for name in ("1_0", "1_1"):
        wait_for(slurm / f"{name}.code")
        assert done(f"scores_{name[-1]}", 3)
    together = blocks("slurm", "sh")[1].replace("/data/slides", "slides")
    ran = subprocess.run(["bash", "-e"], input=together, capture_output=True, text=True, check=True)
    assert "6 of 6 slides are finished already" in ran.stdout + ran.stderr
    assert done("scores")
    assert len(files(desk / "scores" / "selections")) == 6


def save_cluster(*replacements: tuple[str, str]) -> None:
    (text,) = blocks("slurm", "py")
    for there, here in replacements:
        assert there in text
        text = text.replace(there, here)
    Path("cluster.py").write_text(text)


def test_slurm_jobs_that_the_script_submits(slurm, desk):
    """The options and the command that it passes to SLURM; jobs stay in the queue."""
    pytest.importorskip("dask_jobqueue")
    save_cluster()
    Path("wsi-ats").write_text(
        '#!/bin/sh\necho "$@"\nuntil [ -e $SLURM_JOBS/4.job ]; do sleep 0.1; done\nexit 3\n'
    )
    Path("wsi-ats").chmod(0o755)
    environment = {**os.environ, "PATH": f"{desk}{os.pathsep}{os.environ['PATH']}", "SLURM_HELD": "1"}
    (line,) = (line for text in blocks("slurm", "sh") for line in text.splitlines() if "cluster.py" in line)
    ran = subprocess.run(shlex.split(line), env=environment, capture_output=True, text=True)
    assert ran.returncode == 3, ran.stderr
    (address,) = re.findall(
        r"score /data/slides --model run --out scores --scheduler (\S+) --wait 3600", ran.stdout
    )
    jobs = [path.read_text() for path in sorted(slurm.glob("*.job"))]
    assert len(jobs) == 4
    for text in jobs:
        asked = {"-p normal", "-n 1", "--cpus-per-task=16", "--mem=24G", "-t 04:00:00", "--requeue"}
        assert set(re.findall(r"^#SBATCH (.*)$", text, re.M)) == {*asked, "-J dask-worker"}
        assert text.index("export OMP_NUM_THREADS=1") < text.index("dask_worker")
        (words,) = re.findall(r"-m distributed.cli.dask_worker (.*)$", text, re.M)
        parsed = DASK["worker"].make_context("worker", words.split()).params
        assert parsed["scheduler"] == address
        assert (parsed["n_workers"], parsed["nthreads"], parsed["nanny"]) == ("16", 2, True)
        assert parsed["memory_limit"] == "0"
        assert parsed["local_directory"] == "${TMPDIR:-/tmp}"
    assert slurm_commands.ended(slurm).keys() == {"1", "2", "3", "4"}  # cancelled


@pytest.mark.slow
@pytest.mark.parametrize("size", ["cluster.scale(jobs=2)", "cluster.adapt(minimum_jobs=1, maximum_jobs=2)"])
@pytest.mark.parametrize("ended", [signal.SIGTERM, signal.SIGKILL])
def test_slurm_jobs_that_are_ended_cost_no_slide(slurm, desk, size, ended):
    pytest.importorskip("dask_jobqueue")
    few = (
        ('"processes": 16', '"processes": 1'),
        ('"cores": 32', '"cores": 2'),
        ("cluster.scale(jobs=4)", size),
    )
    save_cluster(*few)
    for i in range(48):
        Path("slides", f"more_{i:02d}.tif").symlink_to(Path("slides/slide_000.tif").resolve())
    command = [
        *("python", "cluster.py", "score", "slides", "--model", "run", "--out", "scores", "--draws", "30"),
    ]
    with Path("log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    records = Path("scores", "records")
    while process.poll() is None and len(list(records.glob("*.json"))) < 3:
        time.sleep(0.05)
    os.killpg(int((slurm / "1.process").read_text()), ended)
    assert process.wait(300) == 0, Path("log").read_text()
    assert (slurm / "2.job").exists()  # with `adapt`, in its place
    assert done("scores", 54)
