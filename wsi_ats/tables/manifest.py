"""Which slides: a folder, a glob, a file or a table becomes a list of references.

Tables of several tools are read as they are. A column is known by any of its names, in any case:

=========  ================================  ==================================================
meaning    names                             written by
=========  ================================  ==================================================
slide      slide_id                          this library, CLAM
file       path, filename, wsi               this library, STAMP's slide table, TRIDENT
patient    case_id, patient                  this library, CLAM, STAMP's two tables
label      label (or the one you name)       this library, CLAM, STAMP's clinical table
split      split                             this library
mpp        mpp                               this library, TRIDENT
=========  ================================  ==================================================

A label that is empty or one of ``nan``, ``na``, ``n/a``, ``none``, ``null``, ``<na>`` means: not known. Where
one of these words stands beside other labels a warning says so, for it may be the name of a class.
The head of each task's module (:mod:`wsi_ats.tasks`) says how its labels are written; several columns are
joined to one label.
"""

from __future__ import annotations

import difflib
import glob
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef, composed
from wsi_ats.slides.dicom import SUFFIXES as _DICOM
from wsi_ats.slides.dicom import find_series, is_dicom, read_instance
from wsi_ats.slides.storage import is_remote, is_zarr
from wsi_ats.tables.files import read_csv
from wsi_ats.tasks.registry import DEFAULT_TASK, task_named

# What folders are searched for: OpenSlide's formats. A file that is named outright may end in anything.
SLIDE_SUFFIXES = frozenset(
    {".bif", ".czi", ".dcm", ".dicom", ".mrxs", ".ndpi", ".qptiff", ".scn", ".svs", ".svslide", ".tif"}
    | {".tiff", ".vms", ".vmu"}
)
# A folder that is one slide: an OME-Zarr image.
_ZARR = ".zarr"
# What counts as a slide when it is met: Olympus's files will be refused by name rather than passed over.
_MET = SLIDE_SUFFIXES | {_ZARR, ".vsi"}
# Tables. Excel files are among them to be refused as tables, with advice, not as damaged slides.
_TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".xls", ".xlsx"})
_NAMES = {
    "slide": ("slide_id",),
    "file": ("path", "filename", "wsi"),
    "case": ("case_id", "patient"),
    "label": ("label",),
    "split": ("split",),
    "mpp": ("mpp",),
}
_MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "<na>"})
_SPLITS = ("train", "val", "test")
_SHOWN = 5  # names that a message lists before it says "and n more"

_log = logging.getLogger(__name__)


