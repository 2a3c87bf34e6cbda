import csv

import numpy as np
import pytest
import torch

from benchmarks import megapixel_mnist
from benchmarks.megapixel_mnist import ARMS, SETTINGS, CanvasReader, examples, holding
from benchmarks.mnist_canvas import PATCH, Canvases, make_canvases
from benchmarks.mnist_models import network
from wsi_ats.settings import Settings


@pytest.fixture(scope="module")
def canvases():
    rng = np.random.default_rng(0)
    digits = np.zeros((40, PATCH, PATCH), np.uint8)
    digits[:, 4:-4, 4:-4] = rng.integers(256, size=(40, 20, 20))
    return make_canvases(12, digits, np.arange(40) % 10, rng)


@pytest.fixture(scope="module")
def settings():
    return Settings().with_values(SETTINGS)


def test_a_cell_of_the_low_view_shows_where_its_tile_lies(canvases, settings):
    """The attention network's first look sees the area of the tile: the mean of both is the same."""
    example = examples(canvases, settings)[3]
    rows, columns = example.overview.tissue.grid.shape
    assert example.overview.thumbnail.shape == (3 * rows, 3 * columns, 3)
    grey = torch.from_numpy(example.overview.thumbnail)[None, :, :, 1].float()
    seen = torch.nn.functional.avg_pool2d(grey, 6, 3)[0]
    [tiles] = CanvasReader(canvases).read(
        [(example.ref, example.overview.tissue.grid, example.overview.tissue.cells)]
    )
    means = tiles.result().mean((1, 2, 3)).reshape(rows, columns)
    assert means.max() > 5
    assert seen.numpy() == pytest.approx(means[:-1, :-1], abs=0.3)


def test_attention_is_uniform_where_nothing_was_learned(canvases, settings):
    example = examples(canvases, settings)[0]
    torch.manual_seed(0)
    view, cells = (
        torch.from_numpy(example.overview.thumbnail),
        torch.from_numpy(example.overview.tissue.cells),
    )
    attention = network(settings).attend(view, cells, example.overview.tissue.grid.shape)
    assert attention.shape == (59 * 59,)
    assert attention.tolist() == pytest.approx([1 / 59**2] * 59**2)


def test_digits_that_lie_wholly_in_a_tile_are_noted(settings):
    """The digit's own pixels count, not the black around them."""
    one = Canvases(
        np.zeros((1, PATCH, PATCH), np.uint8),
        np.zeros((1, 5), int),
        np.zeros((1, 5, 2), int),
        np.zeros(1, int),
        1500,
    )
    one.places[0, :, 0] = [0, 26, 27, 46, 1472]
    held = holding(one, np.array([0]), np.array([[0, 0]]), 50)
    assert held.tolist() == [[True, True, False, False, False]]
    [example], reader = examples(one, settings), CanvasReader(one)
    reader.read([(example.ref, example.overview.tissue.grid, np.array([0, 59]))])
    assert reader.digits == {(0, 0), (0, 1), (0, 2), (0, 3)}


def test_the_experiment_runs_and_writes_its_table(canvases, tmp_path, monkeypatch):
    monkeypatch.setattr(megapixel_mnist, "make", lambda *_, **__: (canvases.part(0, 8), canvases.part(8, 12)))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    few = ["training.epochs=1", "training.tiles=5", "training.attention_tiles=5", "model.mil_tiles=5"]
    rows = []
    for arms, phases in (
        (["attention"], ["training.attention_epochs=1", "training.joint_epochs=1"]),
        (["uniform", "mil"], []),
    ):
        megapixel_mnist.main(
            ["--seeds", "1", "--arms", *arms, "--out", str(tmp_path), "--set", *few, *phases]
        )
        with (tmp_path / "megapixel_mnist.csv").open() as file:
            rows += list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == set(ARMS)
    assert [(row["arm"], row["phase"]) for row in rows] == [
        ("attention", "classifier"),
        ("attention", "attention"),
        ("attention", "joint"),
        ("uniform", "classifier"),
        ("mil", "classifier"),
    ]
    assert all(0 <= float(row["test_error"]) <= 1 for row in rows)
    assert [float(row["tiles"]) for row in rows] == [5, 5, 10, 5, 10]  # the last reads again, backward
