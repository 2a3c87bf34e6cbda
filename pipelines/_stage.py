"""One task for each slide: sent out, watched, and brought home one way or the other.

What crosses to a worker is a function, a reference to a slide, settings and paths; what comes back is a
small record. Pixels never travel: moving them costs as much as reading them again.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from distributed import Client, Future, KilledWorker, as_completed
from distributed.comm.core import CommClosedError

from wsi_ats.errors import ModelError, WsiAtsError
from wsi_ats.slides.base import SlideRef

Result = TypeVar("Result")

# Enough that no worker waits for the client, few enough that a stop is a stop.
_TASKS_PER_THREAD = 2

# Clusters grow and shrink, but not so fast that it is worth asking for every slide.
_ASK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Result]):
    """How it ended for one slide.

    Parameters
    ----------
    ref
        The slide.
    result
        What the function returned; ``None`` after a failure.
    error
        Why it failed.
    trace
        Where it failed, for ``--debug``.
    seconds
        Wall time in the worker.
    """

    ref: SlideRef
    result: Result | None = None
    error: str | None = None
    trace: str = ""
    seconds: float = 0.0


def for_each_slide(
    function: Callable[[SlideRef], Result],
    refs: Iterable[SlideRef],
    client: Client,
    *,
    on_result: Callable[[Outcome[Result]], None],
    strict: bool = False,
) -> None:
    """Call a function for each slide on a cluster; a slide that fails fails alone.

    Errors of this library and unforeseen ones both become the slide's outcome. So does the death of a
    worker: every slide that was on it is tried again with nothing beside it, and one whose worker dies
    again is to blame.

    Parameters
    ----------
    function
        Importable by the workers; a dataclass with ``__call__`` or a ``functools.partial`` carries
        settings along.
    refs
        The slides.
    client
        The cluster.
    on_result
        Called in this process for each slide, in the order in which they end.
    strict
        Stop at the first failure.

    Raises
    ------
    WsiAtsError
        When the scheduler is lost: no slide is to blame, so none is said to have failed.
    """
    with closing(_blamed(function, refs, client)) as outcomes:
        for outcome in outcomes:
            on_result(outcome)
            if strict and outcome.error is not None:
                return


def on_each_worker(function: Callable[[], None], client: Client) -> None:
    """Call a function once on each worker that is there now; its errors are raised here.

    Raises
    ------
    ModelError
        When a worker dies of it.
    """
    calls = [client.submit(function, workers=[address], pure=False) for address in client.nthreads()]
    for call in as_completed(calls, loop=client.loop):
        error = call.exception()
        if isinstance(error, KilledWorker):
            raise ModelError("a worker died while it loaded the model; is there enough memory?") from error
        if error is not None:
            raise error


_LOST = "the connection to the Dask scheduler was lost; the same command goes on where this one stopped"

_DIED = (
    "the process that worked on it died, most likely for want of memory or because of a damaged file; try "
    "it alone, or with fewer --workers"
)


def _blamed(
    function: Callable[[SlideRef], Result], refs: Iterable[SlideRef], client: Client
) -> Generator[Outcome[Result], None, None]:
    """Bring all home; for the death of a worker, find the slide that is to blame."""
    suspects: list[SlideRef] = []
    yield from _outcomes(function, refs, client, suspects)
    for ref in suspects:
        died: list[SlideRef] = []
        yield from _outcomes(function, [ref], client, died)
        if died:
            yield Outcome(ref, error=f"{ref.path}: {_DIED}")


def _outcomes(
    function: Callable[[SlideRef], Result],
    refs: Iterable[SlideRef],
    client: Client,
    suspects: list[SlideRef],
) -> Generator[Outcome[Result], None, None]:
    """Keep a few tasks under way; slides whose worker died go to ``suspects``."""
    waiting = iter(refs)
    running: dict[Future[Outcome[Result]], SlideRef] = {}
    ended = as_completed(loop=client.loop)
    threads, asked = 0, -math.inf

    def fill() -> None:
        nonlocal threads, asked
        if time.monotonic() - asked > _ASK_SECONDS:
            threads, asked = sum(client.nthreads().values()), time.monotonic()
        room = _TASKS_PER_THREAD * threads - len(running)
        for ref in islice(waiting, max(room, 0 if running else 1)):
            future = client.submit(_attempt, function, ref, pure=False)
            running[future] = ref
            ended.add(future)

    try:
        fill()
        for future in ended:
            ref = running.pop(future)
            if future.status == "finished":
                yield future.result()
            elif future.status != "error":
                raise WsiAtsError(_LOST)
            elif isinstance(error := future.exception(), KilledWorker):
                suspects.append(ref)
            else:
                yield _unforeseen(ref, future, error)
            fill()
    except CommClosedError as error:
        raise WsiAtsError(_LOST) from error
    finally:
        if client.status == "running":
            client.cancel(list(running))


def _attempt(function: Callable[[SlideRef], Any], ref: SlideRef) -> Outcome[Any]:
    """What a worker does: errors raised on purpose become the slide's outcome there and then."""
    begin = time.perf_counter()
    try:
        result = function(ref)
    except WsiAtsError as error:
        trace = "".join(traceback.format_exception(error))
        return Outcome(ref, error=str(error), trace=trace, seconds=time.perf_counter() - begin)
    return Outcome(ref, result, seconds=time.perf_counter() - begin)


def _unforeseen(ref: SlideRef, future: Future[Outcome[Any]], error: BaseException) -> Outcome[Any]:
    """Outcome of a task that ended in an error nobody raised on purpose."""
    trace = "".join(traceback.format_exception(type(error), error, future.traceback()))
    text = f"{ref.path}: {type(error).__name__}: {error}"
    return Outcome(ref, error=" ".join(text.split()), trace=trace)
