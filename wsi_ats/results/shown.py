"""What a picture of a scored slide shows, as values: tiles in the order drawn, their shares, texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray, Region
from wsi_ats.overview.records import Overview
from wsi_ats.results.records import AttentionMap, FloatArray, Selection, Status
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.tasks.targets import Target

SHEETS = "tiles"
"""Folder of contact sheets beside the pictures of slides, so that no slide's name is that of a sheet."""

MOST_TILES = 25
"""Tiles on a contact sheet: five rows of five fit on a page, and the rest has little part in the score."""

KINDS = ("png", "svg", "pdf")
"""Types of files that pictures can be."""

DPI = 150
"""Pixels per inch of a PNG, and of the images in other files: legible on a screen. Journals ask for 300."""

_DPI = (50, 1200)

_MOST_SCORES = 4


def check_kind(kind: str) -> None:
    """Refuse a type of files that is not one of :data:`KINDS`."""
    if kind not in KINDS:
        raise SettingsError(f"a picture is one of {', '.join(KINDS)}, not {kind!r}")


def check_dpi(dpi: int) -> None:
    """Refuse a resolution at which text cannot be read, or at which pictures fill the memory."""
    if not _DPI[0] <= dpi <= _DPI[1]:
        raise SettingsError(f"pictures have {_DPI[0]} to {_DPI[1]} pixels per inch, not {dpi}")


@dataclass(frozen=True)
class DrawnTiles:
    """The distinct tiles of all draws of a slide, in the order in which they were first drawn.

    Parameters
    ----------
    grid
        The slide's grid of tiles.
    cells
        Flat cell numbers, shape (m,).
    attention
        Attention of each tile, relative to uniform attention, shape (m,).
    weight
        Mean weight over all draws, 0 for a draw without the tile, shape (m,).
    evidence
        Contribution of each tile by name, shape (m,); see :class:`wsi_ats.results.records.Selection`.
    """

    grid: Grid
    cells: IntArray
    attention: FloatArray
    weight: FloatArray
    evidence: Mapping[str, FloatArray]

    @classmethod
    def of(cls, selection: Selection, *, tissue_tiles: int) -> Self:
        """Return the tiles of a selection from a slide with so many tissue tiles."""
        tiles = selection.distinct()
        order = np.lexsort((selection.order[tiles.row], selection.draw[tiles.row]))
        rows = tiles.row[order]
        return cls(
            selection.grid,
            tiles.cells[order],
            selection.attention[rows] * tissue_tiles,
            tiles.weight[order],
            {name: values[rows] for name, values in selection.evidence.items()},
        )

    @property
    def centres(self) -> FloatArray:
        """Middles of the tiles, (x, y) in level-0 pixels, shape (m, 2)."""
        boxes = self.grid.boxes(self.cells)
        return boxes[:, :2] + boxes[:, 2:] / 2


