"""A report of scores: one HTML file to read, print and hand on."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines._runs import Execution, Summary, rooted
from pipelines.evaluate import RESAMPLES
from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.results.scores import Scores, read_scores
from wsi_ats.tables.manifest import with_tables

if TYPE_CHECKING:  # matplotlib takes seconds to import
    from wsi_ats.results.report import Report, SlidePart

SLIDES_A_PAGE = 200
"""Slides on a page: a browser opens 20 MB without trouble."""


def report(
    scores: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    label_column: str | None = None,
    by: str = "slide",
    slides: str | Path | None = None,
    pictures: bool = True,
    execution: Execution | None = None,
) -> Summary:
    """Write a report of scores as HTML that needs no network and no other file.

    It says what was run, how it went, how the scores compare with labels, and shows a table of all slides and
    a part on each. A collection of more than 200 slides has further pages beside the first.

    Parameters
    ----------
    scores
        Output folder of :func:`pipelines.score.score`.
    out
        The file, such as ``report.html``.
    labels, label_column, by
        Table of labels, if there is one, and whether slides or cases are compared with it; see
        :func:`pipelines.evaluate.evaluate`.
    slides
        Folder, glob or table of the slides, if they were moved after they were scored.
    pictures
        Whether to show pictures. Those that `score --pictures` kept are used; others are drawn, for which
        thumbnails and tiles are read again.
    execution
        ``overwrite``, ``dry_run`` and the reporter are used.

    Returns
    -------
    Summary

    Raises
    ------
    SettingsError
        When ``out`` is not an HTML file, or a package is missing.
    ManifestError
        When labels do not match the scores, or ``slides`` cannot be read.
    ArtifactError
        When the scores cannot be read, or the file exists already.

    Examples
    --------
    >>> report("scores", "report.html", labels="labels.csv").counts  # doctest: +SKIP
    {'slides': 120, 'pages': 1}
    """
    from wsi_ats.results.report import write_report

    execution, scores, out = execution or Execution(), rooted(scores), rooted(out)
    if out.suffix.lower() not in {".html", ".htm"}:
        raise SettingsError(f"--out is {out}, expected an HTML file such as report.html")
    found = read_scores(scores)
    found = found if slides is None else found.moved_to(slides)
    pages = [out, *(out.parent.glob(f"{glob.escape(out.stem)}-[0-9]*{out.suffix}"))]
    for page in pages:
        if page.exists() and not execution.overwrite:
            raise ArtifactError(f"{page} exists; choose another --out, or replace it with --overwrite")
    summary, known = _summary(found, labels, label_column, by=by)
    if execution.dry_run:
        return Summary.of_dry_run("report", out, 0, len(found.slides))
    parts = _parts(found, known, pictures=pictures, execution=execution)
    written = write_report(out, summary, parts, slides_a_page=SLIDES_A_PAGE)
    for page in set(pages) - set(written):  # of an earlier report of more slides
        page.unlink(missing_ok=True)
    size = sum(page.stat().st_size for page in written)
    counts = {"slides": len(found.slides), "pages": len(written)}
    return Summary("report", out, counts, notes={"size": f"{size / 1e6:.2f} MB"})


def _parts(
    scores: Scores, labels: Mapping[str, str | None] | None, *, pictures: bool, execution: Execution
) -> Iterator[SlidePart]:
    from pipelines._report_parts import slide_parts

    with execution.reporter.progress("report", len(scores.slides)) as advance:
        for part in slide_parts(scores, labels, pictures=pictures):
            yield part
            advance(part.id)


def _summary(
    scores: Scores, labels: str | Path | None, label_column: str | None, *, by: str
) -> tuple[Report, Mapping[str, str | None] | None]:
    """Return the summary, and the label of each slide if there are labels."""
    from pipelines import _report_parts as parts
    from wsi_ats.results.report import Report, count_of

    compared: dict[str, Any] = {}
    known: dict[str, str | None] | None = None
    if labels is not None:
        known, compared = _compared(scores, labels, label_column, by=by)
    versions = scores.record.get("versions") or {}
    end = scores.record["end"][:16].replace("T", " ")
    return Report(
        title=f"Scored slides in {scores.folder.name}",
        subtitle=f"{count_of(len(scores.slides), 'slide')}, scored {end} UTC",
        footer=f"Made with wsi_ats {versions.get('wsi-ats', '')}. For research, not for diagnosis.",
        counts=parts.counts(scores),
        not_done=[
            (slide.id, slide.status.value, slide.row["error"] or "")
            for slide in scores.slides
            if slide.status != "done"
        ],
        run=parts.run_facts(scores),
        settings=parts.settings_facts(scores),
        columns=parts.columns(scores.target, labelled=known is not None),
        rows=[parts.cells(slide, scores.target, known) for slide in scores.slides],
        **compared,
    ), known


def _compared(
    scores: Scores, labels: str | Path, label_column: str | None, *, by: str
) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Return the label of each slide, and the fields of a report that compare scores with labels."""
    from pipelines import _evaluation as shared
    from pipelines._report_parts import data_url
    from wsi_ats.results.plots import figure_of_panels
    from wsi_ats.results.report import Picture, count_of

    shared.check_by(by)
    target = scores.target
    target.definition.check_installed()
    refs = with_tables(scores.refs, labels=labels, label_column=label_column, task=target.task)
    joined = shared.join(scores, refs, by=by, split=None)
    shared.check_some(joined)
    details = target.definition.details(joined.targets, joined.scores, target.names, joined.folds)
    with tempfile.TemporaryDirectory() as folder:
        figure_of_panels(Path(folder) / "plots.png", details.panels, title="")
        drawn = data_url(Path(folder) / "plots.png")
    left = len(joined.left_out)
    return {ref.id: ref.label for ref in refs}, {
        "metrics": shared.metrics_of(joined, resamples=RESAMPLES, seed=0),
        "resamples": RESAMPLES,
        "compared": f"{count_of(len(joined.names), by)} compared with labels"
        + (f"; {count_of(left, 'slide')} without label or score left out." if left else "."),
        "plots": Picture(drawn, "Curves of the comparison; `evaluate` writes their numbers as tables"),
    }
