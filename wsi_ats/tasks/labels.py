"""Parse parts of labels: numbers, flags, and rows of several columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

from wsi_ats.errors import ManifestError

_FLAGS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}


def number_of(text: str, expected: str, *, label: str | None = None) -> float:
    """Read a finite number.

    Parameters
    ----------
    text
        The number.
    expected
        Description of a valid label, for the message.
    label
        The whole label, if the number is only a part of it.

    Raises
    ------
    ManifestError
        When the text is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        found = text if label is None else label
        raise ManifestError(f"label is {found!r}, expected {expected} (with a decimal point)")
    return number


def flag_of(text: str) -> float | None:
    """Read yes (1) or no (0); ``None`` if it is neither."""
    return _FLAGS.get(text.lower())


def column_flag(text: str, column: str) -> float:
    """Read yes (1) or no (0) in a column.

    Raises
    ------
    ManifestError
        When it is neither.
    """
    flag = flag_of(text)
    if flag is None:
        raise ManifestError(f"{column} is {text!r}, expected 1 or 0, or nothing if it is unknown")
    return flag


def join_rows(
    columns: Mapping[str, Sequence[str | None]], join: Callable[[Mapping[str, str | None]], str | None]
) -> list[str | None]:
    """Make one label per row.

    Parameters
    ----------
    columns
        As in :meth:`wsi_ats.tasks.base.Task.join`.
    join
        Function that makes the label of one row.

    Raises
    ------
    ManifestError
        When a text is of a wrong type; the message names the row, counted from 1.
    """
    labels = []
    for row, texts in enumerate(zip(*columns.values(), strict=True), 1):
        try:
            labels.append(join(dict(zip(columns, texts, strict=True))))
        except ManifestError as error:
            raise ManifestError(f"row {row}: {error}") from error
    return labels


def refuse_columns(task: str, columns: Iterable[str]) -> NoReturn:
    """Refuse several columns for a task whose labels have one column."""
    raise ManifestError(
        f"{task} has its label in one column, not in {', '.join(columns)}; name one, or set model.task to a "
        "task whose label is in several columns"
    )


def check_known(label: str, found: Iterable[str], names: Sequence[str]) -> None:
    """Refuse a label with names that the model does not know.

    Parameters
    ----------
    label
        Label as written.
    found
        Names in the label.
    names
        Names that the model knows.

    Raises
    ------
    ManifestError
        When names are unknown; the message lists them and the known ones.
    """
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ManifestError(
            f"label is {label!r}, but {', '.join(map(repr, unknown))} is not one of {', '.join(names)};"
            " correct it, or train on slides with every name"
        )
