"""Where tasks run."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import urllib.request

import pytest
import slide_jobs
from conftest import LIMIT, free_port

from pipelines import _cluster
from pipelines._cluster import connect, dashboard
from pipelines._tasks import Limits, for_each_slide
from pipelines._work import Outcome
from wsi_ats.errors import SettingsError, WsiAtsError
from wsi_ats.slides.base import SlideRef


@pytest.fixture
def scheduler_alone():
    """A real scheduler that no worker has found."""
    from distributed import LocalCluster

    options = {"n_workers": 0, "dashboard_address": ":0", "host": "127.0.0.1"}
    with LocalCluster(**options) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "127.0.0.1:{port}", "nonsense://x"])
def test_an_address_without_a_scheduler(address):
    address = address.format(port=free_port())
    with pytest.raises(SettingsError, match=address), connect(address, wait=1):
        pass


def test_a_silent_scheduler():
    """As one that was stopped, whose machine still accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SettingsError, match=f"{address}: no answer for 1 s"), connect(address, wait=1):
            pass


def test_a_web_server_is_not_a_scheduler():
    """As when the port of a dashboard is given."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        message = f"no Dask scheduler answers at {address}"
        with pytest.raises(SettingsError, match=message), connect(address, wait=1):
            pass
        server.shutdown(socket.SHUT_RDWR)


def test_warnings_are_captured_while_a_local_cluster_is_open(client, caplog):
    """Dask silences the handlers of its logger, and pytest attaches its own handler to that logger."""
    logging.getLogger("wsi_ats").warning("captured")
    assert caplog.messages == ["captured"]


def test_a_given_client_is_used_unchanged(client):
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


@pytest.mark.parametrize(
    ("options", "workers", "cores"),
    [({}, 2, 4), ({"tasks": 1}, 1, 8), ({"workers": 3}, 3, 2), ({"tasks": 2, "pending": 1}, 1, 4)],
)
def test_a_worker_has_as_many_cores_as_a_stage_wants_unless_workers_are_counted(
    monkeypatch, options, workers, cores
):
    monkeypatch.setattr(_cluster, "CPU_COUNT", 8)
    with connect("local", cores=4, **options) as client:
        client.wait_for_workers(workers, timeout=LIMIT)
        assert len(client.nthreads()) == workers
        found: list[Outcome[str]] = []
        for_each_slide(slide_jobs.threads, [SlideRef.from_path("a")], client, on_result=found.append)
        assert found[0].result == str(cores)


def test_fewer_cores_than_a_stage_wants_are_one_worker(monkeypatch):
    monkeypatch.setattr(_cluster, "CPU_COUNT", 2)
    with connect("local", cores=4) as client:
        assert len(client.nthreads()) == 1


@pytest.mark.parametrize("installed", [True, False])
def test_the_dashboard_address_is_one_that_dask_serves(client, monkeypatch, installed):
    monkeypatch.setattr(_cluster, "find_spec", lambda name: object() if installed else None)
    text = dashboard(client)
    (link,) = [word for word in text.split() if word.startswith("http://127.0.0.1:")]
    assert ('pip install "wsi-ats[dashboard]"' in text) is not installed
    assert link.endswith("/status" if installed else "/workers.html")
    with urllib.request.urlopen(link, timeout=LIMIT) as answer:
        page = answer.read().decode()
    if not installed:
        assert all(worker in page for worker in client.nthreads())


def test_a_remote_dashboard_address_is_taken_from_its_scheduler(address):
    with connect(address) as remote:
        text = dashboard(remote)
    assert text.startswith("Dask's dashboard, according to its scheduler: http://127.0.0.1:")


def test_a_dashboard_without_an_address():
    class Nowhere:
        @property
        def dashboard_link(self):
            raise KeyError("dashboard")

    assert dashboard(Nowhere()) == "Dask gives no address for its dashboard"


def test_the_dashboard_is_named_once_and_only_where_there_is_work(run, slides, config, tmp_path):
    command = ("prepare", slides, "--out", tmp_path / "out", "--config", config)
    assert [run(*command).stderr.count("Dask's dashboard") for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    ("named", "found"), [("", []), ("-1", []), ("0,1", ["0", "1"]), (" 2 , GPU-5f ", ["2", "GPU-5f"])]
)
def test_gpus_follow_cuda_visible_devices(monkeypatch, named, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert _cluster.visible_gpus() == found


def test_gpus_are_those_of_the_driver(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(_cluster, "_DRIVER", tmp_path)
    assert _cluster.visible_gpus() == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert _cluster.visible_gpus() == ["0", "1"]


def test_each_worker_sees_its_own_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f")
    gpus = _cluster.visible_gpus()
    with connect("local", gpus=gpus, at_once=4) as client:
        client.wait_for_workers(2, timeout=LIMIT)
        offered = client.scheduler_info(n_workers=-1)["workers"].values()
        assert [worker["resources"] for worker in offered] == [{"GPU": 1}] * 2
        assert [worker["nthreads"] for worker in offered] == [4, 4]
        found: list[Outcome[str]] = []
        refs = [SlideRef.from_path(f"slow{i}") for i in range(16)]
        limits = Limits(resources={"GPU": 0.25})
        for_each_slide(slide_jobs.environment, refs, client, on_result=found.append, limits=limits)
        seen = {(each.worker, each.result) for each in found}
        assert {result for _, result in seen} == set(gpus)
        assert len(seen) == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,GPU-5f"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 3, "gpus": ["0", "1"]}, "--workers is 3, but .* there are 2"),
        ({"workers": 0}, "--workers must be at least 1, not 0"),
        ({"at_once": 0}, "--slides-at-once must be at least 1, not 0"),
    ],
)
def test_invalid_numbers_of_workers(options, said):
    with pytest.raises(SettingsError, match=said), connect("local", **options):
        pass


def test_a_scheduler_without_workers(scheduler_alone):
    with (
        pytest.raises(SettingsError, match=r"has no workers after 0\.5 s; start some with `dask worker"),
        connect(scheduler_alone, wait=0.5),
    ):
        pass


def test_errors_inside_a_connection_pass_unchanged(client, address):
    """A time-out of whatever is done on a cluster is no lack of workers."""
    with pytest.raises(TimeoutError, match="of ours"), connect(address):
        raise TimeoutError("of ours")


@pytest.mark.parametrize("text", [None, "", '{"type": "Sch', "{}"])
def test_a_scheduler_file_without_an_address(tmp_path, text):
    file = tmp_path / "scheduler.json"
    if text is not None:
        file.write_text(text)
    reason = "there is no such file" if text is None else "the file is damaged"
    message = rf"waited 0\.3 s for the address of a scheduler in .*scheduler\.json \({reason}\)"
    with pytest.raises(SettingsError, match=message), connect(str(file), wait=0.3):
        pass


def test_a_stale_scheduler_file(tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": f"tcp://127.0.0.1:{free_port()}"}))
    with pytest.raises(SettingsError, match="no Dask scheduler answers at tcp://"), connect(file, wait=1):
        pass


def test_a_scheduler_file_may_be_written_later(client, tmp_path):
    file = tmp_path / "scheduler.json"
    address = json.dumps({"address": client.scheduler.address})
    writer = threading.Timer(0.5, file.write_text, [address])
    writer.start()
    with connect(str(file), wait=LIMIT) as other:
        assert other is not client
        assert other.scheduler.address == client.scheduler.address
        assert other.nthreads() == client.nthreads()
    writer.join()
    assert client.status == "running"


def test_a_scheduler_that_dies_ends_the_run_without_failing_slides(cluster):
    cluster.work("--nthreads=1")
    found = []

    def note(outcome):
        if not found:
            cluster.stop()
        found.append(outcome)

    refs = [SlideRef.from_path(f"slow{i}") for i in range(8)]
    begin = time.monotonic()
    with (
        pytest.raises(WsiAtsError, match="connection to the Dask scheduler was lost"),
        connect(cluster.address, wait=LIMIT) as client,
    ):
        for_each_slide(slide_jobs.job, refs, client, on_result=note)
    assert [each.error for each in found if each.error] == []
    assert time.monotonic() - begin < LIMIT
