"""Optimiser with a learning rate per part of the network, its schedule, and the average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wsi_ats.nn.network import SlideNetwork


def optimizer_of(
    model: SlideNetwork, rates: Mapping[str, float], *, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW for the trainable weights, with a learning rate for each part of the network.

    Parameters
    ----------
    model
        The network.
    rates
        Peak learning rate of each part; see :meth:`wsi_ats.nn.network.SlideNetwork.parts`.
    weight_decay
        Weight decay of all weights.
    """
    groups = []
    for name, modules in model.parts().items():
        weights = [each for module in modules for each in module.parameters() if each.requires_grad]
        if weights:
            groups.append({"params": weights, "lr": rates[name], "peak": rates[name]})
    return torch.optim.AdamW(groups, weight_decay=weight_decay)


def set_rates(optimizer: torch.optim.Optimizer, done: float, *, warmup: float) -> None:
    """Set the learning rates for a share of the steps done; see :func:`share_of_peak`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share_of_peak(done, warmup)


def share_of_peak(done: float, warmup: float) -> float:
    """Return the share of the peak rate after a share of the steps: a linear rise, a plateau, half a cosine.

    The plateau lasts until half of the steps: attention starts uniform, and may find its first lesion only
    when a rate that falls from the start would be too low.

    Examples
    --------
    >>> [round(share_of_peak(done, 0.2), 2) for done in (0, 0.1, 0.2, 0.5, 0.75, 1)]
    [0.05, 0.53, 1.0, 1.0, 0.5, 0.0]
    """
    if done < warmup:
        return 0.05 + 0.95 * done / warmup
    return 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * done - 1)))


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return the exponential moving average of a network's weights, from now on; ``None`` for decay 0."""
    if decay == 0:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    average.update_parameters(model)  # the first call copies
    return average
