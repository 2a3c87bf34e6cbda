"""Where tasks run."""

from __future__ import annotations

import os
import time
import urllib.request

import pytest
import slide_jobs
from conftest import files, free_port, table, without_times

from pipelines import _cluster
from pipelines._cluster import connect, dashboard
from pipelines._stage import for_each_slide
from wsi_ats.errors import SettingsError, WsiAtsError
from wsi_ats.slides.base import SlideRef


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "127.0.0.1:{port}", "nonsense://x"])
def test_an_address_where_nobody_answers(monkeypatch, address):
    monkeypatch.setattr(_cluster, "_ANSWER_SECONDS", 1)
    address = address.format(port=free_port())
    with pytest.raises(SettingsError, match=address), connect(address):
        pass


def test_a_client_is_used_as_it_is(client):
    with connect(client) as same:
        assert same is client
    assert client.status == "running"


def test_a_local_cluster_leaves_our_environment_alone():
    before = dict(os.environ)
    with connect("local", workers=8, tasks=1) as client:
        assert len(client.nthreads()) == 1
        found = []
        for_each_slide(slide_jobs.threads, [SlideRef.from_path("a")], client, on_result=found.append)
        assert found[0].result == str(_cluster.CPU_COUNT)  # one slide: one worker with all cores
    changed = {name for name in os.environ if before.get(name) != os.environ[name]}
    assert not {name for name in changed if "THREADS" in name}


@pytest.mark.parametrize("installed", [True, False])
def test_pages_that_dask_really_serves_are_named(client, monkeypatch, installed):
    monkeypatch.setattr(_cluster, "find_spec", lambda name: object() if installed else None)
    text = dashboard(client)
    (link,) = [word for word in text.split() if word.startswith("http://127.0.0.1:")]
    assert ("pip install bokeh" in text) is not installed
    assert link.endswith("/status" if installed else "/workers.html")
    with urllib.request.urlopen(link, timeout=10) as answer:
        page = answer.read().decode()
    if not installed:
        assert all(worker in page for worker in client.nthreads())


def test_a_dashboard_elsewhere_is_taken_at_its_schedulers_word(address):
    with connect(address) as remote:
        text = dashboard(remote)
    assert text.startswith("Dask's dashboard, as its scheduler says: http://127.0.0.1:")


def test_a_dashboard_without_an_address():
    class Nowhere:
        @property
        def dashboard_link(self):
            raise KeyError("dashboard")

    assert dashboard(Nowhere()) == "Dask names no address of its dashboard"


def test_the_dashboard_is_named_once_and_only_where_there_is_work(run, slides, config, tmp_path):
    command = ("prepare", slides, "--out", tmp_path / "out", "--config", config)
    assert [run(*command).stderr.count("Dask's dashboard") for _ in range(2)] == [1, 0]


def test_a_scheduler_elsewhere_gives_the_same(scheduler, run, slides, config, tmp_path):
    address, _ = scheduler
    arguments = ("prepare", slides, "--config", config, "--out")
    assert run(*arguments, tmp_path / "there", scheduler=address).exit_code == 0
    assert run(*arguments, tmp_path / "here").exit_code == 0
    there, here = (without_times(table(tmp_path / name / "slides.csv")) for name in ("there", "here"))
    assert there == here
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_a_scheduler_that_dies_ends_the_run_and_blames_no_slide(scheduler):
    address, processes = scheduler
    found = []

    def note(outcome):
        if not found:
            for process in processes:
                process.kill()
        found.append(outcome)

    refs = [SlideRef.from_path(f"slow{i}") for i in range(8)]
    begin = time.monotonic()
    with (
        pytest.raises(WsiAtsError, match="connection to the Dask scheduler was lost"),
        connect(address) as client,
    ):
        for_each_slide(slide_jobs.job, refs, client, on_result=note)
    assert [each.error for each in found if each.error] == []
    assert time.monotonic() - begin < 60
