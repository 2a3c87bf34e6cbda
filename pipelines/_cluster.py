"""Clusters to run tasks on; this is the only module that makes a Dask client."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urljoin

import dask
from dask.system import CPU_COUNT
from distributed import Client, Nanny, Scheduler, Security, SpecCluster, Status
from distributed.comm.core import connect as connect_comm

from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.files import read_json

# Between checks for the file that a scheduler writes.
_FILE_SECONDS = 0.2

# Where NVIDIA's driver lists its GPUs.
_DRIVER = Path("/proc/driver/nvidia")

# Read by the libraries under torch and numpy when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_LOCAL = {
    # A task is tried once; `for_each_slide` finds out which slide really killed its worker.
    "distributed.scheduler.allowed-failures": 0,
    # By default Dask writes thread limits into the environment of *this* process, where they would
    # slow training down; the workers get theirs below.
    "distributed.nanny.pre-spawn-environ": {},
    # By default Dask gives up a worker that takes long to come back, and never replaces it; on a busy machine
    # that may happen to all of them. Those that will not come back are replaced below.
    "distributed.deploy.lost-worker-timeout": "1d",
    # By default Dask times its event loops fifty times a second, and samples the stacks of tasks a hundred
    # times. An idle worker then takes 3 % of a core, and 0.5 % without.
    "distributed.admin.tick.interval": "500ms",
    "distributed.worker.profile.enabled": False,
}

# Loggers of Dask; the second has its own level.
_LOGGERS = ("distributed", "distributed.client")

# Time for a client to connect, and to reconnect when its scheduler is lost. A loss is reported early, because
# the run can only continue when the same command is given again.
_RECONNECT_SECONDS = 10.0

# Between checks of whether a lost connection has been given up.
_POLL_SECONDS = 0.1

# Between checks of whether a local worker has to be replaced.
_CHECK_SECONDS = 1.0


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold Ctrl-C back until the context ends; processes started in it, now or later, never receive it.

    Ctrl-C reaches every process of a terminal, but only the one that the user started should act on it. The
    mask is inherited by the thread that manages the workers, and from it by each of them.
    """
    resource_tracker.ensure_running()  # else it would start later, and lift the mask while it does
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def connect(
    scheduler: Any = "local",
    *,
    workers: int | None = None,
    cores: int = 1,
    tasks: int | None = None,
    pending: int | None = None,
    at_once: int = 1,
    gpus: Sequence[str] = (),
    wait: float = 60.0,
) -> Iterator[Client]:
    """Connect to a cluster, or make one on this machine for as long as the context lasts.

    Parameters
    ----------
    scheduler
        ``"local"``, the address of a running scheduler such as ``"tcp://10.0.0.5:8786"``, the file
        ``*.json`` in which a scheduler writes its address, or a client of the caller, which is left open.
    workers
        Processes of a local cluster; one for each core by default.
    cores
        Cores for each process if ``workers`` is not given; there is at least one process.
    tasks
        Number of tasks of the whole run: there are never more workers than tasks, and the cores are divided
        among the threads of those workers.
    pending
        Number of tasks that are left to do: no more processes than these are started.
    at_once
        Number of tasks that a process of a local cluster works on at once.
    gpus
        GPUs of this machine that tasks compute on, as ``CUDA_VISIBLE_DEVICES`` names them. Each has a worker
        that sees no other GPU and offers the resource ``GPU=1``.
    wait
        Seconds to wait for all: a scheduler's file, its answer, and its first worker.

    Raises
    ------
    SettingsError
        When the file is missing or names no address, no scheduler answers, or there is no worker.
    """
    if isinstance(scheduler, Client):
        yield scheduler
    elif scheduler == "local":
        with _local(workers, cores, tasks, pending, at_once, gpus) as client:
            yield client
    else:
        named, until = str(scheduler), _Deadline(wait, time.monotonic() + wait)
        by_file = named.endswith(".json") and "://" not in named
        with _remote(_address_in(Path(named), until) if by_file else named, until) as client:
            yield client


def dashboard(client: Client) -> str:
    """Return a sentence with the address of Dask's dashboard.

    The address of a remote scheduler is not checked: its host may have another name on this machine.
    """
    try:
        link = client.dashboard_link
    except KeyError:  # there is none, or Dask's configuration does not tell its address
        link = None
    if link is None:
        return "Dask gives no address for its dashboard"
    if client.cluster is None:
        return f"Dask's dashboard, according to its scheduler: {link}"
    if find_spec("bokeh") is not None:
        return f"Dask's dashboard: {link}"
    return (
        f"Dask's workers and tasks: {urljoin(link, 'info/main/workers.html')} (its dashboard needs "
        '`pip install "wsi-ats[dashboard]"`)'
    )


def tries_again(client: Client) -> bool:
    """Return whether the scheduler gives tasks of a dead worker to other workers, as it does by default."""
    allowed: Any = client.run_on_scheduler(dask.config.get, "distributed.scheduler.allowed-failures")
    return bool(allowed)


