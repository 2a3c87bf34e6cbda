"""Draw scored slides: the slide with attention and the drawn tiles, and a contact sheet of these tiles."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError, not_installed
from wsi_ats.files import atomic
from wsi_ats.geometry import Region
from wsi_ats.results.labels import place_labels
from wsi_ats.results.records import FloatArray
from wsi_ats.results.shown import ShownSlide
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.resample import resample, write_png

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ModuleNotFoundError as error:
    raise not_installed("matplotlib", "plots", "drawing pictures") from error

KINDS = ("png", "svg", "pdf")
"""Types of files that can be written."""

DPI = 150
"""Pixels per inch of a PNG, and of the images in the other files: legible on a screen."""

# Text stays text in PDF, as journals ask; the ids in SVG do not change when a picture is drawn again.
_STYLE = {"font.family": "DejaVu Sans", "font.size": 8.0, "pdf.fonttype": 42, "svg.hashsalt": "wsi_ats"}
# Without the time: the same slide gives the same file.
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
# matplotlib's caches and settings are shared by all figures of a process, which may score in several threads.
_DRAWING = Lock()


# Lengths in inches.
_MARGIN, _GAP, _LINE = 0.15, 0.25, 0.16
_SIDE, _LENGTH, _HEIGHT = 4.4, 9.0, 7.0  # longest side of a panel: nearly square, wide, tall
_NARROWEST = 6.5  # figure, for its title
_TILE = 240  # pixels of a tile's side at DPI, about, if it has fewer

_FOR, _AGAINST = "#d55e00", "#0072b2"  # can be told apart with any colour vision (Okabe and Ito)
_OUTLINES = {"#d55e00": "orange", "#0072b2": "blue", "#009e73": "green", "#cc79a7": "pink"}
_TICKS = (*(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500), *(10.0**power for power in range(3, 9)))
_LEAST_ATTENTION = 0.05
_LARGEST_RING, _SMALLEST_RING = 11.0, 4.0  # diameters in points
_NUMBER = 7.0  # size of type in points
_MOST_NAMES = 6


@dataclass(frozen=True)
class _Panel:
    """A place on the page: left, top, width and height in inches, from the top left corner."""

    left: float
    top: float
    width: float
    height: float

    def axes(self, figure: Figure) -> Axes:
        across, down = figure.get_size_inches()
        place = (self.left / across, 1 - (self.top + self.height) / down, self.width / across)
        axes = figure.add_axes((*place, self.height / down))
        axes.set(xticks=(), yticks=())
        for spine in axes.spines.values():
            spine.set(color="0.7", linewidth=0.5)
        return axes

    def points(self, positions: FloatArray, bounds: Region) -> FloatArray:
        """Return positions in level-0 pixels (m, 2), in points on the page."""
        part = (positions - bounds[:2]) / bounds[2:]
        placed: FloatArray = 72 * (part * (self.width, self.height) + (self.left, self.top))
        return placed


def write_pictures_of(folder: Path, shown: ShownSlide, *, kind: str = "png", dpi: int = DPI) -> list[Path]:
    """Draw a slide, and its contact sheet if there are pixels of its tiles.

    Parameters
    ----------
    folder
        Folder for ``<slide_id>.<kind>`` and ``<slide_id>_tiles.<kind>``; an old contact sheet is deleted if
        there is no new one.
    shown, dpi
        As in :func:`figure_of_slide`.
    kind
        One of :data:`KINDS`.

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
    slide, tiles = (folder / f"{shown.id}{part}.{kind}" for part in ("", "_tiles"))
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
        File to write; its ending is one of :data:`KINDS`.
    shown
        The slide.
    dpi
        Pixels per inch; see :data:`DPI`.

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
    right, below = (0.0, height + _GAP + _LINE) if ratio > 1.8 else (width + _GAP, 0.0)
    scale = 0.0 if attention is None else 0.75
    if attention is None:
        right = below = 0.0
    page_width = max(_NARROWEST, width + right + scale + 2 * _MARGIN)
    heading, legend = _heading(shown, page_width, shown.counts), _legend(shown, page_width)
    first = _Panel((page_width - width - right - scale) / 2, _top(heading) + _LINE, width, height)
    last = _Panel(first.left + right, first.top + below, width, height)
    end = last.top + height + 0.12
    with _page(path, page_width, end + _LINE * (len(legend) + 1.2) + _MARGIN, dpi) as page:
        _write_heading(page, heading)
        image = _thumbnail(shown, round(longest * dpi))
        title = "thumbnail" if shown.drawn is None else "thumbnail and drawn tiles"
        _draw_thumbnail(first.axes(page.figure), shown, *image, title)
        if attention is not None:
            grey = (image[0].mean(-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1), image[1])
            axes = last.axes(page.figure)
            _draw_thumbnail(axes, shown, *grey, "attention")
            bar = _Panel(last.left + width + 0.08, last.top, 0.12, height).axes(page.figure)
            _draw_attention(axes, bar, shown, attention)
        _draw_tiles(page, first, shown)
        _draw_scale(page, first.left, end, width, shown.mpp * shown.bounds.width, millimetres=True)
        for i, line in enumerate(legend):
            _write(page, _MARGIN, end + (i + 1.4) * _LINE, line)


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
    tile, names = side / inch, _names(shown)
    captions = [_caption(shown, position, names, int(19 * tile)) for position in shown.sheet.tolist()]
    across = tile + round(0.12 * inch) / inch
    down = tile + round((_LINE * (max(map(len, captions)) + 1) + 0.16) * inch) / inch
    columns = min(5, count)
    rows = -(-count // columns)
    page_width = max(_NARROWEST, columns * across + 2 * _MARGIN)
    heading, legend = _heading(shown, page_width, _about_sheet(shown)), _legend_of_sheet(shown, page_width)
    top = _top(heading) + 0.08
    end = top + rows * down
    with _page(path, page_width, end + _LINE * (len(legend) + 1.2) + _MARGIN, dpi) as page:
        _write_heading(page, heading)
        corners = [(_MARGIN + i % columns * across, top + i // columns * down) for i in range(count)]
        whole = _mosaic(shown.pixels, columns, round(across * inch), round(down * inch))
        size = whole.shape[1] / inch, whole.shape[0] / inch
        edges = (_MARGIN, _MARGIN + size[0], top + size[1], top)
        page.imshow(_opaque(whole), extent=edges, aspect="auto", interpolation="nearest")
        for (left, above), position, lines in zip(corners, shown.sheet.tolist(), captions, strict=True):
            colour = _colour(shown, position)
            page.add_patch(Rectangle((left, above), tile, tile, fill=False, edgecolor=colour, linewidth=2))
            below = above + tile + 0.06
            _write(page, left, below, f"{position + 1}", weight="bold")
            for i, line in enumerate(lines, start=1):
                _write(page, left, below + i * _LINE, line)
        pixel = shown.mpp * shown.drawn.grid.cell / side if shown.drawn else shown.mpp
        _draw_scale(page, _MARGIN, end, tile, pixel * side, millimetres=False)
        for i, line in enumerate(legend):
            _write(page, _MARGIN, end + (i + 1.4) * _LINE, line)


@contextmanager
def _page(path: Path, width: float, height: float, dpi: int) -> Iterator[Axes]:
    """Give axes over a whole figure, in inches from its top left corner; write the figure at the end."""
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        raise SettingsError(f"{path}: a picture is one of {', '.join(KINDS)}, not {kind!r}; rename it")
    with _DRAWING, rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=dpi)
        canvas = FigureCanvasAgg(figure)
        page = figure.add_axes((0, 0, 1, 1), zorder=2)
        page.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        page.set_axis_off()
        yield page
        with atomic(path) as temporary:
            if kind == "png":
                canvas.draw()
                write_png(temporary, np.asarray(canvas.buffer_rgba())[..., :3], dpi=dpi, level=1)
            else:
                figure.savefig(temporary, format=kind, dpi=dpi, metadata=_METADATA[kind])


def _write(page: Axes, left: float, top: float, words: str, **style: Any) -> None:
    # Names of slides and classes may hold a dollar sign, which is no mathematics.
    page.text(left, top, words, va="top", parse_math=False, **{"fontsize": 7.5, **style})


def _heading(shown: ShownSlide, width: float, last: str) -> list[str]:
    """Return the lines above a picture of this width in inches."""
    name, most = shown.id, int(9 * width)
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[-(most // 2) :]}"
    others = [shown.scores, *([shown.sampling_error, last] if shown.scored else [])]
    return [name, *textwrap.wrap("; ".join(filter(None, others)), int(14.5 * width))]


def _top(heading: Sequence[str]) -> float:
    """Return where the heading ends."""
    return _MARGIN + 0.1 + _LINE * len(heading)


def _write_heading(page: Axes, lines: Sequence[str]) -> None:
    _write(page, _MARGIN, _MARGIN, lines[0], fontsize=10.5, weight="bold")
    for i, line in enumerate(lines[1:], start=1):
        _write(page, _MARGIN, _MARGIN + 0.07 + i * _LINE, line, fontsize=8.5)


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
    axes.imshow(_opaque(image), extent=edges, aspect="auto", interpolation="bilinear")
    axes.set(
        xlim=(bounds.x, bounds.x + bounds.width),
        ylim=(bounds.y + bounds.height, bounds.y),
        autoscale_on=False,
    )
    axes.set_title(title, fontsize=8, pad=3)
    axes.plot(*_outline(shown, shown.tissue), color=_ink(shown), linewidth=0.7)
    for mask, colour in zip(shown.outlines.values(), _OUTLINES, strict=False):
        axes.plot(*_outline(shown, mask), color=colour, linewidth=1.2)


def _opaque(image: Pixels) -> Pixels:
    """Return an image as RGBA, which is drawn in single precision and therefore faster than RGB."""
    return np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1)


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
    x, y = np.concatenate(lines).reshape(-1, 2, 2).transpose(2, 0, 1)
    grid = shown.overview.tissue.grid
    # Where tiles overlap, an edge is halfway between the middles of two.
    x, y = (np.pad(each * grid.pitch, ((0, 0), (0, 1)), constant_values=np.nan).ravel() for each in (x, y))
    return x + (grid.cell - grid.pitch) / 2, y + (grid.cell - grid.pitch) / 2


def _ink(shown: ShownSlide) -> str:
    """Return the colour that can be seen on the slide's background."""
    return "black" if np.median(shown.overview.thumbnail) > 100 else "white"


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
    bar.set_ylabel("attention (times uniform)", fontsize=7.5, labelpad=2)


def _draw_tiles(page: Axes, panel: _Panel, shown: ShownSlide) -> None:
    """Mark the drawn tiles, and number those of the contact sheet."""
    if shown.drawn is None:
        return
    points, sheet = panel.points(shown.drawn.centres, shown.bounds), shown.sheet
    others = np.setdiff1d(np.arange(len(points)), sheet) if not shown.reads_all else sheet[:0]
    part = shown.drawn.weight[sheet] / max(shown.drawn.weight.max(), np.finfo(float).tiny)
    rings = np.maximum(_SMALLEST_RING, _LARGEST_RING * np.sqrt(np.clip(part, 0, 1)))
    inches = points / 72
    page.scatter(*inches[others].T, s=5, color="black", edgecolors="white", linewidths=0.5)
    for colour, width in (("white", 2.4), ("black", 1.1)):
        page.scatter(*inches[sheet].T, s=rings**2, facecolors="none", edgecolors=colour, linewidths=width)
    half = rings[:, None] / 2 + 1
    marks = np.concatenate([points[sheet] - half, points[sheet] + half], axis=1)
    texts = [str(position + 1) for position in sheet.tolist()]
    sizes = np.array([[0.66 * _NUMBER * len(each) + 1.5, _NUMBER + 1] for each in texts]).reshape(-1, 2)
    room = 72 * np.array(
        [panel.left, panel.top, panel.left + panel.width, panel.top + panel.height]
    ) + np.array([-8, -2, 8, 2])
    places = place_labels(points[sheet], rings / 2 + 1.5, sizes, marks, room)
    box = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    for words, place, point, ring in zip(texts, places, points[sheet], rings, strict=True):
        if np.isnan(place).any():
            continue
        away = place - point
        if np.hypot(*away) > ring / 2 + 16:
            begin = point + away / np.hypot(*away) * ring / 2
            page.plot(*np.stack([begin, place]).T / 72, color="black", linewidth=0.6)
        page.text(*place / 72, words, fontsize=_NUMBER, ha="center", va="center_baseline", bbox=box)


def _legend(shown: ShownSlide, width: float) -> list[str]:
    """Return the lines below the picture of a slide."""
    words = [f"{_ink(shown)} outline: tissue"] if shown.tissue.any() else []
    words += [f"{_OUTLINES[each]}: {name}" for each, name in zip(_OUTLINES, shown.outlines, strict=False)]
    if shown.drawn is not None:
        some = len(shown.sheet) < len(shown.drawn.cells)
        most = f", the {len(shown.sheet)} of most {shown.order_of_sheet}" if some else ""
        words.append(f"circles: drawn tiles{most}, with an area that grows with their weight")
        words.append("numbers: order in which tiles were drawn")
        words += ["dots: other drawn tiles"] if some and not shown.reads_all else []
    return textwrap.wrap("; ".join(words), int(16.5 * width))


def _draw_scale(
    page: Axes, left: float, top: float, inches: float, micrometres: float, *, millimetres: bool
) -> None:
    """Draw a bar of round length, where so many inches are so many micrometres."""
    length = round_length(micrometres / (3 if millimetres else 1.5))
    end = left + inches * length / micrometres
    page.add_patch(Rectangle((left, top + 0.04), end - left, 0.035, color="black", linewidth=0))
    _write(page, end + 0.06, top, f"{length / 1000:g} mm" if millimetres else f"{length:g} µm", fontsize=8)


def round_length(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20 ... (or 0.5, 0.2 ...) that is at most this.

    Examples
    --------
    >>> round_length(7.3), round_length(0.4), round_length(1000)
    (5.0, 0.2, 1000.0)
    """
    power = 10.0 ** np.floor(np.log10(most * (1 + 1e-9)))
    return float(power * max(each for each in (1, 2, 5) if each * power <= most * (1 + 1e-9)))


def _about_sheet(shown: ShownSlide) -> str:
    count, whole = len(shown.sheet), len(shown.drawn.cells) if shown.drawn else 0
    return f"{count} of {whole:,} tiles, by {shown.order_of_sheet}" + (
        f"; {whole - count:,} more are in the table of selected tiles" if whole > count else ""
    )


def _names(shown: ShownSlide) -> list[str]:
    """Return the names whose evidence is shown: that of the largest score, then those of most evidence."""
    evidence = shown.drawn.evidence if shown.drawn else {}
    total = {name: np.abs(np.nan_to_num(values)).sum() for name, values in evidence.items()}
    best = shown.target.names[shown.best]
    return sorted(total, key=lambda name: (name != best, -total[name]))[:_MOST_NAMES]


def _caption(shown: ShownSlide, position: int, names: Sequence[str], width: int) -> list[str]:
    """Return the lines below a tile, after its number; ``width`` is in letters."""
    drawn = shown.drawn
    assert drawn is not None
    evidence = []
    for name in names:
        value = drawn.evidence[name][position]
        short = name if len(name) < width - 8 else f"{name[: width - 9]}…"
        number = f"{value:+.2g}".replace("-", "−") if np.isfinite(value) else "unknown"
        evidence.append(f"{short} {number}".replace(" ", "\N{NO-BREAK SPACE}"))
    first = f"attention {drawn.attention[position]:.3g}×, weight {drawn.weight[position]:.2g}"
    return [first, *textwrap.wrap(", ".join(evidence), width)]


def _colour(shown: ShownSlide, position: int) -> str:
    """Return the colour of a tile's frame, by the sign of its evidence."""
    evidence = shown.drawn.evidence.get(shown.target.names[shown.best]) if shown.drawn else None
    if evidence is None or not np.isfinite(evidence[position]):
        return "0.6"
    return _FOR if evidence[position] > 0 else _AGAINST


def _legend_of_sheet(shown: ShownSlide, width: float) -> list[str]:
    words = ["numbers as in the picture of the slide; attention in multiples of uniform attention"]
    names = _names(shown)
    if names:
        less = len(shown.target.names) - len(names)
        words.append(
            f"evidence in {shown.unit_of_evidence}, what the tile adds to the score"
            + (f" (of {less} more names: see the table)" if less else "")
        )
        words.append(f"orange frames: for {names[0]}; blue: against it")
    return textwrap.wrap("; ".join(words), int(16.5 * width))


def _mosaic(tiles: Pixels, columns: int, across: int, down: int) -> Pixels:
    """Return tiles (k, s, s, 3) side by side on white, with so many pixels from one to the next."""
    count, side = tiles.shape[:2]
    whole = np.full((-(-count // columns) * down, columns * across, 3), 255, dtype=np.uint8)
    for i, tile in enumerate(tiles):
        row, column = i // columns * down, i % columns * across
        whole[row : row + side, column : column + side] = tile
    return whole
