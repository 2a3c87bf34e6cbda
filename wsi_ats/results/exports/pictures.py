"""Pictures of slides that were scored earlier: thumbnail and tiles are read again."""

from __future__ import annotations

from pathlib import Path

from wsi_ats.files import read_json
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.pictures import DPI, write_pictures_of
from wsi_ats.results.records import RUN_FILE, Status
from wsi_ats.results.scores import ScoredSlide
from wsi_ats.results.shown import ShownSlide
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.tasks.targets import Target


def write_pictures(folder: Path, slide: ScoredSlide, *, kind: str = "png", dpi: int = DPI) -> list[Path]:
    """Draw a scored slide, and, if its tiles can be read, a contact sheet of them.

    Parameters
    ----------
    folder
        Folder for ``<slide_id>.<kind>`` and ``<slide_id>_tiles.<kind>``.
    slide
        The slide, which has the status ``done`` or ``no_tissue``.
    kind
        One of :data:`wsi_ats.results.pictures.KINDS`.
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
    return write_pictures_of(folder, read_shown(slide), kind=kind, dpi=dpi)


def read_shown(slide: ScoredSlide) -> ShownSlide:
    """Read again what pictures of a scored slide show.

    Of a slide of which only a thumbnail is left, there are no pixels of tiles.

    Raises
    ------
    ArtifactError
        When the scores are incomplete, or the slide has changed.
    SlideError
        When the slide cannot be read.
    """
    record = read_json(slide.folder / RUN_FILE)
    target = Target(**record["target"] | {"names": tuple(record["target"]["names"])})
    settings = Settings.from_mapping({name: record["settings"][name] for name in ("tile", "thumbnail")})
    ref, done = slide.ref(), slide.status == Status.DONE
    with open_slide(ref) as opened:
        overview = read_overview(opened, settings)
        selection = slide.selection() if slide.reads_tiles else None
        shown = ShownSlide.of(
            slide.row, target, opened, overview, slide.attention() if done else None, selection
        )
        if shown.drawn is None or ref.downsample > 1:
            return shown
        cells = sorted(shown.cells_on_sheet.tolist())
        return shown.with_tiles(cells, read_tiles(opened, shown.drawn.grid, cells))
