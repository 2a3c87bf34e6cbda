"""Draw scored slides: the slide with attention and the drawn tiles, and a contact sheet of these tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError, not_installed
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
from wsi_ats.results.page import Image, Panel, draw_scale, opaque, open_page, write
from wsi_ats.results.records import FloatArray
from wsi_ats.results.shown import DPI, SHEETS, ShownSlide
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.resample import resample

try:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle
except ModuleNotFoundError as error:
    raise not_installed("matplotlib", "plots", "drawing pictures") from error

# Lengths in inches.
_MARGIN, _GAP, _LINE = 0.15, 0.25, 0.16
_SIDE, _LENGTH, _HEIGHT = 4.4, 9.0, 7.0  # longest side of a panel: nearly square, wide, tall
_NARROWEST = 6.5  # figure, for its title
_TITLE = 0.9  # from the middle of a panel to that of the next, for their titles
_TILE = 240  # pixels of a tile's side at DPI, about, if it has fewer

_FOR, _AGAINST = "#d55e00", "#0072b2"  # can be told apart with any colour vision (Okabe and Ito)
_TICKS = (*(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500), *(10.0**power for power in range(3, 9)))
_LEAST_ATTENTION = 0.05
_LARGEST_RING, _SMALLEST_RING = 11.0, 4.0  # diameters in points
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
    scale = 0.0 if attention is None else 0.75
    if attention is None:
        right = below = 0.0
    page_width = max(_NARROWEST, width + right + scale + 2 * _MARGIN)
    titles, notes = heading(shown, page_width, shown.counts), legend(shown, page_width)
    first = Panel((page_width - width - right - scale) / 2, _top(titles) + _LINE, width, height)
    last = Panel(first.left + right, first.top + below, width, height)
    end = last.top + height + 0.12
    with open_page(path, page_width, end + _LINE * (len(notes) + 1.2) + _MARGIN, dpi) as (figure, page):
        _write_heading(page, titles)
        image = _thumbnail(shown, round(longest * dpi))
        title = "slide" if shown.drawn is None else "tiles read"
        _draw_thumbnail(first.axes(figure), shown, *image, title)
        if attention is not None:
            grey = (image[0].mean(-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1), image[1])
            axes = last.axes(figure)
            _draw_thumbnail(axes, shown, *grey, shown.title_of_attention)
            bar = Panel(last.left + width + 0.08, last.top, 0.12, height).axes(figure)
            _draw_attention(axes, bar, shown, attention)
        _draw_tiles(page, first, shown)
        draw_scale(page, first.left, end, width, shown.mpp * shown.bounds.width, millimetres=True)
        for i, line in enumerate(notes):
            write(page, _MARGIN, end + (i + 1.4) * _LINE, line)


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
    with open_page(path, page_width, end + _LINE * (len(notes) + 1.2) + _MARGIN, dpi) as (_, page):
        _write_heading(page, titles)
        corners = [(_MARGIN + i % columns * across, top + i // columns * down) for i in range(count)]
        for (left, above), pixels in zip(corners, shown.pixels, strict=True):
            page.add_artist(Image(pixels, Panel(left, above, tile, tile)))
        for (left, above), position, lines in zip(corners, shown.sheet.tolist(), captions, strict=True):
            colour = _colour(shown, position)
            page.add_patch(Rectangle((left, above), tile, tile, fill=False, edgecolor=colour, linewidth=2))
            below = above + tile + 0.06
            write(page, left, below, f"{position + 1}", weight="bold")
            for i, line in enumerate(lines, start=1):
                write(page, left, below + i * _LINE, line)
        pixel = shown.mpp * shown.drawn.grid.cell / side if shown.drawn else shown.mpp
        draw_scale(page, _MARGIN, end, tile, pixel * side, millimetres=False)
        for i, line in enumerate(notes):
            write(page, _MARGIN, end + (i + 1.4) * _LINE, line)


def _top(titles: Sequence[str]) -> float:
    """Return where the titles end."""
    return _MARGIN + 0.1 + _LINE * len(titles)


def _write_heading(page: Axes, lines: Sequence[str]) -> None:
    write(page, _MARGIN, _MARGIN, lines[0], fontsize=10.5, weight="bold")
    for i, line in enumerate(lines[1:], start=1):
        write(page, _MARGIN, _MARGIN + 0.07 + i * _LINE, line, fontsize=8.5)


def _thumbnail(shown: ShownSlide, most: int) -> tuple[Pixels, tuple[float, float, float, float]]:
    """Return the scanned part of the thumbnail, of about ``most`` pixels, and its edges in level-0 pixels."""
    thumbnail, bounds, grid = shown.overview.thumbnail, shown.bounds, shown.overview.tissue.grid
    step = grid.pitch * grid.shape[0] / len(thumbnail)
    left, top = int(bounds.x / step), int(bounds.y / step)
    right, bottom = (-int(-end // step) for end in (bounds.x + bounds.width, bounds.y + bounds.height))
    part = thumbnail[top:bottom, left:right]
    factor = 1
    while max(part.shape) // (2 * factor) >= most and min(part.shape[:2]) >= 2 * factor:
        factor *= 2
    height, width = (length // factor for length in part.shape[:2])
    part = resample(part, width, height, (0, 0, width * factor, height * factor))
    right, bottom = left + width * factor, top + height * factor
    return part, (left * step, right * step, bottom * step, top * step)


def _draw_thumbnail(
    axes: Axes, shown: ShownSlide, image: Pixels, edges: tuple[float, float, float, float], title: str
) -> None:
    """Draw a thumbnail with the outlines of tissue and of others."""
    bounds = shown.bounds
    axes.imshow(opaque(image), extent=edges, aspect="auto", interpolation="bilinear")
    axes.set(
        xlim=(bounds.x, bounds.x + bounds.width),
        ylim=(bounds.y + bounds.height, bounds.y),
        autoscale_on=False,
    )
    axes.set_title(title, fontsize=8, pad=3)
    axes.plot(*_outline(shown, shown.tissue), color=ink(shown), linewidth=0.6)
    for mask, colour in zip(shown.outlines.values(), OUTLINES, strict=False):
        axes.plot(*_outline(shown, mask), color=colour, linewidth=1.2)


def _outline(shown: ShownSlide, mask: npt.NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return the edges between cells inside and outside a mask, as a line with gaps, in level-0 pixels."""
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
    x, y = np.concatenate([places, gaps], axis=1).reshape(-1, 2).T
    return x, y


