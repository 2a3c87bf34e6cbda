"""Megapixel MNIST: canvases as the recipe has them, and the experiment on few of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import megapixel_mnist
from benchmarks.megapixel_mnist import SETTINGS, CanvasReader, examples
from benchmarks.mnist_canvas import DIGITS, NOISE, OF_LABEL, PATCH, Canvases, make_canvases, smaller
from wsi_ats.settings import Settings
from wsi_ats.tables.files import read_csv


@pytest.fixture(scope="module")
def canvases():
    rng = np.random.default_rng(0)
    digits = np.zeros((40, PATCH, PATCH), np.uint8)
    digits[:, 4:-4, 4:-4] = rng.integers(256, size=(40, 20, 20))
    return make_canvases(12, digits, np.arange(40) % 10, rng)


@pytest.mark.parametrize("size", [36, 60, 7])
def test_smaller_views_average_the_areas_of_the_canvas(size):
    """Every pixel is cut into ``size`` pieces a side, then averaged in blocks."""
    canvas = np.random.default_rng(0).integers(256, size=(90, 90)).astype(np.uint8)
    share = np.repeat(np.eye(90), size, axis=1).reshape(90, size, 90).mean(2)
    assert smaller(canvas, size) == pytest.approx(share.T @ canvas @ share, abs=1e-3)


def test_canvases_have_three_digits_of_their_class_and_two_of_others_apart(canvases):
    assert canvases.places.shape == (12, DIGITS + NOISE, 2)
    of_label = canvases.patches[:, :DIGITS] % 10 == canvases.labels[:, None]
    assert of_label.tolist() == [[True] * OF_LABEL + [False] * (DIGITS - OF_LABEL)] * 12
    digits = canvases.places[:, :DIGITS]
    apart = (np.abs(digits[:, :, None] - digits[:, None]) >= PATCH).any(3)
    assert (apart | np.eye(DIGITS, dtype=bool)).all()


def test_a_cell_of_the_low_view_shows_the_place_of_its_tile(canvases):
    example = examples(canvases, Settings().with_values(SETTINGS))[3]
    rows, columns = example.tissue.grid.shape
    assert example.thumbnail.shape == (3 * rows, 3 * columns, 3)
    grey = torch.from_numpy(example.thumbnail)[None, :, :, 1].float()
    seen = torch.nn.functional.avg_pool2d(grey, 6, 3)[0]
    [tiles] = CanvasReader(canvases).read([(example.ref, example.tissue.grid, example.tissue.cells)])
    means = tiles.result().mean((1, 2, 3)).reshape(rows, columns)
    assert means.max() > 5
    assert seen.numpy() == pytest.approx(means[:-1, :-1], abs=0.3)


def test_every_phase_is_in_the_table(canvases, tmp_path, monkeypatch):
    parts = [
        Canvases(canvases.bank, canvases.patches[rows], canvases.places[rows], canvases.labels[rows])
        for rows in (slice(8), slice(8, 12))
    ]
    monkeypatch.setattr(megapixel_mnist, "make", lambda *_, **__: parts)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    few = ["training.epochs=1", "training.tiles=5", "training.attention_tiles=5"]
    few += ["training.attention_epochs=1", "training.joint_epochs=1"]
    megapixel_mnist.main(["--seeds", "1", "--out", str(tmp_path), "--set", *few])
    table = read_csv(tmp_path / "megapixel_mnist.csv")
    assert table["phase"] == ["classifier", "attention", "joint"]
    assert all(0 <= float(error) <= 1 for error in table["test_error"])
    assert [float(each) for each in table["tiles"]] == [5, 5, 10]
