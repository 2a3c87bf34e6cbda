"""Quick starts and ends of processes, in spite of the many objects of torch and timm."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# New objects after which Python looks for unused cycles. At its 700, a sixth of the time to import torch and
# timm goes into looking.
_NEW_OBJECTS = 10_000


@contextmanager
def quick() -> Iterator[None]:
    """Start the process quickly, and end it at once if the context is left with an exit code.

    To free the objects of torch and timm one by one would take more than a second. All else happens as at any
    end: threads are waited for, functions registered with :mod:`atexit` are called, and output is flushed.
    """
    codes: list[int] = []
    _prepare(codes)
    try:
        yield
    except SystemExit as ending:
        if isinstance(ending.code, int):
            codes.append(ending.code)
        raise


def dask_setup(worker: object) -> None:  # noqa: ARG001
    """Do the same for the process of a worker; Dask calls it when the worker starts."""
    _prepare([0])  # nobody reads the exit code of a worker


def _prepare(codes: list[int]) -> None:
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(_end, codes)  # called last, because others register later


def _end(codes: list[int]) -> None:
    for code in codes:
        logging.shutdown()  # registered before us, so it would be called after us
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
