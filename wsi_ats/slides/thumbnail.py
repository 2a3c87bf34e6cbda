"""Slides of which only a thumbnail is left: enough for attention, if tiles are features in files."""

from __future__ import annotations

from dataclasses import replace

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray, Level
from wsi_ats.slides.base import Pixels, SlideInfo, SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.resample import read_image
from wsi_ats.slides.wrappers import WrappedSlide


class ThumbnailSlide(WrappedSlide):
    """A slide whose only image is a thumbnail; its coordinates are those of the whole slide.

    Level 0 has the size of the slide but no pixels; level 1 is the thumbnail.

    Parameters
    ----------
    ref
        Path of an image (PNG, JPEG ...), its ``downsample``, and the ``mpp`` of level 0.

    Raises
    ------
    SlideOpenError
        When the image cannot be read.
    """

    def __init__(self, ref: SlideRef) -> None:
        try:
            pixels = read_image(ref.path)
        except OSError as error:
            raise SlideOpenError(ref.path, f"the thumbnail cannot be read: {error}") from error
        super().__init__(MemorySlide([pixels], mpp=ref.mpp, path=ref.path))
        height, width, _ = pixels.shape
        whole = Level(round(width * ref.downsample), round(height * ref.downsample), 1.0)
        levels = (whole, Level(width, height, ref.downsample))
        missing = "a thumbnail has no resolution of its own; give the slide's in a column mpp, or with --mpp"
        self.info: SlideInfo = replace(
            self.info,
            vendor="thumbnail",
            levels=levels,
            tile_shapes=(None, None),
            mpp=missing if ref.mpp is None else self.info.mpp,
        )

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """Read the thumbnail; see :meth:`wsi_ats.slides.base.Slide.read_regions`.

        Raises
        ------
        SlideReadError
            For level 0.
        """
        if level == 0:
            pixel = self.levels[1].downsample * self.mpp.value
            raise SlideReadError(
                self.path,
                f"only a thumbnail of {pixel:.4g} micrometres per pixel is left of this slide, and finer "
                "pixels are needed; give a finer one, set thumbnail.pixels_per_cell lower, or use the slide",
            )
        return self._inner.read_regions(0, corners, width, height)
