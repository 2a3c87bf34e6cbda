"""The workers of a cluster: find those that suit a stage, and call a function on each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from distributed import CancelledError, Client, KilledWorker
from distributed.client import ClosedClientError

from wsi_ats.errors import ModelError, SettingsError, WsiAtsError

# Between checks of calls that take seconds.
_POLL_SECONDS = 0.05

LOST = "the connection to the Dask scheduler was lost; run the same command again to continue"


def check_connected(client: Client) -> None:
    """Check that a client has not lost its scheduler.

    Raises
    ------
    WsiAtsError
        When the scheduler is lost.
    """
    if client.status in {"closing", "closed"}:
        raise WsiAtsError(LOST)


@contextmanager
def scheduler_there() -> Iterator[None]:
    """Translate the errors that Dask raises when its scheduler is gone."""
    try:
        yield
    except (OSError, ClosedClientError, CancelledError) as error:
        raise WsiAtsError(LOST) from error


def threads(client: Client, resources: Mapping[str, float] | None) -> dict[str, int]:
    """Return the threads of each worker that offers the resources, by address."""
    if not resources:
        return dict(client.nthreads())
    return {
        address: worker["nthreads"]
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
        if all(worker["resources"].get(name, 0) >= share for name, share in resources.items())
    }


def no_workers(seconds: float, resources: Mapping[str, float] | None) -> WsiAtsError:
    """Return the error of a cluster that has had no workers for some seconds."""
    which = f" that offer {_words(resources)}" if resources else ""
    return WsiAtsError(
        f"there have been no Dask workers{which} for {seconds:g} s; start some and run the same command "
        "again to continue (--wait allows more time)"
    )


def on_each_worker(
    function: Callable[[], None],
    client: Client,
    *,
    resources: Mapping[str, float] | None = None,
    wait: float = 60.0,
) -> None:
    """Call a function once on each present worker, and raise its errors here.

    If workers die meanwhile, the function is called once more on those that are present then.

    Parameters
    ----------
    function
        The function to call.
    client
        The cluster.
    resources
        Call only workers that offer these.
    wait
        Seconds to wait for workers when some have died.

    Raises
    ------
    ModelError
        When the call kills workers.
    SettingsError
        When no worker offers the resources.
    WsiAtsError
        When the scheduler or all workers are lost.
    """
    for attempt in range(2):
        errors, died = _called_on_each(function, client, resources)
        for error in errors:
            raise error
        if not died:
            return
        if attempt == 0:
            with scheduler_there():
                try:
                    client.wait_for_workers(1, timeout=wait)
                except TimeoutError as error:
                    raise no_workers(wait, None) from error
    raise ModelError("workers died twice while they loaded the model; is there enough memory?")


def _called_on_each(
    function: Callable[[], None], client: Client, resources: Mapping[str, float] | None
) -> tuple[list[BaseException], bool]:
    """Call a function on each worker; return the errors, and whether a worker died."""
    with scheduler_there():
        able, there = threads(client, resources), len(client.nthreads())
        if there and not able:
            raise SettingsError(
                f"none of {there} workers offers what --resources asks for ({_words(resources)}); start some "
                f'with `dask worker ADDRESS --resources "{next(iter(resources or ()))}=1"`, or leave '
                "--resources out"
            )
        calls = {address: client.submit(function, workers=[address], pure=False) for address in able}
        died = False
        while pending := {address for address, call in calls.items() if call.status == "pending"}:
            time.sleep(_POLL_SECONDS)
            # Dask would keep the call until a worker of that address appears again.
            for address in pending.difference(client.nthreads()):
                died = True
                client.cancel([calls.pop(address)])
        errors = [call.exception() for call in calls.values() if call.status == "error"]
        if any(call.status not in {"finished", "error"} for call in calls.values()):
            raise WsiAtsError(LOST)
        foreseen = [error for error in errors if not isinstance(error, KilledWorker)]
        return foreseen, died or len(foreseen) < len(errors)


def _words(resources: Mapping[str, float] | None) -> str:
    return " ".join(f"{name}={share:g}" for name, share in (resources or {}).items())
