"""DICOM files grouped into slides: the only import of pydicom. Pixels are read by OpenSlide.

DICOM keeps each level, label and overview of a slide in a file of its own (PS3.3, A.32.8). Files of one
``SeriesInstanceUID`` are one slide; from any of them, OpenSlide finds the others in the same folder.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

import numpy as np

from wsi_ats.errors import SlideOpenError
from wsi_ats.slides.advice import advice_on

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_SOP_CLASS, _IMAGE_TYPE, _SERIES = 0x00080016, 0x00080008, 0x0020000E
_MEDIA_SOP_CLASS = 0x00020002
_EXTENDED_OFFSETS = 0x7FE00001

SUFFIXES = frozenset({".dcm", ".dicom"})
"""Endings of DICOM files; many have none."""

# Files whose headers are kept.
_KEPT = 1 << 16

# Bytes of an element's tag, type and length; compressed frames follow those of the pixel data.
_ELEMENT = 12

# The mark comes after 128 bytes of anything, a TIFF header for instance.
_PREAMBLE, _MAGIC = 128, b"DICM"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Instance:
    """The header of a DICOM file.

    Parameters
    ----------
    path
        The file.
    series
        Its ``SeriesInstanceUID``.
    other
        The kind of the file, if it is not a level of a whole-slide image: ``label``, ``Segmentation Storage``
        ...
    """

    path: Path
    series: str
    other: str = ""

    @property
    def is_level(self) -> bool:
        """Whether it holds pixels of the slide itself."""
        return not self.other


@dataclass(frozen=True, slots=True)
class Series:
    """A slide in DICOM files.

    Parameters
    ----------
    name
        The slide's name; see :func:`find_series`.
    path
        The largest of its levels.
    """

    name: str
    path: Path


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its content, whatever its name; ``False`` if it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait forever
            return False
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def read_instance(path: Path) -> Instance | None:
    """Read the header of a DICOM file, without its pixels; ``None`` if it cannot be understood."""
    try:
        facts = path.stat()
        return _read(path, facts.st_size, facts.st_mtime_ns) if S_ISREG(facts.st_mode) else None
    except OSError:  # not kept, unlike damage: a network share may be back at the next look
        return None


@lru_cache(maxsize=_KEPT)
def _read(path: Path, size: int, changed: int) -> Instance | None:
    """Read a header once for as long as its file is the same; watched folders are searched often."""
    from pydicom.filereader import read_partial
    from pydicom.uid import UID

    del size, changed
    try:
        with path.open("rb") as file:
            data = read_partial(
                file,
                stop_when=lambda tag, vr, length: tag > _SERIES,  # noqa: ARG005
                specific_tags=[_SOP_CLASS, _IMAGE_TYPE, _SERIES],
            )
        # As stored: pydicom would check parsed values, and warn.
        kind, image, series = (_text(data, tag) for tag in (_SOP_CLASS, _IMAGE_TYPE, _SERIES))
        kind = kind or _text(data.file_meta, _MEDIA_SOP_CLASS)
    except _damaged() as error:
        _log.debug("%s: its DICOM header cannot be read: %r", path, error)
        return None
    if kind and kind != _WHOLE_SLIDE:
        return Instance(path, series, UID(kind).name)
    if not (kind and series):
        return None
    flavour = [each.strip().lower() for each in image.split("\\")][2:3]
    return Instance(path, series, "" if flavour in ([], ["volume"]) else flavour[0])


def _text(data: Dataset, tag: int) -> str:
    value = (data.get_item(tag).value or b"") if tag in data else b""
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else str(value)


def _damaged() -> tuple[type[Exception], ...]:
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (
        *(BytesLengthException, InvalidDicomError, EOFError, ValueError, LookupError),
        *(AttributeError, NotImplementedError, TypeError, OverflowError, MemoryError, struct.error),
    )


def find_series(files: Iterable[Path], *, growing: Path | None = None) -> tuple[list[Series], list[str]]:
    """Group DICOM files into slides, and list those that belong to none.

    A slide is named after its file if its series has one file; after the folder if all files of the series
    are in it and it holds no other slide; else by its whole ``SeriesInstanceUID``, because UIDs of one
    archive may begin and end alike. Files of the same name, each in a folder of its own, are named after the
    folders. A file whose header cannot be read is listed as a slide of its own, to be refused by its name.

    Parameters
    ----------
    files
        DICOM files, in any folders.
    growing
        A folder in which further slides are expected: no slide is named after it.

    Returns
    -------
    list of Series
        The slides.
    list of str
        Files that are left out, each with the reason: no level of a whole-slide image, or in another folder
        than the largest level of their series, where OpenSlide does not find them.
    """
    by_series: dict[str, list[Instance]] = defaultdict(list)
    series, left_out = [], []
    for file in sorted(files):
        instance = read_instance(file)
        if instance is None:
            series.append(Series(_stem(file), file))
        else:
            by_series[instance.series].append(instance)
    alone: dict[Path, bool] = {}
    slides = {uid: parts for uid, parts in by_series.items() if any(part.is_level for part in parts)}
    for parts in slides.values():
        for folder in {part.path.parent for part in parts}:
            alone[folder] = folder not in alone and folder != growing
    for uid, parts in by_series.items():
        if uid not in slides:
            left_out += [f"{part.path} ({part.other})" for part in parts]
            continue
        largest = max((part.path for part in parts if part.is_level), key=_size)
        apart = [part.path for part in parts if part.path.parent != largest.parent]
        left_out += [f"{path} (a part of {largest}: put all of a slide into one folder)" for path in apart]
        name = _stem(largest) if len(parts) == 1 else uid
        if len(parts) > 1 and not apart and alone[largest.parent]:
            name = largest.parent.resolve().name
        series.append(Series(name, largest))
    names = Counter(each.name for each in series)
    return [
        replace(each, name=each.path.parent.resolve().name)
        if names[each.name] > 1 and alone.get(each.path.parent)
        else each
        for each in series
    ], left_out


def _stem(file: Path) -> str:
    """Return a file's name without an ending of DICOM; the last number of a UID is no ending."""
    return file.stem if file.suffix.lower() in SUFFIXES else file.name


