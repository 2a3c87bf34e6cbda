"""The estimator is unbiased for value and gradients, by enumeration of every outcome in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from nn.enumeration import EXACT, every_draw, normal, value_and_gradients
from wsi_ats.nn import expectation
from wsi_ats.nn.attention import SmallAttention
from wsi_ats.nn.backbone import Backbone
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.sampling import BIASED, DESIGNS, draw, explore
from wsi_ats.testing.enumeration import enumerate_draws

UNBIASED = [name for name in DESIGNS if name not in BIASED]

# (rows, columns), n; multinomial has K^n outcomes
CASES = [((1, 1), 1), ((1, 2), 1), ((1, 5), 4), ((2, 3), 2), ((2, 4), 1), ((2, 4), 2), ((2, 4), 3)]
SPREADS = {"uniform": 0.0, "random": 1.0, "concentrated": 5.0, "nearly one cell": 25.0}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("shape", "n"), CASES)
@pytest.mark.parametrize("design", UNBIASED)
def test_expected_value_and_gradients_are_those_of_attention_over_all_tiles(design, shape, n, spread):
    size = shape[0] * shape[1]
    logits = (SPREADS[spread] * normal(size, seed=1)).requires_grad_()
    features = normal(size, 3, seed=2).requires_grad_()
    attention = torch.softmax(logits, 0)
    mean = sum(
        p * expectation.linear(expectation.weights(attention, one), features[one.indices])
        for p, one in every_draw(design, attention, shape, n)
    )
    exact = expectation.exact(attention, features)
    for found, true in zip(
        value_and_gradients(mean, features, logits), value_and_gradients(exact, features, logits), strict=True
    ):
        torch.testing.assert_close(found, true, **EXACT)


@pytest.mark.parametrize("design", ["multinomial", "sequential", "systematic"])
@pytest.mark.parametrize("kind", ["stale", "exploration", "opposite"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_proposal_other_than_the_attention_is_unbiased_too(design, kind, n):
    logits = (2 * normal(6, seed=1)).requires_grad_()
    features = normal(6, 3, seed=2).requires_grad_()
    attention = torch.softmax(logits, 0)
    proposal = {
        "stale": torch.softmax(logits.detach() + normal(6, seed=3), 0),
        "exploration": explore(attention, 0.2),
        "opposite": torch.softmax(-logits.detach(), 0),
    }[kind]
    mean = sum(
        p * expectation.linear(expectation.weights(attention, one), features[one.indices])
        for p, one in every_draw(design, proposal, (2, 3), n)
    )
    exact = expectation.exact(attention, features)
    for found, true in zip(
        value_and_gradients(mean, features, logits), value_and_gradients(exact, features, logits), strict=True
    ):
        torch.testing.assert_close(found, true, **EXACT)


def test_the_gradient_does_not_flow_into_the_expected_number_of_draws():
    """Were pi differentiated, a / pi of multinomial would be a constant and attention would not learn."""
    logits = normal(5, seed=0).requires_grad_()
    attention = torch.softmax(logits, 0)
    one = draw(
        "multinomial",
        attention,  # with its gradient
        cells=torch.arange(5),
        shape=(1, 5),
        n=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert not one.inclusion.requires_grad
    weight = expectation.weights(attention, one)
    (gradient,) = torch.autograd.grad(weight @ normal(len(weight), seed=1), logits)
    assert gradient.abs().max() > 0.01


# Two levels


def distinct(outcomes):
    """Each outcome once, with the probability of all its ways to come about."""
    found = {}
    for p, one in outcomes:
        key = tuple(
            sorted(zip(one.indices.tolist(), one.counts.tolist(), one.inclusion.tolist(), strict=True))
        )
        found[key] = (found[key][0] + p if key in found else p, one)
    return list(found.values())


def two_levels(design, regions, cells, draws, *, proposals=None):
    """Every outcome of drawing regions by A and in each of them cells by its own B, with its probability.

    ``proposals`` replace A and B in the draws, as when attention has changed since.
    """
    outer, inner = proposals or (regions, cells)
    within = [distinct(every_draw(design, each, (1, len(each)), draws[1])) for each in inner]
    for p, drawn in distinct(every_draw(design, outer, (1, len(outer)), draws[0])):
        for combination in itertools.product(*(within[t] for t in drawn.indices.tolist())):
            parts = [one for _, one in combination]
            yield math.prod([p, *(q for q, _ in combination)]), drawn, parts


@pytest.mark.parametrize("kind", ["attention", "stale", "exploration"])
@pytest.mark.parametrize("draws", [(1, 1), (1, 4), (2, 2), (3, 2)])
@pytest.mark.parametrize("design", UNBIASED)
def test_two_levels_are_unbiased_for_value_and_all_gradients(design, draws, kind):
    """Regions of 1, 3 and 4 cells; the whole product of outcomes is enumerated."""
    sizes = (1, 3, 4)
    region_logits = normal(3, seed=1).requires_grad_()
    cell_logits = [(2 * normal(size, seed=10 + size)).requires_grad_() for size in sizes]
    features = [normal(size, 3, seed=20 + size).requires_grad_() for size in sizes]
    regions = torch.softmax(region_logits, 0)
    cells = [torch.softmax(each, 0) for each in cell_logits]
    proposals = {
        "attention": None,
        "stale": (torch.softmax(normal(3, seed=5), 0), [torch.softmax(normal(k, seed=k), 0) for k in sizes]),
        "exploration": (explore(regions, 0.3), [explore(each, 0.3) for each in cells]),
    }[kind]
    mean, total = 0, 0.0
    for p, drawn, parts in two_levels(design, regions, cells, draws, proposals=proposals):
        numbers = drawn.indices.tolist()
        inner = [expectation.weights(cells[t], one) for t, one in zip(numbers, parts, strict=True)]
        read = torch.cat([features[t][one.indices] for t, one in zip(numbers, parts, strict=True)])
        weight = expectation.joint(expectation.weights(regions, drawn), inner)
        mean = mean + p * expectation.linear(weight, read)
        total += p
    exact = sum(a * (b @ f) for a, b, f in zip(regions, cells, features, strict=True))
    assert total == pytest.approx(1, abs=1e-12)
    inputs = (region_logits, *cell_logits, *features)
    for found, true in zip(
        value_and_gradients(mean, *inputs), value_and_gradients(exact, *inputs), strict=True
    ):
        torch.testing.assert_close(found, true, **EXACT)


# Through networks


class TinyTiles(nn.Module):
    """Tiles of any size to 3 features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.second = nn.Conv2d(4, 3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(images))).mean((2, 3))


