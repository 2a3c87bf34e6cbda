"""Calibrated probabilities, on slides other than those calibrated on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wsi_ats.nn.calibration import Calibration, calibration
from wsi_ats.tasks.registry import TASKS


def normal(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(seed: int, slides: int, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """True log-odds of slides, and labels drawn by them."""
    logits = 2 * normal(seed, slides, classes)
    generator = torch.Generator().manual_seed(seed + 1)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).double()


def loss_of(task: str, targets: torch.Tensor):
    return lambda outputs: TASKS[task].losses(outputs, targets).mean()


@pytest.mark.parametrize("classes", [2, 3])
def test_an_overconfident_classifier_with_a_shifted_boundary_is_corrected(classes):
    wrong = Calibration(torch.tensor([6.0]), torch.arange(classes) * 7.0)
    known, labels = labelled(0, 60, classes)
    found = calibration(wrong(known)[None], loss_of("classification", labels), classes=True)
    others, truth = labelled(100, 4000, classes)
    loss = loss_of("classification", truth)
    best = loss(others).item()
    assert loss(wrong(others)).item() > best + 1
    assert loss(found(wrong(others))).item() < best + 0.1
    assert found.scale.shape == (1,)


def test_a_calibrated_classifier_is_left_nearly_unchanged():
    known, labels = labelled(0, 2000)
    found = calibration(known[None], loss_of("classification", labels), classes=True)
    assert found.scale.item() == pytest.approx(1, abs=0.15)
    assert (found.shift[1] - found.shift[0]).item() == pytest.approx(0, abs=0.2)


def test_perfect_separation_does_not_make_scores_certain():
    """Without a prior the scale would grow for ever."""
    outputs = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64).repeat(6, 1)
    labels = torch.tensor([[1.0], [0.0]]).repeat(6, 1)
    found = calibration(outputs[None], loss_of("classification", labels), classes=True)
    assert 1 < found.scale < 10


def test_no_slide_changes_its_rank():
    outputs, labels = labelled(3, 40)
    found = calibration(5 * outputs[None] + 3, loss_of("classification", labels), classes=True)
    before, after = (each[:, 1] - each[:, 0] for each in (outputs, found(5 * outputs + 3)))
    assert torch.equal(before.argsort(), after.argsort())


def test_each_label_has_its_own_scale_and_labels_that_are_not_known_count_nothing():
    truth = 2 * normal(5, 400, 2)
    generator = torch.Generator().manual_seed(6)
    labels = torch.bernoulli(truth.sigmoid(), generator=generator)
    labels[:50, 1] = math.nan
    outputs = truth * torch.tensor([4.0, 1.0]) + torch.tensor([0.0, 6.0])
    found = calibration(outputs[None], loss_of("multilabel", labels), classes=False)
    torch.testing.assert_close(found.scale, torch.tensor([0.25, 1.0]).double(), rtol=0.3, atol=0)
    torch.testing.assert_close(found.shift, torch.tensor([0.0, -6.0]).double(), rtol=0, atol=1.5)


def test_values_are_rescaled_to_their_unit():
    values = normal(8, 50, 1)
    outputs = 3 * values + 1 + 0.1 * normal(9, 50, 1)
    found = calibration(outputs[None], loss_of("regression", values), classes=False)
    assert TASKS["regression"].losses(found(outputs), values).mean() < 0.05


def test_all_draws_count():
    outputs, labels = labelled(0, 30)
    draws = torch.stack([outputs + 3 * normal(seed, 30, 2) for seed in range(8)])
    loss = loss_of("classification", labels)
    found = calibration(draws, loss, classes=True)
    assert found.scale < 0.8  # a draw alone is less certain than it seems
    again = calibration(draws, loss, classes=True)
    assert torch.equal(found.scale, again.scale)
    assert torch.equal(found.shift, again.shift)


def test_a_head_absorbs_the_calibration():
    head, features = nn.Linear(5, 3), torch.randn(4, 5)
    before = head(features).detach()
    found = Calibration(torch.tensor([0.5], dtype=torch.float64), normal(0, 3))
    found.into(head)
    torch.testing.assert_close(head(features).detach(), found(before))
