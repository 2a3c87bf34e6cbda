"""A slide in memory that records every read."""

from __future__ import annotations

from typing import Any

from wsi_ats.geometry import IntArray
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.wrappers import WrappedSlide


class RecordingSlide(WrappedSlide):
    """A :class:`~wsi_ats.slides.memory.MemorySlide` of the same arguments that records every read.

    Attributes
    ----------
    boxes : list of tuple
        ``level, x, y, width, height`` of every region read, in pixels of the level, in order.

    Examples
    --------
    >>> import numpy as np
    >>> slide = RecordingSlide([np.zeros((64, 64, 3), np.uint8)], mpp=0.5)
    >>> _ = slide.read_regions(0, np.array([[8, 16]]), 32, 32)
    >>> slide.boxes
    [(0, 8, 16, 32, 32)]
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(MemorySlide(*args, **options))
        self.boxes: list[tuple[int, int, int, int, int]] = []

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """See :meth:`wsi_ats.slides.base.Slide.read_regions`."""
        self.boxes += [(level, x, y, width, height) for x, y in corners.tolist()]
        return self._inner.read_regions(level, corners, width, height)
