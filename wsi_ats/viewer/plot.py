"""A slide with its overlays as a plot of Bokeh, for a web page: the only import of Bokeh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.errors import not_installed
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.results.records import AttentionMap
from wsi_ats.viewer.annotations import Outline
from wsi_ats.viewer.tiles import SIZE, Pyramid

try:
    import bokeh
    from bokeh.embed import json_item
    from bokeh.models import (
        ColumnDataSource,
        Image,
        LinearColorMapper,
        MultiPolygons,
        PanTool,
        Plot,
        Quad,
        Range1d,
        TapTool,
        WheelZoomTool,
        WMTSTileSource,
    )
    from bokeh.models.annotations.legends import ColorBar  # its stubs lack it in bokeh.models
    from bokeh.palettes import Viridis256
except ModuleNotFoundError as error:
    raise not_installed("bokeh", "view", "`wsi-ats view`") from error

_TILE, _CHOSEN, _TISSUE = "#ff8000", "#00e5ff", "#00a0a0"
# The least number of level-0 pixels across the page, and the greatest number of slides.
_CLOSEST, _FARTHEST = 64, 4


@dataclass(frozen=True)
class DrawnTiles:
    """The drawn tiles of a slide.

    Parameters
    ----------
    boxes
        ``x, y, width, height`` in level-0 pixels, shape (N, 4).
    numbers
        What is shown of each tile, by name, each of length N.
    """

    boxes: IntArray
    numbers: Mapping[str, Sequence[float | None]]


def script() -> Path:
    """Return Bokeh's own JavaScript, which is part of the package."""
    return Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"


def plot_of_slide(
    pyramid: Pyramid,
    url: str,
    *,
    background: tuple[int, int, int],
    attention: AttentionMap | None,
    tiles: DrawnTiles | None,
    outlines: Sequence[Outline],
) -> dict[str, Any]:
    """Describe the plot as JSON, for ``Bokeh.embed.embed_item``.

    Coordinates of the plot are level-0 pixels (x, -y), because its y points up. Overlays are renderers named
    ``attention``, ``tissue``, ``tiles`` and ``annotations``.

    Parameters
    ----------
    pyramid
        Tiles of the page.
    url
        Address of a tile, with ``{Z}``, ``{X}`` and ``{Y}`` for zoom, column and row.
    background
        RGB colour of glass, which fills tiles beside the slide, and the page beside the tiles.
    attention, tiles, outlines
        Overlays; ``None`` or empty if there are none.
    """
    far = _FARTHEST * max(pyramid.width, pyramid.height)
    x, y = (
        Range1d(start=start, end=end, min_interval=_CLOSEST, max_interval=far)
        for start, end in ((0, pyramid.width), (-pyramid.height, 0))
    )
    plot = Plot(
        x_range=x,
        y_range=y,
        sizing_mode="stretch_both",
        toolbar_location=None,
        min_border=0,
        outline_line_color=None,
        background_fill_color=background,
        border_fill_color=background,
    )
    wheel = WheelZoomTool(zoom_on_axis=False, speed=1 / 400)
    pan = PanTool()
    plot.add_tools(pan, wheel)
    plot.toolbar.active_scroll = wheel
    plot.toolbar.active_drag = pan
    side = SIZE * pyramid.scale(0)
    source = WMTSTileSource(
        url=url,
        tile_size=SIZE,
        max_zoom=pyramid.top,
        initial_resolution=side / SIZE,
        x_origin_offset=0,
        y_origin_offset=side,
        name="source",
        tags=[pyramid.shape(zoom) for zoom in range(pyramid.top + 1)],
    )
    plot.add_tile(source)
    if attention is not None:
        _add_attention(plot, attention)
    if outlines:
        _add_outlines(plot, outlines)
    if tiles is not None:
        _add_tiles(plot, tiles)
    return dict(json_item(plot))


def _add_attention(plot: Plot, attention: AttentionMap) -> None:
    """Draw attention, which is transparent where it is low, and tissue."""
    relative = np.where(attention.tissue, attention.attention * attention.tissue.sum(), np.nan)
    # A few cells may have far more attention than the rest, which would then all look alike.
    most = max(2.0, float(np.nanpercentile(relative, 99))) if attention.tissue.any() else 2.0
    palette = [f"{colour}{i:02x}" for i, colour in enumerate(Viridis256)]
    clear = "#00000000"
    colours = LinearColorMapper(palette=palette, low=0, high=most, nan_color=clear)
    tissue = LinearColorMapper(palette=[_TISSUE], low=0.5, high=1.5, low_color=clear)
    _add_image(plot, "tissue", attention.tissue.astype(np.uint8), attention.grid, tissue)
    _add_image(plot, "attention", relative.astype(np.float32), attention.grid, colours)
    plot.add_layout(
        ColorBar(
            color_mapper=colours,
            title="attention (1 = uniform)",
            orientation="horizontal",
            location="bottom_right",
            width=180,
            height=12,
            background_fill_alpha=0.8,
            name="legend",
        )
    )


def _add_image(plot: Plot, name: str, values: Any, grid: Grid, colours: LinearColorMapper) -> None:
    """Draw a value for each cell; cells that overlap are drawn as large as the step between them."""
    rows, columns = grid.shape
    edge = (grid.cell - grid.pitch) / 2
    place: dict[str, Any] = {"x": edge, "y": -edge - rows * grid.pitch}
    place |= {"dw": columns * grid.pitch, "dh": rows * grid.pitch}
    source = ColumnDataSource({"image": [np.ascontiguousarray(values[::-1])]})
    plot.add_glyph(source, Image(image="image", color_mapper=colours, **place), name=name)


def _add_outlines(plot: Plot, outlines: Sequence[Outline]) -> None:
    data = {
        "xs": [[[[x for x, _ in ring] for ring in each.rings]] for each in outlines],
        "ys": [[[[-y for _, y in ring] for ring in each.rings]] for each in outlines],
        "colour": [each.colour for each in outlines],
        "name": [each.name for each in outlines],
    }
    glyph = MultiPolygons(xs="xs", ys="ys", line_color="colour", line_width=2.5, fill_color=None)
    plot.add_glyph(ColumnDataSource(data), glyph, name="annotations")


def _add_tiles(plot: Plot, tiles: DrawnTiles) -> None:
    x, y, width, height = (tiles.boxes[:, i] for i in range(4))
    sides = {"left": x, "right": x + width, "top": -y, "bottom": -y - height}
    box: dict[str, Any] = {name: name for name in sides}
    numbers = {name: np.array(values, dtype=np.float64) for name, values in tiles.numbers.items()}
    plain = Quad(**box, line_color=_TILE, line_width=2, fill_alpha=0)
    chosen = Quad(**box, line_color=_CHOSEN, line_width=5, fill_alpha=0)
    renderer = plot.add_glyph(
        # Names of numbers may be those of sides: a class may be called `left`.
        ColumnDataSource(sides | {f"={name}": values for name, values in numbers.items()}),
        plain,
        selection_glyph=chosen,
        nonselection_glyph=plain,
        name="tiles",
    )
    plot.add_tools(TapTool(renderers=[renderer]))
