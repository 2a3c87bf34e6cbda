"""Gated pooling: its bias falls as one over the number of tiles, and its values stay finite."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nn.enumeration import EXACT, every_draw, normal
from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import Draw, draw

# A ratio, so consistent but not unbiased


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
                "multinomial", attention, cells=torch.arange(size), shape=(20, 20), n=n, generator=generator
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


# Underflow


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