def visible_gpus() -> list[str]:
    """Return the names of this machine's GPUs: those in ``CUDA_VISIBLE_DEVICES``, else all.

    NVIDIA's driver lists them all, so no library has to be loaded.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each.strip() for each in named.split(",") if each.strip() not in {"", "-1"}]
    return [str(number) for number in range(len(list(_DRIVER.glob("gpus/*"))))]


@contextmanager
def _local(
    workers: int | None,
    cores: int,
    tasks: int | None,
    pending: int | None,
    at_once: int,
    gpus: Sequence[str],
) -> Iterator[Client]:
    for name, value in (("--workers", workers), ("--slides-at-once", at_once)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} must be at least 1, not {value}")
    if gpus and workers is not None and workers > len(gpus):
        raise SettingsError(
            f"--workers is {workers}, but a GPU holds one model and there are {len(gpus)}; leave it out, "
            "or set CUDA_VISIBLE_DEVICES= to compute without GPUs"
        )
    most = len(gpus) or max(1, CPU_COUNT // cores)
    whole = max(1, min(workers or most, tasks or workers or most))
    count = max(1, min(whole, pending or whole))
    options = {
        "nthreads": at_once,
        "host": "127.0.0.1",
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
        # Dask would pause a worker for ever once its model and thumbnail fill its share of memory.
        "memory_limit": 0,
        "preload": [*dask.config.get("distributed.worker.preload"), "pipelines._process"],
    }
    environment = dict.fromkeys(_THREADS, str(max(1, CPU_COUNT // whole)))
    own: list[dict[str, Any]] = [{"env": environment}] * count
    if gpus:
        own = [
            {"env": {**environment, "CUDA_VISIBLE_DEVICES": gpu}, "resources": {"GPU": 1}}
            for gpu in gpus[:count]
        ]
    with dask.config.set(_LOCAL), ExitStack() as stack:
        with _interrupts_held_back():
            cluster = SpecCluster(
                scheduler={
                    "cls": Scheduler,
                    # Any port: another dashboard may be running.
                    "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
                },
                workers={i: {"cls": Nanny, "options": options | each} for i, each in enumerate(own)},
                silence_logs=logging.CRITICAL,
            )
            stack.enter_context(cluster)
            stack.enter_context(_replaced(cluster))
        yield stack.enter_context(Client(cluster, set_as_default=False))


@dataclass(frozen=True)
class _Deadline:
    """The end of a wait of so many seconds."""

    seconds: float
    end: float

    @property
    def left(self) -> float:
        """Seconds that are left, enough for one more try."""
        return max(self.end - time.monotonic(), _POLL_SECONDS)

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() > self.end


def _address_in(file: Path, until: _Deadline) -> str:
    """Read the address that a scheduler writes to a file; with a job queue the file may appear much later."""
    while True:
        try:
            return str(read_json(file)["address"])
        except (ArtifactError, KeyError) as error:
            if until.over:
                raise SettingsError(
                    f"waited {until.seconds:g} s for the address of a scheduler in {file} "
                    f"({'there is no such file' if not file.exists() else 'the file is damaged'}); "
                    f"`dask scheduler --scheduler-file {file}` writes it, and --wait allows more time"
                ) from error
        time.sleep(_FILE_SECONDS)


@contextmanager
def _replaced(cluster: SpecCluster) -> Iterator[None]:
    """Replace workers whose nanny has given up, as it does when its process dies during start-up."""
    over = Event()

    def replace() -> None:
        if not over.is_set():
            for name, nanny in list(cluster.workers.items()):
                if nanny.status in {Status.closed, Status.failed}:
                    del cluster.workers[name]
            cluster.scale(len(cluster.worker_spec))  # starts those that are missing

    def watch() -> None:
        while not over.wait(_CHECK_SECONDS) and cluster.loop is not None:
            cluster.loop.add_callback(replace)

    thread = Thread(target=watch, name="replaces-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _remote(address: str, until: _Deadline) -> Iterator[Client]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    try:
        with ThreadPoolExecutor(1) as pool:  # this thread may already run an event loop
            pool.submit(asyncio.run, _greet(address, until)).result()
        client = _client(address, until)
    except (
        OSError,
        ValueError,
        MemoryError,
    ) as error:  # MemoryError if a web server answers: its text is read as a length
        reason = str(error).partition("\n")[0] or f"no answer for {until.seconds:g} s"
        raise SettingsError(
            f"no Dask scheduler answers at {address}: {reason}; check the address (such as "
            "tcp://10.0.0.5:8786), allow more time with --wait, or leave --scheduler out to work on this "
            "machine"
        ) from error
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # the run itself reports a loss, once
    try:
        _wait_for_worker(client, address, until)
        yield client
    finally:
        while client.status == "connecting":  # it gives up by itself, and logs errors if it is closed earlier
            time.sleep(_POLL_SECONDS)
        client.close()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _client(address: str, until: _Deadline) -> Client:
    """Make a client of a scheduler that answers in time."""
    while True:
        try:
            return Client(address, timeout=min(until.left, _RECONNECT_SECONDS), set_as_default=False)
        except OSError:
            if until.over:
                raise


async def _greet(address: str, until: _Deadline) -> None:
    """Exchange greetings with a scheduler; a client would wait for ever if it does not answer."""
    arguments = Security().get_connection_args("client")
    # A refused connection ends by itself with its reason; a silent scheduler is given up soon after.
    comm = await asyncio.wait_for(
        connect_comm(address, timeout=until.left, **arguments), until.left + _POLL_SECONDS
    )
    comm.abort()


def _wait_for_worker(client: Client, address: str, until: _Deadline) -> None:
    try:
        client.wait_for_workers(1, timeout=until.left)
    except TimeoutError as error:
        raise SettingsError(
            f"the Dask scheduler at {address} has no workers after {until.seconds:g} s; start some with "
            f"`dask worker {address}`, or allow more time with --wait"
        ) from error
    except OSError as error:
        raise SettingsError(f"the Dask scheduler at {address} is gone: {error}; start it again") from error
