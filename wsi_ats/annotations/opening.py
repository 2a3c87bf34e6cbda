"""From a file to the annotations of a slide; its content decides the format, not its name."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from wsi_ats.annotations.aperio import read_aperio
from wsi_ats.annotations.asap import read_asap
from wsi_ats.annotations.qupath import read_qupath
from wsi_ats.annotations.record import Annotations, Drawn, Frame
from wsi_ats.annotations.xml import parse_xml
from wsi_ats.errors import AnnotationError

_KNOWN = "GeoJSON of QuPath, XML of ASAP, XML of Aperio ImageScope"
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_annotations(path: Path, frame: Frame, *, may_be_empty: bool = False) -> Annotations:
    """Read the annotations of a slide, in the format of QuPath, ASAP or Aperio ImageScope.

    Parameters
    ----------
    path
        The file, which may be compressed with gzip.
    frame
        The place of the slide.
    may_be_empty
        Whether to accept a file without any polygon: somebody looked, and there was nothing to annotate.

    Returns
    -------
    Annotations
        In level-0 pixels of the whole slide.

    Raises
    ------
    AnnotationError
        When the file cannot be read, has another format or no polygon, or its coordinates lie outside the
        slide.

    Examples
    --------
    >>> import tempfile
    >>> from wsi_ats.geometry import Grid, Region
    >>> path = Path(tempfile.mkdtemp()) / "a.geojson"
    >>> square = [[10, 10], [30, 10], [30, 30], [10, 30], [10, 10]]
    >>> feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]}}
    >>> _ = path.write_text(json.dumps([feature | {"properties": {"classification": {"name": "Tumor"}}}]))
    >>> found = read_annotations(path, Frame(200, 100, Region(100, 50, 100, 50)))
    >>> found.program, found.classes, found.area().bounds  # QuPath shows the scanned bounds alone
    ('QuPath', ('Tumor',), (110.0, 60.0, 130.0, 80.0))
    """
    try:
        drawn = _parse(path, _content(path))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AnnotationError(
            str(path), f"does not have the form that its program writes ({error!r}); export it again"
        ) from error
    for outline in drawn.outlines:
        for ring in (outline.shell, *outline.holes):
            if not np.isfinite(ring).all():
                raise AnnotationError(str(path), "has coordinates that are NaN or infinite; export it again")
    found = Annotations.of(path, drawn, frame)
    if not found.shapes and not may_be_empty:
        raise AnnotationError(
            str(path),
            f"has no polygon ({drawn.others} annotations are points or lines); draw areas in "
            f"{drawn.program}, and export them again",
        )
    return found


def _content(path: Path) -> str | bytes:
    """Return what a file has, as text if a byte order mark says how it is encoded."""
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(str(path), f"cannot be read: {error}; copy or export it again") from error
    if content.startswith(_ZIP):
        raise AnnotationError(str(path), "is a ZIP archive; unpack it, or export without compression")
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content.removeprefix(mark).decode(encoding).strip()
    return content.strip()


def _parse(path: Path, content: str | bytes) -> Drawn:
    first = content[:1] if isinstance(content, str) else content[:1].decode("latin-1")
    if first and first in "{[":
        try:
            return read_qupath(json.loads(content))
        except (json.JSONDecodeError, RecursionError) as error:
            raise AnnotationError(
                str(path), f"is truncated or damaged JSON ({error}); export it again"
            ) from error
    if first == "<":
        return _read_xml(path, parse_xml(path, content))
    what = "is not a file of annotations" if content else "is empty, which no program writes; export it again"
    raise AnnotationError(str(path), f"{what}; known are {_KNOWN}")


def _read_xml(path: Path, root: Element) -> Drawn:
    if root.tag == "ASAP_Annotations":
        return read_asap(root)
    if root.tag == "Annotations":
        return read_asap(root) if next(root.iter("Coordinates"), None) is not None else read_aperio(root)
    raise AnnotationError(str(path), f"is XML with the root {root.tag!r}; known are {_KNOWN}")
