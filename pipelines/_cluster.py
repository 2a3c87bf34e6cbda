"""Where tasks run: the only place that makes a Dask client."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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

# Between looks at whether a scheduler has written its file.
_FILE_SECONDS = 0.2

# Where NVIDIA's driver lists its GPUs.
_DRIVER = Path("/proc/driver/nvidia")

# Read by the libraries under torch and numpy when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_LOCAL = {
    # A task is tried once; who really brought its worker down is found out in `for_each_slide`.
    "distributed.scheduler.allowed-failures": 0,
    # By default Dask writes thread limits into the environment of *this* process, where they would
    # slow down training; the workers get theirs below.
    "distributed.nanny.pre-spawn-environ": {},
    # A worker that takes longer to come back is given up by default, and never replaced; on a busy machine
    # all of them may. Those that will not come back are replaced below.
    "distributed.deploy.lost-worker-timeout": "1d",
}

# Dask's; the second has a level of its own.
_LOGGERS = ("distributed", "distributed.client")

# A client tries so long to connect, and also to connect again when its scheduler is lost: that is reported
# early, for the run can go on only when the same command is given again.
_RECONNECT_SECONDS = 10.0

# Between looks at whether a lost connection is given up.
_POLL_SECONDS = 0.1

# Between looks at whether a local worker has to be replaced.
_LOOK_SECONDS = 1.0


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the context ends; processes started in it, now or later, never see it.

    It reaches every process of a terminal, but only the one that the user started should act on it. The
    mask is inherited: by the thread that looks after the workers, and from it by each of them.
    """
    resource_tracker.ensure_running()  # else it is started in between, and lifts the mask for its part
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
    tasks
        Tasks of the whole run: there are never more workers than these, and the cores are shared out to
        the threads of those workers.
    pending
        Tasks that are left to do: no more processes than these are started.
    at_once
        Tasks that a process of a local cluster works on at once.
    gpus
        GPUs of this machine that tasks compute on, as ``CUDA_VISIBLE_DEVICES`` names them: there is a worker
        for each, which sees no other and offers the resource ``GPU=1``.
    wait
        Seconds to wait for a scheduler's file, then for its answer, and then for its first worker.

    Raises
    ------
    SettingsError
        When there is no such file, it names no address, no scheduler answers, or there is no worker.
    """
    if isinstance(scheduler, Client):
        yield scheduler
    elif scheduler == "local":
        with _local(workers, tasks, pending, at_once, gpus) as client:
            yield client
    else:
        named = str(scheduler)
        by_file = named.endswith(".json") and "://" not in named
        with _remote(_address_in(Path(named), wait) if by_file else named, wait) as client:
            yield client


def dashboard(client: Client) -> str:
    """Return a sentence with the address of Dask's dashboard.

    The address of a remote scheduler is passed on unchecked: its host may have another name from here.
    """
    try:
        link = client.dashboard_link
    except KeyError:  # there is none, or Dask's configuration cannot tell where
        link = None
    if link is None:
        return "Dask names no address of its dashboard"
    if client.cluster is None:
        return f"Dask's dashboard, as its scheduler says: {link}"
    if find_spec("bokeh") is not None:
        return f"Dask's dashboard: {link}"
    return (
        f"Dask's workers and tasks: {urljoin(link, 'info/main/workers.html')} (its dashboard needs "
        "`pip install bokeh`)"
    )


def tries_again(client: Client) -> bool:
    """Whether the scheduler gives the tasks of a worker that died to others, as it does by default."""
    allowed: Any = client.run_on_scheduler(dask.config.get, "distributed.scheduler.allowed-failures")
    return bool(allowed)


def visible_gpus() -> list[str]:
    """Return the names of this machine's GPUs: those in ``CUDA_VISIBLE_DEVICES``, else all.

    NVIDIA's driver lists them all; no library is loaded for that.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each.strip() for each in named.split(",") if each.strip() not in {"", "-1"}]
    return [str(number) for number in range(len(list(_DRIVER.glob("gpus/*"))))]


