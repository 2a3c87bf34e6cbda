"""A page of pictures: places in inches, a file of any type, images, words and scales on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from wsi_ats.errors import not_installed
from wsi_ats.files import atomic
from wsi_ats.geometry import Region
from wsi_ats.results.captions import round_length
from wsi_ats.results.records import FloatArray
from wsi_ats.results.shown import check_dpi, check_kind
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.resample import write_png

try:
    from matplotlib import rc_context
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ModuleNotFoundError as error:
    raise not_installed("matplotlib", "plots", "drawing pictures") from error

# Text stays text in PDF, as journals ask; the ids in SVG do not change when a picture is drawn again.
_STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 8.0, "pdf.fonttype": 42, "svg.hashsalt": "wsi_ats"}
# Without the time: the same slide gives the same file.
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
# matplotlib's caches and settings are shared by all figures of a process, which may score in several threads.
_DRAWING = Lock()


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

    def axes(self, figure: Figure) -> Axes:
        """Add axes without ticks at this place."""
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


class Image(Artist):
    """An image at a place, drawn as it is: several times faster than with matplotlib's own resampling."""

    def __init__(self, pixels: Pixels, place: Panel) -> None:
        super().__init__()
        self.set(zorder=0)
        self._pixels, self._place = pixels, place

    def draw(self, renderer: RendererBase) -> None:
        """Repeat each pixel as often as the resolution asks."""
        figure, place = self.get_figure(root=True), self._place
        assert figure is not None
        inch = float(renderer.points_to_pixels(72))  # type: ignore[arg-type]
        dots = inch * renderer.get_image_magnification()  # pixels of an image in an inch
        left, right = (round(each * dots) for each in (place.left, place.left + place.width))
        top, bottom = (round(each * dots) for each in (place.top, place.top + place.height))
        rows, columns = (
            np.arange(count) * side // count
            for count, side in zip((bottom - top, right - left), self._pixels.shape[:2], strict=True)
        )
        image = opaque(self._pixels[rows[:, None], columns])
        up = figure.get_size_inches()[1] - bottom / dots
        settings = renderer.new_gc()
        renderer.draw_image(settings, left / dots * inch, up * inch, image[::-1])
        settings.restore()


@contextmanager
def open_page(path: Path, width: float, height: float, dpi: int) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure and axes over it, in inches from its top left corner; write the figure at the end.

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
    with _DRAWING, rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=dpi)
        canvas = FigureCanvasAgg(figure)
        page = figure.add_axes((0, 0, 1, 1), zorder=2)
        page.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        page.set_axis_off()
        yield figure, page
        with atomic(path) as temporary:
            if kind == "png":
                canvas.draw()  # type: ignore[no-untyped-call]
                image = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
                write_png(temporary, image[..., :3], dpi=dpi, level=1)
            else:
                figure.savefig(temporary, format=kind, dpi=dpi, metadata=_METADATA[kind])


def write(page: Axes, left: float, top: float, words: str, **style: Any) -> None:
    """Write a line at a place in inches.

    Parameters
    ----------
    page
        The axes of the page.
    left, top
        Top left corner of the line.
    words
        The line.
    **style
        As in ``Axes.text``.
    """
    # Names of slides and classes may hold a dollar sign, which is no mathematics.
    page.text(left, top, words, va="top", parse_math=False, **{"fontsize": 7.5, **style})


def draw_scale(
    page: Axes, left: float, top: float, inches: float, micrometres: float, *, millimetres: bool
) -> None:
    """Draw a bar of round length with the length beside it.

    Parameters
    ----------
    page
        The axes of the page.
    left, top
        Top left corner, in inches.
    inches, micrometres
        So many inches are so many micrometres.
    millimetres
        Whether the length is written in millimetres, else in micrometres.
    """
    length = round_length(micrometres / (3 if millimetres else 1.5))
    end = left + inches * length / micrometres
    page.add_patch(Rectangle((left, top + 0.04), end - left, 0.035, color="black", linewidth=0))
    write(page, end + 0.06, top, f"{length / 1000:g} mm" if millimetres else f"{length:g} µm", fontsize=8)


def opaque(image: Pixels) -> Pixels:
    """Return an image as RGBA, which is drawn in single precision and therefore faster than RGB."""
    return np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1)
