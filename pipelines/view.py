"""Show scores in a web page of this machine, or write the page as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines._regions import report_unmatched
from pipelines._reports import Reporter
from pipelines._runs import rooted
from wsi_ats.annotations.folder import AnnotationFolder
from wsi_ats.errors import SettingsError
from wsi_ats.results.scores import Scores, read_scores


@dataclass(frozen=True)
class Viewed:
    """The end of a viewer.

    Parameters
    ----------
    slides
        Number of slides that could be seen.
    written
        Folder of the files, if they were written.
    failed
        Reasons why slides are not in the files, by slide.
    """

    slides: int
    written: str | None
    failed: Mapping[str, str]

    @property
    def exit_code(self) -> int:
        """0, or 1 when slides are not in the files."""
        return 1 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self)

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return the lines of the table."""
        lines = [("slides", str(self.slides))]
        if self.written:
            lines.append(("results", self.written))
        return [("view", lines), *([("failed", list(self.failed.items()))] if self.failed else [])]


def view(
    scores: str | Path,
    *,
    slides: str | Path | None = None,
    annotations: str | Path | None = None,
    port: int | None = None,
    export: str | Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Viewed:
    """Show scores in a web page until Ctrl-C, or write the page as files.

    Parameters
    ----------
    scores
        Output folder of :func:`pipelines.score.score`.
    slides
        Where the slides are now, if they were moved: a folder, glob or table.
    annotations
        Folder of annotations; see :meth:`wsi_ats.annotations.folder.AnnotationFolder.find`.
    port
        Port of 127.0.0.1; 0, the default, takes a free one.
    export
        Folder for the files, which any web server can serve; nothing is served then.
    overwrite
        Whether to replace an earlier export.
    reporter
        Receives the address of the page; by default it is shown on the console.

    Raises
    ------
    SettingsError
        When Bokeh is missing, the port is in use, or options exclude one another.
    ManifestError
        When there are no slides in ``slides``, or no annotations of these slides.
    AnnotationError
        When a slide has several files of annotations.
    ArtifactError
        When the scores are missing or incomplete, or the folder of ``export`` cannot be used.

    Examples
    --------
    >>> view("scores", port=8800).slides  # doctest: +SKIP
    120
    """
    if export is not None and port is not None:
        raise SettingsError("--export writes files and serves nothing; leave out --port or --export")
    if overwrite and export is None:
        raise SettingsError("--overwrite is for --export; leave it out")
    from wsi_ats.viewer.collection import Collection

    if reporter is None:  # the address has a random token, so somebody must be told
        from pipelines._console import reporter as on_console

        reporter = on_console(debug=False)
    found = read_scores(rooted(scores))
    if slides is not None:
        found = found.moved_to(slides)
    outlines = _find_annotations(rooted(annotations), found, reporter) if annotations else {}
    collection, failed = Collection(found, outlines), {}
    if export is not None:
        from wsi_ats.viewer.static import write_static

        with reporter.progress("view", len(found.slides)) as advance:
            out = rooted(export)
            failed = write_static(collection, out, overwrite=overwrite, say=reporter.message, done=advance)
        return Viewed(len(found.slides), str(out), failed)
    from wsi_ats.viewer.server import serve

    serve(collection, port or 0, lambda url: reporter.message(f"open {url} in a browser; Ctrl-C ends"))
    return Viewed(len(found.slides), None, {})


def _find_annotations(folder: Path, scores: Scores, reporter: Reporter) -> dict[str, Path]:
    found = AnnotationFolder.find(folder)
    names = list(scores.by_id)
    missing = set(report_unmatched(found, names, reporter))
    return {name: found.file_for(name) for name in names if name not in missing}