@contextmanager
def _local(
    workers: int | None, tasks: int | None, pending: int | None, at_once: int, gpus: Sequence[str]
) -> Iterator[Client]:
    for name, value in (("--workers", workers), ("--slides-at-once", at_once)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} must be at least 1, not {value}")
    if gpus and workers is not None and workers > len(gpus):
        raise SettingsError(
            f"--workers is {workers}, but a GPU holds one model and there are {len(gpus)}; leave it out, "
            "or set CUDA_VISIBLE_DEVICES= to compute without GPUs"
        )
    most = len(gpus) or CPU_COUNT
    whole = max(1, min(workers or most, tasks or workers or most))
    count = max(1, min(whole, pending or whole))
    options = {
        "nthreads": at_once,
        "host": "127.0.0.1",
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
        # Dask would pause a worker whose model and thumbnail fill its share, for ever.
        "memory_limit": 0,
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
                    # Any port: others may run one, too.
                    "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
                },
                workers={i: {"cls": Nanny, "options": options | each} for i, each in enumerate(own)},
                silence_logs=logging.CRITICAL,
            )
            stack.enter_context(cluster)
            stack.enter_context(_replaced(cluster))
        yield stack.enter_context(Client(cluster, set_as_default=False))


def _address_in(file: Path, wait: float) -> str:
    """Read the address that a scheduler writes into a file; in a queue, the file may come much later."""
    end = time.monotonic() + wait
    while True:
        try:
            return str(read_json(file)["address"])
        except (ArtifactError, KeyError) as error:
            if time.monotonic() > end:
                raise SettingsError(
                    f"waited {wait:g} s for a scheduler's address in {file} "
                    f"({'there is no such file' if not file.exists() else 'the file is damaged'}); "
                    f"`dask scheduler --scheduler-file {file}` writes it, and --wait allows more time"
                ) from error
        time.sleep(_FILE_SECONDS)


@contextmanager
def _replaced(cluster: SpecCluster) -> Iterator[None]:
    """Replace workers whose nanny gave up, as it does for good when its process dies while it starts."""
    over = Event()

    def replace() -> None:
        if not over.is_set():
            for name, nanny in list(cluster.workers.items()):
                if nanny.status in {Status.closed, Status.failed}:
                    del cluster.workers[name]
            cluster.scale(len(cluster.worker_spec))  # makes those that are missing

    def look() -> None:
        while not over.wait(_LOOK_SECONDS) and cluster.loop is not None:
            cluster.loop.add_callback(replace)

    thread = Thread(target=look, name="replaces-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _remote(address: str, wait: float) -> Iterator[Client]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    try:
        with ThreadPoolExecutor(1) as pool:  # the caller may run an event loop in this thread
            pool.submit(asyncio.run, _greet(address, wait)).result()
        client = _client(address, wait)
    except (OSError, ValueError, MemoryError) as error:  # a web server's answer is taken for a length
        reason = str(error).partition("\n")[0] or f"no answer for {wait:g} s"
        raise SettingsError(
            f"no Dask scheduler answers at {address}: {reason}; check the address (such as "
            "tcp://10.0.0.5:8786), allow more time with --wait, or leave --scheduler out to work on this "
            "machine"
        ) from error
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # the run itself reports a loss, once
    try:
        _wait_for_worker(client, address, wait)
        yield client
    finally:
        while client.status == "connecting":  # it gives up by itself, and complains if it is closed before
            time.sleep(_POLL_SECONDS)
        client.close()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _client(address: str, wait: float) -> Client:
    """Make a client of a scheduler that answers, within some seconds."""
    end = time.monotonic() + wait
    while True:
        try:
            return Client(address, timeout=min(wait, _RECONNECT_SECONDS), set_as_default=False)
        except OSError:
            if time.monotonic() > end:
                raise


async def _greet(address: str, wait: float) -> None:
    """Exchange greetings with a scheduler; a client would wait for ever for one that does not answer."""
    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect_comm(address, timeout=wait, **arguments), wait)
    comm.abort()


def _wait_for_worker(client: Client, address: str, seconds: float) -> None:
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError as error:
        raise SettingsError(
            f"the Dask scheduler at {address} has had no workers for {seconds:g} s; start some with "
            f"`dask worker {address}`, or allow more time with --wait"
        ) from error
    except OSError as error:
        raise SettingsError(f"the Dask scheduler at {address} is gone: {error}; start it again") from error
