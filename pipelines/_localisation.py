"""Localisation: scores beside annotations, as tables, metrics and a plot of an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipelines._records import Row
from pipelines._regions import report_unmatched
from pipelines._reports import Reporter
from wsi_ats.annotations.folder import AnnotationFolder
from wsi_ats.annotations.opening import read_annotations
from wsi_ats.annotations.record import CUT_OUT, NO_CLASS, Annotations, Frame
from wsi_ats.errors import AnnotationError, ManifestError
from wsi_ats.files import digest_of
from wsi_ats.results.localisation import APART, Localisation, curve, locate, metrics_of
from wsi_ats.results.scores import ScoredSlide
from wsi_ats.slides.base import composed
from wsi_ats.slides.fingerprint import slide_digest
from wsi_ats.tables.folders import listed
from wsi_ats.tasks.base import Details
from wsi_ats.tasks.evaluation import sample_by_sample, with_intervals
from wsi_ats.tasks.panels import Lines

_COLUMNS = (
    *("slide_id", "case_id", "annotations", "tissue_cells", "annotated_cells", "annotated_tissue", "tiles"),
    *("hits", "hit_rate", "attention_auc", "attention_mass", "areas", "note"),
)

_SHOWN = 32  # most false-positive tiles a slide in the plot


@dataclass(frozen=True)
class Localised:
    """The localisation of many slides.

    Parameters
    ----------
    metrics
        Rows for ``metrics.csv``.
    details
        ``localisation.csv``, ``froc.csv`` and a plot of the latter.
    failed
        Reasons why annotations could not be used, by slide.
    notes
        Lines of the summary.
    """

    metrics: Sequence[Row]
    details: Details
    failed: Mapping[str, str]
    notes: Mapping[str, str]


NOTHING = Localised([], Details({}, []), {}, {})
"""The localisation of an evaluation without annotations."""


def digest_of_annotations(found: AnnotationFolder, ids: Collection[str]) -> str:
    """Return a fingerprint of the annotations of some slides."""
    each = [(name, file) for name in sorted(ids) for file in found.files.get(composed(name), ())]
    return digest_of(*(text for name, file in each for text in (name, slide_digest(str(file)))))


@dataclass(frozen=True)
class Annotated:
    """Slides with their annotations, before they are compared.

    Parameters
    ----------
    slides
        Scored slides with their cases, by name.
    rows
        Rows of ``localisation.csv`` so far, one for each slide.
    drawn
        Annotations of the slides that can be compared.
    failed
        Reasons why annotations could not be used, by slide.
    classes
        Classes of annotations; all if there are none.
    """

    slides: Mapping[str, tuple[ScoredSlide, str]]
    rows: Sequence[Row]
    drawn: Mapping[str, Annotations]
    failed: Mapping[str, str]
    classes: Sequence[str]


def read_annotated(
    slides: Mapping[str, tuple[ScoredSlide, str]],
    found: AnnotationFolder,
    classes: Sequence[str],
    reporter: Reporter,
) -> Annotated:
    """Read the annotations of slides, and check that something can be compared with them.

    Slides without a file of annotations are left out, because nobody looked at them; a file without polygons,
    or without any of the classes, says that nothing is there.

    Parameters
    ----------
    slides
        Scored slides with their cases, by name.
    found
        Their annotations.
    classes
        Classes of annotations, see :meth:`wsi_ats.annotations.record.Annotations.area`; all if there are
        none.
    reporter
        Reports annotations of other slides, and repaired ones.

    Raises
    ------
    ManifestError
        When no slide has annotations or attention, or a class is in no file.
    ArtifactError
        When a file of the scores is damaged.
    """
    report_unmatched(found, list(slides), reporter)
    rows: list[Row] = [{"slide_id": name, "case_id": case} for name, (_, case) in slides.items()]
    drawn, failed = _read(rows, slides, found)
    _check_some(rows, drawn.values(), classes, failed)
    for name, own in drawn.items():
        if own.notes:
            reporter.message(f"warning: {name}: {'; '.join(own.notes)}")
    return Annotated(slides, rows, drawn, failed, classes)


def localise(annotated: Annotated, *, resamples: int, seed: int) -> Localised:
    """Compare drawn tiles and attention of slides with their annotations.

    Parameters
    ----------
    annotated
        The slides and their annotations.
    resamples, seed
        Number of bootstrap samples of cases, and their random seed.

    Raises
    ------
    ArtifactError
        When a file of the scores is damaged.
    """
    slides, failed, located = annotated.slides, annotated.failed, {}
    rows = [dict(row) for row in annotated.rows]
    for row in rows:
        name = str(row["slide_id"])
        own = annotated.drawn.get(name)
        attention = slides[name][0].attention() if own else None
        if own is None or attention is None:
            continue
        selection = slides[name][0].selection()
        areas = own.only(annotated.classes, apart=APART / selection.mpp)
        located[name] = locate(selection, attention, areas, seed=seed)
        row.update(_facts(located[name], own))
    each = list(located.values())
    metrics = with_intervals(
        sample_by_sample(lambda sample: metrics_of([each[i] for i in sample])),
        [slides[name][1] for name in located],
        resamples=resamples,
        seed=seed,
        undefined="no tissue cell is annotated",
    )
    froc = curve(each)
    table = {name: [row.get(name) for row in rows] for name in _COLUMNS}
    details = Details({"localisation.csv": table, "froc.csv": froc}, [_panel(froc)])
    without = [str(row["slide_id"]) for row in rows if row["slide_id"] not in located.keys() | failed.keys()]
    notes = {"compared with annotations": str(len(located))}
    notes |= {"without annotations": f"{len(without)} ({listed(without)})"} if without else {}
    return Localised(metrics, details, failed, notes)


def _read(
    rows: Sequence[Row], slides: Mapping[str, tuple[ScoredSlide, str]], found: AnnotationFolder
) -> tuple[dict[str, Annotations], dict[str, str]]:
    """Read the annotations of slides that have them, and note in the rows why others are not compared."""
    drawn, failed = {}, {}
    for row in rows:
        name = str(row["slide_id"])
        slide = slides[name][0]
        if not found.has(name):
            row["note"] = "no annotations"
        elif not slide.reads_tiles or not slide.has_attention:
            row["note"] = "no attention"
        else:
            selection = slide.selection()
            frame = Frame(selection.grid.width, selection.grid.height, selection.bounds)
            try:
                drawn[name] = read_annotations(found.file_for(name), frame, may_be_empty=True)
            except AnnotationError as error:
                row["note"] = failed[name] = str(error)
    return drawn, failed


def _check_some(
    rows: Sequence[Row], drawn: Collection[Annotations], classes: Sequence[str], failed: Mapping[str, str]
) -> None:
    """Refuse an evaluation of which nothing can be compared, and classes that no file has."""
    if not drawn:
        reasons = failed.values() or {str(row["note"]) for row in rows}
        raise ManifestError(
            f"none of {len(rows)} slides can be compared with annotations: {listed(reasons)}; scores must be "
            "those of a model with attention that reads tiles"
        )
    known = {name for own in drawn for name in own.classes}
    wrong = [name for name in classes if name.removeprefix(CUT_OUT) not in known]
    if wrong:
        raise ManifestError(
            f"no annotation of the {len(drawn)} slides is of class {listed(wrong)}; there are "
            f"{listed(sorted(name or NO_CLASS for name in known)) or 'none'}"
        )


def _facts(one: Localisation, own: Annotations) -> Row:
    return {
        "annotations": own.path.name,
        "tissue_cells": one.tissue,
        "annotated_cells": one.annotated,
        "annotated_tissue": one.share,
        "tiles": one.tiles,
        "hits": one.hits,
        "hit_rate": one.hit_rate if one.annotated else None,
        "attention_auc": one.auc,
        "attention_mass": one.mass if one.annotated else None,
        "areas": len(one.found),
        "note": "; ".join(own.notes) or None,
    }


def _panel(froc: Mapping[str, Sequence[float]]) -> Lines:
    shown = [
        each for each in zip(froc["false_positives"], froc["sensitivity"], strict=True) if each[0] <= _SHOWN
    ]
    x, y = ([0.0, *values] for values in zip(*shown, strict=True)) if shown else ([], [])
    curves = {"in order of attention": (x, y)} if shown else {}
    return Lines(
        "false-positive tiles per slide", "annotated areas found", curves, "localisation (FROC)", steps=True
    )
