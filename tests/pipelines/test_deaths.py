"""Workers that die, hang or go away while slides are worked on: real processes, by real signals."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import slide_jobs
from conftest import LIMIT
from interruptions import in_the_middle, recorded

from pipelines._carry_out import complete
from pipelines._cluster import connect
from pipelines._records import absolute
from pipelines._rounds import complete_arrivals
from pipelines._runs import Execution
from pipelines._tasks import Limits, for_each_slide
from pipelines._watch import Arrivals
from pipelines._work import Outcome
from wsi_ats.errors import ModelError, SettingsError, WsiAtsError
from wsi_ats.slides.base import SlideRef

DIED = "the process that worked on it died, and died again when it was tried alone"


def slides_called(folder: Path, *names: str) -> list[SlideRef]:
    return [SlideRef.from_path(folder / f"{name}.svs") for name in names]


def notes(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "noted.txt").read_text().splitlines()]


def begun(folder: Path) -> Counter[str]:
    """Count the starts of each slide; none started after it was recorded."""
    recorded: set[str] = set()
    counts: Counter[str] = Counter()
    for what, name, _process in notes(folder):
        if what == "begun":
            assert name not in recorded
            counts[name] += 1
        else:
            recorded.add(name)
    return counts


# -- slides that bring their worker down --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "deadly"),
    [("own", ["segfault1", "killed2"]), ("two", ["killed1", "deadly2"])],
    indirect=["workers"],
)
def test_slides_that_kill_their_worker_are_tried_once_more_and_alone(workers, deadly, tmp_path):
    first, second = deadly
    slow = [f"slow{i}" for i in range(9)]
    names = [*slow[:6], first, *slow[6:], second, "last"]
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


def test_results_lost_with_their_workers_are_restored_from_records(two, tmp_path):
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


@pytest.mark.parametrize(
    ("workers", "hanging"),
    [("own", ["sleeping", "deaf"]), ("two", ["piped", "sleeping"])],
    indirect=["workers"],
)
def test_slides_that_hang_time_out(workers, hanging, tmp_path):
    os.mkfifo(tmp_path / "piped.svs")
    first, second = hanging
    names = ["a", first, *(f"slow{i}" for i in range(4)), second, "b"]
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    execution = Execution(scheduler=workers, timeout=2)
    before = set(workers.run(os.getpid).values())
    ended = complete(task, slides_called(tmp_path, *names), execution)
    assert set(ended.failed) == set(hanging)
    for name in hanging:
        expected = (
            f"{tmp_path / name}.svs: it took longer than 2 s and was stopped; allow more time with --timeout"
        )
        assert ended.failed[name] == expected
    assert [row["slide_id"] for row in ended.rows if row["status"] == "done"] == sorted(
        set(names) - set(hanging)
    )
    assert set(begun(tmp_path).values()) <= {1, 2}
    deadline = time.monotonic() + LIMIT
    while set(workers.run(os.getpid, on_error="ignore").values()) == before:
        assert time.monotonic() < deadline  # the worker that hung is replaced
        time.sleep(0.1)


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
def test_invalid_options_are_refused(run, some, config, tmp_path, option, said):
    ran = run("prepare", some, "--config", config, "--out", tmp_path / "out", *option, code=2)
    assert said in ran.stderr
    assert not (tmp_path / "out" / "records").exists()


def test_a_worker_that_is_about_to_stop_is_given_nothing_more(own, tmp_path):
    """Its slides would die with it, and one that was retried alone would be blamed."""
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


def test_a_worker_that_dies_at_startup_is_restarted(workers, tmp_path):
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
def test_all_workers_are_lost_and_return(cluster, tmp_path):
    first = cluster.work("--no-nanny", "--nthreads=1")
    task = slide_jobs.CountedTask(tmp_path / "out", "digest")
    refs = slides_called(tmp_path, *(f"slow{i}" for i in range(8)))
    out = tmp_path / "out"
    with connect(cluster.address, wait=LIMIT) as client:
        with in_the_middle(out, 2, first.kill), pytest.raises(WsiAtsError, match="no Dask workers for 1 s"):
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
