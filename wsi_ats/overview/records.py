"""The overview of a slide: its thumbnail, the maps of tissue and artefacts computed from it, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError
from wsi_ats.files import load_arrays, save_arrays
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.settings import ARTEFACTS
from wsi_ats.slides.base import Pixels


@dataclass(frozen=True)
class TissueMask:
    """The cells of a slide's grid that contain tissue.

    Parameters
    ----------
    grid
        The slide's grid.
    fraction
        Fraction of each cell that is tissue, in [0, 1], shape (rows, columns), float32.
    mask
        Cells that count as tissue, bool, shape (rows, columns).
    """

    grid: Grid
    fraction: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not self.fraction.shape == self.mask.shape == self.grid.shape:
            raise SettingsError(
                f"a mask of the grid's shape {self.grid.shape} is needed, not "
                f"{self.fraction.shape} and {self.mask.shape}"
            )

    @property
    def cells(self) -> IntArray:
        """Flat numbers of the tissue cells, shape (K,); empty where there is no tissue."""
        return np.flatnonzero(self.mask)


@dataclass(frozen=True)
class Quality:
    """The artefacts of each cell of a slide; see :func:`wsi_ats.overview.quality.find_artefacts`.

    Parameters
    ----------
    pen
        Fraction of each cell that ink covers, in [0, 1], shape (rows, columns), float32; ``None`` if not
        measured.
    blur
        Fraction of the fine detail that each tissue cell lacks, in the same form; 0 without tissue; ``None``
        if not measured.
    """

    pen: npt.NDArray[np.float32] | None = None
    blur: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name, values in self.maps.items():
            if values.ndim != 2 or not ((values >= 0) & (values <= 1)).all():
                raise SettingsError(f"a map of {name} must have two axes and values in [0, 1], not {values}")

    @property
    def maps(self) -> dict[str, npt.NDArray[np.float32]]:
        """The measured maps, by name."""
        each = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: values for name, values in each.items() if values is not None}


TissueMethod = Literal["auto", "brightfield", "fluorescence", "none"]


@dataclass(frozen=True)
class Background:
    """The kind of background of a slide, with the evidence.

    Parameters
    ----------
    method
        ``brightfield`` or ``fluorescence``; ``none`` if the settings request it; ``auto`` if unknown.
    reason
        Evidence for it.
    doubt
        Evidence against it; empty if there is none.
    """

    method: TissueMethod = "auto"
    reason: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class Outside:
    """The tissue outside the regions that a slide names.

    Parameters
    ----------
    mask
        Tissue cells whose centre lies in no region, bool, shape (rows, columns).
    regions
        The regions, for messages.
    warning
        What was repaired or left out in their file; empty if nothing was.
    """

    mask: npt.NDArray[np.bool_]
    regions: str
    warning: str = ""


@dataclass(frozen=True)
class Overview:
    """The thumbnail of a slide or of one of its regions, and the maps computed from it.

    Parameters
    ----------
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3); a cell is p x p pixels.
    tissue
        Cells that may be read, on their grid; with two levels, regions.
    quality
        The artefacts of each cell, if measured.
    background
        Kind of background; unknown for an overview from disk.
    artefacts
        Tissue cells that have too much of an artefact, by its name, bool, shape (rows, columns), whether or
        not they are excluded; with two levels, regions in which all parts with tissue have too much.
    excluded
        Tissue cells excluded by ``thumbnail.exclude``, bool, shape (rows, columns); ``None`` for none.
    outside
        Tissue outside the regions that the slide names, which none of the other maps has; ``None`` for a
        slide without regions, and for an overview from disk.
    """

    thumbnail: Pixels
    tissue: TissueMask
    quality: Quality = field(default_factory=Quality)
    background: Background = field(default_factory=Background)
    artefacts: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    excluded: npt.NDArray[np.bool_] | None = None
    outside: Outside | None = None

    @property
    def all_tissue(self) -> TissueMask:
        """All tissue in the regions of the slide, including the excluded cells."""
        if self.excluded is None:
            return self.tissue
        return replace(self.tissue, mask=self.tissue.mask | self.excluded)

    @property
    def artefact_shares(self) -> dict[str, float | None]:
        """Fraction of all tissue cells in :attr:`artefacts`, by name; ``None`` if not measured."""
        count = len(self.all_tissue.cells)
        return {
            name: float(self.artefacts[name].sum() / count) if count and name in self.artefacts else None
            for name in ARTEFACTS
        }


def save_overview(path: Path, overview: Overview) -> None:
    """Write the thumbnail, tissue and quality of a slide, atomically."""
    save_arrays(
        path,
        overview.tissue.grid,
        thumbnail=overview.thumbnail,
        fraction=overview.tissue.fraction,
        mask=overview.tissue.mask,
        **overview.quality.maps,
    )


def load_overview(path: Path) -> Overview:
    """Read the thumbnail, tissue and quality that :func:`save_overview` wrote.

    Raises
    ------
    ArtifactError
        When the file is missing or damaged.
    """
    maps = [each.name for each in fields(Quality)]
    grid, arrays = load_arrays(path, "thumbnail", "fraction", "mask", optional=maps)
    return Overview(
        arrays["thumbnail"],
        TissueMask(grid, arrays["fraction"], arrays["mask"]),
        Quality(**{name: arrays[name] for name in maps if name in arrays}),
    )
