"""The metadata of OME-Zarr images: axes, levels and the physical size of a pixel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi_ats.geometry import Level
from wsi_ats.slides.base import Mpp
from wsi_ats.slides.resolution import ADVICE, MICROMETRES, square_mpp

OWN = "wsi_ats"
"""Key of this library's record of its own pyramids, among the attributes of the image."""

ICC = "icc_profile"
"""Key, in that record, of the source's colour profile in base 64; OME-Zarr does not define one."""


@dataclass(frozen=True)
class OmeImage:
    """The metadata of one image.

    Parameters
    ----------
    axes
        Names of the arrays' axes, in order.
    units
        Unit of each axis that has one.
    paths
        Paths of the arrays, finest first.
    scales
        Physical size of a pixel along each axis, for each array; ``None`` if unknown.
    """

    axes: tuple[str, ...]
    units: Mapping[str, str]
    paths: Sequence[str]
    scales: Sequence[Mapping[str, float] | None]

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> OmeImage:
        """Read the metadata from the attributes of a group.

        Raises
        ------
        ValueError, LookupError, TypeError, AttributeError
            When they are damaged, or do not describe an RGB image.
        """
        ome = attributes.get("ome", attributes)
        if "multiscales" not in ome:
            raise ValueError("no multiscales in its attributes, so it is not an OME-Zarr image")
        first = ome["multiscales"][0]
        version = ome.get("version", first.get("version"))
        if version not in {"0.4", "0.5"}:
            raise ValueError(f"OME-Zarr version is {version!r}, expected 0.5 or 0.4")
        axes = tuple(str(axis["name"]) for axis in first["axes"])
        if len(set(axes)) != len(axes) or not {"c", "y", "x"} <= set(axes):
            raise ValueError(f"axes are {axes}, expected c, y and x: it is not an RGB image")
        channels = ome.get("omero", {}).get("channels", [])
        colours = [str(channel.get("color", "")).upper() for channel in channels]
        if all(colours) and colours not in ([], ["FF0000", "00FF00", "0000FF"]):
            raise ValueError(f"channels are {colours}, expected red, green and blue: it is not an RGB image")
        units = {str(axis["name"]): str(axis["unit"]) for axis in first["axes"] if axis.get("unit")}
        whole = first.get("coordinateTransformations", [])
        datasets = [
            (str(each["path"]), each.get("coordinateTransformations", [])) for each in first["datasets"]
        ]
        if not datasets:
            raise ValueError("it has no levels")
        return cls(
            axes,
            units,
            [path for path, _ in datasets],
            [_scale(axes, [*own, *whole]) if own else None for _, own in datasets],
        )

    def mpp(self) -> Mpp:
        """Return the micrometres per level-0 pixel, from the scale of level 0.

        Raises
        ------
        ValueError
            When the scale is missing, in unknown units or not plausible.
        """
        source = "coordinateTransformations"
        units = {name: self.units.get(name) for name in ("x", "y")}
        scales = self.scales[0]
        if scales is None or not set(units.values()) <= MICROMETRES.keys():
            raise ValueError(
                f"the file does not give its micrometres per pixel ({source} scale = {scales}, "
                f"units = {units}, known units are {', '.join(MICROMETRES)}); {ADVICE}"
            )
        x, y = (scales[name] * MICROMETRES[str(units[name])] for name in ("x", "y"))
        return square_mpp(x, y, source)

    def levels(self, sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
        """Return the pyramid.

        Parameters
        ----------
        sizes
            Width and height of each level, finest first.

        Raises
        ------
        ValueError
            When a level is not smaller than the previous one.
        """
        width, height = sizes[0]
        levels = [Level(width, height, 1.0)]
        for size, scale in zip(sizes[1:], self.scales[1:], strict=True):
            downsample = _downsample((width, height), size, self.scales[0], scale)
            if downsample <= levels[-1].downsample or size[0] > width or size[1] > height:
                raise ValueError(f"levels have {list(sizes)} pixels, expected each smaller than the last")
            levels.append(Level(*size, downsample))
        return tuple(levels)


def _scale(axes: tuple[str, ...], transformations: Iterable[Mapping[str, Any]]) -> Mapping[str, float] | None:
    """Return the product of all scales, by axis."""
    scales = [each["scale"] for each in transformations if each["type"] == "scale"]
    if not scales:
        return None
    if any(len(scale) != len(axes) for scale in scales):
        raise ValueError(f"scales {scales} do not fit the axes {axes}")
    return {name: math.prod(float(scale[i]) for scale in scales) for i, name in enumerate(axes)}


def _downsample(
    full: tuple[int, int],
    size: tuple[int, int],
    full_scale: Mapping[str, float] | None,
    scale: Mapping[str, float] | None,
) -> float:
    """Return the ratio of the scales if the sizes agree with it, else the ratio of the sizes.

    Sizes are rounded to whole pixels, but scales are not: 331 pixels become 166 at half the resolution, a
    downsample of 2 and not of 1.994.
    """
    if full_scale is not None and scale is not None and min(*full_scale.values(), *scale.values()) > 0:
        x, y = (scale[name] / full_scale[name] for name in ("x", "y"))
        if abs(full[0] / x - size[0]) <= 1 and abs(full[1] / y - size[1]) <= 1:
            return (x + y) / 2
    return (full[0] / size[0] + full[1] / size[1]) / 2
