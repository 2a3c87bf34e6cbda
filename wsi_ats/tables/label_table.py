"""Tables of labels, by slide or by patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import composed
from wsi_ats.tables.columns import SlideTable, file_id, slide_id
from wsi_ats.tasks.registry import DEFAULT_TASK


@dataclass(frozen=True, slots=True)
class Label:
    """A row of a label table.

    Parameters
    ----------
    label, case, split, mpp
        As in :class:`~wsi_ats.slides.base.SlideRef`; ``None`` if the table gives no value.
    """

    label: str | None
    case: str | None
    split: str | None
    mpp: float | None


@dataclass(frozen=True, slots=True)
class Labels:
    """A label table.

    Parameters
    ----------
    by_case
        Whether the keys of ``rows`` are patients rather than slides.
    rows
        Rows by slide or patient, in the table's order.
    """

    by_case: bool
    rows: Mapping[str, Label]


def read_labels(path: str | Path, *, column: str | None = None, task: str = DEFAULT_TASK) -> Labels:
    """Read a table of labels.

    Parameters
    ----------
    path
        CSV with a label and a slide or a patient in each row. Slides may be named with or without the file's
        extension.
    column
        The label column, or several joined by commas; by default ``label``, or the only column without
        another meaning.
    task
        Name of the task, which joins several columns.

    Raises
    ------
    ManifestError
        When columns are missing or cannot be joined, or two rows of one slide or patient differ.
    """
    table = SlideTable.read(path)
    labels = table.labels(column, task)
    if labels is None:
        raise ManifestError(
            f"{path}: has no column 'label'; found {table.found}. Rename the column that holds the "
            "class to 'label', or name it with --label-column"
        )
    key = next((key for key in ("slide", "file", "case") if key in table.columns), None)
    if key is None:
        raise ManifestError(f"{path}: a label table needs a column slide_id or case_id; found {table.found}")
    rows: dict[str, Label] = {}
    for i, label in enumerate(labels):
        name = table.value(key, i)
        if name is None:
            raise ManifestError(f"{path}, row {i + 1}: names no slide and no patient")
        name = {"file": file_id, "slide": slide_id, "case": composed}[key](name)
        row = Label(label, table.case(i), table.split(i), table.mpp(i))
        if rows.setdefault(name, row) != row:
            raise ManifestError(f"{path}, row {i + 1}: {name!r} is {row} here and {rows[name]} above")
    return Labels(key == "case", rows)
