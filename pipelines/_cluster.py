"""Where tasks run: the only place that makes a Dask client."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster

from wsi_ats.errors import SettingsError

# Long enough for a busy scheduler behind a slow network, short enough to wait for.
_ANSWER_SECONDS = 10

# What the libraries under torch and numpy read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_LOCAL = {
    # A task is tried once; who really brought its worker down is found out in `for_each_slide`.
    "distributed.scheduler.allowed-failures": 0,
    # By default Dask writes thread limits into the environment of *this* process, where they would
    # slow down training; the workers get theirs below.
    "distributed.nanny.pre-spawn-environ": {},
}


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
) -> Iterator[Client]:
    """Connect to a cluster, or make one on this machine for as long as the context lasts.

    Parameters
    ----------
    scheduler
        ``"local"``, the address of a running scheduler such as ``"tcp://10.0.0.5:8786"``, or a client
        that the caller has; it is left open.
    workers
        Processes of a local cluster; one for each core by default.
    tasks
        Tasks of the whole run: there are never more workers than these, and the cores are shared out to
        the threads of those workers.
    pending
        Tasks that are left to do: no more processes than these are started. A run that is taken up
        again thus computes with as many threads as the first one, and so to the last digit the same.

    Raises
    ------
    SettingsError
        When nobody answers at the address, or no worker is there.
    """
    if isinstance(scheduler, Client):
        yield scheduler
    elif scheduler == "local":
        with _local(workers, tasks, pending) as client:
            yield client
    else:
        with _remote(str(scheduler)) as client:
            yield client


@contextmanager
def _local(workers: int | None, tasks: int | None, pending: int | None) -> Iterator[Client]:
    if workers is not None and workers < 1:
        raise SettingsError(f"--workers must be at least 1, not {workers}")
    whole = max(1, min(workers or CPU_COUNT, tasks or workers or CPU_COUNT))
    threads = str(max(1, CPU_COUNT // whole))
    with dask.config.set(_LOCAL), ExitStack() as stack:
        with _interrupts_held_back():
            cluster = LocalCluster(
                n_workers=max(1, min(whole, pending or whole)),
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any port: others may run one, too
                silence_logs=logging.CRITICAL,
                # Dask would pause a worker whose model and thumbnail fill its share, for ever.
                memory_limit=0,
                env=dict.fromkeys(_THREADS, threads),
            )
            stack.enter_context(cluster)
        yield stack.enter_context(Client(cluster, set_as_default=False))


@contextmanager
def _remote(address: str) -> Iterator[Client]:
    quiet = logging.getLogger("distributed")
    try:
        client = Client(address, timeout=_ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"no Dask scheduler answers at {address}: {str(error).splitlines()[0]}; check the address "
            "(such as tcp://10.0.0.5:8786), or leave --scheduler out to work on this machine"
        ) from error
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)  # a lost connection is reported slide by slide
    try:
        client.wait_for_workers(1, timeout=_ANSWER_SECONDS)
        yield client
    except TimeoutError as error:
        raise SettingsError(
            f"the Dask scheduler at {address} has no workers; start some with `dask worker {address}`"
        ) from error
    finally:
        client.close()
        quiet.setLevel(level)