@dataclass(frozen=True)
class ShownSlide:
    """All that pictures of one scored slide show.

    Parameters
    ----------
    row
        The slide's row of ``predictions.parquet``; see :class:`wsi_ats.results.records.Prediction`.
    target
        Target of the model.
    overview
        Thumbnail and tissue.
    mpp
        Micrometres per level-0 pixel.
    bounds
        Scanned part of level 0, which is the part shown.
    attention
        Attention on the grid of the overview; ``None`` for a model without attention, and without tissue.
    drawn
        The tiles that were read; ``None`` for a model that reads none, and without tissue.
    pixels
        Pixels of the tiles :attr:`sheet`, uint8, shape (k, s, s, 3); ``None`` if they are not known.
    outlines
        Further outlines by name, such as annotations: bool, each of the shape of the overview's grid.

    Raises
    ------
    SettingsError
        When parts belong to different grids, or there are not as many pixels as tiles.
    """

    row: Mapping[str, Any]
    target: Target
    overview: Overview
    mpp: float
    bounds: Region
    attention: AttentionMap | None = None
    drawn: DrawnTiles | None = None
    pixels: Pixels | None = None
    outlines: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.overview.tissue.grid.shape
        shapes = {name: mask.shape for name, mask in self.outlines.items()}
        if self.attention is not None:
            shapes["attention"] = self.attention.grid.shape
        if different := {name: each for name, each in shapes.items() if each != shape}:
            found = ", ".join(f"{name} {rows} x {columns}" for name, (rows, columns) in different.items())
            own = f"{shape[0]} x {shape[1]} cells"
            raise SettingsError(f"{self.id}: the overview has {own}, but {found}; score the slide again")
        if self.pixels is not None and len(self.pixels) != len(self.sheet):
            raise SettingsError(f"{self.id}: {len(self.sheet)} tiles are shown, not {len(self.pixels)}")

    @classmethod
    def of(
        cls,
        row: Mapping[str, Any],
        target: Target,
        slide: Slide,
        overview: Overview,
        attention: AttentionMap | None,
        selection: Selection | None,
    ) -> Self:
        """Return what is shown of an open slide.

        Parameters
        ----------
        row, target, overview, attention
            As in the class.
        slide
            The slide, for resolution and bounds.
        selection
            The tiles that were read; ``None`` if none were.
        """
        drawn = None
        if selection is not None:
            drawn = DrawnTiles.of(selection, tissue_tiles=row["tiles_total"])
        return cls(row, target, overview, slide.mpp.value, slide.bounds, attention, drawn)

    @property
    def id(self) -> str:
        """Name of the slide."""
        return str(self.row["slide_id"])

    @property
    def tissue(self) -> npt.NDArray[np.bool_]:
        """Cells that could be drawn, shape (rows, columns)."""
        return self.overview.tissue.mask if self.attention is None else self.attention.tissue

    @property
    def relative_attention(self) -> FloatArray | None:
        """Attention relative to uniform attention, NaN off the tissue.

        ``None`` without an attention map, and where all cells have the same attention.
        """
        if self.attention is None:
            return None
        inside = self.attention.attention[self.tissue]
        if not len(inside) or np.allclose(inside, inside[0], rtol=1e-6, atol=0):
            return None
        return np.where(self.tissue, self.attention.attention * len(inside), np.nan)

    @property
    def title_of_attention(self) -> str:
        """What attention is to, cells or regions of several tiles, and its unit."""
        regions = self.drawn is not None and self.drawn.grid.cell < self.overview.tissue.grid.cell
        return f"attention{' to regions' if regions else ''} (1 = uniform)"

    @property
    def best(self) -> int:
        """Position of the largest score: of the predicted class, the most probable label, or the number."""
        return int(np.argmax([self.row[column] for column in self.target.columns]))

    @property
    def shares(self) -> FloatArray:
        """Part of each drawn tile in the score, shape (m,): the size of its evidence, or its weight.

        The evidence is that for :attr:`best`. Weights are used for a model without evidence, and for a single
        tile, which has none.
        """
        if self.drawn is None:
            return np.zeros(0)
        evidence = self.drawn.evidence.get(self.target.names[self.best])
        if evidence is None or not np.isfinite(evidence).all():
            return self.drawn.weight
        return np.abs(evidence)

    @property
    def sheet(self) -> IntArray:
        """Positions in :attr:`drawn` of the tiles on the contact sheet, of the largest share first."""
        return np.argsort(-self.shares, kind="stable")[:MOST_TILES]

    @property
    def cells_on_sheet(self) -> IntArray:
        """Cells of the tiles on the contact sheet, in its order."""
        return np.zeros(0, np.int64) if self.drawn is None else self.drawn.cells[self.sheet]

    def with_tiles(self, cells: IntArray, pixels: Pixels) -> Self:
        """Return this with the pixels of its contact sheet; tiles are (m, s, s, 3), ``cells`` ascending."""
        return replace(self, pixels=pixels[np.searchsorted(cells, self.cells_on_sheet)])

    @property
    def reads_all(self) -> bool:
        """Whether all tissue tiles were read."""
        return bool(self.row["tiles_read"] == self.row["tiles_total"])

    @property
    def scored(self) -> bool:
        """Whether the slide has scores; it has none without tissue."""
        return bool(self.row["status"] == Status.DONE)

    @property
    def scores(self) -> str:
        """The scores as text, the largest first."""
        if not self.scored:
            return f"no score: {self.row.get('error') or 'no tissue was found'}"
        values = np.array([self.row[column] for column in self.target.columns], dtype=np.float64)
        order = np.argsort(-values, kind="stable")
        form = ".3f" if self._probabilities else ".4g"
        texts = [f"{self.target.names[i]} {values[i]:{form}}" for i in order[:_MOST_SCORES]]
        more = len(values) - len(texts)
        return ", ".join(texts) + (f" and {more} more" if more else "")

    @property
    def sampling_error(self) -> str:
        """The standard error over draws as text, with what it is the error of."""
        error, draws = self.row["logit_se"], self.row["draws"]
        if error is not None:
            of = self.target.names[self.best]
            if self._probabilities:
                classes = self.target.definition.has_classes
                of = f"the log-odds of {of}" if classes else "log-odds, the largest of all labels"
            return f"sampling standard error of {of}: {error:.2g} ({draws} draws)"
        if not self.row["tiles_read"]:
            return ""
        if self.reads_all:
            return f"all {self.row['tiles_total']:,} tissue tiles were read, so there is no sampling error"
        return "sampling error not known from a single draw"

    @property
    def counts(self) -> str:
        """The numbers of tiles read and of tissue tiles as text."""
        if not self.scored or (self.drawn and self.reads_all):
            return ""
        total = f"{self.row['tiles_total']:,} tissue tiles"
        return f"{self.row['tiles_read']:,} of {total} read" if self.drawn else f"{total}, read as one image"

    @property
    def order_of_sheet(self) -> str:
        """What the tiles of the contact sheet are sorted by, as text."""
        name = self.target.names[self.best]
        known = self.drawn is not None and np.isfinite(self.drawn.evidence.get(name, [np.nan])).all()
        return f"evidence for {name}" if known else "weight"

    @property
    def unit_of_evidence(self) -> str:
        """The unit of evidence as text."""
        return "log-odds" if self._probabilities else f"units of the {self.target.names[0]}"

    @property
    def _probabilities(self) -> bool:
        return self.target.columns[0].startswith("prob_")