def _draw_attention(axes: Axes, bar: Axes, shown: ShownSlide, attention: FloatArray) -> None:
    """Draw attention over the tissue, and its scale."""
    grid = shown.overview.tissue.grid
    start = (grid.cell - grid.pitch) / 2
    bottom, right = (start + count * grid.pitch for count in grid.shape)
    lowest = float(np.nanmin(attention))
    # Nearly uniform attention looks nearly uniform, and what is next to nothing has one colour.
    least, most = max(_LEAST_ATTENTION, min(0.5, lowest)), max(2.0, float(np.nanmax(attention)))
    # A map that is uniform to the eye, with any colour vision.
    colours = ScalarMappable(LogNorm(least, most), "viridis")
    image = colours.to_rgba(attention, alpha=0.85, bytes=True)
    image[np.isnan(attention)] = 0
    axes.imshow(image, extent=(start, right, bottom, start), aspect="auto", interpolation="nearest")
    extend = "min" if lowest < least else "neither"
    axes.figure.colorbar(colours, cax=bar, extend=extend, alpha=0.85)
    ticks = [each for each in _TICKS if least <= each <= most]
    bar.set_yticks(ticks, [f"{each:g}" for each in ticks])
    bar.minorticks_off()
    bar.tick_params(labelsize=7, length=2)
    bar.set_ylabel("times uniform", fontsize=7.5, labelpad=2)


def _draw_tiles(page: Axes, panel: Panel, shown: ShownSlide) -> None:
    """Mark the drawn tiles, and number those of the contact sheet."""
    if shown.drawn is None:
        return
    points, sheet = panel.points(shown.drawn.centres, shown.bounds), shown.sheet
    others = np.setdiff1d(np.arange(len(points)), sheet) if not shown.reads_all else sheet[:0]
    part = shown.drawn.weight[sheet] / max(shown.drawn.weight.max(), np.finfo(float).tiny)
    rings = np.maximum(_SMALLEST_RING, _LARGEST_RING * np.sqrt(np.clip(part, 0, 1)))
    x, y = points.T / 72
    dark = ink(shown)
    light = "white" if dark == "black" else "black"
    page.scatter(x[others], y[others], s=5, color=dark, edgecolors=light, linewidths=0.5)
    for colour, width in ((light, 2.4), (dark, 1.1)):
        page.scatter(x[sheet], y[sheet], s=rings**2, facecolors="none", edgecolors=colour, linewidths=width)
    half = rings[:, None] / 2 + 1
    marks = np.concatenate([points[sheet] - half, points[sheet] + half], axis=1)
    texts = [str(position + 1) for position in sheet.tolist()]
    sizes = np.array([[0.66 * _NUMBER * len(each) + 1.5, _NUMBER + 1] for each in texts]).reshape(-1, 2)
    room = 72 * np.array(
        [panel.left, panel.top, panel.left + panel.width, panel.top + panel.height]
    ) + np.array([-8, -2, 8, 2])
    places = place_labels(points[sheet], rings / 2 + 1.5, sizes, marks, room)
    box = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for words, place, point, ring in zip(texts, places, points[sheet], rings, strict=True):
        if np.isnan(place).any():
            continue
        away = place - point
        if np.hypot(*away) > ring / 2 + 16:
            begin = point + away / np.hypot(*away) * ring / 2
            page.plot(*np.stack([begin, place]).T / 72, color=dark, linewidth=0.6)
        page.text(
            place[0] / 72, place[1] / 72, words, fontsize=_NUMBER, ha="center", va="center_baseline", bbox=box
        )


def _colour(shown: ShownSlide, position: int) -> str:
    """Return the colour of a tile's frame, by the sign of its evidence."""
    evidence = shown.drawn.evidence.get(shown.target.names[shown.best]) if shown.drawn else None
    if evidence is None or not np.isfinite(evidence[position]):
        return "0.6"
    return _FOR if evidence[position] > 0 else _AGAINST
