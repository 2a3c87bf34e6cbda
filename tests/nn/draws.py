"""Proposals and draws of cells."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from wsi_ats.nn.sampling import BIASED, DESIGNS, draw

EXACT = 1e-12
UNBIASED = [name for name in DESIGNS if name not in BIASED]
FIXED = ("multinomial", "systematic", "uniform")  # pi does not depend on what was drawn

PROPOSALS = {
    "uniform": [1 / 8] * 8,
    "random": [0.05, 0.21, 0.13, 0.02, 0.19, 0.11, 0.17, 0.12],
    "concentrated": [0.9, 0.05, 0.02, 0.01, 0.01, 0.005, 0.004, 0.001],
    "two peaks": [0.01, 0.48, 0.005, 0.005, 0.48, 0.005, 0.005, 0.01],
    "with zeros": [0.0, 0.4, 0.0, 0.1, 0.3, 0.15, 0.0, 0.05],
}


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_from(design, proposal, n, seed=0, *, shape=None, cells=None):
    size = len(proposal)
    return draw(
        design,
        proposal,
        cells=torch.arange(size) if cells is None else cells,
        shape=shape or (1, size),
        n=n,
        generator=seeded(seed),
    )


@st.composite
def proposals(draw_value, largest: int = 60) -> torch.Tensor:
    """From flat to so peaked that most of it is 1e-300, with exact zeros, never all zero."""
    logs = draw_value(st.lists(st.floats(-690, 0), min_size=1, max_size=largest))
    zero = draw_value(st.lists(st.booleans(), min_size=len(logs), max_size=len(logs)))
    values = tensor(logs).exp() * ~torch.tensor(zero)
    values[0] = max(values[0].item(), 1e-300)
    return values / values.sum()
