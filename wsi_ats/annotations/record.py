"""The annotations of a slide, in the frame of the whole slide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsi_ats.annotations import shapes
from wsi_ats.annotations.shapes import FloatArray, Outline, Shape
from wsi_ats.errors import AnnotationError, SettingsError
from wsi_ats.geometry import Grid, IntArray, Region
from wsi_ats.tables.folders import listed

# Share of the area that may lie beyond the edge of a slide: people draw over it, and so do tiles of a grid.
_BEYOND = 0.2
_WORTH_A_NOTE = 0.01

NO_CLASS = "(no class)"
"""Name of annotations without a class in messages."""

CUT_OUT = "!"
"""Mark of a class whose area is cut out of the others."""


class Drawn(NamedTuple):
    """The content of a file of annotations, as its program wrote it.

    Parameters
    ----------
    program
        The program.
    outlines
        The polygons.
    others
        Number of annotations without an area, such as points and lines.
    from_bounds
        Whether coordinates count from the corner of the scanned bounds, not of the whole slide.
    """

    program: str
    outlines: Sequence[Outline]
    others: int = 0
    from_bounds: bool = False


class Frame(NamedTuple):
    """The place of annotations.

    Parameters
    ----------
    width, height
        Size of the slide's level 0 in pixels.
    bounds
        Its scanned part, level-0 pixels.
    """

    width: int
    height: int
    bounds: Region


@dataclass(frozen=True, eq=False)
class Annotations:
    """The annotated areas of a slide; make them with :func:`wsi_ats.annotations.opening.read_annotations`.

    Parameters
    ----------
    path
        Their file.
    program
        The program that wrote it.
    shapes
        Polygons with holes, level-0 pixels (x, y) of the whole slide.
    classes
        The class of each; empty for those without one.
    notes
        What was repaired or left out.

    Raises
    ------
    SettingsError
        When shapes and classes differ in number.
    """

    path: Path
    program: str
    shapes: tuple[Shape, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shapes) != len(self.classes):
            raise SettingsError(f"{len(self.shapes)} shapes need as many classes, not {len(self.classes)}")

    @classmethod
    def of(cls, path: Path, drawn: Drawn, frame: Frame) -> Annotations:
        """Put the outlines of a file into the frame of a slide.

        Parameters
        ----------
        path
            The file.
        drawn
            Its content.
        frame
            The place of the slide.

        Raises
        ------
        AnnotationError
            When they lie outside the slide.
        """
        found = [(outline.name, *shapes.shape_of(outline)) for outline in drawn.outlines]
        own = [(name, shape) for name, shape, _ in found if shape.area > 0]
        repaired, flat = sum(each for *_, each in found), len(found) - len(own) + drawn.others
        notes = [f"outlines that cross themselves, and were repaired: {repaired}"] if repaired else []
        notes += [f"{flat} annotations have no area and were left out"] if flat else []
        here = tuple(shape for _, shape in own)
        if here and (beyond := _check_frame(path, drawn, here, frame)) > _WORTH_A_NOTE:
            notes.append(f"{beyond:.0%} of the annotated area lies outside the slide")
        if drawn.from_bounds:
            here = tuple(shapes.moved(shape, *frame.bounds[:2]) for shape in here)
        return cls(path, drawn.program, here, tuple(name for name, _ in own), tuple(notes))

    @property
    def contents(self) -> str:
        """The classes and the number of annotations of each, for messages."""
        counts = Counter(name or NO_CLASS for name in self.classes)
        return listed(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing"

    def area(self, classes: Sequence[str] = ()) -> Shape:
        """Return the area of some classes.

        Parameters
        ----------
        classes
            Names of classes; all if none are named. The area of a class after ``!`` is cut out of the others:
            ``_0`` and ``!_2``, or ``!_2`` alone.

        Returns
        -------
        Shape
            Empty if nothing has these classes.
        """
        kept = {name for name in classes if not name.startswith(CUT_OUT)}
        cut = {name.removeprefix(CUT_OUT) for name in classes if name.startswith(CUT_OUT)}
        each = list(zip(self.classes, self.shapes, strict=True))
        area = shapes.joined([s for name, s in each if name not in cut and (name in kept or not kept)])
        return shapes.without(area, shapes.joined([s for name, s in each if name in cut])) if cut else area

    def only(self, classes: Sequence[str], *, apart: float = 2.0) -> Annotations:
        """Return the connected areas of some classes, without their classes.

        Parameters
        ----------
        classes
            See :meth:`area`.
        apart
            Pieces less than so many level-0 pixels apart are one area. Where an outline crosses itself or a
            class is cut out, specks remain beside the rest.
        """
        found = tuple(shapes.parts(self.area(classes), apart))
        return replace(self, shapes=found, classes=("",) * len(found))

    def inside(self, grid: Grid, cells: IntArray, classes: Sequence[str] = ()) -> npt.NDArray[np.bool_]:
        """Tell which cells have their centre in an annotation.

        Parameters
        ----------
        grid
            A grid of the slide.
        cells
            Flat numbers of its cells, shape (n,).
        classes
            Classes of the annotations, see :meth:`area`; all if none are named.

        Returns
        -------
        ndarray of bool, shape (n,)
        """
        return shapes.cells_inside(self.area(classes), grid, cells)

    def shares(self, grid: Grid) -> FloatArray:
        """Return the share of each cell that is annotated, in [0, 1], shape (rows, columns)."""
        return shapes.shares(self.area(), grid)


def _check_frame(path: Path, drawn: Drawn, here: Sequence[Shape], frame: Frame) -> float:
    """Refuse annotations that cannot belong to a slide; return the share of their area that is outside."""
    bounds, whole = frame.bounds, Region(0, 0, frame.width, frame.height)
    size = Region(0, 0, bounds.width, bounds.height) if drawn.from_bounds else whole
    away, beyond = shapes.outside(here, size)
    if not away and beyond <= _BEYOND:
        return beyond
    left, top, right, bottom = shapes.extent(here)
    what = "scanned bounds of the slide are" if size[2:] != whole[2:] else "slide is"
    found = (
        f"has annotations from ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}), but the {what} "
        f"{size.width} x {size.height} level-0 pixels; {away} of {len(here)} annotations and {beyond:.0%} of "
        "their area lie outside"
    )
    if drawn.from_bounds and size != whole and shapes.outside(here, whole) <= (0, _BEYOND):
        why = (
            f"they seem to count from the corner of the whole slide, but {drawn.program} counts from that of "
            f"the scanned bounds, ({bounds.x}, {bounds.y}); subtract it from all coordinates"
        )
    elif not drawn.from_bounds and _fits_moved(here, bounds, whole):
        why = (
            f"they seem to count from the corner of the scanned bounds, ({bounds.x}, {bounds.y}); "
            f"{drawn.program} counts from that of the whole slide; add it to all coordinates"
        )
    else:
        why = (
            "they seem to be of another slide, or of another level or scan of it; coordinates must be "
            "level-0 pixels of this file"
        )
    raise AnnotationError(str(path), f"{found}: {why}")


def _fits_moved(here: Sequence[Shape], bounds: Region, whole: Region) -> bool:
    """Tell whether annotations fit only when the corner of the bounds is added to them."""
    moved = [shapes.moved(shape, *bounds[:2]) for shape in here]
    return (bounds.x, bounds.y) != (0, 0) and shapes.outside(moved, whole) <= (0, _BEYOND)
