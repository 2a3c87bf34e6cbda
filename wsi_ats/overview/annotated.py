"""Tissue in the regions that a slide names: the cells outside are never drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_ats.annotations.folder import AnnotationFolder
from wsi_ats.annotations.opening import read_annotations
from wsi_ats.annotations.record import Annotations, Frame
from wsi_ats.overview.records import Outside, Overview
from wsi_ats.settings import Settings
from wsi_ats.settings.fields import require
from wsi_ats.slides.base import Slide, SlideRef


def check_regions(settings: Settings) -> None:
    """Refuse settings with which regions would have no effect or only some.

    Raises
    ------
    SettingsError
        When the model has two levels, or reads no tiles.
    """
    require(
        settings.model.reads_tiles,
        f"model.kind is {settings.model.kind}, which reads whole slides; choose another kind, or leave "
        "--regions out",
    )
    require(
        settings.thumbnail.levels == 1,
        f"thumbnail.levels is {settings.thumbnail.levels}, but regions need 1; set thumbnail.levels=1",
    )


def open_regions(ref: SlideRef, slide: Slide) -> Annotations:
    """Read the annotations that a slide names, of all classes.

    Parameters
    ----------
    ref
        Names the file, or the folder in which it is found by the slide's id.
    slide
        The open slide.

    Raises
    ------
    AnnotationError
        When there is no file for the slide, there are several, or it cannot be used.
    """
    path = Path(ref.regions)
    if path.is_dir():
        path = AnnotationFolder.find(path).file_for(ref.id)
    return read_annotations(path, Frame(slide.levels[0].width, slide.levels[0].height, slide.bounds))


def within_regions(overview: Overview, ref: SlideRef, slide: Slide, settings: Settings) -> Overview:
    """Restrict tissue to the cells whose centre lies in a region that the slide names.

    Parameters
    ----------
    overview
        The overview of the slide, or of its cells with features; returned as it is if no region is named.
    ref
        Names the file of the regions, and their classes.
    slide
        The open slide.
    settings
        The settings of the overview.

    Raises
    ------
    AnnotationError
        When the file cannot be used; see :func:`open_regions`.
    SettingsError
        When regions do not suit the settings; see :func:`check_regions`.
    """
    if not ref.regions:
        return overview
    check_regions(settings)
    found = open_regions(ref, slide)
    tissue, everything = overview.tissue, overview.all_tissue
    inside = np.zeros(tissue.grid.size, dtype=np.bool_)
    cells = everything.cells
    inside[cells] = found.only(ref.region_classes).inside(tissue.grid, cells)
    inside = inside.reshape(tissue.grid.shape)
    return replace(
        overview,
        tissue=replace(tissue, mask=tissue.mask & inside),
        artefacts={name: mask & inside for name, mask in overview.artefacts.items()},
        excluded=None if overview.excluded is None else overview.excluded & inside,
        outside=Outside(everything.mask & ~inside, _described(found, ref), _warning(found)),
    )


def _described(found: Annotations, ref: SlideRef) -> str:
    wanted = f", of class {', '.join(ref.region_classes)}" if ref.region_classes else ""
    return f"{found.path}{wanted}; it has {found.contents}"


def _warning(found: Annotations) -> str:
    return f"{found.path}: {'; '.join(found.notes)}" if found.notes else ""
