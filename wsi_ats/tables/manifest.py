"""The list of slides of a run, from a folder, glob, file or table, with labels and splits.

Tables of several tools are read unchanged. A column may have any of these names, in upper or lower case:

=========  ================================  ==================================================
meaning    names                             written by
=========  ================================  ==================================================
slide      slide_id                          this library, CLAM
file       path, filename, wsi               this library, STAMP's slide table, TRIDENT
patient    case_id, patient                  this library, CLAM, STAMP's two tables
label      label (or a name you give)        this library, CLAM, STAMP's clinical table
split      split                             this library
mpp        mpp                               this library, TRIDENT
=========  ================================  ==================================================

A label is unknown if it is empty or one of ``nan``, ``na``, ``n/a``, ``none``, ``null``, ``<na>``. If one of
these words occurs among other labels, a warning is logged, because it may be the name of a class. The
docstring of each task's module (:mod:`wsi_ats.tasks`) describes the form of its labels; several columns are
joined into one label.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.dicom import is_dicom
from wsi_ats.slides.storage import is_remote, is_zarr
from wsi_ats.tables.folders import (
    SLIDE_SUFFIXES,
    TABLE_SUFFIXES,
    ZARR,
    expand,
    find_in_store,
    find_slides_among,
    listed,
    looks_like_dicom,
    slides_of,
    walk,
    warn_of_left_out,
)
from wsi_ats.tables.slide_table import Labels, check_series, read_labels, read_slide_table
from wsi_ats.tables.split_table import match_splits, read_splits
from wsi_ats.tasks.registry import DEFAULT_TASK

_log = logging.getLogger(__name__)


def read_manifest(
    source: str | Path | Sequence[str | Path],
    *,
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = DEFAULT_TASK,
    splits: str | Path | None = None,
    mpp: float | None = None,
) -> list[SlideRef]:
    r"""List the slides of a source, or of several, with labels and splits.

    Slides without a label keep ``label=None``, and labels without a slide are left out; warnings in the log
    give their numbers. :func:`wsi_ats.tables.labels.check_labels` decides whether enough is left to train.

    Parameters
    ----------
    source
        A slide, a folder (searched with its subfolders, except hidden ones), a glob (including ``**``) or a
        table. Paths in a table are relative to the table; a row without a path names a slide in or below the
        table's folder.

        DICOM files of one series are one slide, named by the rules of
        :func:`wsi_ats.slides.dicom.find_series`; without an extension they are recognised by their content.
        DICOM files that are not whole-slide images are left out, with a warning in the log. A folder that is
        an OME-Zarr image, or whose name ends in ``.zarr``, is one slide, named without ``.zarr`` or
        ``.ome.zarr``.

        Slides, folders and globs may be URLs, such as ``s3://bucket/scans/``; web servers do not list
        folders. Of several sources, each names other slides, and tables of labels are given in ``labels``.
    labels
        A table of labels, joined by slide if it names slides, else by patient. It may also give patient,
        split and mpp.
    label_column
        The label column, if it is not called ``label``; several, joined by commas, for a task with labels in
        several columns; see :meth:`wsi_ats.tasks.base.Task.join`.
    task
        ``model.task`` of the settings, which joins several columns.
    splits
        CLAM's ``splits_k.csv``: columns ``train``, ``val``, ``test`` of slides, which must all exist. Slides
        that it does not name are left out, with a warning in the log.
    mpp
        Micrometres per level-0 pixel of slides for which no table gives a value.

    Returns
    -------
    list of SlideRef
        Slides of folders and globs sorted by path, those of tables in the table's order. Never empty.

    Raises
    ------
    ManifestError
        When nothing is found, a table cannot be understood, two slides have the same name, or no label
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
    sources = [source] if isinstance(source, str | Path) else list(source)
    one_table = len(sources) == 1 and _is_table(sources[0])
    if label_column is not None and labels is None and not one_table:
        raise ManifestError(
            f"the label column {label_column!r} needs a table of labels; give it with --labels"
        )
    if len(sources) == 1:
        refs = _slides_in(sources[0], label_column if labels is None else None, task)
    else:
        refs = _slides_in_all(sources, task)
    # Labels are joined with the slides of all sources at once: no single source has a slide for each label.
    refs = with_tables(refs, labels=labels, label_column=label_column, task=task, splits=splits)
    others = [ref.id for ref in refs if splits is not None and ref.split is None]
    if others:
        _log.warning(
            "%s names no split for %d slides, which are left out: %s", splits, len(others), listed(others)
        )
        refs = [ref for ref in refs if ref.split is not None]
    if mpp is not None:
        refs = [ref if ref.mpp is not None else replace(ref, mpp=mpp) for ref in refs]
    missing = [ref.id for ref in refs if ref.label is None]
    if missing and len(missing) < len(refs):
        _log.warning("%d of %d slides have no label: %s", len(missing), len(refs), listed(missing))
    return refs


