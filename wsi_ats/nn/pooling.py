"""Poolings by name: from the features of drawn tiles to the feature of the slide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wsi_ats.nn import expectation


@dataclass(frozen=True)
class Pooling:
    """A pooling of drawn tiles.

    Parameters
    ----------
    gated
        Whether the network has a gate, which weighs each tile by its own feature.
    estimate
        Function from weights (m,), features (m, D) and gate logits (m,) of drawn tiles to the slide's feature
        (D,); see :mod:`wsi_ats.nn.expectation`. Gate logits are zeros where there is no gate.
    divides
        Whether the estimate divides by the weights, so that only differences between tiles count.
    log_mass
        Function from weights (m,) and gate logits (m,) to the logarithm of the estimate's divisor, shape ():
        the weight of a slide among those of its case.
    """

    gated: bool
    estimate: Callable[[Tensor, Tensor, Tensor], Tensor]
    divides: bool
    log_mass: Callable[[Tensor, Tensor], Tensor]


def _log_divisor(weights: Tensor, gate_logits: Tensor) -> Tensor:
    gate = gate_logits.to(weights.dtype)
    return torch.logsumexp(weights.clamp(min=torch.finfo(weights.dtype).tiny).log() + gate, 0)


POOLINGS: Mapping[str, Pooling] = {
    "linear": Pooling(
        gated=False,
        estimate=lambda weights, features, _: expectation.linear(weights, features),
        divides=False,
        log_mass=lambda weights, _: weights.new_zeros(()),
    ),
    "gated": Pooling(gated=True, estimate=expectation.gated, divides=True, log_mass=_log_divisor),
}
"""Poolings by their name in ``model.pool``."""
