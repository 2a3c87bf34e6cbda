"""Which DICOM files are one slide: the only import of pydicom. Pixels are read by OpenSlide.

DICOM keeps each level, label and overview of a slide in a file of its own (PS3.3, A.32.8). Files of one
``SeriesInstanceUID`` are one slide; OpenSlide finds them, beside each other, from any of them.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_ats.errors import SlideOpenError
from wsi_ats.slides.base import advice_on

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_SOP_CLASS, _IMAGE_TYPE, _SERIES = 0x00080016, 0x00080008, 0x0020000E
_EXTENDED_OFFSETS = 0x7FE00001

# Bytes of an element's tag, type and length; frames that are compressed follow those of the pixel data.
_ELEMENT = 12

# After 128 bytes of anything, a TIFF header for instance.
_PREAMBLE, _MAGIC = 128, b"DICM"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Instance:
    """What a DICOM file says of itself.

    Parameters
    ----------
    path
        The file.
    series
        Its ``SeriesInstanceUID``.
    other
        What it is, where that is no level of a whole-slide image: ``label``, ``Segmentation Storage`` ...
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
        What the slide is called; see :func:`find_series`.
    path
        The largest of its levels.
    """

    name: str
    path: Path


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content, whatever it is called.

    Raises
    ------
    OSError
        When it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC


def read_instance(path: Path) -> Instance | None:
    """Read what a DICOM file is part of, without its pixels; ``None`` where it does not tell."""
    from pydicom.filereader import read_partial
    from pydicom.uid import UID

    try:
        with path.open("rb") as file:
            data = read_partial(
                file,
                stop_when=lambda tag, vr, length: tag > _SERIES,  # noqa: ARG005
                specific_tags=[_SOP_CLASS, _IMAGE_TYPE, _SERIES],
            )
        # As stored: to make values of them, pydicom would check them and warn.
        kind, image, series = (_text(data, tag) for tag in (_SOP_CLASS, _IMAGE_TYPE, _SERIES))
    except _damaged() as error:
        _log.debug("%s: its DICOM header cannot be read: %r", path, error)
        return None
    if not (kind and series):
        return None
    if kind != _WHOLE_SLIDE:
        return Instance(path, series, UID(kind).name)
    flavour = [each.strip().lower() for each in image.split("\\")][2:3]
    return Instance(path, series, "" if flavour in ([], ["volume"]) else flavour[0])


def _text(data: FileDataset, tag: int) -> str:
    value = (data.get_item(tag).value or b"") if tag in data else b""
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else str(value)


def _damaged() -> tuple[type[Exception], ...]:
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (
        *(BytesLengthException, InvalidDicomError, OSError, EOFError, ValueError, LookupError),
        *(AttributeError, NotImplementedError, TypeError, OverflowError, MemoryError, struct.error),
    )


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[str]]:
    """Find out which slides DICOM files are, and what else is among them.

    A slide is named after its file where its series has one; after the folder where all files of the series
    are in it and it holds no other slide; else by its ``SeriesInstanceUID``, all of it, for UIDs of one
    archive may begin and end alike. A file whose header cannot be read is listed as a slide of its own, to
    be refused by its name.

    Parameters
    ----------
    files
        DICOM files, in any folders.

    Returns
    -------
    list of Series
        The slides.
    list of str
        Series and files without a level of a whole-slide image, each with what it is.
    """
    by_series: dict[str, list[Instance]] = defaultdict(list)
    series, left_out = [], []
    for file in sorted(files):
        instance = read_instance(file)
        if instance is None:
            series.append(Series(file.stem, file))
        else:
            by_series[instance.series].append(instance)
    slides = {uid: parts for uid, parts in by_series.items() if any(part.is_level for part in parts)}
    folders: dict[Path, set[str]] = defaultdict(set)
    for uid, parts in slides.items():
        for part in parts:
            folders[part.path.parent].add(uid)
    for uid, parts in by_series.items():
        if uid not in slides:
            left_out += [f"{part.path} ({part.other})" for part in parts]
            continue
        within = {part.path.parent for part in parts}
        alone = len(within) == 1 and len(folders[next(iter(within))]) == 1
        name = parts[0].path.stem if len(parts) == 1 else uid
        if alone and len(parts) > 1:
            name = parts[0].path.parent.resolve().name
        largest = max((part.path for part in parts if part.is_level), key=_size)
        series.append(Series(name, largest))
    return series, left_out


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
    beside = (file for file in path.parent.iterdir() if file.is_file() and not file.name.startswith("."))
    instances = (read_instance(file) for file in beside if is_dicom(file))
    return sorted(each.path for each in instances if each is not None and each.series == own.series)


def check_offsets(path: Path) -> None:
    """Check that frames of a DICOM file follow one another as its table of offsets says.

    OpenSlide 4.0 ends the whole process where they do not.

    Raises
    ------
    SlideOpenError
        When they do not, or the header is damaged.
    OSError
        When the file cannot be read.
    """
    from pydicom import dcmread
    from pydicom.encaps import parse_basic_offsets

    try:
        with path.open("rb") as file:
            data = dcmread(file, stop_before_pixels=True, specific_tags=[_EXTENDED_OFFSETS])
            told = data.get_item(_EXTENDED_OFFSETS) if _EXTENDED_OFFSETS in data else None
            if told is not None:
                offsets = np.frombuffer(told.value or b"", dtype="<u8")
            elif data.file_meta.TransferSyntaxUID.is_compressed:
                file.seek(_ELEMENT, os.SEEK_CUR)
                offsets = np.array(parse_basic_offsets(file), dtype=np.uint64)
            else:
                return
    except OSError:
        raise
    except _damaged() as error:
        raise SlideOpenError(
            str(path), f"the DICOM header of {path.name} is damaged: {error}; {advice_on(str(error))}"
        ) from error
    size = path.stat().st_size
    if (offsets[1:] <= offsets[:-1]).any() or (offsets >= size).any():
        raise SlideOpenError(
            str(path),
            f"the table of offsets in {path.name} is damaged: {len(offsets)} frames do not follow one "
            f"another in {size} bytes; copy it again, or have it written again",
        )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # it went away since the folder was listed
        return -1
