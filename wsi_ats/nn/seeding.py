"""Seeds of the random numbers that layers draw."""

from __future__ import annotations

import torch


def seed_layers(seed: int, device: torch.device) -> None:
    """Seed the generators that layers such as dropout draw from.

    ``torch.manual_seed`` does it for devices of every kind. For kinds that are not in use it notes each call
    with its traceback, which may take longer than a step of training on features.

    Parameters
    ----------
    seed
        An integer of 64 bits.
    device
        Device of the layers.

    Examples
    --------
    >>> seed_layers(3, torch.device("cpu"))
    >>> one = torch.rand(2)
    >>> seed_layers(3, torch.device("cpu"))
    >>> torch.equal(torch.rand(2), one)
    True
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
