"""What it costs to send tiles as JPEG, and what it loses.

Run ``python -m benchmarks.jpeg SLIDE...``. Tiles of 256 pixels are read at random places of level 0, so that
the blocks of the file's JPEG and ours seldom meet; those that show glass are left out. Tiles of synthetic
slides come first. Times are processor time of one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from wsi_ats.slides import jpeg, open_slide
from wsi_ats.slides.base import Pixels
from wsi_ats.testing.bank import make_tile_bank

SIDE = 256
_GLASS = 8.0  # standard deviation of grey levels below which a tile shows nothing


def read(path: Path, count: int) -> Pixels:
    """Read tiles of a slide, shape (n, SIDE, SIDE, 3), that show something."""
    generator = np.random.default_rng(0)
    with open_slide(path) as slide:
        full = slide.levels[0]
        corners = generator.integers(
            0, (max(1, full.width - SIDE), max(1, full.height - SIDE)), (4 * count, 2)
        )
        tiles = slide.read_regions(0, corners, SIDE, SIDE)
    return tiles[tiles.std((1, 2, 3)) > _GLASS][:count]


def textures(count: int) -> Pixels:
    """Tiles like those of synthetic slides."""
    bank = make_tile_bank(SIDE, 0, variants=-(-count // 3), palettes=1)
    return np.stack([bank.pixels(number) for number in range(1, count + 1)])


def measure(name: str, tiles: Pixels) -> dict[str, Any]:
    """Encode and decode tiles."""
    begin = time.process_time()
    coded = jpeg.JpegTiles.of(tiles)
    encoded = time.process_time()
    decoded = coded.pixels()
    end = time.process_time()
    wrong = np.abs(decoded.astype(np.int16) - tiles)
    size = sum(map(len, coded.streams)) / len(tiles)
    return {
        "tiles_of": name,
        "quality": jpeg.QUALITY,
        "tiles": len(tiles),
        "bytes": size,
        "share_of_pixels": size / tiles[0].nbytes,
        "mean_error": float(wrong.mean()),
        "error_99_percent": float(np.percentile(wrong, 99)),
        "largest_error": int(wrong.max()),
        "encode_ms": 1e3 * (encoded - begin) / len(tiles),
        "decode_ms": 1e3 * (end - encoded) / len(tiles),
    }


def main() -> None:
    """Print the table and write it to ``results/jpeg.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="*")
    parser.add_argument("--tiles", type=int, default=96, help="Of each slide.")
    options = parser.parse_args()
    rows = [measure("textures", textures(options.tiles))]
    rows += [measure(path.name, read(path, options.tiles)) for path in options.slides]
    report("tiles of 256 pixels as JPEG", "jpeg", {name: [row[name] for row in rows] for name in rows[0]})


if __name__ == "__main__":
    main()
