"""The overview of a slide: its thumbnail, and what is known of the cells from it."""

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
    """Kind of background that tissue stands out from, and the reason to think so.

    Parameters
    ----------
    method
        ``brightfield``, ``fluorescence`` or, where it was asked for, ``none``; ``auto`` where not known.
    reason
        Evidence for it.
    doubt
        Evidence against it; empty where there is none.
    """

    method: TissueMethod = "auto"
    reason: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class Overview:
    """Thumbnail of a slide or of one of its regions, and the maps computed from it.

    Parameters
    ----------
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3), with p pixels a side of a cell.
    tissue
        Cells that may be read, on their grid; with two levels, regions.
    quality
        Artefacts, cell by cell, as far as they were measured.
    background
        Kind of background; not known of an overview from disk.
    artefacts
        By name of an artefact, tissue cells that have too much of it, bool, shape (rows, columns), whether
        or not they are left out; with two levels, regions in which every part with tissue has too much.
    excluded
        Tissue cells that ``thumbnail.exclude`` leaves out, bool, shape (rows, columns); ``None`` for none.
    """

    thumbnail: Pixels
    tissue: TissueMask
    quality: Quality = field(default_factory=Quality)
    background: Background = field(default_factory=Background)
    artefacts: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    excluded: npt.NDArray[np.bool_] | None = None

    @property
    def all_tissue(self) -> TissueMask:
        """All tissue, with the cells that are left out."""
        if self.excluded is None:
            return self.tissue
        return replace(self.tissue, mask=self.tissue.mask | self.excluded)

    @property
    def artefact_shares(self) -> dict[str, float | None]:
        """Share of all tissue cells in :attr:`artefacts`, by name; ``None`` where it was not measured."""
        count = len(self.all_tissue.cells)
        return {
            name: float(self.artefacts[name].sum() / count) if count and name in self.artefacts else None
            for name in ARTEFACTS
        }
