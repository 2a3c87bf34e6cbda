"""XML as ASAP writes it, and as Camelyon is published: the class of an annotation is its group.

Coordinates count from the corner of the whole slide. A spline is taken as the polygon of its points, between
which ASAP draws curves.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from wsi_ats.annotations.record import Drawn
from wsi_ats.annotations.shapes import Outline
from wsi_ats.annotations.xml import corners

PROGRAM = "ASAP"

_WITH_AREA = {"Polygon", "Spline", "Rectangle"}  # others: Dot, PointSet, Measurement


def read_asap(root: Element) -> Drawn:
    """Read the outlines of an XML document.

    Parameters
    ----------
    root
        Its root.

    Raises
    ------
    KeyError, TypeError, ValueError
        When the document does not have ASAP's form.
    """
    outlines, others = [], 0
    for each in root.iter("Annotation"):
        if each.attrib["Type"] not in _WITH_AREA:
            others += 1
            continue
        points = sorted(each.iter("Coordinate"), key=lambda point: int(point.attrib["Order"]))
        group = each.attrib.get("PartOfGroup", "None")
        outlines.append(Outline("" if group == "None" else group, corners(points)))
    return Drawn(PROGRAM, outlines, others)
