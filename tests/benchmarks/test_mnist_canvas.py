import gzip

import numpy as np
import pytest

from benchmarks.mnist_canvas import (
    DIGITS,
    NOISE,
    OF_LABEL,
    PATCH,
    PATTERNS,
    flatten,
    make_canvases,
    noise_patterns,
    read_digits,
)
from wsi_ats.errors import SettingsError

SIDE = 300  # few enough pixels for patches to hide one another often


def paint(bank, patches, places, side):
    """A canvas as a painter makes it: patch over patch."""
    canvas = np.zeros((side, side), np.uint8)
    for patch, (row, column) in zip(patches, places, strict=True):
        canvas[row : row + PATCH, column : column + PATCH] = bank[patch]
    return canvas


def average(canvas, size):
    """Areas by brute force: every pixel cut into ``size`` pieces a side, then averaged in blocks."""
    pieces = np.repeat(np.eye(len(canvas)), size, axis=1)
    share = pieces.reshape(len(canvas), size, len(canvas)).mean(2)
    return share.T @ canvas @ share


@pytest.fixture(scope="module")
def laid():
    """Bank, patches and places of some canvases, in the order of painting."""
    rng = np.random.default_rng(0)
    bank = rng.integers(256, size=(20, PATCH, PATCH)).astype(np.uint8)
    patches = rng.integers(len(bank), size=(3, DIGITS + NOISE))
    places = rng.integers(SIDE - PATCH, size=(3, DIGITS + NOISE, 2), endpoint=True)
    return bank, patches, places


@pytest.fixture(scope="module")
def canvases(laid):
    return flatten(*laid, np.zeros(3, np.int64), SIDE)


def test_the_canvas_is_as_a_painter_makes_it(laid, canvases):
    bank, patches, places = laid
    for i in range(3):
        painted = paint(bank, patches[i], places[i], SIDE)
        (whole,) = canvases.tiles(np.array([i]), np.zeros((1, 2), int), SIDE)
        assert (whole == painted).all()
        assert (canvases.views(np.array([i]), SIDE)[0] == painted).all()


def test_tiles_are_cut_from_the_canvas_and_black_outside_it(laid, canvases):
    bank, patches, places = laid
    corners = np.random.default_rng(1).integers(-60, SIDE + 10, size=(200, 2))
    which = np.arange(200) % 3
    tiles = canvases.tiles(which, corners, 50)
    painted = [np.pad(paint(bank, patches[i], places[i], SIDE), 100) for i in range(3)]
    for tile, i, (row, column) in zip(tiles, which, corners + 100, strict=True):
        assert (tile == painted[i][row : row + 50, column : column + 50]).all()


@pytest.mark.parametrize("size", [36, 60, 7])
def test_smaller_views_average_the_areas_of_the_canvas(laid, canvases, size):
    bank, patches, places = laid
    views = canvases.views(np.array([2, 0]), size)
    for view, i in zip(views, (2, 0), strict=True):
        assert view == pytest.approx(average(paint(bank, patches[i], places[i], SIDE), size), abs=1e-3)


def test_a_set_of_canvases_has_what_the_recipe_says():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(10, dtype=np.uint8), 20)
    digits = np.full((200, PATCH, PATCH), 1, np.uint8)
    digits[:, 0, 0] = np.arange(200)  # tells which
    canvases = make_canvases(50, digits, classes, rng)
    assert canvases.places.shape == (50, DIGITS + NOISE, 2)
    assert canvases.places.min() >= 0
    assert canvases.places.max() <= 1500 - PATCH
    untouched = 0
    for i in range(50):
        ours = canvases.patches[i, :DIGITS]
        for patch, is_of_label in zip(ours, np.arange(DIGITS) < OF_LABEL, strict=True):
            if patch < 200:  # not hidden in part
                assert (classes[patch] == canvases.labels[i]) == is_of_label
                untouched += 1
        apart = np.abs(canvases.places[i, :DIGITS, None] - canvases.places[i, None, :DIGITS]) >= PATCH
        assert (apart.any(2) | np.eye(DIGITS, dtype=bool)).all()
    assert untouched > 200
    assert len(set(canvases.labels.tolist())) == 10


def test_the_same_seed_makes_the_same_canvases():
    digits = np.random.default_rng(0).integers(256, size=(40, PATCH, PATCH)).astype(np.uint8)
    classes = np.arange(40, dtype=np.uint8) % 10
    one, two, other = (make_canvases(4, digits, classes, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (one.bank == two.bank).all()
    assert (one.places == two.places).all()
    assert not (one.places == other.places).all()


def test_a_part_is_the_same_canvases(canvases):
    part = canvases.part(1, 3)
    assert len(part) == 2
    assert (part.views(np.array([0]), 30) == canvases.views(np.array([1]), 30)).all()


def test_noise_is_bright_strokes_on_black():
    patterns = noise_patterns(np.random.default_rng(0))
    assert patterns.shape == (PATTERNS, PATCH, PATCH)
    ink = patterns > 0
    assert patterns[ink].min() >= 0.79 * 255
    assert 0.02 < ink.mean() < 0.12


def test_too_small_a_canvas_is_refused():
    with pytest.raises(SettingsError, match="at least 224 pixels"):
        make_canvases(1, np.zeros((10, 28, 28), np.uint8), np.arange(10), np.random.default_rng(0), side=100)


def _idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes())


def test_digits_are_read_from_idx_files(tmp_path):
    digits = np.random.default_rng(0).integers(256, size=(7, PATCH, PATCH)).astype(np.uint8)
    classes = np.arange(7, dtype=np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(_idx(digits))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(_idx(classes))
    read, labels = read_digits(tmp_path, train=False)
    assert (read == digits).all()
    assert (labels == classes).all()
    with pytest.raises(SettingsError, match=r"train-images.*--data"):
        read_digits(tmp_path, train=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(_idx(classes[:3]))
    with pytest.raises(SettingsError, match="do not fit 3 labels"):
        read_digits(tmp_path, train=False)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"something"))
    with pytest.raises(SettingsError, match="no idx file"):
        read_digits(tmp_path, train=False)
