"""Draw scored slides: the slide with attention and the drawn tiles, and a contact sheet of these tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError
from wsi_ats.results.captions import (
    OUTLINES,
    about_sheet,
    captions_of,
    heading,
    ink,
    legend,
    legend_of_sheet,
)
from wsi_ats.results.labels import place_labels
from wsi_ats.results.page import COLOURS, Page, Panel, open_page
from wsi_ats.results.records import FloatArray
from wsi_ats.results.shown import DPI, SHEETS, ShownSlide
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.resample import fitted

# Lengths in inches.
_MARGIN, _GAP, _LINE = 0.15, 0.25, 0.16
_SIDE, _LENGTH, _HEIGHT = 4.4, 9.0, 7.0  # longest side of a panel: nearly square, wide, tall
_NARROWEST = 6.5  # figure, for its title
_TITLE = 0.9  # from the middle of a panel to that of the next, for their titles
_TILE = 240  # pixels of a tile's side at DPI, about, if it has fewer

_FOR, _AGAINST = "#d55e00", "#0072b2"  # can be told apart with any colour vision (Okabe and Ito)
_TICKS = (*(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500), *(10.0**power for power in range(3, 9)))
_LEAST_ATTENTION = 0.05
_COLOUR = 0.85  # part of the colour of attention in a pixel; the rest is the slide in grey
_LARGEST_RING, _SMALLEST_RING, _DOT = 11.0, 4.0, 2.2  # diameters in points
_NUMBER = 7.0  # size of type in points


def write_pictures_of(folder: Path, shown: ShownSlide, *, kind: str = "png", dpi: int = DPI) -> list[Path]:
    """Draw a slide, and its contact sheet if there are pixels of its tiles.

    Parameters
    ----------
    folder
        Folder for ``<slide_id>.<kind>`` and ``tiles/<slide_id>.<kind>``; an old contact sheet is deleted if
        there is no new one.
    shown, dpi
        As in :func:`figure_of_slide`.
    kind
        One of :data:`wsi_ats.results.shown.KINDS`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    SettingsError
        For another kind.
    ArtifactError
        When a file cannot be written.
    """
    slide, tiles = (each / f"{shown.id}.{kind}" for each in (folder, folder / SHEETS))
    figure_of_slide(slide, shown, dpi=dpi)
    if shown.pixels is None:
        tiles.unlink(missing_ok=True)
        return [slide]
    figure_of_tiles(tiles, shown, dpi=dpi)
    return [slide, tiles]


def figure_of_slide(path: Path, shown: ShownSlide, *, dpi: int = DPI) -> None:
    """Draw a slide: its thumbnail with tissue and drawn tiles, and its attention if it differs between cells.

    Circles are the tiles of the contact sheet; their area grows with the weight. Their numbers are places in
    the order in which tiles were drawn, from 1. Dots are the other tiles that were drawn.

    Parameters
    ----------
    path
        File to write; its ending is one of :data:`wsi_ats.results.shown.KINDS`.
    shown
        The slide.
    dpi
        Pixels per inch; see :data:`wsi_ats.results.shown.DPI`.

    Raises
    ------
    SettingsError
        For another ending.
    ArtifactError
        When the file cannot be written.
    """
    attention = shown.relative_attention
    ratio = shown.bounds.width / shown.bounds.height
    longest = _LENGTH if ratio > 1.8 else _SIDE if ratio > 0.6 else _HEIGHT
    width, height = (longest, longest / ratio) if ratio > 1 else (longest * ratio, longest)
    # Panels of a wide slide are below each other; to the right of attention is its scale.
    right, below = (0.0, height + _GAP + _LINE) if ratio > 1.8 else (max(width + _GAP, _TITLE), 0.0)
    scale = 0.0 if attention is None else 0.5
    if attention is None:
        right = below = 0.0
    page_width = max(_NARROWEST, width + right + scale + 2 * _MARGIN)
    titles, notes = heading(shown, page_width, shown.counts), legend(shown, page_width)
    first = Panel((page_width - width - right - scale) / 2, _top(titles) + _LINE, width, height)
    last = Panel(first.left + right, first.top + below, width, height)
    end = last.top + height + 0.12
    with open_page(path, page_width, end + _LINE * (len(notes) + 1.2) + _MARGIN, dpi) as page:
        _write_heading(page, titles)
        image = _thumbnail(shown, first, dpi)
        _draw_panel(page, first, shown, image, "slide" if shown.drawn is None else "tiles read")
        if attention is not None:
            colours = _Colours.of(attention)
            _draw_panel(page, last, shown, colours.over(image, shown, attention), shown.title_of_attention)
            colours.draw_scale(page, Panel(last.left + width + 0.08, last.top, 0.12, height))
        _draw_tiles(page, first, shown)
        page.scale(first.left, end, width, shown.mpp * shown.bounds.width, millimetres=True)
        for i, line in enumerate(notes):
            page.write(_MARGIN, end + (i + 1.4) * _LINE, line)


def figure_of_tiles(path: Path, shown: ShownSlide, *, dpi: int = DPI) -> None:
    """Draw a contact sheet of a slide's tiles, those with the largest part in the score first.

    Parameters
    ----------
    path, shown, dpi
        As in :func:`figure_of_slide`.

    Raises
    ------
    SettingsError
        For another ending, or a slide without pixels of tiles.
    ArtifactError
        When the file cannot be written.
    """
    if shown.pixels is None or not len(shown.pixels):
        raise SettingsError(f"{shown.id}: there are no tiles to draw")
    count, side = shown.pixels.shape[:2]
    # At DPI, each pixel of a tile becomes a whole number of pixels, and so do the gaps.
    inch = DPI / max(1, round(_TILE / side))  # pixels of a tile
    tile = side / inch
    captions = captions_of(shown, int(17.5 * tile))
    across = tile + round(0.12 * inch) / inch
    down = tile + round((_LINE * (max(map(len, captions)) + 1) + 0.16) * inch) / inch
    columns = min(5, count)
    rows = -(-count // columns)
    page_width = max(_NARROWEST, columns * across + 2 * _MARGIN)
    titles, notes = heading(shown, page_width, about_sheet(shown)), legend_of_sheet(shown, page_width)
    top = _top(titles) + 0.08
    end = top + rows * down
    with open_page(path, page_width, end + _LINE * (len(notes) + 1.2) + _MARGIN, dpi) as page:
        _write_heading(page, titles)
        corners = [(_MARGIN + i % columns * across, top + i // columns * down) for i in range(count)]
        for (left, above), pixels in zip(corners, shown.pixels, strict=True):
            page.image(Panel(left, above, tile, tile), pixels)
        for (left, above), position, lines in zip(corners, shown.sheet.tolist(), captions, strict=True):
            colour = _colour(shown, position)
            page.rectangle(Panel(left, above, tile, tile), edge=colour, width=2)
            below = above + tile + 0.06
            page.write(left, below, f"{position + 1}", bold=True)
            for i, line in enumerate(lines, start=1):
                page.write(left, below + i * _LINE, line)
        pixel = shown.mpp * shown.drawn.grid.cell / side if shown.drawn else shown.mpp
        page.scale(_MARGIN, end, tile, pixel * side, millimetres=False)
        for i, line in enumerate(notes):
            page.write(_MARGIN, end + (i + 1.4) * _LINE, line)


def _top(titles: Sequence[str]) -> float:
    """Return where the titles end."""
    return _MARGIN + 0.1 + _LINE * len(titles)


def _write_heading(page: Page, lines: Sequence[str]) -> None:
    page.write(_MARGIN, _MARGIN, lines[0], size=10.5, bold=True)
    for i, line in enumerate(lines[1:], start=1):
        page.write(_MARGIN, _MARGIN + 0.07 + i * _LINE, line, size=8.5)


def _thumbnail(shown: ShownSlide, panel: Panel, dpi: int) -> Pixels:
    """Return the scanned part of the thumbnail, with the pixels that the panel has on the page."""
    thumbnail, bounds, grid = shown.overview.thumbnail, shown.bounds, shown.overview.tissue.grid
    step = grid.pitch * grid.shape[0] / len(thumbnail)
    edges = np.array([bounds.x, bounds.y, bounds.x + bounds.width, bounds.y + bounds.height]) / step
    most = thumbnail.shape[1::-1] * 2
    left, top, right, bottom = panel.pixels(dpi)
    return fitted(thumbnail, right - left, bottom - top, tuple(np.clip(edges, 0, most).tolist()))


def _draw_panel(page: Page, panel: Panel, shown: ShownSlide, image: Pixels, title: str) -> None:
    """Draw an image of the slide with the outlines of tissue and of others."""
    page.image(panel, image)
    page.rectangle(panel, edge="0.7", width=0.5)
    page.write(panel.left + panel.width / 2, panel.top - 0.095, title, size=8, centred=True)
    outlines = [(shown.tissue, ink(shown), 0.6)]
    outlines += [(mask, colour, 1.2) for mask, colour in zip(shown.outlines.values(), OUTLINES, strict=False)]
    for mask, colour, width in outlines:
        x, y = panel.points(_outline(shown, mask), shown.bounds).T / 72
        right, bottom = panel.left + panel.width, panel.top + panel.height
        page.line(x.clip(panel.left, right), y.clip(panel.top, bottom), colour=colour, width=width)


def _outline(shown: ShownSlide, mask: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the edges between cells inside and outside a mask, as a line with gaps at NaN.

    Points are in level-0 pixels, shape (m, 2).
    """
    lines = []
    for across in (mask, mask.T):
        padded = np.pad(across, 1)
        edge = np.pad(padded[1:, 1:-1] != padded[:-1, 1:-1], ((0, 0), (1, 1))).astype(np.int8)
        change = np.diff(edge, axis=1)
        row, start = np.nonzero(change == 1)
        _, end = np.nonzero(change == -1)
        lines.append(np.stack([start, row, end, row], axis=1)[:, :: 1 if across is mask else -1])
    grid = shown.overview.tissue.grid
    # Where tiles overlap, an edge is halfway between the middles of two.
    places = np.concatenate(lines).reshape(-1, 2, 2) * grid.pitch + (grid.cell - grid.pitch) / 2
    gaps = np.full((len(places), 1, 2), np.nan)
    return np.concatenate([places, gaps], axis=1).reshape(-1, 2)


