"""Losses by hand: each formula once more, slide by slide, to 1e-12."""

from __future__ import annotations

import itertools
import math

import lifelines
import numpy as np
import pandas as pd
import pytest
import torch

from tasks.examples import EXAMPLES
from wsi_ats.tasks.registry import TASKS
from wsi_ats.tasks.survival import cox


def outputs_and_targets(task, *, dtype=torch.float64):
    example = EXAMPLES[task]
    targets = example.target.normalise(torch.from_numpy(example.targets()))
    return example.outputs().to(dtype).requires_grad_(), targets


def test_classification_is_cross_entropy():
    outputs, targets = outputs_and_targets("classification")
    for found, row, (target,) in zip(
        TASKS["classification"].losses(outputs, targets), outputs, targets, strict=True
    ):
        expected = math.log(sum(math.exp(x) for x in row.tolist())) - row[int(target)].item()
        assert found.item() == pytest.approx(expected, abs=1e-12)


def test_multilabel_is_binary_cross_entropy_of_what_is_known():
    outputs, targets = outputs_and_targets("multilabel")
    targets[0, 1] = targets[2, 0] = targets[2, 2] = targets[4] = math.nan
    found = TASKS["multilabel"].losses(outputs, targets)
    for loss, row, truth in zip(found, outputs.tolist(), targets.tolist(), strict=True):
        known = [(x, y) for x, y in zip(row, truth, strict=True) if not math.isnan(y)]
        expected = sum(math.log1p(math.exp(-x if y else x)) for x, y in known) / 3
        assert loss.item() == pytest.approx(expected, abs=1e-12)
    found.sum().backward()
    assert outputs.grad.isfinite().all()
    assert (outputs.grad == 0).equal(targets.isnan())  # unknown labels have no loss


def test_regression_is_the_squared_error():
    outputs, targets = outputs_and_targets("regression")
    found = TASKS["regression"].losses(outputs, targets)
    pairs = zip(outputs[:, 0].tolist(), targets[:, 0].tolist(), strict=True)
    assert found.tolist() == pytest.approx([(x - y) ** 2 for x, y in pairs], abs=1e-12)


def efron(risks, times, events):
    """Negative log partial likelihood, as in the paper: a sum over times of events."""
    total = 0.0
    for time in {t for t, event in zip(times, events, strict=True) if event}:
        at_risk = sum(math.exp(r) for r, t in zip(risks, times, strict=True) if t >= time)
        died = [r for r, t, event in zip(risks, times, events, strict=True) if t == time and event]
        gone = sum(map(math.exp, died))
        total -= sum(died)
        total += sum(math.log(at_risk - k / len(died) * gone) for k in range(len(died)))
    return total


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_sum_to_the_partial_likelihood_with_all_ties_and_all_censoring(size):
    generator = torch.Generator().manual_seed(size)
    # In one order each; another test shows that the order changes nothing.
    each = itertools.product([1.0, 2.0, 3.0], [False, True])
    for slides in itertools.combinations_with_replacement(each, size):
        times, events = zip(*slides, strict=True)
        risks = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        shares = cox(risks, torch.tensor(times, dtype=torch.float64), torch.tensor(events))
        assert shares.sum().item() == pytest.approx(efron(risks.tolist(), times, events), abs=1e-12)
        assert (shares[~torch.tensor(events)] == 0).all()
        shares.sum().backward()
        assert risks.grad.isfinite().all()


def test_the_partial_likelihood_is_that_of_lifelines():
    random = np.random.default_rng(0)
    covariates = random.normal(size=(60, 2))
    times = random.integers(1, 12, 60).astype(float)  # about five slides a time
    events = random.random(60) < 0.6
    table = pd.DataFrame({"a": covariates[:, 0], "b": covariates[:, 1], "time": times, "event": events})
    fitted = lifelines.CoxPHFitter().fit(table, "time", "event")
    risks = torch.from_numpy(covariates @ fitted.params_.to_numpy()).requires_grad_()
    shares = cox(risks, torch.from_numpy(times), torch.from_numpy(events))
    assert -shares.sum().item() == pytest.approx(fitted.log_likelihood_, abs=1e-9)
    (gradient,) = torch.autograd.grad(shares.sum(), risks)
    assert torch.from_numpy(covariates).T @ gradient == pytest.approx([0, 0], abs=1e-3)  # it is the maximum


