"""Which cells to read: sampling designs.

A design answers two questions and no other: which cells are drawn, and how often each was expected to
be, ``pi_i = E[number of times i is drawn]``. What is then done with the tiles is in
:mod:`wsi_ats.nn.expectation`, the same for every design. Nothing here carries a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from wsi_ats.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Draw:
    """The outcome of one draw.

    Parameters
    ----------
    indices
        The distinct cells drawn, in the order in which they came, shape (m,), m <= n, int64.
    counts
        How often each was drawn, shape (m,), int64.
    expected
        How often each was expected to be drawn (pi), shape (m,), float64.
    """

    indices: Tensor
    counts: Tensor
    expected: Tensor

    def to(self, device: torch.device) -> Draw:
        """Copy to a device."""
        return Draw(self.indices.to(device), self.counts.to(device), self.expected.to(device))


Design = Callable[[Tensor, tuple[int, int], Tensor, int, torch.Generator], Draw]
"""``design(proposal, shape, cells, n, generator) -> Draw``; see :func:`draw`."""


def draw(
    design: str,
    proposal: Tensor,
    *,
    cells: Tensor,
    shape: tuple[int, int],
    n: int,
    generator: torch.Generator,
) -> Draw:
    """Draw ``n`` cells with probabilities that follow a proposal.

    Parameters
    ----------
    design
        A name in :data:`DESIGNS`.
    proposal
        Probability of each candidate cell, shape (K,), sums to 1; usually the attention. Cells of
        probability zero are never drawn.
    cells
        Flat numbers of the candidates on the grid, shape (K,): designs may spread a draw in space.
    shape
        Rows and columns of the grid.
    n
        Number of draws. Where no more than ``n`` cells have a positive probability, designs without
        replacement take them all.
    generator
        Source of randomness, on the CPU: the same seed draws the same cells on any device.

    Returns
    -------
    Draw
        With indices into ``proposal``, on its device.

    Raises
    ------
    SettingsError
        For an unknown design, ``n < 1`` or a proposal that is no distribution.

    Examples
    --------
    >>> cells = torch.arange(6)
    >>> one = draw("systematic", torch.full((6,), 1 / 6), cells=cells, shape=(2, 3), n=3,
    ...            generator=torch.Generator().manual_seed(0))
    >>> one.counts.tolist(), one.expected.tolist()
    ([1, 1, 1], [0.5, 0.5, 0.5])
    """
    if design not in DESIGNS:
        raise SettingsError(f"unknown design {design!r}; known are {', '.join(DESIGNS)}")
    if n < 1:
        raise SettingsError(f"at least one tile must be drawn, not {n}")
    probabilities = proposal.detach().to(torch.float64)
    total = probabilities.sum().item()
    if not (math.isfinite(total) and total > 0 and probabilities.min().item() >= 0):
        raise SettingsError(
            f"a proposal over {proposal.numel()} cells is no distribution: its sum is {total}"
        )
    return DESIGNS[design](probabilities / total, shape, cells, n, generator)


def multinomial(
    proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator
) -> Draw:
    """``n`` independent draws with replacement: ``pi = n q`` (the paper's first estimator)."""
    del shape, cells
    ends = proposal.cumsum(0)
    points = torch.rand(n, generator=generator, dtype=torch.float64).to(ends.device) * ends[-1]
    # A point that rounding puts on the very end belongs to the last cell of positive probability.
    last = proposal.nonzero()[-1, 0]
    drawn = torch.searchsorted(ends, points, right=True).clamp(max=last)
    indices, inverse, counts = torch.unique(drawn, return_inverse=True, return_counts=True)
    first = torch.full_like(indices, n).scatter_reduce(
        0, inverse, torch.arange(n, device=indices.device), "amin"
    )
    order = first.argsort()
    indices, counts = indices[order], counts[order]
    return Draw(indices, counts, n * proposal[indices])


def systematic(
    proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator
) -> Draw:
    """``n`` distinct cells spread in space: ``pi = min(1, c q)``, ``sum pi = n``.

    The threshold is Fearnhead & Clifford's (2003); the draw is Madow's (1949) systematic one along a
    Z-order curve whose origin and orientation are random each time. A fixed curve would give every cell
    the same companions at every draw, which biases what is learned through a non-linear loss.
    """
    positive = proposal.nonzero()[:, 0]
    if len(positive) <= n:
        return _take_all(positive)
    expected = inclusion(proposal[positive], n)
    order = _curve(cells[positive], shape, generator)
    ends = expected[order].cumsum(0)
    ends *= n / ends[-1]  # rounding must neither lose nor gain a draw
    offset = torch.rand((), generator=generator, dtype=torch.float64).to(ends.device)
    points = offset + torch.arange(n, dtype=torch.float64, device=ends.device)
    places = torch.searchsorted(ends, points, right=True).clamp(max=len(positive) - 1)
    chosen = order[places]
    return Draw(positive[chosen], torch.ones_like(chosen), expected[chosen])


def uniform(
    proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator
) -> Draw:
    """``n`` distinct cells, all equally likely whatever the proposal: the baseline."""
    return systematic(torch.full_like(proposal, 1 / len(proposal)), shape, cells, n, generator)


DESIGNS: Mapping[str, Design] = MappingProxyType(
    {"multinomial": multinomial, "systematic": systematic, "uniform": uniform}
)


def inclusion(proposal: Tensor, n: int) -> Tensor:
    """Inclusion probabilities ``min(1, c q)`` that sum to ``n`` (Fearnhead & Clifford 2003).

    Parameters
    ----------
    proposal
        Positive probabilities, shape (K,), float64, K > n.
    n
        Number of draws.
    """
    largest = proposal.topk(n)  # only the n largest can be certain: no sort of K is needed
    tail = proposal.scatter(0, largest.indices, 0.0).sum()
    # What remains for the others once the k largest are certain, k = 0 .. n-1; summed from the small
    # end, because 1 - (sum of the large ones) would cancel.
    rest = tail + largest.values.flip(0).cumsum(0).flip(0)
    draws_left = torch.arange(n, 0, -1, device=proposal.device)
    certain = int((draws_left * largest.values > rest).cumprod(0).sum())
    expected = (proposal * (draws_left[certain] / rest[certain])).clamp(max=1)
    return expected.scatter(0, largest.indices[:certain], 1.0)


def _take_all(positive: Tensor) -> Draw:
    ones = torch.ones_like(positive)
    return Draw(positive, ones, ones.to(torch.float64))


def _curve(cells: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Order cells along a Z-order curve with a random origin and orientation."""
    side = 1 << max(shape).bit_length()
    shift = torch.randint(side, (2,), generator=generator).tolist()
    rows, columns = cells // shape[1] + shift[0], cells % shape[1] + shift[1]
    if torch.rand((), generator=generator) < 0.5:
        rows, columns = columns, rows
    return (_spread(rows) << 1 | _spread(columns)).argsort()


def _spread(numbers: Tensor) -> Tensor:
    """Put a zero bit between the bits of 31-bit numbers."""
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        numbers = (numbers | numbers << shift) & mask
    return numbers
