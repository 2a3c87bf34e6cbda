"""What reading costs, from the file's own index."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from wsi_ats.geometry import Level
from wsi_ats.slides import open_slide
from wsi_ats.slides.tiff import TileIndex

TILE = 64 * 48 * 3


@pytest.fixture
def uncompressed(pattern, write_tiff, tmp_path):
    """5 columns of 48 and 4 rows of 64 pixels, and a level of 2 x 1 tiles."""
    return write_tiff(tmp_path / "s.tif", [pattern(217, 251), pattern(54, 63)], compression=None)


@pytest.mark.parametrize(
    ("corners", "width", "height", "tiles"),
    [
        ([[0, 0]], 48, 64, 1),
        ([[0, 0]], 49, 64, 2),
        ([[47, 63]], 2, 2, 4),
        ([[48, 64]], 48, 64, 1),
        ([[0, 0], [1, 1], [0, 0]], 10, 10, 1),
        ([[0, 0], [192, 192]], 10, 10, 2),
        ([[-20, -20]], 30, 30, 1),
        ([[-20, -20]], 20, 20, 0),
        ([[0, 0]], 10_000, 10_000, 20),
        ([[217, 0]], 10, 10, 1),  # in the padding of the last column's tile, which is still one tile
        ([[240, 0]], 10, 10, 0),
    ],
)
def test_tiles_are_counted_once_each(uncompressed, corners, width, height, tiles):
    index = TileIndex.of(str(uncompressed))
    assert index.touched(Level(217, 251, 1.0), np.array(corners), width, height) == tiles * TILE


def test_levels_are_told_apart_by_their_size(uncompressed):
    index = TileIndex.of(str(uncompressed))
    assert set(index.levels) == {(217, 251), (54, 63)}
    assert index.touched(Level(54, 63, 4.0), np.array([[0, 0]]), 54, 63) == 2 * TILE
    assert index.touched(Level(55, 63, 4.0), np.array([[0, 0]]), 54, 63) is None


def test_other_formats_have_no_index(tmp_path):
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(50)):
        (tmp_path / "s").write_bytes(content)
        assert TileIndex.of(str(tmp_path / "s")).levels == {}


def test_a_file_in_strips_has_no_index(pattern, tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", pattern(217, 251), photometric="rgb", metadata=None)
    assert TileIndex.of(str(tmp_path / "s.tif")).levels == {}


def test_a_real_slide_is_accounted_to_the_byte(shared_data):
    path = shared_data / "slides" / "aperio_cmu-1-small-region.svs"
    with tifffile.TiffFile(path) as file, open_slide(path) as slide:
        level = slide.levels[0]
        everything = slide.stored_bytes(0, np.array([[0, 0]]), level.width, level.height)
        assert everything == sum(file.pages[0].databytecounts)
        assert slide.stored_bytes(0, np.array([[240, 240]]), 240, 240) == file.pages[0].databytecounts[11]
