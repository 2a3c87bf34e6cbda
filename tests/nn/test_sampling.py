"""Cells drawn by each design: how often, and with which weights."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nn.draws import EXACT, FIXED, PROPOSALS, UNBIASED, drawn_from, proposals, seeded, tensor
from wsi_ats.errors import SettingsError
from wsi_ats.nn import expectation
from wsi_ats.nn.curve import Curve
from wsi_ats.nn.sampling import (
    BIASED,
    DESIGNS,
    draw,
    explore,
    inclusion_probabilities,
    multinomial_at,
    sequential_at,
    systematic_at,
)
from wsi_ats.testing.enumeration import enumerate_draws, inclusion_of

# Outcomes


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("design", FIXED)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_probability_of_every_outcome_adds_up_to_the_expected_number_of_draws(design, name, n):
    proposal = tensor(PROPOSALS[name])
    outcomes = enumerate_draws(design, proposal, cells=torch.arange(8), shape=(2, 4), n=n)
    assert sum(p for p, _ in outcomes) == pytest.approx(1, abs=EXACT)
    found = inclusion_of(outcomes, 8)
    stated = torch.zeros(8, dtype=torch.float64)
    for _, one in outcomes:
        stated[one.indices] = one.inclusion
    torch.testing.assert_close(found, stated, rtol=0, atol=EXACT)
    assert found.sum().item() == pytest.approx(n, abs=EXACT)


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("design", UNBIASED)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_draws_divided_by_pi_are_one_for_every_possible_cell_on_average(design, name, n):
    """The one promise of a design, kept also by ``sequential``, whose pi depends on the outcome."""
    proposal = tensor(PROPOSALS[name])
    outcomes = enumerate_draws(design, proposal, cells=torch.arange(8), shape=(2, 4), n=n)
    assert sum(p for p, _ in outcomes) == pytest.approx(1, abs=EXACT)
    mean = torch.zeros(8, dtype=torch.float64)
    for p, one in outcomes:
        mean.index_add_(0, one.indices, p * (one.counts / one.inclusion))
    possible = torch.ones(8).bool() if design == "uniform" else proposal > 0
    torch.testing.assert_close(mean, possible.to(torch.float64), rtol=0, atol=EXACT)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(3, 5), (1, 15), (15, 1)])
def test_draw_is_its_enumerable_part_fed_with_random_numbers(seed, shape):
    proposal = torch.softmax(torch.randn(15, generator=seeded(seed), dtype=torch.float64), 0)
    cells = torch.arange(15)

    generator = seeded(seed)
    points = torch.rand(4, generator=generator, dtype=torch.float64)
    one, other = drawn_from("multinomial", proposal, 4, seed, shape=shape), multinomial_at(proposal, points)
    assert one.indices.tolist() == other.indices.tolist()
    assert one.counts.tolist() == other.counts.tolist()
    torch.testing.assert_close(one.inclusion, other.inclusion, rtol=EXACT, atol=0)

    for design, drawn_by in (("systematic", proposal), ("uniform", torch.full_like(proposal, 1 / 15))):
        generator = seeded(seed)
        curve = Curve.random(shape, generator)
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        other = systematic_at(drawn_by, cells, 4, curve, offset)
        one = drawn_from(design, proposal, 4, seed, shape=shape)
        assert one.indices.tolist() == other.indices.tolist()
        torch.testing.assert_close(one.inclusion, other.inclusion, rtol=EXACT, atol=0)

    one = drawn_from("sequential", proposal, 4, seed, shape=shape)
    other = sequential_at(proposal, one.indices)
    torch.testing.assert_close(one.inclusion, other.inclusion, rtol=EXACT, atol=0)


def test_sequential_outcomes_come_as_often_as_enumerated_in_order():
    proposal, draws = tensor([0.5, 0.3, 0.15, 0.05]), 3000
    outcomes = enumerate_draws("sequential", proposal, cells=torch.arange(4), shape=(2, 2), n=2)
    chances = {tuple(one.indices.tolist()): p for p, one in outcomes}
    assert len(chances) == 12
    generator = seeded(2)

    def key() -> tuple[int, ...]:
        one = draw("sequential", proposal, cells=torch.arange(4), shape=(2, 2), n=2, generator=generator)
        return tuple(one.indices.tolist())

    found = Counter(key() for _ in range(draws))
    statistic = sum((found[o] - draws * p) ** 2 / (draws * p) for o, p in chances.items())
    assert statistic < 11 + 5 * math.sqrt(22)


@pytest.mark.parametrize("design", UNBIASED)
def test_outcomes_come_as_often_as_enumerated(design):
    """Chi-square of 2000 draws with fixed seeds against the enumerated probability of each set."""
    proposal, draws = tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]), 2000

    def key(one):
        return tuple(sorted(zip(one.indices.tolist(), one.counts.tolist(), strict=True)))

    chances: Counter = Counter()
    for p, one in enumerate_draws(design, proposal, cells=torch.arange(6), shape=(2, 3), n=2):
        chances[key(one)] += p
    generator = seeded(1)
    found = Counter(
        key(draw(design, proposal, cells=torch.arange(6), shape=(2, 3), n=2, generator=generator))
        for _ in range(draws)
    )
    possible = {outcome for outcome, p in chances.items() if p > 1e-9}
    assert set(found) <= possible
    statistic = sum((found[o] - draws * chances[o]) ** 2 / (draws * chances[o]) for o in possible)
    freedom = len(possible) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("design", FIXED)
def test_frequencies_of_fifty_cells_follow_the_stated_inclusion(design):
    """Each of 50 frequencies within 5 standard deviations of its pi."""
    proposal = torch.softmax(2 * torch.randn(50, generator=seeded(3), dtype=torch.float64), 0)
    draws, n = 1500, 10
    found, stated = torch.zeros(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    generator = seeded(4)
    for _ in range(draws):
        one = draw(design, proposal, cells=torch.arange(50), shape=(5, 10), n=n, generator=generator)
        found[one.indices] += one.counts
        stated[one.indices] = one.inclusion
    variance = stated if design == "multinomial" else stated * (1 - stated)
    assert ((found / draws - stated).abs() <= 5 * (variance / draws).sqrt() + 1e-9).all()
    if design == "systematic":
        torch.testing.assert_close(stated[stated > 0], inclusion_probabilities(proposal, n)[0][stated > 0])


@settings(max_examples=40)
@given(proposals(), st.integers(1, 40), st.integers(0, 1000))
def test_systematic_draws_distinct_possible_cells_and_weights_sum_to_one(proposal, n, seed):
    one = drawn_from("systematic", proposal, n, seed)
    possible = int((proposal > 0).sum())
    assert len(one.indices) == min(n, possible) == len(one.indices.unique())
    assert one.counts.eq(1).all()
    assert (proposal[one.indices] > 0).all()
    assert expectation.weights(proposal, one).sum().item() == pytest.approx(1, abs=1e-9)


@settings(max_examples=40)
@given(proposals(), st.integers(1, 40), st.integers(0, 1000))
def test_uniform_draws_distinct_cells_all_equally_likely_whatever_the_proposal(proposal, n, seed):
    one = drawn_from("uniform", proposal, n, seed)
    assert len(one.indices) == min(n, len(proposal)) == len(one.indices.unique())
    torch.testing.assert_close(one.inclusion, torch.full_like(one.inclusion, min(1, n / len(proposal))))


@settings(max_examples=40)
@given(proposals(), st.integers(1, 40), st.integers(0, 1000))
def test_multinomial_draws_n_possible_cells_and_weights_sum_to_one(proposal, n, seed):
    one = drawn_from("multinomial", proposal, n, seed)
    assert one.counts.sum() == n
    assert len(one.indices) == len(one.indices.unique())
    assert (proposal[one.indices] > 0).all()
    assert expectation.weights(proposal, one).sum().item() == pytest.approx(1, abs=EXACT)


@settings(max_examples=40)
@given(proposals(), st.integers(1, 40))
def test_inclusion_is_proportional_up_to_one_and_sums_to_n(proposal, n):
    proposal = proposal[proposal > 0]
    if len(proposal) <= n:
        return
    expected, certain = inclusion_probabilities(proposal, n)
    assert expected.sum().item() == pytest.approx(n, rel=EXACT)
    assert ((expected > 0) & (expected <= 1)).all()
    assert len(certain) < n
    assert (expected[certain] == 1).all()
    below = expected < 1
    ratio = expected[below] / proposal[below]
    if below.any():
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-10, atol=0)
        assert (proposal[~below] * ratio[0] >= 1 - 1e-10).all()  # certain are those the rule would pass 1


@pytest.mark.parametrize(
    ("design", "n", "taken"),
    [
        *((name, n, [1, 3, 4, 5, 7]) for name in ("systematic", "sequential", "top") for n in (5, 6, 8, 100)),
        *(("uniform", n, list(range(8))) for n in (8, 100)),
    ],
)
def test_as_many_draws_as_possible_cells_take_them_all_with_exactly_their_attention(design, n, taken):
    attention = tensor(PROPOSALS["with zeros"])
    one = drawn_from(design, attention, n)
    assert sorted(one.indices.tolist()) == taken
    torch.testing.assert_close(
        expectation.weights(attention, one), attention[one.indices], rtol=EXACT, atol=0
    )


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("n", [1, 3])
def test_one_cell_is_drawn_with_weight_one(design, n):
    one = drawn_from(design, tensor([1.0]), n)
    assert one.indices.tolist() == [0]
    assert expectation.weights(tensor([1.0]), one).tolist() == pytest.approx([1.0], abs=EXACT)


@pytest.mark.parametrize("design", UNBIASED)
def test_the_same_seed_draws_the_same_cells_and_another_seed_others(design):
    proposal = torch.softmax(torch.randn(200, generator=seeded(0)), 0)
    first, again = (drawn_from(design, proposal, 20, 7, shape=(10, 20)) for _ in range(2))
    assert first.indices.tolist() == again.indices.tolist()
    assert first.indices.tolist() != drawn_from(design, proposal, 20, 8, shape=(10, 20)).indices.tolist()


@pytest.mark.parametrize("design", DESIGNS)
def test_drawing_leaves_the_global_generator_alone(design):
    before = torch.get_rng_state()
    drawn_from(design, torch.full((30,), 1 / 30), 4)
    assert torch.equal(torch.get_rng_state(), before)


# Spread in space


def test_cells_drawn_together_vary_from_draw_to_draw():
    """With one curve a pair of cells comes always together or never; joint inclusion is then 0 or pi."""
    proposal, n, draws = torch.full((64,), 1 / 64, dtype=torch.float64), 8, 1000
    together = torch.zeros(64, 64)
    generator = seeded(0)
    for _ in range(draws):
        one = draw("systematic", proposal, cells=torch.arange(64), shape=(8, 8), n=n, generator=generator)
        together[one.indices[:, None], one.indices] += 1
    joint = (together / draws)[~torch.eye(64, dtype=torch.bool)].reshape(64, 63)
    fixed = torch.zeros(64)
    for offset in torch.linspace(0, 0.99, 100, dtype=torch.float64):
        indices = systematic_at(proposal, torch.arange(64), n, Curve((8, 8)), offset).indices
        if 0 in indices:
            fixed[indices] += 1
    assert (fixed > 0).sum() == n  # along one curve: seven companions, ever the same
    companions = (joint > 0).sum(1)
    assert companions.min() > 40  # along random curves: nearly every cell that is not a neighbour
    assert joint.max() < 0.6 * n / 64


# Of sequential and top


def test_sequential_pi_is_des_rajs_weight():
    """By hand: q = (0.5, 0.3, 0.2), drawn 2 then 0; weights (m_k / q_k + n - 1 - k) q_k / n."""
    one = sequential_at(tensor([0.5, 0.3, 0.2]), torch.tensor([2, 0]))
    weights = [(1 + 0.2) / 2, 0.8 / 2]
    torch.testing.assert_close(tensor([0.2, 0.5]) / one.inclusion, tensor(weights), rtol=EXACT, atol=0)


def test_sequential_weights_sum_to_one():
    proposal = torch.softmax(3 * torch.randn(50, generator=seeded(0), dtype=torch.float64), 0)
    for seed in range(20):
        one = drawn_from("sequential", proposal, 7, seed)
        assert expectation.weights(proposal, one).sum().item() == pytest.approx(1, abs=EXACT)


def test_top_takes_the_most_probable_cells_with_weights_that_sum_to_one():
    proposal = tensor(PROPOSALS["random"])
    one = drawn_from("top", proposal, 3)
    assert one.indices.tolist() == [1, 4, 6]
    assert expectation.weights(proposal, one).tolist() == pytest.approx(
        [0.21 / 0.57, 0.19 / 0.57, 0.17 / 0.57]
    )


def test_top_is_biased_and_marked_as_biased():
    attention, features = tensor(PROPOSALS["random"]), torch.arange(8, dtype=torch.float64)[:, None]
    ((p, one),) = enumerate_draws("top", attention, cells=torch.arange(8), shape=(2, 4), n=3)
    assert p == 1
    estimate = expectation.linear(expectation.weights(attention, one), features[one.indices])
    assert (estimate - expectation.exact(attention, features)).abs().item() > 0.1
    assert {"top"} == BIASED


# Exploration


def test_exploration_spends_its_share_on_all_candidates():
    attention = tensor([1.0, 0.0, 0.0, 0.0])
    assert explore(attention, 0.2).tolist() == pytest.approx([0.85, 0.05, 0.05, 0.05])
    assert torch.equal(explore(attention, 0.0), attention)
    assert not explore(attention.requires_grad_(), 0.5).requires_grad
    with pytest.raises(SettingsError, match=r"\[0, 1\], not 1.5"):
        explore(attention, 1.5)
    with pytest.raises(SettingsError, match="no candidates"):
        explore(torch.zeros(0), 0.1)
