"""Which cells are drawn, how often, and that nothing strange in a proposal changes it."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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

EXACT = 1e-12
UNBIASED = [name for name in DESIGNS if name not in BIASED]
FIXED = ("multinomial", "systematic", "uniform")  # pi does not depend on what was drawn

PROPOSALS = {
    "uniform": [1 / 8] * 8,
    "random": [0.05, 0.21, 0.13, 0.02, 0.19, 0.11, 0.17, 0.12],
    "concentrated": [0.9, 0.05, 0.02, 0.01, 0.01, 0.005, 0.004, 0.001],
    "two peaks": [0.01, 0.48, 0.005, 0.005, 0.48, 0.005, 0.005, 0.01],
    "with zeros": [0.0, 0.4, 0.0, 0.1, 0.3, 0.15, 0.0, 0.05],
}


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_from(design, proposal, n, seed=0, *, shape=None, cells=None):
    size = len(proposal)
    return draw(
        design,
        proposal,
        cells=torch.arange(size) if cells is None else cells,
        shape=shape or (1, size),
        n=n,
        generator=seeded(seed),
    )


@st.composite
def proposals(draw_value, largest: int = 60) -> torch.Tensor:
    """From flat to so peaked that most of it is 1e-300, with exact zeros, never all zero."""
    logs = draw_value(st.lists(st.floats(-690, 0), min_size=1, max_size=largest))
    zero = draw_value(st.lists(st.booleans(), min_size=len(logs), max_size=len(logs)))
    values = tensor(logs).exp() * ~torch.tensor(zero)
    values[0] = max(values[0].item(), 1e-300)
    return values / values.sum()


# What is drawn


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


@settings(max_examples=40)
@given(proposals(), st.integers(1, 40), st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-53]))
def test_extreme_offsets_neither_repeat_a_cell_nor_run_out_of_cells(proposal, n, offset):
    proposal = proposal[proposal > 0]
    if len(proposal) <= n:
        return
    cells, curve = torch.arange(len(proposal)), Curve((1, len(proposal)))
    one = systematic_at(proposal, cells, n, curve, tensor(offset))
    assert len(one.indices.unique()) == n


def test_rounding_of_the_offset_at_certain_cells_does_not_repeat_one():
    # The last points are 62.999... and 63.999..., which in 53 bits are the ends 63 and 64.
    proposal = tensor([1e-6] * 40 + [1.0] * 63)
    cells, curve = torch.arange(len(proposal)), Curve((1, len(proposal)))
    one = systematic_at(proposal, cells, 64, curve, tensor(1 - 2.0**-53))
    assert len(one.indices.unique()) == 64


@pytest.mark.parametrize("below", [0.0, 1e-16, 1e-15, 1e-13, 1e-11, 1e-9])
def test_cells_within_rounding_of_certain_are_drawn_once(below):
    """200 draws among 199 cells of pi = 1 - below and 800 that share what is left."""
    share = (1 - below) / 200
    proposal = torch.cat([tensor([share] * 199), tensor([(1 - 199 * share) / 800] * 800)])
    proposal = proposal[torch.randperm(999, generator=seeded(0))]
    cells, curve = torch.arange(999), Curve((27, 37), (5, 11))
    for offset in (0.0, 1e-16, 1e-12, 0.3, 1 - 1e-12, 1 - 2.0**-53):
        one = systematic_at(proposal, cells, 200, curve, tensor(offset))
        assert len(one.indices.unique()) == 200
        assert one.inclusion.max() <= 1
        assert expectation.weights(proposal, one).sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("design", [name for name in DESIGNS if name != "uniform"])
def test_cells_of_probability_zero_are_never_drawn(design):
    proposal = torch.zeros(40, dtype=torch.float64)
    proposal[5::7] = torch.rand(5, generator=seeded(0), dtype=torch.float64) + 0.1
    for seed in range(200):
        one = drawn_from(design, proposal, 3, seed, shape=(5, 8))
        assert (one.indices % 7 == 5).all()


def test_uniform_does_not_follow_attention_that_is_zero_in_most_places():
    proposal = torch.zeros(40, dtype=torch.float64)
    proposal[:4] = 0.25
    seen = {
        cell
        for s in range(100)
        for cell in drawn_from("uniform", proposal, 4, s, shape=(5, 8)).indices.tolist()
    }
    assert seen == set(range(40))
    assert expectation.weights(proposal, drawn_from("uniform", proposal, 40, shape=(5, 8))).sum() == 1


def test_points_on_the_ends_of_cells_never_give_a_cell_of_probability_zero():
    proposal = tensor([0, 0.5, 0, 0.5, 0])
    points = tensor([0, 0.5, math.nextafter(0.5, 0), math.nextafter(1, 0)])
    assert set(multinomial_at(proposal, points).indices.tolist()) == {1, 3}


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


# Strange proposals


@pytest.mark.parametrize("design", DESIGNS)
def test_logits_of_ten_thousand_either_way_give_finite_weights(design):
    logits = torch.tensor([1e4, -1e4, 1e4, 0.0, -1e4, 1e4])
    attention = torch.softmax(logits, 0)
    one = drawn_from(design, attention, 2)
    assert design == "uniform" or set(one.indices.tolist()) <= {0, 2, 5}
    assert expectation.weights(attention, one).isfinite().all()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_attention_within_1e15_of_one_cell_keeps_its_precision_in_the_others(n):
    """All of the small ones' probabilities is in their last bits if it is got as 1 minus the large one."""
    small = tensor([1, 2, 3, 4, 5, 7]) * 1e-15 / 22
    proposal = torch.cat([small[:3], tensor([1 - 1e-15]), small[3:]])
    expected, _ = inclusion_probabilities(proposal, n)
    assert expected.sum().item() == pytest.approx(n, abs=EXACT)
    if n > 1:
        others = torch.cat([expected[:3], expected[4:]])
        assert expected[3] == 1
        # The same draw with the certain cell left out.
        known, _ = inclusion_probabilities(small / small.sum(), n - 1)
        torch.testing.assert_close(others, known, rtol=EXACT, atol=0)


