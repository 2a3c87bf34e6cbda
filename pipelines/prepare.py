"""Prepare slides: thumbnail, tissue and grid of each, and a table of the findings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pipelines._carry_out import Results
from pipelines._records import Row, SlideTask, own_cores, settled
from pipelines._runs import Execution, Identity, Summary, rooted
from pipelines._stage import run_stage
from wsi_ats.bags.matched import MatchedBag, match_features, save_matched
from wsi_ats.bags.writing import copy_bag
from wsi_ats.files import atomic
from wsi_ats.overview.annotated import check_regions, within_regions
from wsi_ats.overview.overview import count_tiles, explain_exclusion, read_overview
from wsi_ats.overview.quality import mark
from wsi_ats.overview.records import Overview, save_overview
from wsi_ats.overview.tiles import level_for
from wsi_ats.results.records import Status
from wsi_ats.settings import ARTEFACTS, Fixes, Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.resample import write_png
from wsi_ats.slides.wrappers import CountingSlide

_COLUMNS = {
    **dict.fromkeys(("slide_id", "case_id", "path", "status"), "string"),
    "mpp": "double",
    "mpp_source": "string",
    **dict.fromkeys(
        ("width", "height", "levels", "level", "tile_size", "rows", "cols", "tissue_tiles"),
        "int64",
    ),
    **dict.fromkeys(("tissue_method", "tissue_reason"), "string"),
    **dict.fromkeys(ARTEFACTS, "double"),
    **dict.fromkeys(
        (
            *("excluded_tiles", "outside_tiles", "feature_tiles", "matched_tiles", "unmatched_cells"),
            "bytes_read",
        ),
        "int64",
    ),
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
    """Prepare slides: read their thumbnails, find their tissue and its artefacts.

    Parameters
    ----------
    refs
        The slides; of those that name regions, only the cells in them are tissue.
    out
        Folder for ``prepared/<slide_id>.npz`` (see :func:`wsi_ats.overview.records.load_overview`),
        ``thumbnails/<slide_id>.png``, ``quality/<slide_id>.png`` (the thumbnail with frames around tissue
        cells with artefacts: cyan for ink, yellow for lack of focus; only if there are any),
        ``slides.parquet`` and ``.csv``, ``run.json``. In the table, ``tissue_method`` and ``tissue_reason``
        give the method that found tissue and the reason for it, and ``warning`` the doubts about its result;
        ``pen`` and ``blur`` are the shares of the tissue cells with these artefacts, left out or not, empty
        if unknown; ``excluded_tiles`` is the number of tiles left out; for slides with regions,
        ``outside_tiles`` is that of tissue tiles outside them; and for slides with features,
        ``feature_tiles`` and ``matched_tiles`` are the tiles in the file, and those that are used, and
        ``unmatched_cells`` are tissue cells without a tile.
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
        When the output folder cannot be used.

    Examples
    --------
    >>> from wsi_ats.tables.manifest import read_manifest
    >>> prepare(read_manifest("slides"), "work").counts  # doctest: +SKIP
    {'done': 120, 'failed': 1, 'no_tissue': 0}
    """
    execution, out, settings = execution or Execution(), rooted(out), settings or Settings()
    if any(ref.regions for ref in refs):
        check_regions(settings)
    identity = Identity.of("prepare", settings, Fixes.THUMBNAILS)
    refer = partial(settled, settings=settings)
    return run_stage(PrepareTask.of(out, settings), refs, identity, execution, refer=refer)


@dataclass(frozen=True)
class Prepared:
    """Slides that are prepared already.

    Parameters
    ----------
    out
        Folder of :func:`prepare`, with the settings of the run that uses them.
    results
        Its results.
    """

    out: Path
    results: Results


@dataclass(frozen=True)
class PrepareTask(SlideTask):
    """Preparation of a slide.

    Parameters
    ----------
    settings
        See :func:`prepare`.
    """

    settings: Settings

    stage: ClassVar[str] = "prepare"
    tables: ClassVar[Sequence[str]] = ("slides",)

    @property
    def columns(self) -> Mapping[str, str]:
        """See :func:`prepare`."""
        return _COLUMNS

    @classmethod
    def of(cls, out: Path, settings: Settings) -> PrepareTask:
        """Make the task for an output folder."""
        return cls(out, settings.digest(Fixes.THUMBNAILS), settings)

    def prepared(self, slide_id: str) -> Path:
        """Return the file of a slide's thumbnail and tissue."""
        return self.out / "prepared" / f"{slide_id}.npz"

    def matched(self, slide_id: str) -> Path:
        """Return the file of the tiles whose features are used, if the slide names features."""
        return self.out / "matched" / f"{slide_id}.npz"

    def copied(self, slide_id: str) -> Path:
        """Return the uncompressed copy of a slide's features, of which single rows can be read."""
        return self.out / "copied" / f"{slide_id}.h5"

    def files(self, slide_id: str) -> tuple[Path, ...]:
        """Return the files of thumbnail and tissue, the thumbnail as PNG, framed artefacts, and of features.

        Only slides with artefacts have the third, and only slides with features those after it.
        """
        return (
            self.prepared(slide_id),
            self.out / "thumbnails" / f"{slide_id}.png",
            self.out / "quality" / f"{slide_id}.png",
            self.matched(slide_id),
            self.copied(slide_id),
        )

    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Read the thumbnail, find the tissue and its artefacts."""
        begin = time.perf_counter()
        with open_slide(ref, threads=own_cores()) as slide:
            counting = CountingSlide(slide)
            overview, bag = read_overview(counting, self.settings, measure_quality=True), None
            if ref.features:
                overview, bag = match_features(ref, slide, overview, self.settings.model)
            overview = within_regions(overview, ref, slide, self.settings)
            levels, mpp, grid = slide.levels, slide.mpp, overview.tissue.grid
            read = slide.bytes_read
        written = self._write(ref.id, overview, bag, size=(levels[0].width, levels[0].height), mpp=mpp.value)
        tiles, outside = count_tiles(overview.tissue, self.settings), overview.outside
        doubts = [overview.background.doubt, outside.warning if outside else ""]
        row = {
            "slide_id": ref.id,
            "case_id": ref.case,
            "path": ref.path,
            "status": Status.DONE.value if len(overview.tissue.cells) else Status.NO_TISSUE.value,
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
            "tissue_method": overview.background.method,
            "tissue_reason": overview.background.reason,
            **overview.artefact_shares,
            "excluded_tiles": count_tiles(overview.all_tissue, self.settings) - tiles,
            "outside_tiles": outside and int(outside.mask.sum()),
            "feature_tiles": bag and bag.matched.tiles,
            "matched_tiles": bag and bag.matched.used,
            "unmatched_cells": bag and bag.matched.without_tile,
            "bytes_read": counting.stored_bytes_read if read is None else read,
            "seconds": time.perf_counter() - begin,
            "warning": "; ".join(filter(None, doubts)) or None,
            "error": explain_exclusion(overview, self.settings),
        }
        return row, written

    def _write(
        self, slide_id: str, overview: Overview, bag: MatchedBag | None, *, size: tuple[int, int], mpp: float
    ) -> list[Path]:
        """Write the files of a slide of ``size`` level-0 pixels, and return them."""
        prepared, picture, quality, matched, copied = self.files(slide_id)
        save_overview(prepared, overview)
        with atomic(picture) as path:
            write_png(path, overview.thumbnail)
        written = [prepared, picture]
        if bag is not None:
            written.append(matched)
            save_matched(matched, bag, mpp)
            if not bag.bag.is_plain:
                written.append(copied)
                copy_bag(bag.bag, copied, name=slide_id, size=size, mpp=mpp)
        if any(mask.any() for mask in overview.artefacts.values()):
            written.append(quality)
            with atomic(quality) as path:
                write_png(path, mark(overview.thumbnail, overview.artefacts))
        return written
