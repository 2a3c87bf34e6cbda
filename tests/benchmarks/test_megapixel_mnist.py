import csv
import math

import numpy as np
import pytest
import torch

from benchmarks import megapixel_mnist
from benchmarks._figures import Result, figure_of_costs
from benchmarks.megapixel_mnist import INK_PRIOR, NO_PRIOR, holding, reachable, signal_to_noise
from benchmarks.mnist_canvas import CLASSES, PATCH, Canvases, make_canvases
from benchmarks.mnist_models import (
    EveryTile,
    Recipe,
    Sampler,
    Seen,
    WholeCanvas,
    draw_all,
    encode_distinct,
    grid_corners,
    teaching,
)
from wsi_ats.nn.sampling import Draw


@pytest.fixture(scope="module")
def canvases():
    rng = np.random.default_rng(0)
    digits = np.zeros((40, PATCH, PATCH), np.uint8)
    digits[:, 4:-4, 4:-4] = rng.integers(256, size=(40, 20, 20))
    return make_canvases(24, digits, np.arange(40) % 10, rng)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kinds", [[0, 0, 1, 0, 2, 3, 0], [1, 2, 3], [0, 0], [1, 0], [0, 1], [2]], ids=str)
def test_black_tiles_are_encoded_once(kinds):
    encoded = []

    def network(tiles):
        encoded.append(len(tiles))
        return tiles[:, 0, :1].float()

    tiles = torch.tensor(kinds, dtype=torch.uint8)[:, None, None].expand(-1, 2, 2)
    assert encode_distinct(network, tiles)[:, 0].tolist() == kinds
    assert encoded == [len(kinds) - max(0, kinds.count(0) - 1)]


@pytest.mark.parametrize("recipe", [NO_PRIOR, INK_PRIOR], ids=["no prior", "ink prior"])
def test_attention_is_a_distribution_and_uniform_where_nothing_was_learned(canvases, recipe):
    torch.manual_seed(0)
    views = torch.from_numpy(canvases.views(np.arange(3), 180))
    attention = Sampler(recipe).attend(views).exp()
    assert attention.shape == (3, 59 * 59)
    assert attention.sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    if recipe.mask:
        corners = grid_corners(canvases.side, recipe.stride)
        tiles = canvases.tiles(np.zeros(len(corners), int), corners, 50)
        assert ((attention[0] > 0).numpy() == tiles.any((1, 2))).all()  # only where there is ink
    else:
        assert attention.std() == 0


def test_a_tile_lies_where_its_cell_looks(canvases):
    """A cell's convolution sees the area of its tile: the mean of both is the same."""
    corners = grid_corners(canvases.side, 25)
    tiles = canvases.tiles(np.zeros(len(corners), int), corners, 50)
    view = torch.from_numpy(canvases.views(np.zeros(1, int), 180))
    seen = torch.nn.functional.avg_pool2d(view[:, None], 6, 3).flatten()
    assert seen.numpy() == pytest.approx(tiles.mean((1, 2)), abs=1e-2)


def test_teaching_pulls_attention_to_what_tiles_are_worth():
    torch.manual_seed(0)
    logits = torch.randn(1, 6, requires_grad=True)
    log_attention = torch.log_softmax(logits, 1)
    indices = torch.tensor([[4, 1, 0]])
    weight, gate, tile_logits = torch.rand(1, 3), torch.randn(1, 3), torch.randn(1, 3, CLASSES)
    drawn = Draw(indices, torch.ones_like(indices), torch.ones(1, 3))
    seen = Seen(log_attention, drawn, weight, gate, tile_logits, torch.zeros(1, CLASSES))
    teaching(seen, torch.tensor([7]), Recipe(evidence=2.0)).sum().backward()
    worth = weight * gate.exp() * torch.softmax(tile_logits, 2)[:, :, 7] ** 2
    surprise = worth / worth.sum() - weight / weight.sum()
    expected = torch.zeros(1, 6).index_add(1, indices[0], -surprise)
    assert logits.grad.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-6)


def test_teaching_says_nothing_as_long_as_all_tiles_say_the_same(canvases, generator):
    torch.manual_seed(0)
    logits = torch.randn(2, 9, requires_grad=True)
    log_attention = torch.log_softmax(logits, 1)
    drawn = draw_all(Recipe(tiles=3), log_attention.exp(), generator)
    weight = log_attention.exp().gather(1, drawn.indices) / drawn.expected.float()
    seen = Seen(log_attention, drawn, weight, torch.ones(2, 3), torch.ones(2, 3, CLASSES), torch.zeros(2, 10))
    teaching(seen, torch.tensor([7, 1]), NO_PRIOR).sum().backward()
    assert logits.grad.abs().max() < 1e-6


