"""Drawn tiles as images, read from the slides again."""

from __future__ import annotations

from pathlib import Path

from wsi_ats.files import atomic
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.exports.format import Format
from wsi_ats.results.scores import ScoredSlide
from wsi_ats.slides.opening import open_slide
from wsi_ats.slides.resample import write_png


def write_pngs(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<slide_id>/<order>_<x>_<y>.png``: the pixels of each distinct tile as the network saw them.

    ``order`` is the tile's position in the first draw with it; ``x, y`` is its corner in level-0 pixels of
    the whole slide. One tile at a time is in memory.

    Raises
    ------
    ArtifactError
        When the slide is gone, or has changed since it was scored; or when a file cannot be written.
    SlideError
        When the slide cannot be read.
    """
    selection = slide.selection()
    tiles = selection.distinct()
    corners = selection.grid.boxes(tiles.cells)[:, :2].tolist()
    written = []
    with open_slide(slide.ref()) as opened:
        for cell, order, (x, y) in zip(tiles.cells, selection.order[tiles.row], corners, strict=True):
            path = folder / slide.id / f"{order}_{x}_{y}.png"
            pixels = read_tiles(opened, selection.grid, [cell])[0]
            with atomic(path) as temporary:
                write_png(temporary, pixels)
            written.append(path)
    return written


FORMAT = Format(
    "png",
    programs="any viewer of images",
    contents="<slide_id>/<order>_<x>_<y>.png, the pixels of each tile; reads the slides again",
    slide=write_pngs,
    each="picture",
)