def files_of_series(path: Path) -> list[Path]:
    """List the files beside a DICOM file, itself included, that OpenSlide reads with it.

    Raises
    ------
    OSError
        When the folder cannot be read.
    """
    own = read_instance(path)
    if own is None:
        return [path]
    beside = (read_instance(file) for file in path.parent.iterdir() if not file.name.startswith("."))
    return sorted(each.path for each in beside if each is not None and each.series == own.series)


def check_offsets(path: Path) -> None:
    """Check that the frames of a DICOM file follow one another in its table of offsets.

    OpenSlide 4.0 ends the whole process where they do not.

    Raises
    ------
    SlideOpenError
        When they do not, or the header is damaged.
    OSError
        When the file cannot be read.
    """
    facts = path.stat()
    count, follow = _check_offsets(path, facts.st_size, facts.st_mtime_ns)
    if not follow:
        raise SlideOpenError(
            str(path),
            f"the table of offsets in {path.name} is damaged: {count} frames do not follow one another in "
            f"{facts.st_size} bytes; copy it again, or have it written again",
        )


@lru_cache(maxsize=_KEPT)
def _check_offsets(path: Path, size: int, changed: int) -> tuple[int, bool]:
    """Return the number of frames, and whether each begins after the one before and within the file."""
    from pydicom import dcmread
    from pydicom.encaps import parse_basic_offsets

    del changed
    try:
        with path.open("rb") as file:
            data = dcmread(file, stop_before_pixels=True, specific_tags=[_EXTENDED_OFFSETS])
            table = data.get_item(_EXTENDED_OFFSETS) if _EXTENDED_OFFSETS in data else None
            if table is not None:
                offsets = np.frombuffer(table.value or b"", dtype="<u8")
            elif data.file_meta.TransferSyntaxUID.is_compressed:
                file.seek(_ELEMENT, os.SEEK_CUR)
                offsets = np.array(parse_basic_offsets(file), dtype=np.uint64)
            else:
                return 0, True
    except _damaged() as error:
        raise SlideOpenError(
            str(path), f"the DICOM header of {path.name} is damaged: {error}; {advice_on(str(error))}"
        ) from error
    return len(offsets), bool((offsets[1:] > offsets[:-1]).all() and (offsets < size).all())


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # it was removed since the folder was listed
        return -1
