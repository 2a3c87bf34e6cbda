"""Annotations of a slide as outlines to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_ats.annotations.opening import read_annotations
from wsi_ats.annotations.record import Frame
from wsi_ats.annotations.shapes import rings
from wsi_ats.slides.base import Slide

# The colour-blind safe colours of Okabe and Ito (2008), one for each class in turn.
_COLOURS = ("#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2")

Ring = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Outline:
    """A polygon.

    Parameters
    ----------
    name
        Class of the annotation; empty without one.
    colour
        ``#rrggbb``.
    rings
        The outer ring, then holes; points (x, y) in level-0 pixels.
    """

    name: str
    colour: str
    rings: Sequence[Ring]


def read_outlines(path: Path, slide: Slide) -> list[Outline]:
    """Read the polygons of a file of annotations; see :mod:`wsi_ats.annotations`.

    Parameters
    ----------
    path
        The file.
    slide
        The open slide, whose size and bounds are the frame.

    Raises
    ------
    AnnotationError
        When the file cannot be read, or its coordinates lie outside the slide.
    """
    full = slide.levels[0]
    found = read_annotations(path, Frame(full.width, full.height, slide.bounds), may_be_empty=True)
    names = list(dict.fromkeys(found.classes))
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    return [
        Outline(name, colours[name], polygon)
        for name, shape in zip(found.classes, found.shapes, strict=True)
        for polygon in rings(shape)
    ]
