"""The target of attention minimises the variance of draws, proved by enumeration on small slides."""

from __future__ import annotations

import math

import pytest
import torch

from wsi_ats.nn import expectation
from wsi_ats.nn.distillation import distillation, influence, target
from wsi_ats.nn.sampling import explore
from wsi_ats.testing.enumeration import enumerate_draws

EXACT = {"rtol": 1e-12, "atol": 1e-12}
CELLS = 6


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slide(outputs: int, *, gated: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, when all cells are known, gate and outputs of the tiles of a slide."""
    gate = 2 * normal(CELLS, seed=seed) if gated else torch.zeros(CELLS, dtype=torch.float64)
    weight = torch.full((CELLS,), 1 / CELLS, dtype=torch.float64)
    return weight, gate, 3 * normal(CELLS, outputs, seed=seed + 1)


def by_hand(weight, gate, outputs, *, classes: bool) -> list[float]:
    """q_i |z_i - z| of each tile, in words of one number each."""
    rows = outputs.tolist()
    if classes:
        rows = [[value - sum(row) / len(row) for value in row] for row in rows]
    counts = [w * math.exp(h) for w, h in zip(weight.tolist(), gate.tolist(), strict=True)]
    q = [count / sum(counts) for count in counts]
    pooled = [sum(a * row[k] for a, row in zip(q, rows, strict=True)) for k in range(len(rows[0]))]
    return [a * math.dist(row, pooled) for a, row in zip(q, rows, strict=True)]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("outputs", "classes"), [(2, True), (4, True), (1, False), (3, False)])
def test_the_target_is_weight_times_distance_from_the_pooled_value(outputs, classes, gated):
    seen = slide(outputs, gated=gated)
    expected = torch.tensor(by_hand(*seen, classes=classes), dtype=torch.float64)
    found = target(seen[0], influence(*seen, classes=classes))
    torch.testing.assert_close(found, expected / expected.sum(), **EXACT)
    assert found.sum().item() == pytest.approx(1, abs=1e-12)


def test_tiles_of_other_weight_count_by_it():
    """As those do that a systematic draw was certain to take."""
    weight, gate, outputs = slide(3, gated=True)
    weight = weight * torch.tensor([1, 0.5, 0.5, 2, 1, 1], dtype=torch.float64)
    expected = torch.tensor(by_hand(weight, gate, outputs, classes=True), dtype=torch.float64)
    found = target(weight, influence(weight, gate, outputs, classes=True))
    torch.testing.assert_close(found, expected / expected.sum(), **EXACT)


def test_influence_has_no_unit_and_no_gradient():
    weight, gate, outputs = slide(3, gated=True)
    found = influence(weight, gate, outputs, classes=True)
    assert found.max() == 1
    torch.testing.assert_close(influence(weight, gate + 700, 1e3 * outputs, classes=True), found, **EXACT)
    learnt = influence(weight, gate.requires_grad_(), outputs.requires_grad_(), classes=True)
    assert not learnt.requires_grad
    assert influence(weight.float(), gate.float(), outputs.float(), classes=True).dtype == torch.float64


def test_of_classes_only_differences_count():
    weight, gate, outputs = slide(3, gated=True)
    shifted = outputs + normal(CELLS, 1, seed=8)  # of each tile's logits by something else
    for classes, same in ((True, True), (False, False)):
        found = [influence(weight, gate, each, classes=classes) for each in (outputs, shifted)]
        assert torch.allclose(*found, rtol=1e-12, atol=1e-12) is same


def test_targets_of_identical_tiles_are_their_weights():
    weight = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    none = influence(weight, torch.zeros(3), torch.ones(3, 2), classes=True)
    assert none.tolist() == [0, 0, 0]
    assert target(weight, none).tolist() == [0.25, 0.5, 0.25]
    assert target(2 * weight, none).tolist() == [0.25, 0.5, 0.25]


# Variance


def proposals(count: int) -> list[torch.Tensor]:
    return [
        torch.softmax(spread * normal(CELLS, seed=100 + i), 0) for i in range(count) for spread in (0.3, 2)
    ]


def variance(weight, influences, uniform, proposal) -> torch.Tensor:
    """Variance of draws from a proposal, up to a constant of the slide, by tiles drawn uniformly."""
    return (weight * uniform / proposal.clamp(min=1e-20) * influences.square()).sum()


def exact_variance(seen, proposal: torch.Tensor, n: int, *, classes: bool) -> float:
    """Of the outputs, to first order in the ratio of gated pooling, by every outcome of n draws."""
    _, gate, outputs = seen
    if classes:
        outputs = outputs - outputs.mean(1, keepdim=True)
    uniform = torch.full((CELLS,), 1 / CELLS, dtype=torch.float64)
    whole = expectation.gated(uniform, outputs, gate)
    scale = (uniform * gate.exp()).sum()
    drawn = enumerate_draws("multinomial", proposal, cells=torch.arange(CELLS), shape=(1, CELLS), n=n)
    mean, square = torch.zeros_like(whole), 0.0
    for p, one in drawn:
        weights = expectation.weights(uniform, one) * gate[one.indices].exp() / scale
        error = weights @ (outputs[one.indices] - whole)  # of the ratio, linear in numerator and denominator
        mean, square = mean + p * error, square + p * error.square().sum().item()
    torch.testing.assert_close(mean, torch.zeros_like(mean), **EXACT)
    return square


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("outputs", "classes"), [(3, True), (1, False)])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_variance_is_that_of_independent_draws_up_to_a_constant_of_the_slide(n, outputs, classes, gated):
    seen = slide(outputs, gated=gated)
    weight, uniform = seen[0], torch.full((CELLS,), 1 / CELLS, dtype=torch.float64)
    influences = influence(*seen, classes=classes)
    least = exact_variance(seen, uniform, n, classes=classes)
    for proposal in (*proposals(2), explore(proposals(1)[1], 0.1)):
        exact = exact_variance(seen, proposal, n, classes=classes) / least
        found = variance(weight, influences, uniform, proposal) / variance(
            weight, influences, uniform, uniform
        )
        assert found.item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("outputs", "classes"), [(3, True), (1, False)])
def test_no_proposal_has_less_variance_than_the_target(outputs, classes):
    for seed in range(0, 20, 2):
        seen = slide(outputs, gated=True, seed=seed)
        weight, uniform = seen[0], torch.full((CELLS,), 1 / CELLS, dtype=torch.float64)
        influences = influence(*seen, classes=classes)
        best = target(weight, influences)
        least = variance(weight, influences, uniform, best).item()
        assert least == pytest.approx((weight @ influences).item() ** 2, rel=1e-12)  # Cauchy-Schwarz
        others = [variance(weight, influences, uniform, each).item() for each in [*proposals(50), uniform]]
        assert min(others) > least
        nearby = [torch.lerp(best, each, 1e-3) for each in proposals(5)]
        assert min(variance(weight, influences, uniform, each).item() for each in nearby) > least
        exact = [exact_variance(seen, each, 1, classes=classes) for each in (best, *proposals(3), uniform)]
        assert min(exact) == exact[0]


@pytest.mark.parametrize(("outputs", "classes"), [(3, True), (1, False)])
def test_with_linear_pooling_the_target_is_a_tiles_contribution(outputs, classes):
    """A sum has less variance by other draws than a ratio; by every outcome of a draw."""
    uniform = torch.full((CELLS,), 1 / CELLS, dtype=torch.float64)
    for seed in range(0, 20, 2):
        weight, gate, added = slide(outputs, gated=False, seed=seed)
        added = added + 2 * normal(outputs, seed=seed + 50)  # all tiles are much alike
        bias = normal(outputs, seed=seed + 60)
        best = target(weight, influence(weight, gate, added + bias, zero_outputs=bias, classes=classes))
        if classes:
            added = added - added.mean(1, keepdim=True)
        whole, found = uniform @ added, []
        for proposal in [best, *proposals(10), uniform]:
            draws = enumerate_draws("multinomial", proposal, cells=torch.arange(CELLS), shape=(1, CELLS), n=1)
            each = [(p, expectation.weights(uniform, one) @ added[one.indices] - whole) for p, one in draws]
            torch.testing.assert_close(sum(p * error for p, error in each), 0 * whole, **EXACT)
            found.append(sum(p * error.square().sum().item() for p, error in each))
        assert found[0] < min(found[1:])


def test_a_share_of_uniform_draws_bounds_the_variance():
    """By the inverse of that share, whatever attention has left behind."""
    seen = slide(3, gated=True)
    weight, uniform = seen[0], torch.full((CELLS,), 1 / CELLS, dtype=torch.float64)
    influences = influence(*seen, classes=True)
    gone = torch.zeros(CELLS, dtype=torch.float64)
    gone[influences.argmin()] = 1
    assert variance(weight, influences, uniform, gone) > 1e6
    least = variance(weight, influences, uniform, uniform)
    assert variance(weight, influences, uniform, torch.lerp(gone, uniform, 0.1)) <= 10 * least


# The loss of attention


def test_the_gradient_vanishes_only_where_attention_is_the_target():
    seen = slide(3, gated=True)
    targets = target(seen[0], influence(*seen, classes=True))
    logits = targets.log().requires_grad_()
    least = distillation(targets, torch.log_softmax(logits, 0))
    (gradient,) = torch.autograd.grad(least, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), **EXACT)
    assert least.item() == pytest.approx(-(targets @ targets.log()).item(), rel=1e-12)
    for each in proposals(10):
        assert distillation(targets, each.log()) > least
        other = each.log().requires_grad_()
        (gradient,) = torch.autograd.grad(distillation(targets, torch.log_softmax(other, 0)), other)
        torch.testing.assert_close(gradient, each - targets, **EXACT)


def test_the_expected_distillation_gradient_is_that_of_all_cells():
    """Of slides of which a part is surveyed: linear in the weights, and these are without bias."""
    weight, gate, outputs = slide(2, gated=True)
    influences = influence(weight, gate, outputs, classes=True)
    attention = proposals(1)[1]
    whole = -(weight * influences) @ attention.log()
    mean = 0.0
    for p, one in enumerate_draws("systematic", weight, cells=torch.arange(CELLS), shape=(1, CELLS), n=2):
        some = expectation.weights(weight, one)
        known = influences[one.indices]
        taught = distillation(target(some, known), attention[one.indices].log()) * (some @ known)
        mean += p * taught.item()
    assert mean == pytest.approx(whole.item(), rel=1e-12)


def test_attention_with_zero_weight_on_a_tile_still_learns():
    logits = torch.tensor([0.0, -500.0], requires_grad=True)
    loss = distillation(torch.tensor([0.5, 0.5]), torch.log_softmax(logits, 0))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(250)
    torch.testing.assert_close(gradient, torch.tensor([0.5, -0.5]))
