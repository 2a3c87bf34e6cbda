"""Export scores: selected tiles and predictions for other programs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipelines._runs import RUN_FILE, Execution, Identity, Summary, open_run, rooted
from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.files import atomic, digest_of, read_json
from wsi_ats.results.exports.qupath import write_qupath
from wsi_ats.results.exports.tables import read_selection, write_selections_csv, write_selections_parquet
from wsi_ats.results.records import Selection, Status
from wsi_ats.tables.files import read_parquet

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
    record = read_json(scores / RUN_FILE)
    if record.get("stage") != "score" or record.get("end") is None:
        raise ArtifactError(
            f"{scores} holds no finished scores (stage {record.get('stage')}, end {record.get('end')}); give "
            "the output folder of `wsi-ats score`, or run that command again to finish it"
        )
    predictions, _ = read_parquet(scores / "predictions.parquet")
    statuses = dict(zip(predictions["slide_id"], predictions["status"], strict=True))
    read = dict(zip(predictions["slide_id"], predictions["tiles_read"], strict=True))
    # A network that sees the whole slide reads no tiles.
    scored = [name for name, status in statuses.items() if status == Status.DONE and read[name]]
    # Without the time: scores that have grown since then may be exported to the same folder again.
    digest = digest_of(str(sorted((record.get("digests") or {}).items())), str(record.get("seed")))
    results = [f"{name}{ending}" for name in statuses for ending, _ in _SLIDE_FORMATS.values()]
    results += [f"{table}.{kind}" for table in ("selections", "predictions") for kind in _TABLE_FORMATS]
    identity = Identity("export", digests={"scores": digest})
    with open_run(out, identity, execution, results=results) as run:
        if execution.dry_run:
            return Summary.of_dry_run("export", out, 0, len(scored))
        run.begin()
        selections, failed = _read(scores, scored, execution)
        counts = {"exported": len(selections), "without_tiles": len(statuses) - len(scored)}
        if not (failed and execution.strict):
            _write(scores, out, to, selections)
            for name in statuses.keys() - {selection.slide_id for selection in selections}:
                for ending, _ in _SLIDE_FORMATS.values():  # of earlier scores
                    (out / f"{name}{ending}").unlink(missing_ok=True)
            run.finish(counts, format=to)
    return Summary("export", out, counts, failed)


def _read(scores: Path, names: Sequence[str], execution: Execution) -> tuple[list[Selection], dict[str, str]]:
    selections: list[Selection] = []
    failed: dict[str, str] = {}
    with execution.reporter.progress("export", len(names)) as advance:
        for name in names:
            try:
                selections.append(read_selection(scores / "selections" / f"{name}.parquet"))
            except ArtifactError as error:
                failed[name] = str(error)
                execution.reporter.message(f"{name} failed: {error}")
                if execution.strict:
                    break
            advance(name)
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
