"""What a user keeps of a scored slide: plain records, no behaviour, no heavy imports."""

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


class Status(StrEnum):
    """How it ended for one slide."""

    DONE = "done"
    FAILED = "failed"
    NO_TISSUE = "no_tissue"


class Stop(StrEnum):
    """Why no more draws were made of a slide."""

    DRAWS = "draws"
    """As many were made as were asked for."""
    TOLERANCE = "tolerance"
    """The error is within the tolerance."""
    MAX_TILES = "max_tiles"
    """Another might have read more tiles than allowed."""
    MAX_DRAWS = "max_draws"
    """There is a limit to draws as well: :data:`wsi_ats.models.stopping.MOST_DRAWS`."""


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
        Cells that could be chosen, bool, shape (rows, columns).
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
    """The tiles that were read of one slide, and why: one row for each distinct tile of each draw.

    Parameters
    ----------
    slide_id, path
        The slide.
    grid
        Its grid.
    level
        Pyramid level that the tiles were read from.
    bounds
        Scanned part of level 0: viewers that show only this part (QuPath) count pixels from its corner.
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
        Place in which the tile came within its draw, from 0, shape (M,).
    scores
        The slide's scores by column of ``predictions.csv``; see :attr:`wsi_ats.tasks.targets.Target.columns`.
    """

    slide_id: str
    path: str
    grid: Grid
    level: int
    bounds: Region
    cells: IntArray
    attention: FloatArray
    inclusion: FloatArray
    weight: FloatArray
    draw: IntArray
    order: IntArray
    scores: dict[str, float]

    def __post_init__(self) -> None:
        columns = ("cells", "attention", "inclusion", "weight", "draw", "order")
        shapes = {name: getattr(self, name).shape for name in columns}
        if set(shapes.values()) != {(len(self.cells),)}:
            raise SettingsError(f"{self.slide_id}: columns of one length are needed, not {shapes}")

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
        }


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
        By column, from the tiles of all draws pooled into one estimate: ``prob_<class>``, ``prob_<label>``,
        ``value`` or ``risk``; see :attr:`wsi_ats.tasks.targets.Target.columns`.
    predicted
        The most probable class, all labels of probability 1/2 or more joined by ``;`` (``-`` for none), or
        the value; ``None`` for a risk (the logarithm of a hazard, of which only differences between slides
        mean anything).
    logit_se
        Sampling standard error, ``None`` for a single draw: of the predicted class's log-odds, of the
        log-odds of the label for which it is largest, of the value in its own units, or of the risk. It says
        how much another draw of tiles would differ, nothing of the model's error.
    stopped_by
        Why no more draws were made: where a tolerance was set and this is not ``tolerance``, ``logit_se`` is
        above it. ``None`` where there is no score.
    draws
        Independent draws.
    tiles_read, tiles_total
        Distinct tiles read, and tissue tiles of the slide.
    tiles_empty
        How many of those read show nothing, neither tissue nor anything else; where they are many, tissue was
        found where there is none.
    bytes_read
        Compressed bytes of the file's tiles under all that was read, thumbnail included; a tile that was
        needed for both counts twice, for it is read twice. ``None`` where the format does not tell. In the
        tables of stages, where a slide comes from a store, all that the store has sent, its index too.
    seconds
        Wall time.
    model_digest, seed
        What it was computed with.
    error
        Why it failed, or why no tissue was left to score.
    log_weight
        What the slide counts among the slides of its case; see :func:`wsi_ats.nn.cases.pool_slides`. ``None``
        where there is no score.
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
        """Return the table row, with the columns of scores that the model gives."""
        row: dict[str, Any] = {}
        for field in fields(self):
            if field.name == "scores":
                row |= {name: self.scores.get(name) for name in columns}
            else:
                value = getattr(self, field.name)
                row[field.name] = str(value) if isinstance(value, StrEnum) else value
        return row
