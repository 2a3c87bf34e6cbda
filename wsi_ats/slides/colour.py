"""Conversion of colours to sRGB with a scanner's profile: the only other import of Pillow.

Scanners store the colours of their own sensor, and some also store a profile to convert them. Models seldom
need it, and OpenSlide returns pixels as stored, but conversion makes slides from several scanners more alike.
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
    """A slide converted to sRGB, the colour space of screens and photographs.

    Parameters
    ----------
    inner
        A slide with a colour profile.

    Raises
    ------
    SlideOpenError
        When it has no profile, or a profile that is not for RGB.
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

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """Read from the inner slide and convert; the background colour outside the scan is not changed."""
        regions = self._inner.read_regions(level, corners, width, height)
        outside = (regions == self.background).all(-1)
        for region, unscanned in zip(regions, outside, strict=True):
            converted = ImageCms.applyTransform(Image.fromarray(region), self._transform)
            region[~unscanned] = np.asarray(converted)[~unscanned]
        return regions
