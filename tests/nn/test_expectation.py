"""The estimator is unbiased for value and gradients, by enumeration of every outcome in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from wsi_ats.nn import expectation
from wsi_ats.nn.attention import SmallAttention
from wsi_ats.nn.backbone import Backbone
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.sampling import BIASED, DESIGNS, Draw, draw, explore
from wsi_ats.testing.enumeration import enumerate_draws

EXACT = {"rtol": 0, "atol": 1e-12}
UNBIASED = [name for name in DESIGNS if name not in BIASED]

# (rows, columns), n; multinomial has K^n outcomes
CASES = [((1, 1), 1), ((1, 2), 1), ((1, 5), 4), ((2, 3), 2), ((2, 4), 1), ((2, 4), 2), ((2, 4), 3)]
SPREADS = {"uniform": 0.0, "random": 1.0, "concentrated": 5.0, "nearly one cell": 25.0}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_draw(design, proposal, shape, n):
    return enumerate_draws(design, proposal, cells=torch.arange(len(proposal)), shape=shape, n=n)


def value_and_gradients(value: torch.Tensor, *inputs: torch.Tensor):
    """A fixed linear function's gradients, and the value itself."""
    loss = value @ normal(len(value), seed=99)
    return value.detach(), *torch.autograd.grad(loss, inputs, retain_graph=True)


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
        value_and_gradients(mean, features, logits),
        value_and_gradients(exact, features, logits),
        strict=True,
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
        value_and_gradients(mean, features, logits),
        value_and_gradients(exact, features, logits),
        strict=True,
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
    assert not one.expected.requires_grad
    weight = expectation.weights(attention, one)
    (gradient,) = torch.autograd.grad(weight @ normal(len(weight), seed=1), logits)
    assert gradient.abs().max() > 0.01


# Two levels


def distinct(outcomes):
    """Each outcome once, with the probability of all its ways to come about."""
    found = {}
    for p, one in outcomes:
        key = tuple(
            sorted(zip(one.indices.tolist(), one.counts.tolist(), one.expected.tolist(), strict=True))
        )
        found[key] = (found[key][0] + p if key in found else p, one)
    return list(found.values())


