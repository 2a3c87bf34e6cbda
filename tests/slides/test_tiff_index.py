"""The index of a TIFF file: places of its tiles, and bytes that a read costs."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
import tifffile

from wsi_ats.errors import SlideOpenError
from wsi_ats.slides import open_slide
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.tiff_index import TiffIndex

TILE = 64 * 48 * 3


def index_of(path):
    return TiffIndex.of(LocalFile(str(path)))


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
    image = index_of(uncompressed).image(217, 251)
    assert image.touched(np.array(corners), width, height) == tiles * TILE


def test_images_are_told_apart_by_their_size(uncompressed):
    index = index_of(uncompressed)
    assert [(each.width, each.height) for each in index.images] == [(217, 251), (54, 63)]
    assert index.image(54, 63).touched(np.array([[0, 0]]), 54, 63) == 2 * TILE
    assert index.image(55, 63) is None


def test_other_formats_have_no_index(tmp_path):
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(50)):
        (tmp_path / "s").write_bytes(content)
        assert index_of(tmp_path / "s") is None


def test_strips_are_tiles_as_wide_as_the_image(pattern, tmp_path):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, pattern(217, 251), photometric="rgb", metadata=None, rowsperstrip=20)
    (image,) = index_of(path).images
    assert (image.tile_width, image.tile_height, image.sizes.shape) == (217, 20, (13, 1))
    assert [image.rows_stored(row) for row in (0, 12)] == [20, 11]
    assert image.sizes.sum() == 217 * 251 * 3


def test_the_index_is_small(pattern, write_tiff, tmp_path):
    index = index_of(write_tiff(tmp_path / "s.tif", [pattern(640, 640)], tile=(16, 16)))
    (image,) = index.images
    assert image.offsets.nbytes + image.sizes.nbytes == 12 * 1600


def test_nothing_else_is_kept_until_garbage_is_collected(handmade, tmp_path):
    count = 300 * 300
    tags = {324: (4, range(1000, 1000 + count)), 325: (4, range(1000, 1000 + count))}
    content = {"size": (4800, 4800), "tile": (16, 16), "tiles": [], "tags": tags}
    path = handmade().write(tmp_path / "s.tif", [content])
    with path.open("ab") as file:
        file.truncate(1 << 20)
    index_of(path)  # imports what it needs
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        index = index_of(path)
        assert tracemalloc.get_traced_memory()[0] < 13 * count
    finally:
        tracemalloc.stop()
        gc.enable()
    assert index.images[0].sizes.size == count


def test_tiles_beyond_the_end_of_the_file_are_found_at_once(uncompressed):
    content = uncompressed.read_bytes()
    uncompressed.write_bytes(content[: -len(content) // 2])
    with pytest.raises(SlideOpenError, match=r"lie beyond the end of the file|index is damaged"):
        index_of(uncompressed)


def test_a_real_slide_is_accounted_to_the_byte(shared_data):
    path = shared_data / "slides" / "aperio_cmu-1-small-region.svs"
    with tifffile.TiffFile(path) as file, open_slide(path) as slide:
        level = slide.levels[0]
        everything = slide.stored_bytes(0, np.array([[0, 0]]), level.width, level.height)
        assert everything == sum(file.pages[0].databytecounts)
        assert slide.stored_bytes(0, np.array([[240, 240]]), 240, 240) == file.pages[0].databytecounts[11]
        slide.read_regions(0, np.array([[0, 0], [7, 9]]), level.width, level.height)
        assert slide.bytes_read == everything
