"""Export scores: selected tiles and predictions for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines._runs import Execution, Identity, Summary, open_run, rooted
from wsi_ats.errors import ArtifactError, SettingsError, SlideError
from wsi_ats.files import read_json
from wsi_ats.results.exports.format import Format
from wsi_ats.results.exports.registry import FORMATS
from wsi_ats.results.records import RUN_FILE
from wsi_ats.results.scores import ScoredSlide, Scores, read_scores


def export(
    scores: str | Path,
    out: str | Path,
    *,
    to: Sequence[str],
    slides: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    execution: Execution | None = None,
) -> Summary:
    """Write scores in the formats of other programs.

    This runs in the calling process: most formats take milliseconds a slide, less than sending it to a
    worker.

    Parameters
    ----------
    scores
        Output folder of :func:`pipelines.score.score`.
    out
        Folder for the export; each format has a folder of its name in it.
    to
        Names of formats; see :data:`wsi_ats.results.exports.registry.FORMATS`.
    slides
        Folder, glob or table of the slides, if they were moved after they were scored. Only formats with
        pixels read them.
    options
        Options of formats by name, such as ``{"dpi": 300}`` for ``pictures``; see
        :attr:`wsi_ats.results.exports.format.Format.options`.
    execution
        Scheduler and workers are not used.

    Returns
    -------
    Summary
        Number of slides in files of one format or more, and of those without tiles.

    Raises
    ------
    SettingsError
        For an unknown format, or one that needs a package which is missing; for an option with a wrong value,
        or that none of the formats has.
    ManifestError
        When ``slides`` cannot be read.
    ArtifactError
        When the scores are missing or incomplete, or the output folder cannot be used.

    Examples
    --------
    >>> export("scores", "exported", to=["qupath", "clam"]).counts  # doctest: +SKIP
    {'exported': 120, 'without_tiles': 1}
    """
    formats = _with_options([_known(name) for name in dict.fromkeys(to)], options or {})
    execution, scores, out = execution or Execution(), rooted(scores), rooted(out)
    found = read_scores(scores)
    if slides is not None:
        found = found.moved_to(slides)
    usable = [slide for slide in found.slides if any(each.exports(slide) for each in formats)]
    before = _files_of(out)
    results = [name for names in before.values() for name in names]
    identity = Identity("export", digests={"scores": found.digest})
    with open_run(out, identity, execution, results=results) as run:
        if execution.dry_run:
            return Summary.of_dry_run("export", out, 0, len(usable))
        run.begin()
        failed: dict[str, str] = {}
        exported: set[str] = set()
        files: dict[str, list[str]] = {}
        for each in formats:
            written, done, failures = _write(each, out, found, execution)
            exported |= done
            for name, why in failures.items():
                failed[name] = "; ".join(filter(None, (failed.get(name), f"{each.name}: {why}")))
            files[each.name] = [str(path.relative_to(out)) for path in written]
            if failures and execution.strict:
                return Summary("export", out, {"exported": len(exported)}, failed)
            # Of slides that earlier scores had, or that have no tiles any more.
            for name in set(before.get(each.name, ())) - set(files[each.name]):
                (out / name).unlink(missing_ok=True)
        counts = {
            "exported": len(exported),
            "without_tiles": sum(not slide.reads_tiles for slide in found.slides),
        }
        run.finish(counts, files=before | files)
    notes = {
        each.name: each.summary(found.slides, [out / name for name in files[each.name]]) for each in formats
    }
    return Summary("export", out, counts, failed, notes=notes)


def list_formats() -> str:
    """Return a table of the formats, as text."""
    rows = [
        ("format", "for", "files"),
        *((each.name, each.programs, each.contents) for each in FORMATS.values()),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2]]) for row in rows)


def _known(name: str) -> Format:
    if name not in FORMATS:
        raise SettingsError(f"cannot export to {name!r}; choose one of {', '.join(FORMATS)}")
    FORMATS[name].check_installed()
    return FORMATS[name]


def _with_options(formats: Sequence[Format], options: Mapping[str, Any]) -> list[Format]:
    for name in options:
        if not any(name in each.options for each in formats):
            able = ", ".join(each.name for each in FORMATS.values() if name in each.options)
            raise SettingsError(
                f"--{name.replace('_', '-')} has no effect on {', '.join(each.name for each in formats)}; "
                f"{'leave it out, or add --to ' + able if able else 'no format has it'}"
            )
    return [each.with_options(options) for each in formats]


def _files_of(out: Path) -> dict[str, list[str]]:
    """Return the files that earlier exports wrote into a folder, by format."""
    return dict(read_json(out / RUN_FILE).get("files") or {}) if (out / RUN_FILE).exists() else {}


def _write(
    to: Format, out: Path, scores: Scores, execution: Execution
) -> tuple[list[Path], set[str], dict[str, str]]:
    """Write one format; return its files, the slides in them, and the reasons why others failed."""
    folder, written, done = out / to.name, list[Path](), list[ScoredSlide]()
    failed: dict[str, str] = {}
    slides = [slide for slide in scores.slides if to.exports(slide)]
    with execution.reporter.progress(f"export {to.name}", len(slides)) as advance:
        for slide in slides:
            try:
                if slide.reads_tiles:
                    slide.selection()  # damaged files fail here for the formats of all slides, too
                written += to.slide(folder, slide) if to.slide else ()
                done.append(slide)
            except (ArtifactError, SlideError) as error:
                failed[slide.id] = str(error)
                execution.reporter.message(f"{slide.id} failed: {error}")
                if execution.strict:
                    return written, {each.id for each in done}, failed
            advance(slide.id)
    if to.collection:
        written += to.collection(folder, scores, done)
    return written, {each.id for each in done}, failed
