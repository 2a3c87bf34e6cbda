"""Regions of slides: the file of annotations of each slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines._reports import Reporter
from pipelines._runs import rooted
from wsi_ats.annotations.folder import AnnotationFolder
from wsi_ats.errors import AnnotationError, ManifestError
from wsi_ats.slides.base import SlideRef, composed
from wsi_ats.tables.folders import listed


def with_regions(
    refs: Sequence[SlideRef], folder: str | Path, classes: Sequence[str], reporter: Reporter
) -> list[SlideRef]:
    """Return slides that name their regions; report files of no slide, and slides without a file.

    A slide without a file, or with several, names the folder, so it fails with the reason when it is worked
    on, and the others are done.

    Parameters
    ----------
    refs
        The slides.
    folder
        Folder of annotations; see :meth:`wsi_ats.annotations.folder.AnnotationFolder.find`.
    classes
        Classes of the regions; all if there are none.
    reporter
        Gets the messages.

    Raises
    ------
    ManifestError
        When the folder has no annotations, or none of these slides.
    """
    found = AnnotationFolder.find(rooted(folder))
    missing = report_unmatched(found, [ref.id for ref in refs], reporter)
    if missing:
        reporter.message(
            f"warning: {len(missing)} of {len(refs)} slides have no file in {folder} and will fail: "
            f"{listed(missing)}"
        )
    return [replace(ref, regions=_file(ref, found), region_classes=tuple(classes)) for ref in refs]


def report_unmatched(found: AnnotationFolder, ids: Sequence[str], reporter: Reporter) -> list[str]:
    """Report annotations of other slides; return the slides without annotations.

    Parameters
    ----------
    found
        The annotations.
    ids
        The slides.
    reporter
        Gets a message if there are annotations of other slides.

    Raises
    ------
    ManifestError
        When there are none of these slides.
    """
    missing = [name for name in ids if not found.has(name)]
    if len(missing) == len(ids):
        raise ManifestError(
            f"{found.folder} has annotations of {listed(found.ids)}, but none of the {len(ids)} slides "
            f"{listed(ids)}; files must be named after the slides"
        )
    others = sorted(set(found.ids) - {composed(name) for name in ids})
    if others:
        reporter.message(
            f"{found.folder} has annotations of {len(others)} slides that are not among these {len(ids)}: "
            f"{listed(others)}"
        )
    return missing


def _file(ref: SlideRef, found: AnnotationFolder) -> str:
    try:
        return str(found.file_for(ref.id))
    except AnnotationError:
        return str(found.folder)
