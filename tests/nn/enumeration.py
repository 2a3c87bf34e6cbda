"""Sums over every possible draw, weighted by its probability."""

from __future__ import annotations

import torch

from wsi_ats.testing.enumeration import enumerate_draws

EXACT = {"rtol": 0, "atol": 1e-12}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_draw(design, proposal, shape, n):
    return enumerate_draws(design, proposal, cells=torch.arange(len(proposal)), shape=shape, n=n)


def value_and_gradients(value: torch.Tensor, *inputs: torch.Tensor):
    """A fixed linear function's gradients, and the value itself."""
    loss = value @ normal(len(value), seed=99)
    return value.detach(), *torch.autograd.grad(loss, inputs, retain_graph=True)
