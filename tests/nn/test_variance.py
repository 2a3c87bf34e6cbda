"""Variance of the estimate by design and proposal, and entropy of attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nn.enumeration import EXACT, every_draw, normal
from wsi_ats.nn import expectation

# Variance


def variance(proposal, attention, features, n=1):
    """Total variance of the multinomial estimate: (sum_i a_i^2 |f_i|^2 / q_i - |Phi|^2) / n."""
    phi = attention @ features
    return ((attention**2 * features.square().sum(1) / proposal).sum() - phi @ phi).item() / n


def test_the_variance_formula_matches_the_estimate():
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


def test_the_gradient_of_the_entropy_matches_the_closed_form():
    attention = torch.softmax(normal(5, seed=0), 0).requires_grad_()
    (gradient,) = torch.autograd.grad(expectation.entropy(attention), attention)
    torch.testing.assert_close(gradient, -(attention.log() + 1).detach(), **EXACT)
