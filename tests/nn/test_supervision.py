"""Supervision of attention is the gradient of a likelihood, and zero where tiles agree."""

from __future__ import annotations

import pytest
import torch

from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import BIASED, DESIGNS, draw, explore
from wsi_ats.nn.supervision import attention_supervision, posterior
from wsi_ats.testing.enumeration import enumerate_draws

EXACT = {"rtol": 0, "atol": 1e-12}
UNBIASED = [name for name in DESIGNS if name not in BIASED]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def taught(logits, drawn, gate, evidence):
    """Gradient of the supervision of one draw with respect to all attention logits."""
    attention = torch.softmax(logits, 0)
    some = drawn.indices
    loss = attention_supervision(
        expectation.weights(attention, drawn), attention[some], gate[some], evidence[some]
    )
    return gradient(loss, logits)


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_with_all_tiles_it_is_the_gradient_of_the_mixtures_likelihood(spread):
    logits = (spread * normal(7, seed=1)).requires_grad_()
    gate, evidence = normal(7, seed=2), 3 * normal(7, seed=3)
    attention = torch.softmax(logits, 0)
    likelihood = -(attention * (gate + evidence).exp()).sum().log()
    found = gradient(attention_supervision(attention, attention, gate, evidence), logits)
    torch.testing.assert_close(found, gradient(likelihood, logits), **EXACT)


def test_with_all_tiles_it_is_the_gradient_of_the_cross_entropy_between_posterior_and_attention():
    logits = normal(7, seed=1).requires_grad_()
    gate, evidence = normal(7, seed=2), normal(7, seed=3)
    attention = torch.softmax(logits, 0)
    expected = torch.softmax((logits + gate + evidence).detach(), 0)
    torch.testing.assert_close(posterior(attention, gate, evidence), expected, **EXACT)
    found = gradient(attention_supervision(attention, attention, gate, evidence), logits)
    torch.testing.assert_close(found, gradient(-(expected * attention.log()).sum(), logits), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("design", UNBIASED)
def test_the_gradient_is_zero_while_all_drawn_tiles_agree(design, dtype):
    logits = (2 * normal(24, seed=1)).to(dtype).requires_grad_()
    drawn = draw(
        design,
        explore(torch.softmax(logits, 0), 0.2),
        cells=torch.arange(24),
        shape=(4, 6),
        n=6,
        generator=torch.Generator().manual_seed(0),
    )
    same = torch.full((24,), -0.7, dtype=dtype)
    assert taught(logits, drawn, same, same / 3).count_nonzero() == 0


def test_the_gradient_reaches_attention_alone():
    weight, gate, evidence = (normal(5, seed=i).abs().requires_grad_() for i in range(3))
    attention = torch.softmax(normal(5, seed=4), 0).requires_grad_()
    attention_supervision(weight, attention, gate, evidence).backward()
    assert (weight.grad, gate.grad, evidence.grad) == (None, None, None)
    assert attention.grad is not None
    assert attention.grad.count_nonzero() == 5


def test_only_a_tile_that_explains_the_label_better_than_the_mean_gains_attention():
    logits = torch.zeros(4, requires_grad=True)
    attention = torch.softmax(logits, 0)
    evidence = torch.tensor([0.1, 0.2, 0.4, 1.6]).log()  # on average 0.575
    pushed = -gradient(attention_supervision(attention, attention, torch.zeros(4), evidence), logits)
    assert (pushed > 0).tolist() == [False, False, False, True]


def test_a_constant_in_the_evidence_and_the_size_of_the_weights_do_not_matter():
    attention = torch.softmax(normal(5, seed=0), 0).requires_grad_()
    weight, gate, evidence = normal(5, seed=1).abs(), normal(5, seed=2), normal(5, seed=3)
    one, other = (
        torch.autograd.grad(
            attention_supervision(scale * weight, attention, gate, evidence + more), attention
        )[0]
        for scale, more in ((1, 0), (9, -40))
    )
    torch.testing.assert_close(one, other, **EXACT)


def test_its_bias_falls_as_one_over_the_number_of_draws():
    logits = normal(3, seed=1).requires_grad_()
    gate, evidence = normal(3, seed=2), normal(3, seed=3)
    attention = torch.softmax(logits, 0)
    exact = gradient(attention_supervision(attention, attention, gate, evidence), logits)
    biases = [
        sum(
            p * taught(logits, drawn, gate, evidence)
            for p, drawn in enumerate_draws(
                "multinomial", attention, cells=torch.arange(3), shape=(1, 3), n=n
            )
        )
        - exact
        for n in (2, 4, 8)
    ]
    sizes = [bias.norm().item() for bias in biases]
    assert 1.6 < sizes[0] / sizes[1] < 2.4
    assert 1.6 < sizes[1] / sizes[2] < 2.4


@pytest.mark.parametrize("design", [name for name in UNBIASED if name != "multinomial"])
def test_supervision_is_unbiased_when_all_cells_are_drawn(design):
    logits = normal(4, seed=1).requires_grad_()
    gate, evidence = normal(4, seed=2), normal(4, seed=3)
    attention = torch.softmax(logits, 0)
    ((_, drawn),) = enumerate_draws(design, attention, cells=torch.arange(4), shape=(2, 2), n=4)
    exact = gradient(attention_supervision(attention, attention, gate, evidence), logits)
    torch.testing.assert_close(taught(logits, drawn, gate, evidence), exact, **EXACT)


@pytest.mark.parametrize("weight", [[0.0, 0.0, 0.0], [0.0, 1e-38, 1.0]])
def test_underflowed_attention_gives_finite_values(weight):
    attention = torch.tensor(weight, requires_grad=True)
    evidence = torch.tensor([300.0, -300.0, 0.0])
    attention_supervision(torch.tensor(weight), attention, torch.zeros(3), evidence).backward()
    assert attention.grad is not None
    assert attention.grad.isfinite().all()


def test_small_weights_survive_half_precision_features():
    weight = torch.tensor([1.0, 1e-9])
    told = posterior(weight, torch.zeros(2, dtype=torch.bfloat16), torch.tensor([0.0, 20.0]).bfloat16())
    assert told.dtype == torch.float32
    assert told[1] == pytest.approx(1e-9 * torch.tensor(20.0).exp().item() / 1.4851652, rel=1e-3)