def with_tables(
    refs: Sequence[SlideRef],
    *,
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = DEFAULT_TASK,
    splits: str | Path | None = None,
    split: str | None = None,
) -> list[SlideRef]:
    """Add label, patient, split and mpp from tables to known slides.

    Parameters
    ----------
    refs
        The slides; their files do not need to exist.
    labels, label_column, task, splits
        As in :func:`read_manifest`.
    split
        The only split of interest; unknown slides in other splits are ignored.

    Raises
    ------
    ManifestError
        When a table cannot be understood, none of its rows belongs to a slide, or a table of splits names
        unknown slides.
    """
    if labels is not None:
        refs = _join(refs, read_labels(labels, column=label_column, task=task), str(labels))
    if splits is not None:
        split_of = match_splits(read_splits(splits), [ref.id for ref in refs], str(splits), split=split)
        refs = [replace(ref, split=split_of.get(ref.id, ref.split)) for ref in refs]
    return list(refs)


def _is_table(source: str | Path) -> bool:
    path = Path(source)
    return not is_remote(str(source)) and path.is_file() and path.suffix.lower() in TABLE_SUFFIXES


def _slides_in(source: str | Path, label_column: str | None, task: str) -> list[SlideRef]:
    if _is_table(source):
        refs = read_slide_table(Path(source), label_column, task)
    elif is_remote(str(source)):
        refs = find_in_store(str(source))
    else:
        refs, left_out = _search(source)
        warn_of_left_out(left_out, str(source))
    if not refs:
        raise ManifestError(
            f"{source}: no slides found; looked for files ending in {', '.join(sorted(SLIDE_SUFFIXES))} "
            f"and folders ending in {ZARR}"
        )
    return _named_once([(str(source), refs)])


def _slides_in_all(sources: Sequence[str | Path], task: str) -> list[SlideRef]:
    # When a shell expands `*.dcm`, each file may be a level of one slide.
    files = [Path(each) for each in sources if not is_remote(str(each)) and is_dicom(Path(each))]
    others = [each for each in sources if Path(each) not in files]
    found = [(str(each), _slides_in(each, None, task)) for each in others]
    refs = _named_once([*found, ("its files", find_slides_among(files))] if files else found)
    check_series(refs, ", ".join(map(str, sources)))
    return refs


def _named_once(found: Sequence[tuple[str, Sequence[SlideRef]]]) -> list[SlideRef]:
    """Return the slides of all sources, or refuse two of one name."""
    named: dict[str, tuple[str, SlideRef]] = {}
    for source, refs in found:
        for ref in refs:
            where, other = named.setdefault(ref.id, (source, ref))
            if other is not ref:
                raise ManifestError(
                    f"two slides are called {ref.id!r}: {other.path} (named by {where}) and {ref.path} "
                    f"(named by {source}); rename one, name each once, or give a table with a slide_id for "
                    "each path"
                )
    return [ref for _, ref in named.values()]


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
            f"{source}: no label belongs to any slide. The table has {what} {listed(labels.rows)}; "
            f"the slides have {listed(have)}"
        )
    unused = [name for name in labels.rows if name not in used]
    if unused:
        _log.warning("%s: %d labels have no slide: %s", source, len(unused), listed(unused))
    return joined


def find_slides(source: str | Path) -> list[SlideRef]:
    """List the slides that a local source holds at the moment, for a program that watches it.

    Unlike :func:`wsi_ats.tables.manifest.read_manifest`, it accepts conditions that may still change: there
    may be no slides, two slides may have the same name, and slides of a table may be missing.

    Parameters
    ----------
    source
        A slide, a folder, a glob or a table, as in :func:`wsi_ats.tables.manifest.read_manifest`. Rows of a
        table without a path and without a slide in or below the table's folder are left out.

    Returns
    -------
    list of SlideRef
        Slides of folders and globs sorted by path, those of tables in the table's order.

    Raises
    ------
    ManifestError
        When a file or folder is missing or cannot be searched, or a table cannot be understood.
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
    path = Path(source)
    if _is_table(source):
        return read_slide_table(path, None, DEFAULT_TASK, awaited=True)
    return _search(source, growing=path if path.is_dir() else path.parent)[0]


def _search(source: str | Path, *, growing: Path | None = None) -> tuple[list[SlideRef], list[str]]:
    """List the slides of a source that is no table, and the DICOM files that are left out, with reasons.

    More slides may arrive in a folder ``growing``; see :func:`wsi_ats.slides.dicom.find_series`.
    """
    path = Path(source)
    if path.is_file() and looks_like_dicom(path):
        return slides_of([path])
    if path.is_file() or (path.is_dir() and is_zarr(path)):
        return [SlideRef.from_path(path)], []
    if path.is_dir():
        return slides_of(walk(path), growing)
    if glob.has_magic(str(source)):
        return slides_of(expand(str(source)), growing)
    raise ManifestError(f"{source}: no such file or folder")
