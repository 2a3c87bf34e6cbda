"""TIFF files that tifffile writes, and regions read from them."""

from __future__ import annotations

import numpy as np
import tifffile


def write(path, pyramid, *, byteorder=None, bigtiff=False, **options):
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as file:
        for number, pixels in enumerate(pyramid):
            file.write(pixels, photometric="rgb", subfiletype=1 if number else 0, metadata=None, **options)
    return path


def read(slide, x, y, width=16, height=16, level=0):
    return slide.read_regions(level, np.array([[x, y]]), width, height)[0]
