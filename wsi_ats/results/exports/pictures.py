"""Pictures of slides that were scored earlier: thumbnail and tiles are read again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.exports.format import Format
from wsi_ats.results.records import Status
from wsi_ats.results.scores import ScoredSlide
from wsi_ats.results.shown import DPI, KINDS, SHEETS, ShownSlide, check_dpi, check_kind
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide


def write_pictures(
    folder: Path, slide: ScoredSlide, *, picture_type: str = KINDS[0], dpi: int = DPI
) -> list[Path]:
    """Draw a scored slide and, if it has tiles that can be read, a contact sheet of them.

    Parameters
    ----------
    folder
        Folder for ``<slide_id>.png`` and ``tiles/<slide_id>.png``.
    slide
        The slide, which has the status ``done`` or ``no_tissue``.
    picture_type
        Type and ending of the files, one of :data:`wsi_ats.results.shown.KINDS`.
    dpi
        Pixels per inch of a PNG, and of the images in other files.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ArtifactError
        When the scores are incomplete, the slide has changed, or a file cannot be written.
    SlideError
        When the slide cannot be read.
    """
    from wsi_ats.results.pictures import write_pictures_of  # matplotlib may be missing

    return write_pictures_of(folder, read_shown(slide), kind=picture_type, dpi=dpi)


def read_shown(slide: ScoredSlide) -> ShownSlide:
    """Read again what pictures of a scored slide show.

    If only a thumbnail is left of a slide, the result has no pixels of tiles.

    Raises
    ------
    ArtifactError
        When the scores are incomplete, or the slide has changed.
    SlideError
        When the slide cannot be read.
    """
    settings = Settings.from_mapping(slide.settings)
    ref = slide.ref()
    attention = slide.attention() if slide.status == Status.DONE else None
    selection = slide.selection() if slide.reads_tiles else None
    with open_slide(ref) as opened:
        overview = read_overview(opened, settings)
        shown = ShownSlide.of(slide.row, slide.target, opened, overview, attention, selection)
        if shown.drawn is None or ref.downsample > 1:
            return shown
        cells = np.sort(shown.cells_on_sheet)
        return shown.with_tiles(cells, read_tiles(opened, shown.drawn.grid, cells))


def _missing(slides: Sequence[ScoredSlide], written: Sequence[Path]) -> str:
    """Say how many slides have no contact sheet, and why."""
    sheets, drawn = set[str](), set[str]()
    for path in written:
        (sheets if path.parent.name == SHEETS else drawn).add(path.stem)
    bare = [each for each in slides if each.id in drawn - sheets]
    reasons = {
        "without tissue": sum(each.status == Status.NO_TISSUE for each in bare),
        "scored as one image": sum(each.status == Status.DONE and not each.reads_tiles for each in bare),
        "of which only the thumbnail is left": sum(each.reads_tiles for each in bare),
    }
    return "; ".join(
        f"no contact sheet for {count} slide{'s' * (count != 1)} {why}"
        for why, count in reasons.items()
        if count
    )


FORMAT = Format(
    "pictures",
    programs="people",
    contents="a picture of each slide, and one of its drawn tiles; also SVG or PDF",
    slide=write_pictures,
    packages=("matplotlib",),
    extra="plots",
    without_tiles=True,
    options={"picture_type": check_kind, "dpi": check_dpi},
    each="picture",
    note=_missing,
)
