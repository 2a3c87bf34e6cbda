"""Export scores: selected tiles and predictions for other programs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipelines._runs import Execution, Identity, Summary, open_run, rooted
from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.files import atomic
from wsi_ats.results.exports.qupath import write_qupath
from wsi_ats.results.exports.tables import write_selections_csv, write_selections_parquet
from wsi_ats.results.records import Selection
from wsi_ats.results.scores import ScoredSlide, read_scores

# Formats by name: those with one table for all slides, and those with a file of this ending for each slide.
_TABLE_FORMATS = {"csv": write_selections_csv, "parquet": write_selections_parquet}
_SLIDE_FORMATS = {"qupath": (".geojson", write_qupath)}

FORMATS = (*_TABLE_FORMATS, *_SLIDE_FORMATS)


def export(scores: str | Path, out: str | Path, *, to: str, execution: Execution | None = None) -> Summary:
    """Write scores in another program's format.

    This runs in the calling process: a slide takes milliseconds, less than sending it to a worker.

    Parameters
    ----------
    scores
        Output folder of :func:`pipelines.score.score`.
    out
        Folder for the export.
    to
        ``"csv"`` and ``"parquet"`` give the tables ``selections`` (a row for each tile of each slide) and
        ``predictions``; ``"qupath"`` gives ``<slide_id>.geojson`` for each slide.
    execution
        Scheduler and workers are not used.

    Returns
    -------
    Summary
        Numbers of slides that were exported and that had nothing to export.

    Raises
    ------
    SettingsError
        For an unknown format.
    ArtifactError
        When the scores are missing or incomplete, or the output folder cannot be used.

    Examples
    --------
    >>> export("scores", "for_qupath", to="qupath").counts  # doctest: +SKIP
    {'exported': 120, 'without_tiles': 1}
    """
    if to not in FORMATS:
        raise SettingsError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}")
    execution, scores, out = execution or Execution(), rooted(scores), rooted(out)
    found = read_scores(scores)
    scored = [slide for slide in found.slides if slide.reads_tiles]
    results = [f"{slide.id}{ending}" for slide in found.slides for ending, _ in _SLIDE_FORMATS.values()]
    results += [f"{table}.{kind}" for table in ("selections", "predictions") for kind in _TABLE_FORMATS]
    identity = Identity("export", digests={"scores": found.digest})
    with open_run(out, identity, execution, results=results) as run:
        if execution.dry_run:
            return Summary.of_dry_run("export", out, 0, len(scored))
        run.begin()
        selections, failed = _read(scored, execution)
        counts = {"exported": len(selections), "without_tiles": len(found.slides) - len(scored)}
        if not (failed and execution.strict):
            _write(scores, out, to, selections)
            for name in found.by_id.keys() - {selection.slide_id for selection in selections}:
                for ending, _ in _SLIDE_FORMATS.values():  # of earlier scores
                    (out / f"{name}{ending}").unlink(missing_ok=True)
            run.finish(counts, format=to)
    return Summary("export", out, counts, failed)


def _read(slides: Sequence[ScoredSlide], execution: Execution) -> tuple[list[Selection], dict[str, str]]:
    selections: list[Selection] = []
    failed: dict[str, str] = {}
    with execution.reporter.progress("export", len(slides)) as advance:
        for slide in slides:
            try:
                selections.append(slide.selection())
            except ArtifactError as error:
                failed[slide.id] = str(error)
                execution.reporter.message(f"{slide.id} failed: {error}")
                if execution.strict:
                    break
            advance(slide.id)
    return selections, failed


def _write(scores: Path, out: Path, to: str, selections: Sequence[Selection]) -> None:
    if to in _SLIDE_FORMATS:
        ending, write = _SLIDE_FORMATS[to]
        for selection in selections:
            with atomic(out / f"{selection.slide_id}{ending}") as path:
                write(path, selection)
        return
    with atomic(out / f"selections.{to}") as path:
        _TABLE_FORMATS[to](path, selections)
    with atomic(out / f"predictions.{to}") as path:
        shutil.copyfile(scores / f"predictions.{to}", path)