def test_a_draw_of_fewer_tiles_than_asked_for_weighs_them_alone(generator):
    attention = torch.zeros(2, 9)
    attention[0, [2, 5]], attention[1] = 0.5, 1 / 9
    drawn = draw_all(Recipe(tiles=4), attention, generator)
    assert drawn.indices.shape == (2, 4)
    assert drawn.counts.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert set(drawn.indices[0, :2].tolist()) == {2, 5}


def test_a_step_on_a_mask_of_few_cells_is_finite(generator):
    """All cells with ink are drawn, and there are fewer than asked for."""
    lone = Canvases(
        np.full((1, PATCH, PATCH), 200, np.uint8),
        np.zeros((2, 1), int),
        np.array([[[300, 300]], [[0, 1472]]]),
        np.array([3, 4]),
        1500,
    )
    torch.manual_seed(0)
    model = Sampler(INK_PRIOR)
    seen = model(lone, np.arange(2), generator)
    assert (seen.drawn.counts == 0).any()
    model.loss(seen, torch.from_numpy(lone.labels)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("build", [lambda: WholeCanvas(90), EveryTile], ids=["whole", "every tile"])
def test_competitors_see_canvases(canvases, generator, build):
    torch.manual_seed(0)
    model = build()
    logits = model(canvases, np.arange(2), generator)
    assert logits.shape == (2, CLASSES)
    model.loss(logits, torch.tensor([1, 2])).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_digits_that_a_grid_reaches():
    """The digit's own pixels count, not the black around them."""
    one = Canvases(
        np.zeros((1, PATCH, PATCH), np.uint8),
        np.zeros((1, 5), int),
        np.zeros((1, 5, 2), int),
        np.zeros(1, int),
        1500,
    )
    one.places[0, :, 0] = [0, 26, 27, 46, 1472]
    assert holding(one, np.array([0]), np.array([[[0, 0]]])).tolist() == [[[True, True, False, False, False]]]
    assert reachable(one, 50) == 4  # all but the third, which lies across
    assert reachable(one, 25) == 5


def test_signal_to_noise_leaves_the_model_as_it_is(canvases, generator):
    torch.manual_seed(0)
    model = Sampler(Recipe(batch=4))
    torch.nn.init.normal_(model.attention.logit.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ratio = signal_to_noise(model, canvases, generator, batches=4)
    assert math.isfinite(ratio)
    assert ratio >= 0
    assert model.training
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def at_once(monkeypatch, canvases):
    """Run jobs in this process, on canvases of no digits in particular."""

    class Pool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        map = staticmethod(map)

    monkeypatch.setattr(megapixel_mnist, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(megapixel_mnist, "_canvases", lambda _: (canvases.part(0, 4), canvases.part(4, 6)))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def test_the_experiment_runs_and_writes_its_tables(at_once, tmp_path):
    options = ["--epochs", "1", "--seeds", "1", "--out", str(tmp_path)]
    megapixel_mnist.main([*options, "--what", "headline", "competitors", "--seconds", "0.01"])
    with (tmp_path / "megapixel_mnist_headline.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["no prior", "ink prior"]
    assert all(0 <= float(row["test_error"]) <= 1 for row in rows)
    assert all(float(row["peak_memory_mb"]) >= 0 for row in rows)
    with (tmp_path / "megapixel_mnist_competitors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["900 tiles", "N = 10", "scale 0.12", "scale 0.5", "scale 1.0"]
    assert float(rows[-1]["ms_per_image"]) > float(rows[2]["ms_per_image"])
    assert (tmp_path / "megapixel_mnist.png").read_bytes().startswith(b"\x89PNG")


def test_every_ablation_changes_something(tmp_path):
    for recipe, table in (
        (NO_PRIOR, megapixel_mnist.ABLATIONS),
        (INK_PRIOR, megapixel_mnist.INK_ABLATIONS),
    ):
        for changes in table.values():
            assert all(getattr(recipe, name) != value for name, value in changes.items())


def test_the_figure_of_costs_is_written(tmp_path):
    results = [Result("a", s, e, t, m) for s, e, t, m in (("1", 0.2, 0.01, 1e8), ("2", 0.1, 0.1, 1e9))]
    figure_of_costs(tmp_path / "costs.png", [*results, *results], title="both", chance=0.9)
    assert (tmp_path / "costs.png").stat().st_size > 10_000
