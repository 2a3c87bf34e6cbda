"""Slides in memory, for examples, tests, and images that are not in a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray, Level
from wsi_ats.slides.base import Mpp, Pixels, Slide, SlideInfo
from wsi_ats.slides.resolution import mpp_or_problem


class MemorySlide(Slide):
    """A slide made of arrays.

    Parameters
    ----------
    pyramid
        One array of uint8, shape (height, width, 3), for each level, finest first.
    mpp
        Micrometres per level-0 pixel; ``None`` if unknown.
    path
        The slide's name in errors.
    background
        RGB colour outside the arrays.

    Raises
    ------
    SlideOpenError
        When an array is not an RGB image.

    Examples
    --------
    >>> slide = MemorySlide([np.zeros((300, 200, 3), np.uint8)], mpp=0.5)
    >>> slide.read_regions(0, np.array([[190, 0]]), 20, 10)[0, 0, [9, 10], 0].tolist()
    [0, 255]
    """

    icc = None
    bytes_read = None

    def __init__(
        self,
        pyramid: Sequence[Pixels],
        *,
        mpp: float | None,
        path: str = "memory",
        background: tuple[int, int, int] = (255, 255, 255),
    ) -> None:
        self._pyramid = list(pyramid)
        for pixels in self._pyramid:
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                raise SlideOpenError(
                    path, f"expected uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}"
                )
        if not self._pyramid:
            raise SlideOpenError(path, "expected at least one level")
        full = self._pyramid[0].shape
        levels = tuple(
            Level(width, height, (full[1] / width + full[0] / height) / 2)
            for height, width, _ in (pixels.shape for pixels in self._pyramid)
        )
        resolution = "no mpp was given; pass mpp=" if mpp is None else mpp_or_problem(Mpp, mpp, "given")
        self.info = SlideInfo(path, "memory", levels, (None,) * len(levels), resolution, background)

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """See :meth:`wsi_ats.slides.base.Slide.read_regions`."""
        if not self._pyramid:
            raise SlideReadError(self.path, "the slide is closed")
        source = self._pyramid[level]
        regions = np.empty((len(corners), height, width, 3), dtype=np.uint8)
        regions[:] = self.background
        for region, (x, y) in zip(regions, corners.tolist(), strict=True):
            left, top = max(0, x), max(0, y)
            inside = source[top : max(top, y + height), left : max(left, x + width)]
            region[top - y :, left - x :][: inside.shape[0], : inside.shape[1]] = inside
        return regions

    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """Return ``None``: nothing is stored."""
        del level, corners, width, height
        return None

    def close(self) -> None:
        """Release the arrays."""
        self._pyramid = []