def read_manifest(
    source: str | Path,
    *,
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = DEFAULT_TASK,
    splits: str | Path | None = None,
    mpp: float | None = None,
) -> list[SlideRef]:
    r"""List slides.

    Slides that have no label keep ``label=None``, and labels that have no slide are left out; both are
    logged as warnings with their number. :func:`wsi_ats.tables.labels.check_labels` says
    whether enough is left to train.

    Parameters
    ----------
    source
        A slide, a folder (searched with all below it that is not hidden), a glob (``**`` too) or a table.
        Paths in a table are relative to the table; a row without a path names a slide at or below the
        table's folder.
        DICOM files of one series are one slide, named as :func:`wsi_ats.slides.dicom.find_series` says; they
        are found by their content where their names have no ending. DICOM files that are no whole-slide
        images are left out, which is logged as a warning. A folder that is an OME-Zarr image, or whose name
        ends in ``.zarr``, is one slide, named without that ending or ``.ome.zarr``. Slides, folders and globs
        may be URLs, such as ``s3://bucket/scans/``; web servers list no folders.
    labels
        A table of labels, joined by slide if it names slides, else by patient. It may also give
        patient, split and mpp.
    label_column
        The column that holds the label, where it is not called ``label``. Several, joined by commas, where
        the task has labels of several columns; see :meth:`wsi_ats.tasks.base.Task.join`.
    task
        ``model.task`` of the settings: how several columns are joined.
    splits
        CLAM's ``splits_k.csv``: columns ``train``, ``val``, ``test`` of slides, all of which must be there.
        Slides that it does not name are left out, which is logged as a warning.
    mpp
        Micrometres per level-0 pixel of slides for which no table gives a value of its own.

    Returns
    -------
    list of SlideRef
        Folders and globs sorted by path, tables in their own order. Never empty.

    Raises
    ------
    ManifestError
        When nothing is found, a table cannot be understood, two slides have one name, or no label
        belongs to any slide.
    MppError
        When an mpp is not plausible.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.svs").write_text("")
    >>> _ = (folder / "labels.csv").write_text("slide_id,case_id,label\na,patient 1,tumour\n")
    >>> [ref] = read_manifest(folder, labels=folder / "labels.csv", mpp=0.5)
    >>> ref.id, ref.case, ref.label, ref.mpp
    ('a', 'patient 1', 'tumour', 0.5)
    """
    path = Path(source)
    remote = is_remote(str(source))
    is_table = not remote and path.is_file() and path.suffix.lower() in _TABLE_SUFFIXES
    if label_column is not None and labels is None and not is_table:
        raise ManifestError(f"column {label_column!r} of which table? {source} is none; give --labels too")
    if is_table:
        refs = _from_table(path, label_column if labels is None else None, task)
    elif remote:
        refs = _from_store(str(source))
    else:
        refs, left_out = _find(source)
        _warn_of_left_out(left_out, str(source))
    if not refs:
        raise ManifestError(
            f"{source}: no slides found; looked for files ending in {', '.join(sorted(SLIDE_SUFFIXES))} "
            f"and folders ending in {_ZARR}"
        )
    _check_ids(refs, str(source))
    refs = with_tables(refs, labels=labels, label_column=label_column, task=task, splits=splits)
    others = [ref.id for ref in refs if splits is not None and ref.split is None]
    if others:
        _log.warning("%s names no split of %d slides, left out: %s", splits, len(others), _list(others))
        refs = [ref for ref in refs if ref.split is not None]
    if mpp is not None:
        refs = [ref if ref.mpp is not None else replace(ref, mpp=mpp) for ref in refs]
    missing = [ref.id for ref in refs if ref.label is None]
    if missing and len(missing) < len(refs):
        names = _list(missing)
        _log.warning("%d of %d slides have no label: %s", len(missing), len(refs), names)
    return refs


def find_slides(source: str | Path) -> list[SlideRef]:
    """List the slides that a source on this machine holds now, for whoever looks again and again.

    Unlike :func:`read_manifest` it takes what is there: there may be no slides yet, two may have one name,
    and those of a table need not have come.

    Parameters
    ----------
    source
        A slide, a folder, a glob or a table, as in :func:`read_manifest`. Rows of a table that name no path
        and no slide at or below the table's folder are left out.

    Returns
    -------
    list of SlideRef
        Folders and globs sorted by path, tables in their own order.

    Raises
    ------
    ManifestError
        When a file or folder is not there or cannot be searched, or a table cannot be understood.
    MppError
        When an mpp is not plausible.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> find_slides(folder)
    []
    >>> _ = (folder / "a.svs").write_text("")
    >>> [ref.id for ref in find_slides(folder)]
    ['a']
    """
    folder = Path(source)
    return _find(source, growing=folder if folder.is_dir() else folder.parent)[0]


def find_slides_among(files: Sequence[Path]) -> list[SlideRef]:
    """List the slides that files of this machine are, of which several may be one.

    Parameters
    ----------
    files
        Such as the DICOM files of a folder, each a level of a slide. Those that are no slides are left out,
        which is logged as a warning.

    Raises
    ------
    ManifestError
        When none of them is a slide.
    """
    refs, left_out = _refs(files)
    if not refs:
        raise ManifestError(f"none of these files is a slide: {_list(left_out or map(str, files))}")
    _warn_of_left_out(left_out, f"of {len(files)} files")
    return refs