def test_without_ties_a_share_is_the_odds_of_dying_first_among_those_at_risk():
    risks, times = torch.tensor([0.3, -1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 4.0, 1.0, 3.0])
    shares = cox(risks, times, torch.tensor([True, True, False, True]))
    first = [[0, 1, 3], [1], [], [1, 3]]
    hazards = risks.exp().tolist()
    expected = [
        -math.log(hazards[i] / sum(hazards[j] for j in left)) if left else 0.0 for i, left in enumerate(first)
    ]
    assert shares.tolist() == pytest.approx(expected, abs=1e-12)


def test_gradients_of_the_likelihood_with_ties_are_those_of_differences():
    times, events = torch.tensor([1.0, 1, 1, 2, 2]), torch.tensor([True, True, False, True, True])
    risks = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda risk: cox(risk, times, events), risks)


def test_shares_do_not_depend_on_the_order_of_slides_nor_on_a_common_factor_of_the_hazards():
    times, events = torch.tensor([1.0, 1, 1, 2, 1]), torch.tensor([True, True, False, True, True])
    risks = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = cox(risks, times, events)
    for order in itertools.permutations(range(5)):
        moved = cox(risks[list(order)], times[list(order)], events[list(order)])
        torch.testing.assert_close(moved, shares[list(order)], atol=1e-12, rtol=0)
    torch.testing.assert_close(cox(risks + 700, times, events), shares, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hazards_orders_of_magnitude_apart_give_finite_losses(dtype):
    outputs = torch.tensor([[300.0], [-300.0], [0.0]], dtype=dtype).requires_grad_()
    found = TASKS["survival"].losses(outputs, torch.tensor([[1.0, 1], [1, 1], [2, 1]]))
    found.sum().backward()
    assert found.isfinite().all()
    assert outputs.grad.isfinite().all()


def test_a_batch_without_events_has_no_gradient():
    outputs, targets = outputs_and_targets("survival")
    targets[:, 1] = 0
    found = TASKS["survival"].losses(outputs, targets)
    found.mean().backward()
    assert found.tolist() == [0] * 6
    assert outputs.grad.flatten().tolist() == [0] * 6


@pytest.mark.parametrize("task", TASKS)
def test_there_is_one_loss_a_slide_in_single_precision_or_better(task):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        outputs, targets = outputs_and_targets(task, dtype=dtype)
        found = TASKS[task].losses(outputs, targets)
        assert found.shape == (6,)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert TASKS[task].losses(outputs[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if not task.relative])
def test_the_loss_of_a_slide_does_not_depend_on_others(task):
    outputs, targets = outputs_and_targets(task)
    alone = torch.cat([TASKS[task].losses(outputs[i : i + 1], targets[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(TASKS[task].losses(outputs, targets), alone, atol=1e-12, rtol=0)


def test_scores():
    outputs = torch.tensor([[0.0, math.log(3)], [1e4, -1e4]], dtype=torch.float64)
    assert TASKS["classification"].activate(outputs).tolist() == [pytest.approx([0.25, 0.75]), [1, 0]]
    assert TASKS["multilabel"].activate(outputs).tolist() == [pytest.approx([0.5, 0.75]), [1, 0]]
    assert (
        TASKS["regression"].activate(outputs[:, :1]).tolist()
        == TASKS["survival"].activate(outputs[:, :1]).tolist()
    )
    assert TASKS["regression"].activate(outputs[:, :1]).tolist() == [[0], [1e4]]
    assert TASKS["classification"].activate(outputs[0]).tolist() == pytest.approx([0.25, 0.75])