def two_levels(design, regions, cells, draws, *, proposals=None):
    """Every outcome of drawing regions by A and in each of them cells by its own B, with its probability.

    ``proposals`` are what is drawn by instead, as when attention has changed since.
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
        assert other.abs().max() > 1e-6, name  # the test would say nothing of a parameter without one
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


# Gated pooling: a ratio, so consistent but not unbiased


def gated_errors(outcomes, size):
    """Bias and mean square error of the gated estimate over all outcomes."""
    attention = torch.softmax(normal(size, seed=4), 0)
    features, gate = normal(size, 2, seed=5), normal(size, seed=6)
    exact = expectation.exact(attention, features, gate)
    bias, square = torch.zeros(2, dtype=torch.float64), 0.0
    for p, one in outcomes(attention):
        weight = expectation.weights(attention, one)
        error = expectation.gated(weight, features[one.indices], gate[one.indices]) - exact
        bias += p * error
        square += p * error.square().sum().item()
    return bias.norm().item(), square


def multinomial_by_counts(attention, n):
    """The same as enumerating n-tuples of three cells, but each set of counts once."""
    for first in range(n + 1):
        for second in range(n + 1 - first):
            counts = torch.tensor([first, second, n - first - second])
            p = math.factorial(n) * (attention**counts).prod().item()
            for count in counts.tolist():
                p /= math.factorial(count)
            indices = counts.nonzero()[:, 0]
            yield p, Draw(indices, counts[indices], n * attention[indices])


def test_bias_and_square_error_of_gated_pooling_fall_as_one_over_n():
    """Doubling n halves both, to leading order; enumerated, so the slope has no sampling error."""
    by_tuples = gated_errors(lambda attention: every_draw("multinomial", attention, (1, 3), 3), 3)
    assert gated_errors(lambda attention: multinomial_by_counts(attention, 3), 3) == pytest.approx(
        by_tuples, abs=1e-14
    )
    biases, squares = zip(
        *(gated_errors(lambda a, n=n: multinomial_by_counts(a, n), 3) for n in (8, 16, 32, 64, 128)),
        strict=True,
    )
    assert biases[0] > 1e-3  # there is a bias
    for figures in (biases, squares):
        slopes = [math.log2(later / former) for former, later in itertools.pairwise(figures)]
        assert slopes[-1] == pytest.approx(-1, abs=0.05)
        distances = [abs(slope + 1) for slope in slopes]
        assert distances == sorted(distances, reverse=True)  # and closer to -1 the larger n


def test_gated_pooling_converges_to_the_exact_ratio_for_many_draws_of_many_cells():
    size, repeats = 400, 150
    attention = torch.softmax(1.5 * normal(size, seed=1), 0)
    features, gate = normal(size, 3, seed=2), 0.7 * normal(size, seed=3)
    exact = expectation.exact(attention, features, gate)
    generator = torch.Generator().manual_seed(0)

    def error(n):
        estimates = []
        for _ in range(repeats):
            one = draw(
                "multinomial",
                attention,
                cells=torch.arange(size),
                shape=(20, 20),
                n=n,
                generator=generator,
            )
            weight = expectation.weights(attention, one)
            estimates.append(expectation.gated(weight, features[one.indices], gate[one.indices]))
        return (torch.stack(estimates) - exact).square().sum(1).mean().item()

    few, many = error(20), error(320)
    slope = math.log(many / few) / math.log(16)
    assert slope == pytest.approx(-1, abs=0.12)  # 4 standard errors of the slope are 0.11


def test_systematic_gated_pooling_is_exact_when_all_are_drawn_and_closer_than_multinomial_before():
    def errors(design, n):
        return gated_errors(lambda attention: every_draw(design, attention, (2, 3), n), 6)

    for n in (2, 4):
        assert errors("systematic", n)[1] < errors("multinomial", n)[1]
    bias, square = errors("systematic", 6)
    assert bias < 1e-14
    assert square < 1e-28


def test_gated_pooling_is_linear_pooling_where_all_gates_are_equal():
    weight, features = torch.softmax(normal(5, seed=0), 0), normal(5, 3, seed=1)
    for gate in (0.0, 3.0, -1e4, 1e4):
        same = torch.full((5,), gate, dtype=torch.float64)
        torch.testing.assert_close(expectation.gated(weight, features, same), weight @ features, **EXACT)


def test_gates_of_any_size_stay_finite_with_their_gradients():
    gate = torch.tensor([-1e4, 0.0, 1e4], dtype=torch.float64, requires_grad=True)
    pooled = expectation.gated(torch.full((3,), 1 / 3).double(), normal(3, 2, seed=0), gate)
    torch.testing.assert_close(pooled, normal(3, 2, seed=0)[2], **EXACT)
    pooled.sum().backward()
    assert gate.grad.isfinite().all()


# Which proposal is best


def variance(proposal, attention, features, n=1):
    """Total variance of the multinomial estimate: (sum_i a_i^2 |f_i|^2 / q_i - |Phi|^2) / n."""
    phi = attention @ features
    return ((attention**2 * features.square().sum(1) / proposal).sum() - phi @ phi).item() / n


def test_the_variance_formula_is_that_of_the_estimate():
    attention, features = torch.softmax(normal(5, seed=0), 0), normal(5, 3, seed=1)
    proposal = torch.softmax(normal(5, seed=2), 0)
    phi = attention @ features
    for n in (1, 2, 3):
        found = sum(
            p
            * (expectation.linear(expectation.weights(attention, one), features[one.indices]) - phi)
            .square()
            .sum()
            .item()
            for p, one in every_draw("multinomial", proposal, (1, 5), n)
        )
        assert found == pytest.approx(variance(proposal, attention, features, n), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_sampling_by_attention_is_best_for_equally_long_features_and_by_attention_times_length_else(seed):
    attention, features = torch.softmax(normal(8, seed=seed), 0), normal(8, 4, seed=seed + 50)
    equal = nn.functional.normalize(features, dim=1)
    weighed = attention * features.norm(dim=1)
    for length, best, raw in (("equal", attention, equal), ("not equal", weighed / weighed.sum(), features)):
        least = variance(best, attention, raw)
        for other in range(200):
            step = 10 ** -(other % 4) * normal(8, seed=1000 + other)
            rival = torch.softmax(best.log() + step, 0)
            assert variance(rival, attention, raw) > least, length
    assert variance(attention, attention, features) > variance(weighed / weighed.sum(), attention, features)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_systematic_varies_less_than_multinomial(n):
    attention, features = torch.softmax(normal(8, seed=0), 0), normal(8, 3, seed=1)
    phi = attention @ features

    square = sum(
        p * (expectation.weights(attention, one) @ features[one.indices] - phi).square().sum().item()
        for p, one in every_draw("systematic", attention, (2, 4), n)
    )
    assert square < 0.9 * variance(attention, attention, features, n)


# Entropy


def test_entropy_is_log_k_for_uniform_attention_and_zero_for_one_cell():
    assert expectation.entropy(torch.full((7,), 1 / 7).double()).item() == pytest.approx(math.log(7))
    assert expectation.entropy(torch.tensor([0.0, 1.0, 0.0])).item() == 0


def test_gradient_of_the_entropy_is_finite_where_attention_is_exactly_zero():
    logits = torch.tensor([0.0, 1e4, -1e4, 1e4], dtype=torch.float64, requires_grad=True)
    entropy = expectation.entropy(torch.softmax(logits, 0))
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(2))
    assert logits.grad.isfinite().all()


def test_gradient_of_the_entropy_is_the_textbook_one():
    attention = torch.softmax(normal(5, seed=0), 0).requires_grad_()
    (gradient,) = torch.autograd.grad(expectation.entropy(attention), attention)
    torch.testing.assert_close(gradient, -(attention.log() + 1).detach(), **EXACT)


def test_gated_pooling_of_tiles_whose_attention_has_underflowed_is_their_gated_mean():
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([-1e4, -1e4, -1e4, -1e4, 0.0], requires_grad=True)
    attention = torch.softmax(logits, 0)[:4]
    assert not attention.any()
    gate = torch.tensor([0.0, 1.0, -40.0, 2.0], requires_grad=True)
    pooled = expectation.gated(attention * 1250, features, gate)
    torch.testing.assert_close(pooled, torch.softmax(gate, 0) @ features)
    pooled.sum().backward()
    assert logits.grad.isfinite().all()
    assert gate.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gated_pooling_in_half_precision_has_a_value_where_attention_has_underflowed(dtype):
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    pooled = expectation.gated(torch.zeros(2), features, torch.zeros(2, dtype=dtype))
    assert pooled.dtype == dtype
    assert pooled.tolist() == [2.0, 3.0]
