"""Tiles on their way between machines."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from wsi_ats.slides.jpeg import JpegTiles
from wsi_ats.testing.bank import make_tile_bank


@pytest.fixture(scope="module")
def tiles():
    bank = make_tile_bank(64, 0, variants=4, palettes=1)
    return np.stack([bank.pixels(number) for number in range(1, 9)])


def test_tiles_lose_little_and_shrink(tiles):
    coded = pickle.loads(pickle.dumps(JpegTiles.of(tiles)))
    pixels = coded.pixels()
    assert pixels.shape == tiles.shape
    assert pixels.dtype == np.uint8
    wrong = np.abs(pixels.astype(int) - tiles)
    assert wrong.mean() < 1
    assert wrong.max() < 16
    assert sum(map(len, coded.streams)) < tiles.nbytes / 4


def test_each_tile_is_coded_by_itself(tiles):
    together = JpegTiles.of(tiles)
    assert together.streams == [JpegTiles.of(tile[None]).streams[0] for tile in tiles]
    np.testing.assert_array_equal(JpegTiles.of(tiles[3:4]).pixels()[0], together.pixels()[3])


def test_colours_do_not_run_into_one_another():
    """Half red, half blue: subsampled colour would be mixed at the edge."""
    tile = np.zeros((1, 16, 16, 3), np.uint8)
    tile[:, :, :8, 0] = tile[:, :, 8:, 2] = 200
    assert np.abs(JpegTiles.of(tile).pixels().astype(int) - tile).max() <= 8


def test_tiles_of_any_size_and_none_at_all():
    for shape in [(1, 1, 1, 3), (2, 17, 5, 3), (0, 16, 16, 3)]:
        assert JpegTiles.of(np.full(shape, 128, np.uint8)).pixels().shape == shape