def _warn_of_left_out(left_out: Sequence[str], source: str) -> None:
    if left_out:
        _log.warning("%s: %d DICOM files are left out: %s", source, len(left_out), _list(left_out))


def _find(source: str | Path, *, growing: Path | None = None) -> tuple[list[SlideRef], list[str]]:
    """Slides of a source, and the files of their kind that are none; see :func:`find_series`."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() in _TABLE_SUFFIXES:
        return _from_table(path, None, DEFAULT_TASK, awaited=True), []
    if path.is_file() and _is_dicom(path):
        return _refs([path])
    if path.is_file() or (path.is_dir() and is_zarr(path)):
        return [SlideRef.from_path(path)], []
    if path.is_dir():
        return _refs(_walk(path), growing)
    if glob.has_magic(str(source)):
        return _refs(_expand(str(source)), growing)
    raise ManifestError(f"{source}: no such file or folder")


def with_tables(
    refs: Sequence[SlideRef],
    *,
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = DEFAULT_TASK,
    splits: str | Path | None = None,
    split: str | None = None,
) -> list[SlideRef]:
    """Give slides that are known already what tables say of them: label, patient, split, mpp.

    Parameters
    ----------
    refs
        The slides; their files need not be there.
    labels, label_column, task, splits
        As in :func:`read_manifest`.
    split
        The one of ``splits`` that is of interest: slides of others need not be known.

    Raises
    ------
    ManifestError
        When a table cannot be understood, none of its rows belongs to any slide, or a table of splits names
        slides that are not there.
    """
    if labels is not None:
        refs = _join(refs, read_labels(labels, column=label_column, task=task), str(labels))
    if splits is not None:
        split_of = match_splits(read_splits(splits), [ref.id for ref in refs], str(splits), split=split)
        refs = [replace(ref, split=split_of.get(ref.id, ref.split)) for ref in refs]
    return list(refs)


@dataclass(frozen=True, slots=True)
class Label:
    """A row of a label table.

    Parameters
    ----------
    label, case, split, mpp
        As in :class:`~wsi_ats.slides.base.SlideRef`; ``None`` for what the table does not say.
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
        Whether ``rows`` are named after patients rather than slides.
    rows
        By slide or patient, in the table's order.
    """

    by_case: bool
    rows: Mapping[str, Label]


def read_labels(path: str | Path, *, column: str | None = None, task: str = DEFAULT_TASK) -> Labels:
    """Read a table of labels.

    Parameters
    ----------
    path
        CSV with a label and a slide or a patient in each row. Slides may be named with or without
        the file's ending.
    column
        The column that holds the label, or several joined by commas; by default ``label``, or the only
        column that has no other meaning.
    task
        How several columns are joined.

    Raises
    ------
    ManifestError
        When columns are missing or cannot be joined, or two rows say different things of one slide or
        patient.
    """
    table = _Table.read(path)
    labels = table.labels(column, task)
    if labels is None:
        raise ManifestError(
            f"{path}: has no column 'label'; found {table.found}. Rename the column that holds the "
            "class to 'label', or name it with --label-column"
        )
    key = next((key for key in ("slide", "file", "case") if key in table.columns), None)
    if key is None:
        raise ManifestError(f"{path}: needs a column slide_id or case_id; found {table.found}")
    rows: dict[str, Label] = {}
    for i, label in enumerate(labels):
        name = table.value(key, i)
        if name is None:
            raise ManifestError(f"{path}, row {i + 1}: names no slide and no patient")
        name = {"file": _file_id, "slide": _slide_id, "case": composed}[key](name)
        row = Label(label, table.case(i), table.split(i), table.mpp(i))
        if rows.setdefault(name, row) != row:
            raise ManifestError(f"{path}, row {i + 1}: {name!r} is {row} here and {rows[name]} above")
    return Labels(key == "case", rows)


def read_splits(path: str | Path) -> dict[str, str]:
    """Read CLAM's ``splits_k.csv``: a column of slides for each of ``train``, ``val``, ``test``.

    Returns
    -------
    dict
        Split by slide.

    Raises
    ------
    ManifestError
        When there are other columns, or a slide is in two of them.
    """
    columns = {name.lower(): values for name, values in read_csv(path).items()}
    # An unnamed column is the row number that pandas writes.
    others = [name for name in columns if name not in {*_SPLITS, "", "unnamed: 0"}]
    if others or "train" not in columns:
        raise ManifestError(
            f"{path}: a table of splits has the columns train, val and test; found "
            + ", ".join(filter(None, columns))
            + (f"; rename or remove {', '.join(map(repr, others))}" if "train" in columns else "")
        )
    splits: dict[str, str] = {}
    for split in _SPLITS:
        for name in columns.get(split, []):
            slide = _slide_id(name)
            if slide and splits.setdefault(slide, split) != split:
                raise ManifestError(f"{path}: {slide!r} is in {splits[slide]} and in {split}")
    return splits


def match_splits(
    splits: Mapping[str, str], known: Collection[str], source: str, *, split: str | None = None
) -> dict[str, str]:
    """Find the slides that a table of splits names.

    Parameters
    ----------
    splits
        Split by slide, as :func:`read_splits` gives it. ``104.0`` is slide ``104`` where there is no other:
        pandas writes whole numbers so in a column that has gaps.
    known
        Ids of the slides.
    source
        Named in messages.
    split
        The one that is of interest: slides of others need not be known.

    Returns
    -------
    dict
        Split by the slide's own id.

    Raises
    ------
    ManifestError
        When a slide is not known, or in two splits by two ways to write its id.

    Examples
    --------
    >>> match_splits({"103": "train", "104.0": "val"}, ["103", "104", "105"], "splits_0.csv")
    {'103': 'train', '104': 'val'}
    """
    matched: dict[str, str] = {}
    ids, unknown, renamed = set(known), [], []
    for name, of in splits.items():
        slide = name if name in ids else name.removesuffix(".0")
        if slide not in ids:
            if split in {None, of}:
                unknown.append(name)
            continue
        if matched.setdefault(slide, of) != of:
            raise ManifestError(f"{source}: {slide!r} is in {matched[slide]} and, as {name!r}, in {of}")
        renamed += [name] if slide != name else []
    if unknown:
        raise ManifestError(
            f"{source}: {len(unknown)} of its {len(splits)} slides are not among the {len(ids)} given: "
            f"{_list([_with_nearest(name, ids) for name in unknown])}; mend or remove them"
        )
    if renamed:
        _log.warning("%s: ids with '.0' at the end are taken without it: %s", source, _list(renamed))
    return matched


def _with_nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"{name!r} (nearest: {near[0]!r})" if near else repr(name)


@dataclass(frozen=True, slots=True)
class _Table:
    """A CSV file and the columns in it that have a meaning here."""

    path: Path
    rows: dict[str, list[str]]
    columns: dict[str, list[str]]

    @classmethod
    def read(cls, path: str | Path, *, empty: bool = False) -> _Table:
        rows = read_csv(path)
        known: dict[str, list[str]] = {}
        for meaning, names in _NAMES.items():
            found = [name for name in rows if name.lower() in names]
            if len(found) > 1:
                raise ManifestError(f"{path}: columns {found} mean the same; keep one")
            if found:
                known[meaning] = rows[found[0]]
        if not (empty or next(iter(rows.values()))):
            raise ManifestError(f"{path}: has no rows below its first line ({', '.join(rows)})")
        return cls(Path(path), rows, known)

    @property
    def found(self) -> str:
        return ", ".join(self.rows)

    def labels(self, column: str | None, task: str) -> list[str | None] | None:
        """Labels by row from the columns asked for, ``label``, or the only one left; else ``None``."""
        if column is not None:
            names = [column] if column in self.rows else [name.strip() for name in column.split(",")]
            for name in names:
                if name not in self.rows:
                    raise ManifestError(f"{self.path}: has no column {name!r}; found {self.found}")
            if len(names) == 1:
                return self._texts(names[0])
            try:
                return task_named(task).join({name: self._texts(name) for name in names})
            except ManifestError as error:
                raise ManifestError(f"{self.path}: {error}") from error
        if "label" in self.columns:
            return self._known_labels("label", self.columns["label"])
        # An unnamed column is the row number that pandas writes.
        known = {name for names in _NAMES.values() for name in names} | {""}
        others = [name for name in self.rows if name.lower() not in known]
        return self._texts(others[0]) if len(others) == 1 else None

    def _texts(self, name: str) -> list[str | None]:
        return self._known_labels(name, self.rows[name])

    def _known_labels(self, name: str, texts: Sequence[str]) -> list[str | None]:
        labels = [_known(text) for text in texts]
        words = Counter(text for text, label in zip(texts, labels, strict=True) if text and label is None)
        if not any(labels):
            return labels
        for word, number in words.items():
            _log.warning(
                "%s: %d rows of column %r are %r, which means that the label is not known; if it is a class, "
                "give it another name in the table, such as 'no finding'",
                self.path,
                number,
                name,
                word,
            )
        return labels

    def value(self, meaning: str, row: int) -> str | None:
        return _known(self.columns[meaning][row]) if meaning in self.columns else None

    def case(self, row: int) -> str | None:
        text = self.value("case", row)
        return text and composed(text)

    def split(self, row: int) -> str | None:
        text = self.value("split", row)
        if text is not None and text.lower() not in _SPLITS:
            raise ManifestError(
                f"{self.path}, row {row + 1}: split is {text!r}, expected one of {', '.join(_SPLITS)}"
            )
        return text and text.lower()

    def mpp(self, row: int) -> float | None:
        text = self.value("mpp", row)
        try:
            # Spreadsheets of some countries write a decimal comma.
            return None if text is None else float(text.replace(",", "."))
        except ValueError as error:
            raise ManifestError(
                f"{self.path}, row {row + 1}: mpp is {text!r}, expected micrometres per pixel such as 0.25"
            ) from error


def _from_table(path: Path, label_column: str | None, task: str, *, awaited: bool = False) -> list[SlideRef]:
    """Slides of a table; those that are awaited need not be there."""
    table = _Table.read(path, empty=awaited)
    if not {"slide", "file"} & set(table.columns):
        raise ManifestError(f"{path}: a slide table needs a column path or slide_id; found {table.found}")
    # Only a column that is called so is a label here: slide tables hold all kinds of other columns.
    named = label_column is not None or "label" in table.columns
    labels = table.labels(label_column, task) if named else None
    files = _Beside(path)
    refs = []
    for i in range(len(next(iter(table.rows.values())))):
        file, name = table.value("file", i), table.value("slide", i)
        if file is not None:
            location = file if "://" in file else str(path.parent / _as_here(file, path, i))
        elif name is not None:
            location = files.find(_slide_id(name))
            if awaited and location in files.lost:
                continue
        else:
            raise ManifestError(f"{path}, row {i + 1}: names neither a path nor a slide_id")
        identity = SlideRef.from_path(location).id if name is None else _slide_id(name)
        case = table.case(i) or identity
        label = None if labels is None else labels[i]
        refs.append(SlideRef(identity, location, case, label, table.split(i), table.mpp(i)))
    if awaited:
        return refs
    if files.lost:
        raise ManifestError(
            f"{path}: names no path for {len(files.lost)} slides that are not at or below "
            f"{path.parent}: {_list(files.lost)}; add a column path, or give the slides' folder as "
            "the source and this table with --labels"
        )
    _check_series(refs, path)
    if not any("://" in ref.path or Path(ref.path).exists() for ref in refs):
        raise ManifestError(
            f"{path}: none of its {len(refs)} slides exists, for example {refs[0].path}; paths are "
            "relative to the table's own folder"
        )
    return refs


def _check_series(refs: Sequence[SlideRef], table: Path) -> None:
    """Check that a table names each DICOM slide once: OpenSlide reads all of it from any of its files."""
    first: dict[tuple[Path, str], SlideRef] = {}
    for ref in refs:
        file = Path(ref.path)
        instance = read_instance(file) if _is_dicom(file) else None
        if instance is None:
            continue
        if not instance.is_level:
            raise ManifestError(
                f"{table}: {ref.path} is no level of a slide, but {instance.other}; remove it"
            )
        other = first.setdefault((file.parent, instance.series), ref)
        if other is not ref:
            raise ManifestError(
                f"{table}: {other.path} and {ref.path} are files of one slide (SeriesInstanceUID "
                f"{instance.series}); name one of them"
            )


def _as_here(file: str, table: Path, row: int) -> str:
    """A path as this machine writes it; with the backslashes of Windows, the same with slashes."""
    if os.sep == "\\" or "\\" not in file or (table.parent / file).exists():
        return file
    path = PureWindowsPath(file)
    if path.anchor:
        raise ManifestError(
            f"{table}, row {row + 1}: {file!r} is a path on Windows; write it as this machine sees the file"
        )
    return path.as_posix()


class _Beside:
    """Slides at or below a table's folder, searched once and only if need be."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._paths: dict[str, list[str]] | None = None
        self.lost: list[str] = []

    def find(self, name: str) -> str:
        """Path of a slide; one that is not there is noted in ``lost``, to name all of them at once."""
        if self._paths is None:
            self._paths = defaultdict(list)
            for ref in _refs(_walk(self._table.parent))[0]:
                self._paths[ref.id].append(ref.path)
        paths = self._paths.get(name, [])
        if len(paths) > 1:
            raise ManifestError(f"{self._table}: {name!r} may be {paths[0]} or {paths[1]}; add a column path")
        if not paths:
            self.lost.append(name)
            return name
        return paths[0]


