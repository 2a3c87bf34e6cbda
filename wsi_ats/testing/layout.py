"""Layout of a synthetic slide: tissue and regions on the grid of tiles."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_ats.errors import SettingsError
from wsi_ats.testing import textures
from wsi_ats.testing.outlines import areas, forms
from wsi_ats.testing.textures import Field

SMALLEST_GRID = 16  # tiles on a side; fewer leave no room for tissue with regions


class Kind(IntEnum):
    """Kind of a tile of a synthetic slide, by the larger part of its area."""

    BACKGROUND = 0
    STROMA = 1
    LOOKALIKE = 2
    LESION = 3


@dataclass(frozen=True)
class Layout:
    """Tissue and regions of a slide, before lesions are chosen among the regions.

    Attributes
    ----------
    tissue, regions
        Form of every tile of the grid, (rows, columns).
    owner
        Number of the region that covers part of the tile, (rows, columns); -1 where none does.
    shade
        Standard normal field, smooth over the grid: the local darkness of the stroma, (rows, columns).
    """

    tissue: NDArray[np.int64]
    regions: NDArray[np.int64]
    owner: NDArray[np.int64]
    shade: Field

    @property
    def tissue_area(self) -> float:
        """Area of the tissue in tiles."""
        return float(areas(self.tissue).sum())

    @property
    def region_areas(self) -> Field:
        """Area of each region in tiles, shape (regions,)."""
        inside = areas(self.regions)
        return np.array([inside[self.owner == k].sum() for k in range(self.owner.max() + 1)])


def _fractal(shape: tuple[int, int], rng: np.random.Generator) -> Field:
    """Draw noise whose features have every size from the grid down to about three tiles."""
    y, x = textures.frequencies(shape)
    distance = np.hypot(y * shape[0], x * shape[1])
    amplitude = (1 + distance) ** -1.8 * np.exp(-((y**2 + x**2) * 60))
    return textures.noise(shape, amplitude, rng)


def tissue_field(shape: tuple[int, int], fraction: float, rng: np.random.Generator) -> Field:
    """Draw the tissue.

    Parameters
    ----------
    shape
        Corners of the grid of tiles, down and across.
    fraction
        Share of the grid that is tissue.
    rng
        Source of all randomness.

    Returns
    -------
    ndarray of float64, of that shape
        Field that is positive in the tissue, and never at the border of the grid.
    """
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    lobes = np.zeros(shape)
    for centre in rng.uniform(-0.4, 0.4, size=(3, 2)):
        lobes += np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 0.3)
    field = lobes + 0.25 * _fractal(shape, rng) - 3 * np.clip(np.hypot(y, x) - 0.8, 0, None)
    field -= np.quantile(field, 1 - fraction)
    border = np.ones(shape, dtype=bool)
    border[2:-2, 2:-2] = False
    field[border] = -np.abs(field[border]) - 1e-6
    pieces, count = ndimage.label(field > 0)
    sizes = ndimage.sum_labels(field > 0, pieces, np.arange(count + 1))
    crumbs = (sizes < 0.03 * sizes.sum())[pieces]
    field[crumbs] = -np.abs(field[crumbs])
    return field


def _region_field(shape: tuple[int, int], centre: Any, radius: float, rng: np.random.Generator) -> Field:
    """Return the signed distance to a wavy disc on the corners of the grid, in tiles."""
    y, x = np.mgrid[: shape[0], : shape[1]] - np.asarray(centre)[:, None, None]
    angle = np.arctan2(y, x)
    waves = np.arange(2, 5)
    sizes, phases = rng.normal(0, 0.2 / waves), rng.uniform(0, 2 * np.pi, size=3)
    wave = sum(s * np.cos(k * angle + p) for k, s, p in zip(waves, sizes, phases, strict=True))
    field: Field = radius * (1 + np.clip(wave, -0.3, 0.3)) - np.hypot(y, x)
    return field


def draw_layout(
    rows: int,
    columns: int,
    rng: np.random.Generator,
    *,
    tissue_fraction: float = 0.3,
    region_fraction: float = 0.10,
) -> Layout:
    """Draw tissue and regions of one slide, which do not depend on its label.

    Parameters
    ----------
    rows, columns
        Shape of the grid of tiles.
    rng
        Source of all randomness.
    tissue_fraction
        Mean share of the slide that is tissue; each slide has 0.8 to 1.2 times that.
    region_fraction
        Mean share of the tissue that is in regions; each slide has about 0.8 to 1.2 times that.

    Raises
    ------
    SettingsError
        If a fraction is out of range, or the tissue has no room for any region.

    Examples
    --------
    >>> layout = draw_layout(40, 60, np.random.default_rng(0))
    >>> layout.tissue.shape
    (40, 60)
    """
    if min(rows, columns) < SMALLEST_GRID:
        raise SettingsError(
            f"a slide of {rows} x {columns} tiles is too small; expected at least {SMALLEST_GRID}"
            " tiles on each side: use a larger slide or smaller tiles"
        )
    if not 0 < tissue_fraction <= 0.6:
        raise SettingsError(f"tissue_fraction is {tissue_fraction}; expected more than 0, at most 0.6")
    if not 0 < region_fraction <= 0.3:
        raise SettingsError(f"region_fraction is {region_fraction}; expected more than 0, at most 0.3")
    shape = (rows + 1, columns + 1)
    tissue = tissue_field(shape, tissue_fraction * rng.uniform(0.8, 1.2), rng)
    total = region_fraction * rng.uniform(0.8, 1.2) * np.count_nonzero(tissue > 0)
    regions, owner = np.full(shape, -np.inf), np.full(shape, -1)
    room = ndimage.distance_transform_edt(tissue > 0) - 2  # no tile holds two outlines
    for share in -np.sort(-rng.dirichlet(np.full(rng.integers(4, 10), 2.0))):
        radius = min(max(np.sqrt(share * total / np.pi), 1.2), room.max() / 1.3)
        if radius < 1:
            break
        centre = rng.choice(np.argwhere(room >= 1.3 * radius))
        region = _region_field(shape, centre + rng.uniform(-0.5, 0.5, 2), radius, rng)
        owner[region > 0] = owner.max() + 1
        regions = np.maximum(regions, region)
        room = np.minimum(room, ndimage.distance_transform_edt(regions <= 0) - 2)
    if owner.max() < 0:
        raise SettingsError(
            f"a grid of {rows} x {columns} tiles with {tissue_fraction:.0%} tissue has no room for a"
            " region; use a larger slide, smaller tiles or more tissue"
        )
    corners = (owner[:-1, :-1], owner[:-1, 1:], owner[1:, :-1], owner[1:, 1:])
    return Layout(forms(tissue), forms(regions), np.max(corners, axis=0), _fractal((rows, columns), rng))


def choose_lesions(layout: Layout, lesion_fraction: float) -> list[int]:
    """Return the regions whose total area is nearest to a fraction of the tissue; at least one."""
    areas = layout.region_areas
    subsets = np.array(list(itertools.product((0, 1), repeat=len(areas))))[1:]
    nearest = subsets[np.argmin(np.abs(subsets @ areas - lesion_fraction * layout.tissue_area))]
    return [int(k) for k in np.flatnonzero(nearest)]
