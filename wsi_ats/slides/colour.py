"""Colours as a scanner's profile says they look: Pillow's only other import.

Scanners store the colours of their own sensor and, some of them, a profile that says how these look. Models
seldom care, and OpenSlide gives pixels as stored; but slides of several scanners come closer to each other.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from wsi_ats.errors import SlideOpenError
from wsi_ats.geometry import IntArray
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.wrappers import WrappedSlide


class SrgbSlide(WrappedSlide):
    """A slide in the colours of sRGB, which screens show and photographs have.

    Parameters
    ----------
    inner
        A slide with a profile.

    Raises
    ------
    SlideOpenError
        When it has none, or one that is no profile of RGB colours.
    """

    def __init__(self, inner: Slide) -> None:
        super().__init__(inner)
        if inner.icc is None:
            raise SlideOpenError(inner.path, "it has no colour profile; set tile.colour to 'stored'")
        try:
            profile = ImageCms.ImageCmsProfile(BytesIO(inner.icc))
            self._transform = ImageCms.buildTransform(
                profile,
                ImageCms.createProfile("sRGB"),
                "RGB",
                "RGB",
                renderingIntent=ImageCms.Intent(ImageCms.getDefaultIntent(profile)),
            )
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            raise SlideOpenError(
                inner.path, f"its colour profile cannot be used: {error}; set tile.colour to 'stored'"
            ) from error

    @property
    def background(self) -> tuple[int, int, int]:
        """The inner slide's: where nothing was scanned, no sensor saw a colour."""
        return self._inner.background

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """Read from the inner slide and convert; outside the scanned area is background as it was."""
        regions = self._inner.read_regions(level, corners, width, height)
        outside = (regions == self.background).all(-1)
        for region, unscanned in zip(regions, outside, strict=True):
            converted = ImageCms.applyTransform(Image.fromarray(region), self._transform)
            region[~unscanned] = np.asarray(converted)[~unscanned]
        return regions
