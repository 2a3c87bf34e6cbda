"""Answers to all requests of the page, from a folder of scores; any thread may ask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.errors import AnnotationError, MppError, WsiAtsError
from wsi_ats.results.exports.qupath import qupath_features
from wsi_ats.results.records import AttentionMap, Selection, Status
from wsi_ats.results.scores import ScoredSlide, Scores
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Slide
from wsi_ats.slides.jpeg import encode
from wsi_ats.viewer.annotations import Outline, read_outlines
from wsi_ats.viewer.plot import DrawnTiles, plot_of_slide, script
from wsi_ats.viewer.tiles import OpenSlides, Pyramid, TileCache, read_tile

PAGE = Path(__file__).parent / "page"
TILE_URL = "slides/{number}/{Z}/{X}_{Y}.jpg"

_QUALITY = 85  # as scanners store tiles
_CACHE_BYTES = 128 << 20
_SLIDES_OPEN = 8

# More outlines would make the page slow; cells of a whole slide are a hundred times as many.
_MOST_OUTLINES = 20_000


class Collection:
    """The slides of a folder of scores, by their numbers in ``predictions.csv`` from 0.

    Parameters
    ----------
    scores
        The scores.
    annotations
        Files of annotations, by slide.
    """

    def __init__(self, scores: Scores, annotations: Mapping[str, Path]) -> None:
        self.scores = scores
        self.annotations = annotations
        self.cache = TileCache(_CACHE_BYTES)
        self.slides = OpenSlides(lambda number: open_slide(scores.slides[number].ref()), _SLIDES_OPEN)

    def close(self) -> None:
        """Close the slides."""
        self.slides.close()

    def files(self) -> dict[str, Path]:
        """Return the files of the page, by the names under which it asks for them."""
        own = {path.name: path for path in PAGE.iterdir() if path.suffix in {".html", ".js", ".css"}}
        return own | {"bokeh.js": script()}

    def table(self) -> dict[str, Any]:
        """Return the list of slides: a title, names of columns, and a row for each slide."""
        columns = ["slide_id", "predicted", *self.scores.target.columns, "logit_se"]
        columns += ["case_id", "status", "tiles_read", "tiles_total"]
        rows = [[_plain(slide.row.get(name)) for name in columns] for slide in self.scores.slides]
        return {"title": self.scores.folder.name, "columns": columns, "rows": rows}

    def slide(self, number: int) -> dict[str, Any]:
        """Return the page of a slide: facts, overlays and plot, or the reason why it cannot be shown."""
        scored = self.scores.slides[number]
        page: dict[str, Any] = {
            "id": scored.id,
            "facts": self._facts(scored),
            "error": scored.row.get("error"),
        }
        page |= {"notes": [], "plot": None, "overlays": []}
        if scored.status == Status.FAILED:
            return page  # how it was opened is not recorded
        try:
            with self.slides.use(number) as slide:
                page |= self._shown(number, slide)
        except WsiAtsError as error:
            page["error"] = f"it cannot be shown: {error}"
        return page

    def tile(self, number: int, zoom: int, column: int, row: int) -> bytes:
        """Return a tile as JPEG.

        Parameters
        ----------
        number
            Number of the slide.
        zoom, column, row
            Its place; see :class:`wsi_ats.viewer.tiles.Pyramid`.

        Raises
        ------
        LookupError
            When there is no such tile.
        SlideError, ArtifactError
            When the slide cannot be opened, has changed, or cannot be read there.
        """
        place = number, zoom, column, row
        return self.cache.get(place, partial(self._read, *place))

    def _read(self, number: int, zoom: int, column: int, row: int) -> bytes:
        with self.slides.use(number) as slide:
            if (zoom, column, row) not in pyramid_of(slide):
                raise LookupError(f"no tile {column}, {row} at zoom {zoom}")
            return encode(read_tile(slide, zoom, column, row), _QUALITY)

    def _facts(self, scored: ScoredSlide) -> list[tuple[str, Any]]:
        row = scored.row
        names = ("case_id", "status", "predicted", *self.scores.target.columns, "logit_se")
        facts = [(name, _plain(row.get(name))) for name in names]
        facts.append(("tiles read", f"{row['tiles_read']:,} of {row['tiles_total']:,}"))
        return [(name, value) for name, value in facts if value not in {None, scored.id}]

    def _shown(self, number: int, slide: Slide) -> dict[str, Any]:
        """Return what is shown of a slide that could be opened."""
        scored, pyramid, notes = self.scores.slides[number], pyramid_of(slide), []
        attention = scored.attention()
        tiles = _drawn(scored.selection(), attention) if scored.reads_tiles else None
        outlines: Sequence[Outline] = []
        if scored.id in self.annotations:
            try:
                outlines = read_outlines(self.annotations[scored.id], slide)
            except AnnotationError as error:
                notes.append(str(error))
        if len(outlines) > _MOST_OUTLINES:
            notes.append(f"only the first {_MOST_OUTLINES:,} of {len(outlines):,} annotations are shown")
            outlines = outlines[:_MOST_OUTLINES]
        try:
            mpp = slide.mpp.value
        except MppError:
            mpp = None
        plot = plot_of_slide(
            pyramid,
            TILE_URL.replace("{number}", str(number)),
            background=slide.background,
            attention=attention,
            tiles=tiles,
            outlines=outlines,
        )
        classes = {each.name or "annotation": each.colour for each in outlines}
        overlays = [
            *([_overlay("attention", "attention", 0.7, "global_alpha")] if attention else []),
            *([_overlay("tissue", "tissue", 0.0, "global_alpha")] if attention else []),
            *([_overlay("tiles", "drawn tiles", 1.0, "line_alpha")] if tiles else []),
            *([_overlay("annotations", "annotations", 1.0, "line_alpha", classes)] if outlines else []),
        ]
        size = [pyramid.width, pyramid.height]
        return {"notes": notes, "plot": plot, "overlays": overlays, "size": size, "mpp": mpp}


def pyramid_of(slide: Slide) -> Pyramid:
    """Return the tiles of the page for a slide."""
    return Pyramid(slide.levels[0].width, slide.levels[0].height)


def _overlay(
    name: str, label: str, opacity: float, attribute: str, classes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "opacity": opacity,
        "attribute": attribute,
        "classes": classes or {},
    }


def _plain(value: Any) -> Any:
    """Return a value of a table as JSON has it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drawn(selection: Selection, attention: AttentionMap | None) -> DrawnTiles:
    """Return the drawn tiles with the numbers that QuPath shows, too."""
    features = qupath_features(selection)["features"]
    corners = np.array([each["geometry"]["coordinates"][0][0] for each in features])
    ends = np.array([each["geometry"]["coordinates"][0][2] for each in features])
    boxes = np.hstack([corners + selection.bounds[:2], ends - corners]).astype(np.int64)
    measured = [each["properties"]["measurements"] for each in features]
    names = ["attention", "weight", "inclusion", "draws", "draw", "order"]
    names += [f"evidence {name}" for name in selection.evidence]
    numbers = {name: [each.get(name) for each in measured] for name in names}
    if attention is not None:  # in the units of the legend
        cells = attention.tissue.sum()
        numbers = {"attention (1 = uniform)": [each * cells for each in numbers["attention"]]} | numbers
    return DrawnTiles(boxes, numbers)
