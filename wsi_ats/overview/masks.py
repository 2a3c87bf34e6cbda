"""Maps over the cells of a slide's grid: tissue and artefacts."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray


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