def tiny_model(*, gated: bool = False, regions: bool = False) -> AttentionSampler:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = TileEncoder(Backbone(TinyTiles(), 3, (0.5,) * 3, (0.25,) * 3), trained=False)
        looker = SmallAttention(4, width=3) if regions else None
        model = AttentionSampler(
            SmallAttention(2, width=3),
            encoder,
            classes=2,
            pool="gated" if gated else "linear",
            regions=looker,
        ).double()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.7)
    return model


def pixels(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("design", UNBIASED)
@pytest.mark.parametrize("n", [1, 2])
def test_expected_gradients_of_every_parameter_are_exact_through_attention_and_tile_networks(design, n):
    """Drawn tiles are encoded outcome by outcome, as in training; one cell of the grid is no tissue."""
    model = tiny_model().train()
    shape, cells = (2, 3), torch.tensor([0, 1, 2, 4, 5])
    thumbnail, tiles = pixels(4, 6, 3, seed=1), pixels(5, 8, 8, 3, seed=2)
    attention = model.attend(thumbnail, cells, shape)
    assert attention.dtype == torch.float64
    contrast = torch.tensor([1.0, -0.4], dtype=torch.float64)

    def loss(weight, read):
        return model.classify(model.pool(weight, model.embed(read))) @ contrast

    outcomes = enumerate_draws(design, attention, cells=cells, shape=shape, n=n)
    mean = sum(p * loss(expectation.weights(attention, one), tiles[one.indices]) for p, one in outcomes)
    exact = loss(attention, tiles)
    torch.testing.assert_close(mean, exact, **EXACT)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(mean, parameters, retain_graph=True)
    true = torch.autograd.grad(exact, parameters)
    for name, one, other in zip(names, found, true, strict=True):
        assert other.abs().max() > 1e-6, name  # a parameter without one would not be tested
        torch.testing.assert_close(one, other, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("design", UNBIASED)
def test_expected_gradients_are_exact_through_both_attention_networks_of_two_levels(design):
    """Two regions of 2 x 2 cells, one cell of which is no tissue; a tile is drawn in each region drawn."""
    model = tiny_model(regions=True).train()
    coarse, views = pixels(4, 8, 3, seed=1), [pixels(4, 4, 3, seed=2 + t) for t in range(2)]
    cells = [torch.arange(4), torch.tensor([0, 1, 3])]
    tiles = [pixels(len(each), 8, 8, 3, seed=5 + t) for t, each in enumerate(cells)]
    regions = torch.softmax(model.score_regions(coarse, torch.arange(2), (1, 2)), 0)
    within = [model.attend(view, each, (2, 2)) for view, each in zip(views, cells, strict=True)]
    features = [model.embed(each) for each in tiles]
    contrast = torch.tensor([1.0, -0.4], dtype=torch.float64)

    def loss(weight, read):
        return model.classify(model.pool(weight, read)) @ contrast

    mean = 0
    for p, drawn, parts in two_levels(design, regions, within, (1, 2)):
        (t,), (one,) = drawn.indices.tolist(), parts
        weight = expectation.joint(expectation.weights(regions, drawn), [expectation.weights(within[t], one)])
        mean = mean + p * loss(weight, features[t][one.indices])
    exact = loss(torch.cat([a * b for a, b in zip(regions, within, strict=True)]), torch.cat(features))
    torch.testing.assert_close(mean, exact, **EXACT)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(mean, parameters, retain_graph=True)
    true = torch.autograd.grad(exact, parameters)
    for name, one, other in zip(names, found, true, strict=True):
        assert other.abs().max() > 1e-6, name
        torch.testing.assert_close(one, other, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("design", ["sequential", "systematic", "uniform", "top"])
def test_all_tiles_drawn_give_the_exact_model_and_its_gradients(design, gated):
    model = tiny_model(gated=gated)
    cells = torch.arange(6)
    thumbnail, tiles = pixels(4, 6, 3, seed=1), pixels(6, 8, 8, 3, seed=2)
    attention = model.attend(thumbnail, cells, (2, 3))
    one = draw(design, attention, cells=cells, shape=(2, 3), n=6, generator=torch.Generator())
    features = model.embed(tiles)
    gate = model.gate(features)[:, 0] if gated else None
    exact = model.classify(expectation.exact(attention, features, gate))
    found = model.classify(model.pool(expectation.weights(attention, one), features[one.indices]))
    torch.testing.assert_close(found, exact, **EXACT)
    parameters = list(model.parameters())
    for first, second in zip(
        torch.autograd.grad(found.sum(), parameters, retain_graph=True),
        torch.autograd.grad(exact.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(first, second, **EXACT)
