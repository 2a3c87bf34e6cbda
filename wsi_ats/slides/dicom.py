"""DICOM files grouped into slides: the only import of pydicom. Pixels are read by OpenSlide.

DICOM stores each level, label and overview of a slide in a separate file (PS3.3, A.32.8). Files with the same
``SeriesInstanceUID`` are one slide; given any of them, OpenSlide finds the others in the same folder.
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
_WIDTH = 0x00480006  # TotalPixelMatrixColumns

SUFFIXES = frozenset({".dcm", ".dicom"})
"""Extensions of DICOM files; many have none."""

# Number of files whose headers are cached.
_KEPT = 1 << 16

# Bytes of an element's tag, type and length; in the pixel data, compressed frames follow them.
_ELEMENT = 12

# The DICOM mark follows 128 arbitrary bytes, for example a TIFF header.
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
        Kind of a file that is not a level of a whole-slide image, such as ``label`` or ``Segmentation
        Storage``; empty for a level.
    """

    path: Path
    series: str
    other: str = ""

    @property
    def is_level(self) -> bool:
        """True if the file holds pixels of the slide itself."""
        return not self.other


@dataclass(frozen=True, slots=True)
class Series:
    """A slide in DICOM files.

    Parameters
    ----------
    name
        The slide's name; see :func:`find_series`.
    path
        The file of its largest level.
    """

    name: str
    path: Path


def is_dicom(path: Path) -> bool:
    """Return whether the content of a file is DICOM; ``False`` if it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait forever
            return False
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def read_instance(path: Path) -> Instance | None:
    """Read the header of a DICOM file, without pixels; return ``None`` if it cannot be understood."""
    try:
        facts = path.stat()
        return _read(path, facts.st_size, facts.st_mtime_ns) if S_ISREG(facts.st_mode) else None
    except OSError:  # not cached, unlike damage: a network share may be back later
        return None


@lru_cache(maxsize=_KEPT)
def _read(path: Path, size: int, changed: int) -> Instance | None:
    """Read a header once while its file does not change, because watched folders are searched often."""
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
        # Values are used as stored, because pydicom checks parsed values and warns.
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
    """Group DICOM files into slides, and list the files that belong to none.

    A slide is named after its file if its series has one file; after the folder if the folder holds all files
    of the series and no other slide; else by its whole ``SeriesInstanceUID``, because UIDs of one archive may
    begin and end alike. Files with the same name in separate folders are named after the folders. A file with
    an unreadable header is listed as a slide, so that it is later refused by name.

    Parameters
    ----------
    files
        DICOM files, in any folders.
    growing
        A folder in which more slides may arrive; no slide is named after it.

    Returns
    -------
    list of Series
        The slides.
    list of str
        Files that are left out, with reasons: they are not a level of a whole-slide image, or not in the
        folder of their series' largest level, so that OpenSlide would not find them.
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
        left_out += [f"{path} (part of {largest}; put a slide's files into one folder)" for path in apart]
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
    """Return a file's name without a DICOM extension; the last number of a UID is not an extension."""
    return file.stem if file.suffix.lower() in SUFFIXES else file.name


def files_of_series(path: Path) -> list[Path]:
    """List the files that OpenSlide reads for the slide of a DICOM file, including the file itself.

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


def finest_level(path: Path) -> Dataset:
    """Read the header of the finest level of a DICOM file's slide, without its pixels.

    Raises
    ------
    SlideOpenError
        When a header of the slide cannot be read.
    """
    from pydicom import dcmread

    problems: tuple[type[Exception], ...] = (OSError, *_damaged())
    try:
        widths = {
            file: int(dcmread(file, specific_tags=[_WIDTH]).TotalPixelMatrixColumns)
            for file in files_of_series(path)
            if (instance := read_instance(file)) is not None and instance.is_level
        }
        return dcmread(max(widths, key=widths.__getitem__), stop_before_pixels=True)
    except problems as error:
        raise SlideOpenError(
            str(path), f"the DICOM headers of its slide cannot be read: {error}; {advice_on(str(error))}"
        ) from error


def check_offsets(path: Path) -> None:
    """Check that the offsets of a DICOM file's frames increase and lie within the file.

    If they do not, OpenSlide 4.0 ends the whole process.

    Raises
    ------
    SlideOpenError
        When they do not, or when the header is damaged.
    OSError
        When the file cannot be read.
    """
    facts = path.stat()
    count, follow = _check_offsets(path, facts.st_size, facts.st_mtime_ns)
    if not follow:
        raise SlideOpenError(
            str(path),
            f"the table of offsets in {path.name} is damaged: its {count} frames are not in order or not "
            f"within its {facts.st_size} bytes; copy it again, or have it written again",
        )


@lru_cache(maxsize=_KEPT)
def _check_offsets(path: Path, size: int, changed: int) -> tuple[int, bool]:
    """Return the number of frames, and whether each starts after the previous one and within the file."""
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
    except OSError:  # it was removed after the folder was listed
        return -1