def _from_store(url: str) -> list[SlideRef]:
    """Slides behind a URL; nothing is read of them."""
    from wsi_ats.slides.remote import find_files

    file = PurePath(url.partition("?")[0])
    if file.suffix.lower() in _TABLE_SUFFIXES:
        raise ManifestError(f"{url}: tables are read from this machine; copy it, its paths may be URLs")
    if file.suffix == _ZARR:
        return [SlideRef.from_path(url)]
    files = find_files(url)
    if files == [url]:
        return [SlideRef.from_path(url)]
    # Of the thousands of files in a folder of Zarr, none is another slide.
    slides = {
        head + _ZARR if inside else each
        for each in files
        for head, inside, _ in [each.partition(f"{_ZARR}/")]
    }
    refs = [
        SlideRef.from_path(each)
        for each in sorted(slides)
        if PurePath(each).suffix.lower() in _MET and not PurePath(each).name.startswith(".")
    ]
    if not refs:
        raise ManifestError(
            f"{url}: no slides found; looked for {', '.join(sorted(SLIDE_SUFFIXES))}, {_ZARR}"
        )
    return refs


def _refs(files: Iterable[Path], growing: Path | None = None) -> tuple[list[SlideRef], list[str]]:
    """Slides among files, sorted by path, and DICOM files that are none; see :func:`find_series`."""
    refs: list[SlideRef] = []
    dicom: list[Path] = []
    for file in set(files):
        # macOS leaves a "._name.svs" beside each file that it copies to a foreign disk.
        if file.name.startswith("."):
            continue
        if _is_dicom(file):
            dicom.append(file)
        # A folder among them is a slide: OME-Zarr.
        elif file.suffix.lower() in _MET or file.is_dir():
            refs.append(SlideRef.from_path(file))
    series, left_out = find_series(dicom, growing=growing)
    for each in series:
        name = composed(each.name)
        refs.append(SlideRef(id=name, path=str(each.path), case=name))
    return sorted(refs, key=lambda ref: ref.path), left_out


