"""A page of pictures: places in inches, a file of any type, images, lines and words on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from wsi_ats.errors import not_installed
from wsi_ats.files import atomic
from wsi_ats.geometry import Region
from wsi_ats.results.captions import round_length
from wsi_ats.results.records import FloatArray
from wsi_ats.results.shown import check_dpi, check_kind
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.resample import write_png, write_words

try:
    from matplotlib import colormaps, rc_context
    from matplotlib.artist import Artist
    from matplotlib.backend_bases import RendererBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import CircleCollection
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text
    from matplotlib.transforms import Affine2D
except ModuleNotFoundError as error:
    raise not_installed("matplotlib", "plots", "drawing pictures") from error

_FONT = "DejaVu Sans"
# Text stays text, as journals ask; the ids in SVG do not change when a picture is drawn again.
_STYLE: Any = {
    "font.family": [_FONT, "sans-serif"],
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "wsi_ats",
}
# Without the time: the same slide gives the same file.
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
# matplotlib's caches and settings are shared by all figures of a process, which may score in several threads.
_DRAWING = Lock()

# Height of small and of capital letters above the line, in parts of the size of type.
_ASCENT, _CAPITAL = 0.76, 0.73

COLOURS: Pixels = colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
"""A scale of 256 colours, RGB, that is uniform to the eye with any colour vision."""


@dataclass(frozen=True)
class Panel:
    """A place on the page, in inches from the top left corner.

    Parameters
    ----------
    left, top, width, height
        Corner and size.
    """

    left: float
    top: float
    width: float
    height: float

    def pixels(self, dpi: float) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in pixels of the page."""
        left, top = round(self.left * dpi), round(self.top * dpi)
        right, bottom = round((self.left + self.width) * dpi), round((self.top + self.height) * dpi)
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def points(self, positions: FloatArray, bounds: Region) -> FloatArray:
        """Return positions in level-0 pixels (m, 2), in points on the page."""
        part = (positions - bounds[:2]) / bounds[2:]
        placed: FloatArray = 72 * (part * (self.width, self.height) + (self.left, self.top))
        return placed


class _Words(NamedTuple):
    """A line of text: where it begins or where its middle is, in inches, and its size in points."""

    left: float
    baseline: float
    text: str
    size: float
    bold: bool
    centred: bool


