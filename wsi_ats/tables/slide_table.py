"""Tables of slides, with a path or the name of a slide near the table in each row, and tables of labels."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef, composed
from wsi_ats.slides.dicom import read_instance
from wsi_ats.tables.columns import SlideTable, file_id, slide_id
from wsi_ats.tables.folders import listed, looks_like_dicom, slides_of, walk
from wsi_ats.tasks.registry import DEFAULT_TASK


def read_slide_table(
    path: Path, label_column: str | None, task: str, *, awaited: bool = False
) -> list[SlideRef]:
    """Read a table of slides.

    Parameters
    ----------
    path
        The table. Paths in it are relative to its folder; a row without a path names a slide in or below that
        folder.
    label_column
        The label column, or several joined by commas; ``None`` for ``label``, if there is one.
    task
        Name of the task, which joins several columns.
    awaited
        Whether slides may still be missing; then rows that have no path and no slide yet are left out.

    Raises
    ------
    ManifestError
        When the table cannot be understood, or its slides do not exist.
    """
    table = SlideTable.read(path, empty=awaited)
    if not {"slide", "file"} & set(table.columns):
        raise ManifestError(f"{path}: a slide table needs a column path or slide_id; found {table.found}")
    # Here only a column called "label" is the label, because slide tables have many other columns.
    named = label_column is not None or "label" in table.columns
    labels = table.labels(label_column, task) if named else None
    files = _SlidesBeside(path)
    refs = []
    for i in range(len(next(iter(table.rows.values())))):
        file, name = table.value("file", i), table.value("slide", i)
        if file is not None:
            location = file if "://" in file else str(path.parent / _as_here(file, path, i))
        elif name is not None:
            location = files.find(slide_id(name))
            if awaited and location in files.lost:
                continue
        else:
            raise ManifestError(f"{path}, row {i + 1}: names neither a path nor a slide_id")
        identity = SlideRef.from_path(location).id if name is None else slide_id(name)
        case = table.case(i) or identity
        label = None if labels is None else labels[i]
        ref = SlideRef(identity, location, case, label, table.split(i), table.mpp(i))
        refs.append(replace(ref, downsample=table.downsample(i)))
    if awaited:
        return refs
    if files.lost:
        raise ManifestError(
            f"{path}: names no path for {len(files.lost)} slides that are not at or below "
            f"{path.parent}: {listed(files.lost)}; add a column path, or give the slides' folder as "
            "the source and this table with --labels"
        )
    check_series(refs, str(path))
    if not any("://" in ref.path or Path(ref.path).exists() for ref in refs):
        raise ManifestError(
            f"{path}: none of its {len(refs)} slides exists, for example {refs[0].path}; paths are "
            "relative to the table's own folder"
        )
    return refs


def check_series(refs: Sequence[SlideRef], source: str) -> None:
    """Check that each DICOM slide is named once: any of its files stands for the whole slide.

    Parameters
    ----------
    refs
        The slides.
    source
        The table, or the sources, that they come from.

    Raises
    ------
    ManifestError
        When two slides are files of one series, or a file is no level of a slide.
    """
    first: dict[tuple[Path, str], SlideRef] = {}
    for ref in refs:
        file = Path(ref.path)
        instance = read_instance(file) if looks_like_dicom(file) else None
        if instance is None:
            continue
        if not instance.is_level:
            raise ManifestError(
                f"{source}: {ref.path} is not a level of a slide, but {instance.other}; remove it"
            )
        other = first.setdefault((file.parent, instance.series), ref)
        if other is not ref:
            raise ManifestError(
                f"{source}: {other.path} and {ref.path} are files of one slide (SeriesInstanceUID "
                f"{instance.series}); name one of them"
            )


def _as_here(file: str, table: Path, row: int) -> str:
    """Return a path in this machine's form: with slashes instead of Windows' backslashes."""
    if os.sep == "\\" or "\\" not in file or (table.parent / file).exists():
        return file
    path = PureWindowsPath(file)
    if path.anchor:
        raise ManifestError(
            f"{table}, row {row + 1}: {file!r} is a Windows path; give the file's path on this machine"
        )
    return path.as_posix()


class _SlidesBeside:
    """The slides in or below a table's folder, searched once and only if needed."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._paths: dict[str, list[str]] | None = None
        self.lost: list[str] = []

    def find(self, name: str) -> str:
        """Return the path of a slide; collect missing ones in ``lost``, so that one error names them all."""
        if self._paths is None:
            self._paths = defaultdict(list)
            for ref in slides_of(walk(self._table.parent))[0]:
                self._paths[ref.id].append(ref.path)
        paths = self._paths.get(name, [])
        if len(paths) > 1:
            raise ManifestError(f"{self._table}: {name!r} may be {paths[0]} or {paths[1]}; add a column path")
        if not paths:
            self.lost.append(name)
            return name
        return paths[0]


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