def _is_dicom(file: Path) -> bool:
    """Whether a file is called DICOM, or has no ending, or that of a UID, and is DICOM."""
    ending = file.suffix.lower()
    if ending and ending not in _DICOM and not ending[1:].isdigit():
        return False
    return file.is_file() if ending in _DICOM else is_dicom(file)


def _walk(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise ManifestError(f"{error.filename}: cannot be searched: {error.strerror}") from error

    files: list[Path] = []
    searched: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        # A folder is searched once, by whatever links it can be reached, and a link to one above ends there.
        real = os.path.realpath(parent)
        if real in searched:
            folders.clear()
            continue
        searched.add(real)
        slides = {name for name in folders if is_zarr(Path(parent, name))}
        files += [Path(parent, name) for name in (*names, *slides)]
        # Hidden folders hold what programs that copy have not finished (rsync's partial files), and copies.
        folders[:] = [name for name in folders if not name.startswith(".") and name not in slides]
        folders.sort(key=lambda name: (Path(parent, name).is_symlink(), name))  # links last
    return files


def _expand(pattern: str) -> list[Path]:
    files: list[Path] = []
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)
    slides = {match for match in map(Path, matches) if match.is_dir() and is_zarr(match)}
    for match in map(Path, matches):
        if slides.intersection(match.parents):
            continue  # a part of one
        files += _walk(match) if match.is_dir() and match not in slides else [match]
    return files


