"""Prepare slides: thumbnail, tissue and grid of each, and a table that says what was found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines._records import (
    Row,
    SlideTask,
    complete,
    own_cores,
    pending,
    report_left_out,
    settled,
    write_table,
)
from pipelines._runs import Execution, Identity, Summary, count, open_run, rooted
from wsi_ats.files import atomic
from wsi_ats.overview.overview import count_tiles, inspect
from wsi_ats.overview.prepared import Prepared, save_prepared
from wsi_ats.overview.quality import mark
from wsi_ats.overview.tiles import level_for
from wsi_ats.results.records import Status
from wsi_ats.settings import ARTEFACTS, Fixes, Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.resample import write_png
from wsi_ats.slides.wrappers import CountingSlide, bytes_read

RESULTS = ("records", "prepared", "thumbnails", "quality", "slides.parquet", "slides.csv")

_TYPES = {
    **dict.fromkeys(("slide_id", "case_id", "path", "status"), "string"),
    "mpp": "double",
    "mpp_source": "string",
    **dict.fromkeys(
        ("width", "height", "levels", "level", "tile_size", "rows", "cols", "tissue_tiles"),
        "int64",
    ),
    **dict.fromkeys(("tissue_method", "tissue_reason"), "string"),
    **dict.fromkeys(ARTEFACTS, "double"),
    **dict.fromkeys(("excluded_tiles", "bytes_read"), "int64"),
    "seconds": "double",
    **dict.fromkeys(("warning", "error"), "string"),
}


def prepare(
    refs: Sequence[SlideRef],
    out: str | Path,
    *,
    settings: Settings | None = None,
    execution: Execution | None = None,
) -> Summary:
    """Look at slides: read their thumbnails, find their tissue and what spoils it.

    Parameters
    ----------
    refs
        The slides.
    out
        Folder for ``prepared/<slide_id>.npz`` (see :func:`wsi_ats.overview.prepared.load_prepared`),
        ``thumbnails/<slide_id>.png``, ``quality/<slide_id>.png`` (the thumbnail with spoilt tissue cells
        framed: cyan under ink, yellow out of focus; where there are any), ``slides.parquet`` and ``.csv``,
        ``run.json``. Of the table's columns, ``tissue_method`` and ``tissue_reason`` say how tissue was found
        and why so, ``warning`` what speaks against it; ``pen`` and ``blur`` are the shares of the tissue
        cells that are spoilt, left out or not, empty where that cannot be told; ``excluded_tiles`` are those
        left out.
    settings
        Sections ``tile`` and ``thumbnail`` are used.
    execution
        Where and how; on all cores of this machine by default.

    Returns
    -------
    Summary

    Raises
    ------
    SettingsError
        When no scheduler answers.
    ArtifactError
        When the output folder is not to be used.

    Examples
    --------
    >>> from wsi_ats.tables.manifest import read_manifest
    >>> prepare(read_manifest("slides"), "work").counts  # doctest: +SKIP
    {'done': 120, 'failed': 1, 'no_tissue': 0}
    """
    execution, out, settings = execution or Execution(), rooted(out), settings or Settings()
    identity = Identity.of("prepare", settings, Fixes.THUMBNAILS)
    task, refs = PrepareTask.of(out, settings), settled(refs, settings)
    with open_run(out, identity, execution, results=RESULTS) as run:
        if execution.dry_run:
            return Summary.of_dry_run("prepare", out, *(len(part) for part in pending(task, refs)))
        run.begin()
        results = complete(task, refs, execution, title="prepare")
        counts = count(results.rows)
        report_left_out(results.rows, execution)
        if not results.stopped:
            task.write_tables(results.rows)
            run.finish(counts)
    return Summary(
        *("prepare", out, counts, results.failed, results.reused),
        notes=results.notes,
        table=None if results.stopped else "slides.csv",
    )


@dataclass(frozen=True)
class PrepareTask(SlideTask):
    """What preparing does to one slide.

    Parameters
    ----------
    settings
        See :func:`prepare`.
    """

    settings: Settings

    @classmethod
    def of(cls, out: Path, settings: Settings) -> PrepareTask:
        """Make the task for an output folder."""
        return cls(out, settings.digest(Fixes.THUMBNAILS), settings)

    def prepared(self, slide_id: str) -> Path:
        """File of a slide's thumbnail and tissue."""
        return self.out / "prepared" / f"{slide_id}.npz"

    def files(self, slide_id: str) -> tuple[Path, ...]:
        """The thumbnail with its tissue; the thumbnail as a picture, and with what spoils it framed."""
        return (
            self.prepared(slide_id),
            self.out / "thumbnails" / f"{slide_id}.png",
            self.out / "quality" / f"{slide_id}.png",
        )

    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Read the thumbnail, find the tissue and what spoils it."""
        begin = time.perf_counter()
        with open_slide(ref, threads=own_cores()) as slide:
            counting = CountingSlide(slide)
            view = inspect(counting, self.settings)
            levels, mpp, grid = slide.levels, slide.mpp, view.found.grid
            read = bytes_read(slide)
        tissue, beyond = view.tissue, view.beyond
        prepared, picture, quality = self.files(ref.id)
        save_prepared(prepared, Prepared(view.thumbnail, tissue, view.quality))
        with atomic(picture) as path:
            write_png(path, view.thumbnail)
        written = [prepared, picture]
        if any(mask.any() for mask in beyond.values()):
            written.append(quality)
            with atomic(quality) as path:
                write_png(path, mark(view.thumbnail, beyond))
        tiles = count_tiles(tissue, self.settings)
        row = {
            "slide_id": ref.id,
            "case_id": ref.case,
            "path": ref.path,
            "status": Status.DONE.value if len(tissue.cells) else Status.NO_TISSUE.value,
            "mpp": mpp.value,
            "mpp_source": mpp.source,
            "width": levels[0].width,
            "height": levels[0].height,
            "levels": len(levels),
            "level": level_for(levels, grid.cell / grid.tile_size),
            "tile_size": grid.tile_size,
            "rows": grid.shape[0],
            "cols": grid.shape[1],
            "tissue_tiles": tiles,
            "tissue_method": view.background.method,
            "tissue_reason": view.background.reason,
            **view.spoilt_shares,
            "excluded_tiles": count_tiles(view.found, self.settings) - tiles,
            "bytes_read": counting.stored_bytes_read if read is None else read,
            "seconds": time.perf_counter() - begin,
            "warning": view.background.doubt or None,
            "error": view.nothing_left,
        }
        return row, written

    def failed(self, ref: SlideRef, error: str, seconds: float) -> Row:
        """A row that says what could not be found out, and why."""
        known = {"slide_id": ref.id, "case_id": ref.case, "path": ref.path, "status": Status.FAILED.value}
        return dict.fromkeys(_TYPES) | known | {"seconds": seconds, "error": error}

    def write_tables(self, rows: Sequence[Row]) -> None:
        """Write ``slides.parquet`` and ``slides.csv``."""
        write_table(self.out, "slides", rows, _TYPES)


if __name__ == "__main__":
    from pipelines.cli import main

    main("prepare")
