"""The overview of a slide: its thumbnail, and the maps of tissue and artefacts computed from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsi_ats.overview.masks import Quality, TissueMask
from wsi_ats.settings import ARTEFACTS
from wsi_ats.slides.base import Pixels

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