@dataclass(frozen=True)
class _Colours:
    """Colours of attention relative to uniform attention, on a logarithmic scale."""

    least: float
    most: float
    below: bool  # whether there is attention below the least, which has its colour

    @classmethod
    def of(cls, attention: FloatArray) -> Self:
        """Return a scale on which nearly uniform attention looks so, and next to nothing has one colour."""
        lowest = float(np.nanmin(attention))
        least, most = max(_LEAST_ATTENTION, min(0.5, lowest)), max(2.0, float(np.nanmax(attention)))
        return cls(least, most, lowest < least)

    def place(self, attention: FloatArray) -> FloatArray:
        """Return places on the scale, from 0 to 1."""
        placed = np.log(np.maximum(attention, self.least) / self.least) / np.log(self.most / self.least)
        return np.asarray(placed)

    def over(self, image: Pixels, shown: ShownSlide, attention: FloatArray) -> Pixels:
        """Return an image of the slide in grey, with attention in colours over the tissue."""
        grid, bounds = shown.overview.tissue.grid, shown.bounds
        start = (grid.cell - grid.pitch) / 2
        # Cells of the rows and columns of pixels; around the grid is a border of cells without attention.
        row, column = (
            np.clip(((np.arange(n) + 0.5) * length / n + first - start) // grid.pitch, -1, cells).astype(int)
            + 1
            for n, first, length, cells in zip(
                image.shape[:2], bounds[1::-1], bounds[:1:-1], grid.shape, strict=True
            )
        )
        known = np.pad(~np.isnan(attention), 1)
        number = np.pad(np.minimum(255, 256 * self.place(np.nan_to_num(attention))).astype(np.uint8), 1)
        cells = row[:, None], column
        grey = (image.astype(np.uint16).sum(-1, dtype=np.uint16) // 3)[..., None]
        mixed = (COLOURS * _COLOUR)[number[cells]] + (1 - _COLOUR) * grey.astype(np.float32)
        shade: Pixels = np.where(known[cells][..., None], mixed, grey).astype(np.uint8)
        return shade

    def draw_scale(self, page: Page, bar: Panel) -> None:
        """Draw the scale, with its numbers to the right."""
        page.image(bar, np.round(COLOURS[::-1, None] * _COLOUR + 255 * (1 - _COLOUR)).astype(np.uint8))
        page.rectangle(bar, edge="black", width=0.5)
        right = bar.left + bar.width
        for tick in _TICKS:
            if self.least <= tick <= self.most:
                y = bar.top + bar.height * (1 - float(self.place(np.array(tick))))
                page.line(np.array([right, right + 0.03]), np.array([y, y]), colour="black", width=0.6)
                less = "\N{LESS-THAN OR EQUAL TO}" if self.below and tick == self.least else ""
                page.write(right + 0.07, y - 0.045, f"{less}{tick:g}", size=7)


def _draw_tiles(page: Page, panel: Panel, shown: ShownSlide) -> None:
    """Mark the drawn tiles, and number those of the contact sheet."""
    if shown.drawn is None:
        return
    points, sheet = panel.points(shown.drawn.centres, shown.bounds), shown.sheet
    others = np.setdiff1d(np.arange(len(points)), sheet) if not shown.reads_all else sheet[:0]
    part = shown.drawn.weight[sheet] / max(shown.drawn.weight.max(), np.finfo(float).tiny)
    rings = np.maximum(_SMALLEST_RING, _LARGEST_RING * np.sqrt(np.clip(part, 0, 1)))
    dark = ink(shown)
    light = "white" if dark == "black" else "black"
    page.circles(points[others] / 72, np.full(len(others), _DOT), face=dark, edge=light, width=0.5)
    for colour, width in ((light, 2.4), (dark, 1.1)):
        page.circles(points[sheet] / 72, rings, edge=colour, width=width)
    half = rings[:, None] / 2 + 1
    marks = np.concatenate([points[sheet] - half, points[sheet] + half], axis=1)
    texts = [str(position + 1) for position in sheet.tolist()]
    sizes = np.array([[0.66 * _NUMBER * len(each) + 1.5, _NUMBER + 1] for each in texts]).reshape(-1, 2)
    room = 72 * np.array(
        [panel.left, panel.top, panel.left + panel.width, panel.top + panel.height]
    ) + np.array([-8, -2, 8, 2])
    places = place_labels(points[sheet], rings / 2 + 1.5, sizes, marks, room)
    for words, place, size, point, ring in zip(texts, places, sizes, points[sheet], rings, strict=True):
        if np.isnan(place).any():
            continue
        away = place - point
        if np.hypot(*away) > ring / 2 + 16:
            begin = point + away / np.hypot(*away) * ring / 2
            page.line(*np.stack([begin, place]).T / 72, colour=dark, width=0.6)
        page.rectangle(Panel(*(place - size / 2) / 72, *size / 72), face="white", alpha=0.85)
        page.write(place[0] / 72, place[1] / 72, words, size=_NUMBER, centred=True)


def _colour(shown: ShownSlide, position: int) -> str:
    """Return the colour of a tile's frame, by the sign of its evidence."""
    evidence = shown.drawn.evidence.get(shown.target.names[shown.best]) if shown.drawn else None
    if evidence is None or not np.isfinite(evidence[position]):
        return "0.6"
    return _FOR if evidence[position] > 0 else _AGAINST