class Page:
    """What is drawn on a page, later things over earlier ones, and words over all.

    Parameters
    ----------
    width, height
        Size in inches.
    dpi
        Pixels per inch.
    """

    def __init__(self, width: float, height: float, dpi: int) -> None:
        self._figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
        self._words: list[_Words] = []
        self._place = Affine2D().scale(1, -1).translate(0, height) + self._figure.dpi_scale_trans

    def image(self, panel: Panel, pixels: Pixels) -> None:
        """Show an RGB image at a place, each pixel repeated as often as the resolution asks."""
        self._add(_Image(pixels, panel))

    def line(self, x: FloatArray, y: FloatArray, *, colour: str, width: float) -> None:
        """Draw a line.

        Parameters
        ----------
        x, y
            Its points in inches, shape (m,); there are gaps at NaN.
        colour, width
            Its colour, and its width in points.
        """
        self._add(Line2D(x, y, color=colour, linewidth=width))

    def rectangle(
        self, panel: Panel, *, edge: str = "none", face: str = "none", width: float = 0, alpha: float = 1
    ) -> None:
        """Draw a rectangle.

        Parameters
        ----------
        panel
            Its place.
        edge, face
            Colours of its edge and of its inside.
        width
            Width of the edge in points.
        alpha
            Opacity of both.
        """
        self._add(
            Rectangle(
                (panel.left, panel.top),
                *(panel.width, panel.height),
                facecolor=face,
                edgecolor=edge,
                linewidth=width,
                alpha=alpha,
            )
        )

    def circles(
        self, middles: FloatArray, diameters: FloatArray, *, edge: str, width: float, face: str = "none"
    ) -> None:
        """Draw circles.

        Parameters
        ----------
        middles
            Where they are, in inches, shape (m, 2).
        diameters
            Of each, in points, shape (m,).
        edge, face
            Colours of their edges and insides.
        width
            Width of the edges in points.
        """
        circles = CircleCollection(
            np.pi / 4 * diameters**2,
            offsets=middles,
            offset_transform=self._place,
            facecolors=face,
            edgecolors=edge,
            linewidths=width,
        )
        circles.set_zorder(0)
        self._figure.add_artist(circles)

    def write(
        self,
        left: float,
        top: float,
        words: str,
        *,
        size: float = 7.5,
        bold: bool = False,
        centred: bool = False,
    ) -> None:
        """Write a line.

        Parameters
        ----------
        left, top
            Top left corner of the line, or its middle if ``centred``, in inches.
        words
            The line.
        size
            Size of type in points.
        bold, centred
            Whether it is bold, and whether the place is its middle.
        """
        below = _CAPITAL / 2 if centred else _ASCENT
        self._words.append(_Words(left, top + below * size / 72, words, size, bold, centred))

    def scale(self, left: float, top: float, inches: float, micrometres: float, *, millimetres: bool) -> None:
        """Draw a bar of round length with the length beside it.

        Parameters
        ----------
        left, top
            Top left corner, in inches.
        inches, micrometres
            So many inches are so many micrometres.
        millimetres
            Whether the length is written in millimetres, else in micrometres.
        """
        length = round_length(micrometres / (3 if millimetres else 1.5))
        bar = Panel(left, top + 0.04, inches * length / micrometres, 0.035)
        self.rectangle(bar, face="black")
        text = f"{length / 1000:g} mm" if millimetres else f"{length:g} µm"
        self.write(bar.left + bar.width + 0.06, top, text, size=8)

    def _add(self, artist: Artist) -> None:
        artist.set(transform=self._place, zorder=0)
        self._figure.add_artist(artist)

    def painted(self) -> Pixels:
        """Return the page as pixels, shape (h, w, 3).

        Words are written by Pillow: in a contact sheet, that takes a tenth of the time of matplotlib, which
        draws each letter anew.
        """
        canvas = FigureCanvasAgg(self._figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        image: Pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        fonts = {bold: findfont(f"{_FONT}:{'bold' if bold else 'normal'}") for bold in (False, True)}
        dpi = self._figure.dpi
        lines = [
            (
                each.left * dpi,
                each.baseline * dpi,
                each.text,
                fonts[each.bold],
                each.size * dpi / 72,
                each.centred,
            )
            for each in self._words
        ]
        return write_words(image[..., :3], lines)

    def save(self, path: Path, kind: str) -> None:
        """Write the page as SVG or PDF, in which words stay text."""
        for each in self._words:
            text = Text(
                *(each.left, each.baseline, each.text),
                fontsize=each.size,
                fontweight="bold" if each.bold else "normal",
                ha="center" if each.centred else "left",
                va="baseline",
                # Names of slides and classes may hold a dollar sign, which is no mathematics.
                parse_math=False,
            )
            self._add(text)
        self._figure.savefig(path, format=kind, dpi=self._figure.dpi, metadata=_METADATA[kind])


class _Image(Artist):
    """An image at a place, drawn as it is: several times faster than with matplotlib's own resampling."""

    def __init__(self, pixels: Pixels, place: Panel) -> None:
        super().__init__()
        self._pixels, self._panel = pixels, place

    def draw(self, renderer: RendererBase) -> None:
        """Repeat each pixel as often as the resolution asks."""
        figure = self.get_figure(root=True)
        assert figure is not None
        inch = float(renderer.points_to_pixels(72))  # type: ignore[arg-type]
        dots = inch * renderer.get_image_magnification()  # pixels of an image in an inch
        left, top, right, bottom = self._panel.pixels(dots)
        rows, columns = (
            np.arange(count) * side // count
            for count, side in zip((bottom - top, right - left), self._pixels.shape[:2], strict=True)
        )
        image = np.full((len(rows), len(columns), 4), 255, np.uint8)
        image[::-1, :, :3] = self._pixels[rows[:, None], columns]
        up = figure.get_size_inches()[1] - bottom / dots
        settings = renderer.new_gc()
        renderer.draw_image(settings, left / dots * inch, up * inch, image)
        settings.restore()


@contextmanager
def open_page(path: Path, width: float, height: float, dpi: int) -> Iterator[Page]:
    """Give a page to draw on; write it at the end.

    Parameters
    ----------
    path
        File to write; its ending is one of :data:`wsi_ats.results.shown.KINDS`.
    width, height
        Size in inches.
    dpi
        Pixels per inch.

    Raises
    ------
    SettingsError
        For another ending, or an impossible resolution.
    ArtifactError
        When the file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    check_kind(kind)
    check_dpi(dpi)
    page = Page(width, height, dpi)
    yield page
    with atomic(path) as temporary:
        if kind == "png":
            with _DRAWING, rc_context(_STYLE):
                image = page.painted()
            write_png(temporary, image, dpi=dpi)
        else:
            with _DRAWING, rc_context(_STYLE):
                page.save(temporary, kind)
