"""Metrics of a training for TensorBoard (``--tensorboard``)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from wsi_ats.errors import not_installed
from wsi_ats.tables.files import read_csv

FOLDER = "tensorboard"


def check_tensorboard() -> None:
    """Refuse ``--tensorboard`` if TensorBoard is not installed.

    Raises
    ------
    SettingsError
        With the command that installs it.
    """
    if find_spec("tensorboard") is None:
        raise not_installed("tensorboard", "tensorboard", "--tensorboard")


@contextmanager
def writing_events(out: Path, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Write the rows of a run's ``metrics.csv`` to its folder ``tensorboard`` as well.

    Parameters
    ----------
    out
        Folder of the run. ``tensorboard`` is emptied, and rows of an earlier part of the run are written
        again, so that each row appears once wherever the run was stopped.
    wanted
        Whether to write anything.

    Yields
    ------
    function
        Call it when rows have been added; empty cells are left out.
    """
    if not wanted:
        yield lambda: None
        return
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(out / FOLDER, ignore_errors=True)
    written = 0

    def update() -> None:
        nonlocal written
        columns = read_csv(out / "metrics.csv")
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row in rows[written:]:
            for name, value in row.items():
                if value and name not in {"epoch", "phase"}:
                    writer.add_scalar(name, float(value), int(float(row["epoch"])))
        written = len(rows)
        writer.flush()

    with SummaryWriter(str(out / FOLDER)) as writer:
        yield update
        update()