def test_the_smallest_numbers_there_are_do_not_overflow():
    proposal = torch.cat([tensor([1.0]), torch.full((6,), 5e-324, dtype=torch.float64)])
    expected, _ = inclusion_probabilities(proposal, 3)
    torch.testing.assert_close(expected, torch.cat([tensor([1.0]), tensor([1 / 3] * 6)]))
    assert len(drawn_from("systematic", proposal, 3).indices.unique()) == 3


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_in_few_bits_is_accepted_and_pi_still_sums_to_n(design, dtype):
    attention = torch.softmax(torch.randn(100, generator=seeded(0)), 0).to(dtype)
    one = drawn_from(design, attention, 10, shape=(10, 10))
    assert one.inclusion.dtype == torch.float64
    assert one.counts.sum() == 10
    if design == "systematic":
        wide = attention.double()
        assert inclusion_probabilities(wide / wide.sum(), 10)[0].sum().item() == pytest.approx(10, abs=EXACT)


def test_attention_computed_under_autocast_is_float32_and_can_be_drawn_from():
    from wsi_ats.nn.attention import SmallAttention, candidate_logits

    network = SmallAttention(4)
    torch.nn.init.normal_(network.logit.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.randint(0, 255, (12, 20, 3), dtype=torch.uint8), torch.ones(3, 5).bool())
        attention = torch.softmax(candidate_logits(logits, torch.arange(15)), 0)
    assert logits.dtype == torch.bfloat16
    assert attention.dtype == torch.float32
    assert attention.sum().item() == pytest.approx(1, abs=1e-6)
    one = drawn_from("systematic", attention, 4, shape=(3, 5))
    assert expectation.weights(attention, one).sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(
    "proposal",
    [
        [],
        [0.0, 0.0],
        [0.5, math.nan],
        [1.5, -0.5],
        [math.inf, 1.0],
        [-1.0, -1.0],
    ],
    ids=str,
)
def test_what_is_no_distribution_is_refused(design, proposal):
    with pytest.raises(SettingsError, match="is not a distribution"):
        drawn_from(design, tensor(proposal), 1)


def test_a_proposal_that_does_not_fit_the_cells_is_refused():
    with pytest.raises(SettingsError, match="one probability for each cell"):
        drawn_from("systematic", tensor([0.5, 0.5]), 1, cells=torch.arange(3))
    with pytest.raises(SettingsError, match="one probability for each cell"):
        drawn_from("systematic", torch.full((2, 2), 0.25), 1, cells=torch.arange(4).reshape(2, 2))


@pytest.mark.parametrize("cells", [[0, 1, 3, 2], [0, 1, 1, 2], [-1, 0, 1, 2], [0, 1, 2, 6]], ids=str)
def test_cells_that_are_no_ascending_numbers_of_the_grid_are_refused(cells):
    with pytest.raises(SettingsError, match="ascending numbers of a grid of 2 x 3"):
        drawn_from("systematic", tensor([0.25] * 4), 2, shape=(2, 3), cells=torch.tensor(cells))


def test_a_grid_of_negative_size_is_refused():
    with pytest.raises(SettingsError, match="grid of -2 x -2"):
        drawn_from("systematic", tensor([0.25] * 4), 2, shape=(-2, -2))


@pytest.mark.parametrize("n", [0, -3])
def test_less_than_one_draw_is_refused(n):
    with pytest.raises(SettingsError, match="at least one tile"):
        drawn_from("systematic", tensor([0.5, 0.5]), n)


def test_an_unknown_design_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="multinomial, sequential, systematic, uniform, top"):
        drawn_from("sytematic", tensor([1.0]), 1)
    with pytest.raises(SettingsError, match="cannot be enumerated"):
        enumerate_draws("sytematic", tensor([1.0]), cells=torch.arange(1), shape=(1, 1), n=1)


# Spread in space


def test_companions_vary_from_draw_to_draw():
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


def test_top_is_biased_and_says_so():
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