def _check_ids(refs: Sequence[SlideRef], source: str) -> None:
    first: dict[str, SlideRef] = {}
    for ref in refs:
        other = first.setdefault(ref.id, ref)
        if other is not ref:
            raise ManifestError(
                f"{source}: two slides are called {ref.id!r}: {other.path} and {ref.path}; rename "
                "one, or give a table with a slide_id for each path"
            )


def _join(refs: Sequence[SlideRef], labels: Labels, source: str) -> list[SlideRef]:
    joined: list[SlideRef] = []
    used: set[str] = set()
    for ref in refs:
        name = ref.case if labels.by_case else ref.id
        row = labels.rows.get(name)
        if row is None:
            joined.append(ref)
            continue
        used.add(name)
        case = row.case or ref.case
        if case != ref.case != ref.id:
            raise ManifestError(
                f"{source}: slide {ref.id!r} is of case {case!r} here and of {ref.case!r} in the slide table"
            )
        split, mpp = row.split or ref.split, ref.mpp if row.mpp is None else row.mpp
        joined.append(replace(ref, case=case, label=row.label, split=split, mpp=mpp))
    if not used:
        what = "case" if labels.by_case else "slide"
        have = [ref.case if labels.by_case else ref.id for ref in refs]
        raise ManifestError(
            f"{source}: no label belongs to any slide. The table has {what} {_list(labels.rows)}; "
            f"the slides have {_list(have)}"
        )
    unused = [name for name in labels.rows if name not in used]
    if unused:
        _log.warning("%s: %d labels have no slide: %s", source, len(unused), _list(unused))
    return joined


def _file_id(text: str) -> str:
    """Slide of a file that a table names."""
    if is_remote(text):
        return SlideRef.from_path(text).id
    return _slide_id((PureWindowsPath if "\\" in text else PurePath)(text).name)


def _slide_id(text: str) -> str:
    """Slide that a table names, with or without the file's ending."""
    if PurePath(text).suffix.lower() in _MET:
        return SlideRef.from_path(text).id
    return composed(text)


def _known(text: str) -> str | None:
    return None if text.lower() in _MISSING else text


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
