"""Processes that die while slides are worked on: real ones, by real signals.

Two clusters are shared by all tests, since their workers come back: one of our own, and one started as a user
would.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import slide_jobs
from conftest import LIMIT, ROOT, SETTINGS, free_port, start
from interruptions import in_the_middle, recorded, results

from pipelines._carry_out import complete
from pipelines._cluster import connect
from pipelines._records import absolute
from pipelines._rounds import complete_arrivals
from pipelines._runs import Execution
from pipelines._tasks import Limits, for_each_slide
from pipelines._watch import Arrivals
from pipelines._work import Outcome
from pipelines.prepare import prepare
from pipelines.score import score
from wsi_ats.errors import ModelError, SettingsError, WsiAtsError
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.manifest import read_manifest

HERE = Path(__file__).parent
DIED = "the process that worked on it died, and died again when it was tried alone"


@dataclass
class Cluster:
    """Processes of a cluster, started as a user would."""

    folder: Path
    stack: ExitStack

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.scheduler = self._start("dask_scheduler", "--host", self.address)
        host, port = self.address.removeprefix("tcp://").split(":")
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:  # on a busy machine it takes long to start
            with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                break
            time.sleep(0.05)
        self.workers: list[subprocess.Popen[bytes]] = []

    def work(self, *options: str) -> subprocess.Popen[bytes]:
        place = f"--local-directory={self.folder}"
        process = self._start(
            "dask_worker", self.address, place, "--preload", str(HERE / "count_runs.py"), *options
        )
        self.workers.append(process)
        return process

    def stop(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(ROOT), str(HERE)])
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", "--no-dashboard", *options],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "NOTED_RUNS": str(self.folder / "runs.txt")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.stack.callback(process.wait, LIMIT)
        self.stack.callback(process.terminate)
        return process


@contextmanager
def clusters(folder: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(folder, stack)


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    """A scheduler without workers."""
    with clusters(tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Iterator[Cluster]:
    """A scheduler with two workers, of which one offers a GPU."""
    with clusters(tmp_path_factory.mktemp("elsewhere")) as cluster:
        cluster.work("--nthreads=2", "--name=plain")
        cluster.work("--nthreads=2", "--name=other", "--resources", "GPU=1")
        with connect(cluster.address, wait=LIMIT) as client:
            client.wait_for_workers(2, timeout=LIMIT)
        yield cluster


@pytest.fixture(scope="module")
def two(elsewhere) -> Iterator[object]:
    with connect(elsewhere.address) as client:
        yield client


@pytest.fixture(scope="module")
def own() -> Iterator[object]:
    with connect("local", workers=2, at_once=2) as client:
        yield client


@pytest.fixture(params=["own", "two"])
def workers(request):
    """Clients of both clusters in turn."""
    client = request.getfixturevalue(request.param)
    client.wait_for_workers(2, timeout=LIMIT)
    return client


def slides_called(folder: Path, *names: str) -> list[SlideRef]:
    return [SlideRef.from_path(folder / f"{name}.svs") for name in names]


def notes(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "noted.txt").read_text().splitlines()]


def begun(folder: Path) -> Counter[str]:
    """How often each slide was begun; none was after it had been recorded."""
    recorded: set[str] = set()
    counts: Counter[str] = Counter()
    for what, name, _process in notes(folder):
        if what == "begun":
            assert name not in recorded
            counts[name] += 1
        else:
            recorded.add(name)
    return counts


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


# -- a command whose processes are killed at any moment -----------------------------------------------------


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
    assert "the connection to the Dask scheduler was lost; the same command goes on" in complaints
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


# -- slides that bring their worker down --------------------------------------------------------------------


def test_slides_that_kill_their_worker_are_tried_once_more_and_alone(workers, tmp_path):
    deadly = ["segfault1", "killed2", "deadly3"]
    names = [
        *(f"slow{i}" for i in range(6)),
        deadly[0],
        *(f"slow{i}" for i in range(6, 9)),
        *deadly[1:],
        "last",
    ]
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    execution = Execution(scheduler=workers)
    ended = complete(task, slides_called(tmp_path, *names), execution)
    assert set(ended.failed) == set(deadly)
    for name in deadly:
        assert DIED in ended.failed[name]
        assert f"{name}.svs" in ended.failed[name]
    assert [row["slide_id"] for row in ended.rows if row["status"] == "done"] == sorted(
        set(names) - set(deadly)
    )
    times = begun(tmp_path)
    assert {times[name] for name in deadly} == {2}
    assert set(times.values()) <= {1, 2}
    again = complete(task, slides_called(tmp_path, "slow1", "last"), execution)
    assert (again.reused, again.failed) == (2, {})


def test_a_slide_that_kills_its_worker_does_so_in_one_round_of_a_watch(own, tmp_path, monkeypatch):
    """Though there is more to do than one round has time for."""
    monkeypatch.setattr("pipelines._rounds._ROUND_SECONDS", 0.0)
    for name in ("killed", "later"):
        (tmp_path / f"{name}.svs").touch()
    clock = itertools.count(0, 1e-3)
    kept: list[int] = []
    monkeypatch.setattr(slide_jobs.TextTask, "write_tables", lambda self, rows: kept.append(len(rows)))
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    results = complete_arrivals(
        task,
        Arrivals([str(tmp_path)], settle=0, clock=lambda: next(clock), pause=lambda seconds: None),
        Execution(scheduler=own, stop=lambda: len(kept) == 2),
        refer=absolute,
    )
    assert kept == [1, 2]
    assert DIED in results.failed["killed"]
    assert begun(tmp_path) == {"killed": 2, "later": 1}


def test_results_that_die_with_their_workers_are_made_again_of_records(two, tmp_path):
    two.wait_for_workers(2, timeout=LIMIT)
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    refs = slides_called(tmp_path, *"abcdefgh")
    found: list[Outcome[object]] = []

    def note(outcome: Outcome[object]) -> None:
        if not found:  # the others' results lie in the workers meanwhile
            deadline = time.monotonic() + LIMIT
            while len(recorded(tmp_path / "out")) < 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.5)
            for pid in two.run(os.getpid).values():
                os.kill(pid, signal.SIGKILL)
        found.append(outcome)

    for_each_slide(task, refs, two, on_result=note)
    assert sorted(each.ref.id for each in found) == list("abcdefgh")
    assert [each.error for each in found if each.error] == []
    assert begun(tmp_path) == Counter("abcdefgh")


# -- slides that take too long ------------------------------------------------------------------------------


def test_slides_that_hang_are_given_up(workers, tmp_path):
    os.mkfifo(tmp_path / "piped.svs")
    hanging = ["sleeping", "piped", "deaf"]
    names = ["a", hanging[0], *(f"slow{i}" for i in range(4)), *hanging[1:], "b"]
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    execution = Execution(scheduler=workers, timeout=2)
    before = set(workers.run(os.getpid).values())
    ended = complete(task, slides_called(tmp_path, *names), execution)
    assert set(ended.failed) == set(hanging)
    for name in hanging:
        expected = (
            f"{tmp_path / name}.svs: it took longer than 2 s and was given up; allow more with --timeout"
        )
        assert ended.failed[name] == expected
    assert [row["slide_id"] for row in ended.rows if row["status"] == "done"] == sorted(
        set(names) - set(hanging)
    )
    assert set(begun(tmp_path).values()) <= {1, 2}
    deadline = time.monotonic() + LIMIT
    while set(workers.run(os.getpid, on_error="ignore").values()) == before:
        assert time.monotonic() < deadline  # whoever hung is replaced
        time.sleep(0.1)


@pytest.mark.slow
def test_slides_that_hang_are_given_up_by_the_command(some, model, elsewhere, two, uninterrupted, tmp_path):
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


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--timeout", "0"), "--timeout must be a positive number of seconds, not 0"),
        (("--timeout", "nan"), "--timeout must be a positive number of seconds, not nan"),
        (("--wait", "-1"), "--wait must be a positive number of seconds, not -1"),
        (("--resources", "GPU"), "--resources is 'GPU', expected a name and a share such as GPU=0.25"),
        (("--resources", "GPU=0"), "--resources is 'GPU=0'"),
        (("--resources", "=1"), "--resources is '=1'"),
        (("--resources", "GPU=inf"), "--resources is 'GPU=inf'"),
        (("--slides-at-once", "0"), "--slides-at-once"),
        (("--workers", "0"), "--workers"),
        (("--resources", "COFFEE=1"), "workers offers what --resources asks for (COFFEE=1)"),
    ],
)
def test_options_that_cannot_be(run, some, model, tmp_path, option, said):
    ran = run("score", some, "--model", model, "--out", tmp_path / "scores", *option)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert not (tmp_path / "scores" / "records").exists()


def test_a_worker_that_is_about_to_stop_is_given_nothing_more(own, tmp_path):
    """What it was given would die with it, and if that was to be tried alone, be blamed."""
    own.wait_for_workers(2, timeout=LIMIT)
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    names = ["sleeping", *(f"slow{i}" for i in range(36))]  # enough to outlast the worker
    execution = Execution(scheduler=own, timeout=2)
    ended = complete(task, slides_called(tmp_path, *names), execution)
    assert set(ended.failed) == {"sleeping"}
    assert begun(tmp_path) == Counter(names)


@pytest.mark.slow
def test_a_worker_in_the_callers_own_process_is_never_stopped(tmp_path):
    from distributed import Client, LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(**options) as inside, Client(inside) as client:
        found: list[Outcome[str]] = []
        refs = slides_called(tmp_path, "slow1", "nap", "slow2", "slow3")
        for_each_slide(nap, refs, client, on_result=found.append, limits=Limits(timeout=0.5))
        assert {each.ref.id for each in found if each.error} == {"nap"}
        assert len(found) == 4

        # Once no thread is left, it is as if there were no worker.
        refs = slides_called(tmp_path, "nap1", "nap2", "nap3", "slow")
        with pytest.raises(WsiAtsError, match="no Dask workers for 1 s"):
            for_each_slide(nap, refs, client, on_result=found.append, limits=Limits(timeout=0.5, wait=1))


def nap(ref: SlideRef) -> str:
    """Takes long enough to be given up, yet ends, so that the test does."""
    if ref.id.startswith("nap"):
        time.sleep(6)
    return slide_jobs.job(ref)


# -- workers that come, go, and differ ----------------------------------------------------------------------


def test_a_worker_that_dies_while_it_starts_is_given_another_chance(workers, tmp_path):
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "once").touch()
    task = slide_jobs.DyingTask(tmp_path / "out", "digest")
    refs = slides_called(tmp_path, "a", "b")
    ended = complete(task, refs, Execution(scheduler=workers))
    assert (len(ended.rows), ended.failed) == (2, {})

    workers.wait_for_workers(2, timeout=LIMIT)
    for i in range(9):
        (tmp_path / "orders" / str(i)).touch()
    task = slide_jobs.DyingTask(tmp_path / "out", "another digest")
    with pytest.raises(ModelError, match="is there enough memory"):
        complete(task, refs, Execution(scheduler=workers))


def test_resources_limit_how_many_are_under_way_and_where(two, tmp_path):
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    two.wait_for_workers(2, timeout=LIMIT)
    info = two.scheduler_info(n_workers=-1)["workers"].values()
    able = [worker["nthreads"] for worker in info if worker["resources"].get("GPU")]
    assert able == [2]
    names = [f"slow{i}" for i in range(6)]
    execution = Execution(scheduler=two, resources={"GPU": 1})
    complete(task, slides_called(tmp_path, *names), execution)
    lines = [line.split() for line in (tmp_path / "noted.txt").read_text().splitlines()]
    assert len({process for *_, process in lines}) == 1
    assert [what for what, *_ in lines] == [
        "begun",
        "recorded",
    ] * 6  # one after the other, though it has two threads
    with pytest.raises(SettingsError, match=r"none of 2 workers offers .* \(GPU=2\)"):
        complete(task, slides_called(tmp_path, "c"), Execution(scheduler=two, resources={"GPU": 2}))
    assert begun(tmp_path)["c"] == 0


@pytest.mark.slow
def test_all_workers_are_gone_and_come_back(cluster, tmp_path):
    first = cluster.work("--no-nanny", "--nthreads=1")
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    refs = slides_called(tmp_path, *(f"slow{i}" for i in range(8)))
    out = tmp_path / "out"
    with connect(cluster.address, wait=LIMIT) as client:
        with (
            in_the_middle(out, 2, first.kill),
            pytest.raises(WsiAtsError, match="no Dask workers for 1 s"),
        ):
            complete(task, refs, Execution(scheduler=client, wait=1))
        done = recorded(out)
        assert 2 <= len(done) < 8
        second = cluster.work("--no-nanny", "--nthreads=1")
        client.wait_for_workers(1, timeout=LIMIT)

        def replace() -> None:
            second.kill()
            cluster.work("--no-nanny", "--nthreads=1")

        with in_the_middle(out, len(done) + 2, replace):
            ended = complete(task, refs, Execution(scheduler=client, wait=LIMIT))
    assert ended.failed == {}
    assert set(begun(tmp_path).values()) <= {1, 2, 3}
