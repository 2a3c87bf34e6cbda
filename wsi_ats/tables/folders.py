"""Slides in folders, globs and stores."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef, composed
from wsi_ats.slides.dicom import SUFFIXES as _DICOM
from wsi_ats.slides.dicom import find_series, is_dicom
from wsi_ats.slides.storage import is_zarr

SLIDE_SUFFIXES = frozenset(
    {".bif", ".czi", ".dcm", ".dicom", ".mrxs", ".ndpi", ".qptiff", ".scn", ".svs", ".svslide", ".tif"}
    | {".tiff", ".vms", ".vmu"}
)
"""File extensions searched for in folders: OpenSlide's formats. A slide given by its path may have any."""

ZARR = ".zarr"
"""Extension of a folder that is one slide: an OME-Zarr image."""

SLIDE_ENDINGS = SLIDE_SUFFIXES | {ZARR, ".vsi"}
"""Extensions of slides. Olympus's .vsi is included so that it is refused by name instead of ignored."""

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".xls", ".xlsx"})
"""Extensions of tables. Excel files are included so that they are refused as tables, with advice."""

_SHOWN = 5  # names that a message lists before it says "and n more"

_log = logging.getLogger(__name__)


def find_slides_among(files: Sequence[Path]) -> list[SlideRef]:
    """List the slides among local files; several files may form one slide.

    Parameters
    ----------
    files
        The files, for example the DICOM files of a folder, each a level of a slide. Files that are not slides
        are left out; for DICOM files, with a warning in the log.

    Raises
    ------
    ManifestError
        When none of them is a slide.
    """
    refs, left_out = slides_of(files)
    if not refs:
        raise ManifestError(f"none of these files is a slide: {listed(left_out or map(str, files))}")
    warn_of_left_out(left_out, f"of {len(files)} files")
    return refs


def warn_of_left_out(left_out: Sequence[str], source: str) -> None:
    """Log the DICOM files of a source that are left out, with reasons."""
    if left_out:
        _log.warning("%s: %d DICOM files are left out: %s", source, len(left_out), listed(left_out))


def find_in_store(url: str) -> list[SlideRef]:
    """List the slides at a URL, without reading them.

    Parameters
    ----------
    url
        A slide, a folder or a glob.

    Raises
    ------
    ManifestError
        When it is a table, or there are no slides.
    """
    from wsi_ats.slides.remote import find_files

    file = PurePath(url.partition("?")[0])
    if file.suffix.lower() in TABLE_SUFFIXES:
        raise ManifestError(
            f"{url}: tables must be on this machine; copy it here (the paths in it may be URLs)"
        )
    if file.suffix == ZARR:
        return [SlideRef.from_path(url)]
    files = find_files(url)
    if files == [url]:
        return [SlideRef.from_path(url)]
    # A Zarr folder holds thousands of files, but is only one slide.
    slides = {
        head + ZARR if inside else each for each in files for head, inside, _ in [each.partition(f"{ZARR}/")]
    }
    refs = [
        SlideRef.from_path(each)
        for each in sorted(slides)
        if PurePath(each).suffix.lower() in SLIDE_ENDINGS and not PurePath(each).name.startswith(".")
    ]
    if not refs:
        raise ManifestError(f"{url}: no slides found; looked for {', '.join(sorted(SLIDE_SUFFIXES))}, {ZARR}")
    return refs


def slides_of(files: Iterable[Path], growing: Path | None = None) -> tuple[list[SlideRef], list[str]]:
    """Return the slides among files, sorted by path, and the DICOM files that are not slides, with reasons.

    Parameters
    ----------
    files
        The files; a folder among them is an OME-Zarr image.
    growing
        A folder in which more slides may arrive; see :func:`wsi_ats.slides.dicom.find_series`.
    """
    refs: list[SlideRef] = []
    dicom: list[Path] = []
    for file in set(files):
        # macOS writes a "._name.svs" beside each file that it copies to a foreign file system.
        if file.name.startswith("."):
            continue
        if looks_like_dicom(file):
            dicom.append(file)
        # A folder is an OME-Zarr image.
        elif file.suffix.lower() in SLIDE_ENDINGS or file.is_dir():
            refs.append(SlideRef.from_path(file))
    series, left_out = find_series(dicom, growing=growing)
    for each in series:
        name = composed(each.name)
        refs.append(SlideRef(id=name, path=str(each.path), case=name))
    return sorted(refs, key=lambda ref: ref.path), left_out


def looks_like_dicom(file: Path) -> bool:
    """Return whether a file is DICOM: by its extension or, if that is missing or a number, by its content."""
    ending = file.suffix.lower()
    if ending and ending not in _DICOM and not ending[1:].isdigit():
        return False
    return file.is_file() if ending in _DICOM else is_dicom(file)


def walk(folder: Path) -> list[Path]:
    """List the files in and below a folder, and the folders that are OME-Zarr images.

    Raises
    ------
    ManifestError
        When a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ManifestError(f"{error.filename}: cannot be searched: {error.strerror}") from error

    files: list[Path] = []
    searched: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        # Each folder is searched once, even if several links lead to it or a link points to a parent folder.
        real = os.path.realpath(parent)
        if real in searched:
            folders.clear()
            continue
        searched.add(real)
        slides = {name for name in folders if is_zarr(Path(parent, name))}
        files += [Path(parent, name) for name in (*names, *slides)]
        # Hidden folders hold unfinished copies (rsync's partial files) and backups.
        folders[:] = [name for name in folders if not name.startswith(".") and name not in slides]
        folders.sort(key=lambda name: (Path(parent, name).is_symlink(), name))  # links last
    return files


def expand(pattern: str) -> list[Path]:
    """List the files that match a glob, and all files in and below the folders that match."""
    files: list[Path] = []
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)
    slides = {match for match in map(Path, matches) if match.is_dir() and is_zarr(match)}
    for match in map(Path, matches):
        if slides.intersection(match.parents):
            continue  # part of an OME-Zarr image
        files += walk(match) if match.is_dir() and match not in slides else [match]
    return files


def listed(names: Iterable[str]) -> str:
    """Return the first five names, for a message, and the number of the others.

    Examples
    --------
    >>> listed("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
