"""Coordinates as CLAM, TRIDENT, STAMP and this library store them, in level-0 pixels.

The names of attributes are those of the tools' own files:

- CLAM's current version stores level-0 coordinates, with ``patch_size`` in pixels of ``patch_level``, whose
  ``downsample`` is given. Its first version stored the tiles' images (``imgs``) as well, and coordinates in
  pixels of the level, divided by a custom downsample if there was one.
- TRIDENT stores level-0 coordinates with ``patch_size_level0``.
- STAMP stores micrometres, with ``tile_size_um``, or ``tile_size`` in its version 2.0.
- This library stores level-0 coordinates with ``side`` beside the attributes of CLAM and TRIDENT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.geometry import IntArray

Placed = tuple[IntArray, float]
"""Top-left corners in level-0 pixels, int64, shape (N, 2), and the side of a tile in level-0 pixels."""


def place(
    coords: npt.NDArray[Any], attributes: Mapping[str, Any], *, mpp: float, pixels: int | None = None
) -> Placed | str:
    """Return coordinates in level-0 pixels, and the side of a tile.

    Parameters
    ----------
    coords
        Coordinates as stored, shape (N, 2).
    attributes
        The file's attributes.
    mpp
        Micrometres per level-0 pixel of the slide.
    pixels
        Side of the tiles' images in the file, if it has these.

    Returns
    -------
    Placed or str
        Corners and side, or the reason why they are unknown.

    Examples
    --------
    >>> place(np.array([[112.0, 56.0]]), {"unit": "um", "tile_size_um": 56.0}, mpp=0.5)
    (array([[224, 112]]), 112.0)
    """
    if "unit" in attributes or "tile_size_um" in attributes:
        return _stamp(coords, attributes, mpp)
    if pixels is not None:
        return _clam_with_images(coords, attributes, pixels)
    corners = coords.astype(np.int64)
    if not np.array_equal(corners, coords):
        return "its coordinates are fractions of pixels, and no attribute tells a unit"
    if "side" in attributes:
        return corners, float(attributes["side"])
    if "patch_size_level0" in attributes:
        return corners, float(attributes["patch_size_level0"])
    if "patch_size" in attributes and "patch_level" in attributes:
        level = int(attributes["patch_level"])
        if "downsample" not in attributes and level:
            return f"it has tiles of level {level}, but no attribute downsample"
        # TRIDENT reads files of CLAM with this attribute in the same way.
        custom = float(attributes.get("custom_downsample", 1))
        return corners, float(attributes["patch_size"]) * _mean(attributes.get("downsample", 1)) * custom
    if "patch_size" in attributes and "target_magnification" in attributes:
        magnification = float(attributes["target_magnification"])
        # By the usual definition, 10 micrometres per pixel are a magnification of 1.
        scanned = float(attributes.get("level0_magnification", 10 / mpp))
        return corners, float(attributes["patch_size"]) * scanned / magnification
    names = ", ".join(sorted(attributes)) or "no attributes"
    return (
        f"no attribute tells the size of its tiles ({names}); expected patch_size_level0, patch_size with "
        "patch_level and downsample, or tile_size_um"
    )


def _stamp(coords: npt.NDArray[Any], attributes: Mapping[str, Any], mpp: float) -> Placed | str:
    unit = attributes.get("unit", "um")
    side = attributes.get("tile_size_um", attributes.get("tile_size"))
    if unit != "um" or side is None:
        return f"it has coordinates in {unit!r} and tiles of {side}; expected unit 'um' and tile_size_um"
    return np.round(coords / mpp).astype(np.int64), float(side) / mpp


def _clam_with_images(coords: npt.NDArray[Any], attributes: Mapping[str, Any], pixels: int) -> Placed | str:
    missing = [name for name in ("downsample", "level_dim") if name not in attributes]
    if missing:
        return f"it has images of tiles, but no attribute {' or '.join(missing)}; expected CLAM's"
    custom = _mean(attributes["level_dim"]) / _mean(
        attributes.get("downsampled_level_dim", attributes["level_dim"])
    )
    scale = _mean(attributes["downsample"]) * round(custom)
    return np.round(coords * scale).astype(np.int64), pixels * scale


def _mean(value: Any) -> float:
    """The two axes have nearly equal values; CLAM stores both."""
    return float(np.mean(value))
