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
        probability zero are never drawn, but by ``uniform``.
    cells
        Flat numbers of the candidates on the grid, shape (K,): designs may spread a draw in space.
    shape
        Rows and columns of the grid.
    n
        Number of draws. Where no more than ``n`` cells have a positive probability, ``systematic`` takes
        them all.
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
    if proposal.ndim != 1 or proposal.shape != cells.shape:
        raise SettingsError(
            f"a proposal has one probability for each cell, not shape {tuple(proposal.shape)} for "
            f"{tuple(cells.shape)}"
        )
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
    """``n`` independent draws with replacement: ``pi = n q``, the paper's first; see :func:`draw`."""
    del shape, cells
    points = torch.rand(n, generator=generator, dtype=torch.float64)
    return multinomial_at(proposal, points.to(proposal.device))


def multinomial_at(proposal: Tensor, points: Tensor) -> Draw:
    """The draw that given points make: what is left of :func:`multinomial` without its randomness.

    Parameters
    ----------
    proposal
        Probabilities, shape (K,), float64.
    points
        In [0, 1), shape (n,), float64.
    """
    n = len(points)
    ends = proposal.cumsum(0)
    # A point that rounding puts on the very end belongs to the last cell of positive probability.
    last = proposal.nonzero()[-1, 0]
    drawn = torch.searchsorted(ends, points * ends[-1], right=True).clamp(max=last)
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
    the same companions at every draw, which biases what is learned through a non-linear loss. See
    :func:`draw`.
    """
    positive = proposal.nonzero()[:, 0]
    if len(positive) <= n:
        return _take_all(positive)
    origin = torch.randint(curve_side(shape), (2,), generator=generator).tolist()
    turned = bool(torch.rand((), generator=generator) < 0.5)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    order = curve(cells[positive], shape, (origin[0], origin[1]), turned=turned)
    drawn = systematic_at(proposal[positive], order, n, offset.to(order.device))
    return Draw(positive[drawn.indices], drawn.counts, drawn.expected)


def systematic_at(proposal: Tensor, order: Tensor, n: int, offset: Tensor) -> Draw:
    """The draw along one order from one offset: what is left of :func:`systematic` without its randomness.

    Parameters
    ----------
    proposal
        Positive probabilities, shape (K,), float64, K > n.
    order
        The cells in their order along the curve, shape (K,).
    n
        Number of draws.
    offset
        In [0, 1), float64, no dimensions.
    """
    expected = inclusion(proposal, n)
    ends = expected[order].cumsum(0)
    ends *= n / ends[-1]  # rounding must neither lose nor gain a draw
    steps = torch.arange(n, device=ends.device)
    places = torch.searchsorted(ends, offset + steps, right=True)
    # No cell is wider than 1, so places grow; rounding must not make two of them equal.
    places = (places - steps).clamp(0, len(order) - n).cummax(0).values + steps
    chosen = order[places]
    return Draw(chosen, torch.ones_like(chosen), expected[chosen])


def uniform(
    proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator
) -> Draw:
    """``n`` distinct cells, all equally likely whatever their probability: the baseline.

    Cells of probability zero are drawn as well, and weigh nothing: attention that has become zero in
    most places must not steer a baseline that is to know nothing of it. See :func:`draw`.
    """
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
    # Divided first: the inverse of a tiny rest may be infinite.
    expected = (proposal / rest[certain] * draws_left[certain]).clamp(max=1)
    return expected.scatter(0, largest.indices[:certain], 1.0)


def _take_all(positive: Tensor) -> Draw:
    ones = torch.ones_like(positive)
    return Draw(positive, ones, ones.to(torch.float64))


def curve_side(shape: tuple[int, int]) -> int:
    """Number of origins of the curve along each axis: the power of two above the longer side of a grid."""
    return 1 << max(shape).bit_length()


def curve(cells: Tensor, shape: tuple[int, int], origin: tuple[int, int], *, turned: bool) -> Tensor:
    """Order cells along a Z-order curve.

    Parameters
    ----------
    cells
        Flat numbers of the cells, shape (K,).
    shape
        Rows and columns of the grid.
    origin
        Row and column of the curve's square at which the grid begins, each below :func:`curve_side`.
    turned
        Whether the curve runs down before it runs across.

    Returns
    -------
    Tensor, shape (K,)
        Indices into ``cells``.
    """
    rows, columns = cells // shape[1] + origin[0], cells % shape[1] + origin[1]
    if turned:
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
