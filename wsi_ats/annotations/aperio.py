"""XML as Aperio ImageScope writes it: layers (``Annotation``) of regions, of which negative ones are holes.

Coordinates count from the corner of the whole slide. The class is the name of the layer or, if it has none,
the first of the layer's attributes that is filled in.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

import numpy as np

from wsi_ats.annotations.record import Drawn
from wsi_ats.annotations.shapes import FloatArray, Outline
from wsi_ats.annotations.xml import corners

PROGRAM = "Aperio ImageScope"

_WITH_AREA = {"0", "1", "2"}  # freehand, rectangle, ellipse; others are arrows and rulers
_ELLIPSE = "2"
_STEPS = 128  # corners of an ellipse, which have 99.96 % of its area


def read_aperio(root: Element) -> Drawn:
    """Read the outlines of an XML document.

    Parameters
    ----------
    root
        Its root.

    Raises
    ------
    KeyError, TypeError, ValueError
        When the document does not have ImageScope's form.
    """
    outlines, others = [], 0
    for layer in root.iter("Annotation"):
        regions = [each for each in layer.iter("Region") if each.get("Type", "0") in _WITH_AREA]
        others += len(list(layer.iter("Region"))) - len(regions)
        # ImageScope cuts negative regions out of the whole layer.
        holes = tuple(_corners(each) for each in regions if each.get("NegativeROA") == "1")
        name = _name(layer)
        outlines += [
            Outline(name, _corners(each), holes) for each in regions if each.get("NegativeROA") != "1"
        ]
    return Drawn(PROGRAM, outlines, others)


def _name(layer: Element) -> str:
    values = [layer.get("Name"), *(each.get("Value") for each in layer.findall("Attributes/Attribute"))]
    return next((value for value in values if value), "")


def _corners(region: Element) -> FloatArray:
    drawn = corners(region.iter("Vertex"))
    if len(drawn) != 2 or region.get("Type", "0") == "0":  # drawn by hand
        return drawn
    (left, top), (right, bottom) = drawn.min(axis=0), drawn.max(axis=0)
    if region.get("Type") != _ELLIPSE:  # opposite corners of a rectangle
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    angle = np.linspace(0, 2 * np.pi, _STEPS, endpoint=False)
    half = (drawn.max(axis=0) - drawn.min(axis=0)) / 2
    return np.asarray(drawn.mean(axis=0) + half * np.stack([np.cos(angle), np.sin(angle)], axis=1))
