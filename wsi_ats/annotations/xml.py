"""What the readers of XML have in common: parsing, and points with attributes X and Y."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np

# The standard parser expands entities that a document defines, so that a kilobyte fills the memory.
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from wsi_ats.annotations.shapes import FloatArray
from wsi_ats.errors import AnnotationError


def parse_xml(path: Path, content: str | bytes) -> Element:
    """Return the root of a document.

    Parameters
    ----------
    path
        Its file, for messages.
    content
        The document; the encoding that it declares counts for bytes alone.

    Raises
    ------
    AnnotationError
        When the document is damaged, or defines entities or a document type.
    """
    try:
        root: Element = ElementTree.fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise AnnotationError(
            str(path),
            f"defines entities or a document type ({type(error).__name__}), which no program for slides does "
            "and which can fill the memory; export it again",
        ) from error
    except (ParseError, LookupError) as error:  # the second for an unknown encoding
        raise AnnotationError(str(path), f"is truncated or damaged XML ({error}); export it again") from error
    return root


def corners(points: Iterable[Element]) -> FloatArray:
    """Return the attributes X and Y of points, shape (N, 2).

    Examples
    --------
    >>> corners([Element("Vertex", X="1", Y="2.5", Z="0")]).tolist()
    [[1.0, 2.5]]
    """
    return np.array([(float(each.attrib["X"]), float(each.attrib["Y"])) for each in points]).reshape(-1, 2)
