"""PNG files, written in a quarter of Pillow's time, which was a quarter of that of a contact sheet."""

from __future__ import annotations

import struct
from pathlib import Path
from zlib import crc32

import numpy as np

from wsi_ats.slides.base import Pixels
from wsi_ats.slides.codecs import deflate

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Each byte is stored as the difference from that above it, the filter that is nearly free to compute.
_UP = 2
_INCH = 0.0254


def write_png(path: Path, pixels: Pixels, *, dpi: float = 72) -> None:
    """Write an RGB image as PNG.

    Parameters
    ----------
    path
        The file.
    pixels
        The image, shape (h, w, 3).
    dpi
        Pixels per inch, for programs that print it.
    """
    height, width = pixels.shape[:2]
    lines = np.ascontiguousarray(pixels).reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0], filtered[0, 1:] = _UP, lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    density = round(dpi / _INCH)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),  # 8 bits, RGB
        b"pHYs": struct.pack(">IIB", density, density, 1),  # per metre
        b"IDAT": deflate(filtered.tobytes()),
        b"IEND": b"",
    }
    with path.open("wb") as file:
        file.write(_SIGNATURE)
        for name, data in chunks.items():
            file.writelines(
                (struct.pack(">I", len(data)), name, data, struct.pack(">I", crc32(data, crc32(name))))
            )
