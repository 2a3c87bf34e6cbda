"""Draws from extreme attention, in few bits, and from input that is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nn.draws import EXACT, drawn_from, proposals, seeded, tensor
from wsi_ats.errors import SettingsError
from wsi_ats.nn import expectation
from wsi_ats.nn.curve import Curve
from wsi_ats.nn.sampling import DESIGNS, inclusion_probabilities, multinomial_at, systematic_at
from wsi_ats.testing.enumeration import enumerate_draws

# Rounding


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


# Extreme proposals


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


def test_subnormal_probabilities_do_not_overflow():
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
    "proposal", [[], [0.0, 0.0], [0.5, math.nan], [1.5, -0.5], [math.inf, 1.0], [-1.0, -1.0]], ids=str
)
def test_an_invalid_distribution_is_refused(design, proposal):
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
