"""The slides of one local source: a file, a folder, a glob or a table."""

from __future__ import annotations

import glob
from pathlib import Path

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.storage import is_zarr
from wsi_ats.tables.folders import TABLE_SUFFIXES, expand, looks_like_dicom, slides_of, walk
from wsi_ats.tables.slide_table import read_slide_table
from wsi_ats.tasks.registry import DEFAULT_TASK


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
    folder = Path(source)
    return search(source, growing=folder if folder.is_dir() else folder.parent)[0]


def search(source: str | Path, *, growing: Path | None = None) -> tuple[list[SlideRef], list[str]]:
    """List the slides of a source, and the DICOM files that are left out, with reasons.

    Parameters
    ----------
    source
        As in :func:`find_slides`.
    growing
        A folder in which more slides may arrive; see :func:`wsi_ats.slides.dicom.find_series`.

    Raises
    ------
    ManifestError
        As in :func:`find_slides`.
    """
    path = Path(source)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return read_slide_table(path, None, DEFAULT_TASK, awaited=True), []
    if path.is_file() and looks_like_dicom(path):
        return slides_of([path])
    if path.is_file() or (path.is_dir() and is_zarr(path)):
        return [SlideRef.from_path(path)], []
    if path.is_dir():
        return slides_of(walk(path), growing)
    if glob.has_magic(str(source)):
        return slides_of(expand(str(source)), growing)
    raise ManifestError(f"{source}: no such file or folder")
