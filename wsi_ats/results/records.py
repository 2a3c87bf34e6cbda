"""Records of a scored slide, without heavy imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray, Region

FloatArray = npt.NDArray[np.float64]


RUN_FILE = "run.json"
"""Record of a run in its output folder."""


class Status(StrEnum):
    """Outcome for one slide."""

    DONE = "done"
    FAILED = "failed"
    NO_TISSUE = "no_tissue"


class Stop(StrEnum):
    """Reason why the draws of a slide ended."""

    DRAWS = "draws"
    """The requested number of draws was made."""
    TOLERANCE = "tolerance"
    """The error is within the tolerance."""
    MAX_TILES = "max_tiles"
    """Another draw might have read more tiles than allowed."""
    MAX_DRAWS = "max_draws"
    """The limit of draws was reached: :data:`wsi_ats.models.stopping.MOST_DRAWS`."""


@dataclass(frozen=True)
class AttentionMap:
    """Attention over the cells of a slide.

    Parameters
    ----------
    grid
        The slide's grid.
    attention
        Shape (rows, columns), sums to 1, zero outside the tissue.
    tissue
        Cells that could be drawn, bool, shape (rows, columns).
    """

    grid: Grid
    attention: FloatArray
    tissue: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not self.attention.shape == self.tissue.shape == self.grid.shape:
            raise SettingsError(
                f"a map of the grid's shape {self.grid.shape} is needed, not "
                f"{self.attention.shape} and {self.tissue.shape}"
            )


@dataclass(frozen=True)
class Selection:
    """Tiles read from one slide: one row for each distinct tile of each draw.

    Parameters
    ----------
    slide_id, path
        The slide.
    grid
        Its grid.
    level
        Pyramid level that the tiles were read from.
    mpp
        Micrometres per level-0 pixel.
    bounds
        Scanned part of level 0; viewers that show only this part, such as QuPath, count from its corner.
    cells
        Flat cell numbers, shape (M,).
    attention
        Attention of each cell, shape (M,).
    inclusion
        Expected number of draws of each cell (pi), shape (M,).
    weight
        Weight of the tile in the estimate of its draw: draws * attention / inclusion, shape (M,).
    draw
        Number of the independent draw, from 0, shape (M,).
    order
        Position of the tile within its draw, from 0, shape (M,).
    scores
        The slide's scores by column of ``predictions.csv``; see :attr:`wsi_ats.tasks.targets.Target.columns`.
    evidence
        Contribution of each tile, by name of a class, a label, ``value`` or ``risk``, shape (M,): the score
        of all tiles less the score without this tile, in log-odds for classes and labels, else in the
        score's units. Positive evidence speaks for the class. Rows of one tile share one number. With
        ``linear`` pooling, the evidence of all tiles and the classifier's bias add up to the log-odds of two
        classes, to those of a label, or to the value. With ``gated`` pooling they need not, because the
        other tiles take the place of one that is left out. NaN if no other tile was read; empty for a model
        that reads all tiles.
    """

    slide_id: str
    path: str
    grid: Grid
    level: int
    mpp: float
    bounds: Region
    cells: IntArray
    attention: FloatArray
    inclusion: FloatArray
    weight: FloatArray
    draw: IntArray
    order: IntArray
    scores: dict[str, float]
    evidence: dict[str, FloatArray]

    def __post_init__(self) -> None:
        columns = ("cells", "attention", "inclusion", "weight", "draw", "order")
        shapes = {name: getattr(self, name).shape for name in columns}
        shapes |= {f"evidence of {name}": values.shape for name, values in self.evidence.items()}
        if set(shapes.values()) != {(len(self.cells),)}:
            raise SettingsError(f"{self.slide_id}: columns of one length are needed, not {shapes}")

    def distinct(self) -> DistinctTiles:
        """Return each tile once, however many draws drew it."""
        rows = np.lexsort((self.draw, self.cells))
        cells, first, draws = np.unique(self.cells[rows], return_index=True, return_counts=True)
        total = np.add.reduceat(self.weight[rows], first) if len(cells) else self.weight
        return DistinctTiles(rows[first], cells, draws, total / max(1, len(np.unique(self.draw))))

    def evidence_of(self, name: str, rows: IntArray | None = None) -> list[float | None]:
        """Return the evidence for a class as plain numbers, of all rows by default; ``None`` for NaN."""
        values = self.evidence[name] if rows is None else self.evidence[name][rows]
        return [None if np.isnan(value) else value for value in values.tolist()]

    def columns(self) -> dict[str, list[Any]]:
        """Return the table ``selections/<slide_id>.parquet``; coordinates are level-0 pixels."""
        boxes = self.grid.boxes(self.cells)
        rows, columns = np.divmod(self.cells, self.grid.shape[1])
        x, y, width, height = (boxes[:, i].tolist() for i in range(4))
        return {
            "slide_id": [self.slide_id] * len(self.cells),
            "x": x,
            "y": y,
            "width": width,
            "height": height,
            "level": [self.level] * len(self.cells),
            "row": rows.tolist(),
            "col": columns.tolist(),
            "attention": self.attention.tolist(),
            "inclusion": self.inclusion.tolist(),
            "weight": self.weight.tolist(),
            "draw": self.draw.tolist(),
            "order": self.order.tolist(),
            **{f"evidence_{name}": self.evidence_of(name) for name in self.evidence},
        }


@dataclass(frozen=True)
class DistinctTiles:
    """The distinct tiles of a selection, in the order of their cells.

    Parameters
    ----------
    row
        Row of the selection in which the tile was drawn first, shape (m,).
    cells
        Flat cell numbers, ascending, shape (m,).
    draws
        Number of independent draws with the tile, shape (m,).
    weight
        Mean weight over all draws, 0 for a draw without the tile, shape (m,): the weights of all tiles add up
        to those of the estimate.
    """

    row: IntArray
    cells: IntArray
    draws: IntArray
    weight: FloatArray


@dataclass(frozen=True)
class ReadTiles:
    """The distinct tiles that a slide's score is based on.

    Parameters
    ----------
    cells
        Flat cell numbers, ascending, shape (m,).
    pixels
        RGB, uint8, shape (m, s, s, 3); ``None`` for tiles whose features were given.
    features
        Float32, shape (m, D).
    """

    cells: IntArray
    pixels: npt.NDArray[np.uint8] | None
    features: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row of ``predictions.csv``.

    Parameters
    ----------
    slide_id, case_id, path
        The slide.
    status
        ``done``, ``failed`` or ``no_tissue``; only ``done`` has scores.
    scores
        Scores by column, from the tiles of all draws pooled into one estimate: ``prob_<class>``,
        ``prob_<label>``, ``value`` or ``risk``; see :attr:`wsi_ats.tasks.targets.Target.columns`.
    predicted
        The most probable class, all labels of probability 1/2 or more joined by ``;`` (``-`` for none), or
        the value; ``None`` for a risk (a log-hazard: only differences between slides are meaningful).
    logit_se
        Sampling standard error, ``None`` for a single draw: of the predicted class's log-odds, of the
        log-odds of the label for which it is largest, of the value in its own units, or of the risk. It
        measures the variation between draws of tiles, not the model's error.
    stopped_by
        Reason why the draws ended. With a tolerance, ``logit_se`` exceeds it unless this is ``tolerance``.
        ``None`` without scores.
    draws
        Number of independent draws.
    tiles_read, tiles_total
        Distinct tiles read, and tissue tiles of the slide.
    tiles_empty
        Number of empty tiles among those read; if they are many, tissue was found where there is none.
    bytes_read
        Compressed bytes of the file's tiles under all pixels that were read, thumbnail included; a tile of
        the file that was needed twice counts twice. ``None`` if the format does not reveal them. For a slide
        from a store, the tables of stages count all bytes that the store sent, including the index.
    seconds
        Wall time.
    model_digest, seed
        Digest of the model, and seed of the run.
    error
        Reason for a failure, or for the lack of tissue.
    log_weight
        Logarithm of the slide's weight among the slides of its case; see
        :func:`wsi_ats.nn.cases.pool_slides`. ``None`` without scores.
    """

    slide_id: str
    case_id: str
    path: str
    status: Status
    scores: dict[str, float]
    predicted: str | None
    logit_se: float | None
    stopped_by: Stop | None
    draws: int
    tiles_read: int
    tiles_total: int
    tiles_empty: int
    bytes_read: int | None
    seconds: float
    model_digest: str
    seed: int
    error: str | None = None
    log_weight: float | None = None

    def row(self, columns: Sequence[str]) -> dict[str, Any]:
        """Return the table row, with the model's ``columns`` of scores."""
        row: dict[str, Any] = {}
        for field in fields(self):
            if field.name == "scores":
                row |= {name: self.scores.get(name) for name in columns}
            else:
                value = getattr(self, field.name)
                row[field.name] = str(value) if isinstance(value, StrEnum) else value
        return row
