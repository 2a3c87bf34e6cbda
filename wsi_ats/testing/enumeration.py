"""Every outcome of a sampling design with its probability: expectations without sampling error.

On a few cells a design has few outcomes, so that "unbiased" can be proved to rounding error rather than
believed of many draws::

    outcomes = enumerate_draws("systematic", proposal, cells=cells, shape=shape, n=3)
    mean = sum(p * estimate(drawn) for p, drawn in outcomes)

A design is a deterministic function of uniform random numbers, and each of its outcomes the image of a
box of them. Here that function (:func:`~wsi_ats.nn.sampling.multinomial_at`,
:func:`~wsi_ats.nn.sampling.systematic_at`) is called once in the middle of each box, and the box's volume
is the probability: nothing of the design is written a second time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from wsi_ats.errors import SettingsError
from wsi_ats.nn.sampling import Draw, curve, curve_side, inclusion, multinomial_at, systematic_at

Order = tuple[int, ...]


def enumerate_draws(
    design: str,
    proposal: Tensor,
    *,
    cells: Tensor,
    shape: tuple[int, int],
    n: int,
    orders: Mapping[Order, float] | None = None,
) -> list[tuple[float, Draw]]:
    """Every outcome of :func:`wsi_ats.nn.sampling.draw`, with its probability.

    Parameters
    ----------
    design
        ``"multinomial"``, ``"systematic"`` or ``"uniform"``.
    proposal
        Probability of each candidate cell, shape (K,), sums to 1. The K^n outcomes of ``multinomial``
        must be few.
    cells
        Flat numbers of the candidates on the grid, shape (K,).
    shape
        Rows and columns of the grid.
    n
        Number of draws.
    orders
        Orders of the cells of positive probability (of all, for ``uniform``), with the probability of
        each; by default all that the random curve can give.

    Returns
    -------
    list of (float, Draw)
        Probabilities sum to 1; an outcome may occur more than once.

    Raises
    ------
    SettingsError
        For a design that is not known here.

    Examples
    --------
    >>> a = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    >>> both = enumerate_draws("multinomial", a, cells=torch.arange(3), shape=(1, 3), n=2)
    >>> len(both), round(sum(p for p, drawn in both), 12)
    (9, 1.0)
    """
    proposal = proposal.detach().to(torch.float64)
    proposal = proposal / proposal.sum()
    if design == "multinomial":
        return list(_multinomial(proposal, n))
    if design == "uniform":
        proposal = torch.full_like(proposal, 1 / len(proposal))
    elif design != "systematic":
        raise SettingsError(f"the outcomes of design {design!r} cannot be enumerated")
    positive = proposal.nonzero()[:, 0]
    if len(positive) <= n:
        ones = torch.ones_like(positive)
        return [(1.0, Draw(positive, ones, ones.to(torch.float64)))]
    if orders is None:
        orders = curve_orders(cells[positive], shape)
    return list(_systematic(proposal, positive, orders, n))


def curve_orders(cells: Tensor, shape: tuple[int, int]) -> dict[Order, float]:
    """Every order in which the random curve can visit cells, with its probability.

    Parameters
    ----------
    cells
        Flat numbers of the cells, shape (K,).
    shape
        Rows and columns of the grid.

    Examples
    --------
    >>> curve_orders(torch.arange(2), (1, 2))
    {(0, 1): 1.0}
    >>> len(curve_orders(torch.arange(4), (2, 2)))  # by rows and by columns
    2
    """
    side = curve_side(shape)
    found = Counter(
        tuple(curve(cells, shape, (row, column), turned=turned).tolist())
        for row, column, turned in itertools.product(range(side), range(side), (False, True))
    )
    return {order: times / found.total() for order, times in found.items()}


def inclusion_of(outcomes: Sequence[tuple[float, Draw]], size: int) -> Tensor:
    """Expected number of draws of each cell, shape (size,), float64, by adding up outcomes.

    Parameters
    ----------
    outcomes
        As :func:`enumerate_draws` gives them.
    size
        Number K of candidate cells.
    """
    expected = torch.zeros(size, dtype=torch.float64)
    for probability, drawn in outcomes:
        expected.index_add_(0, drawn.indices, probability * drawn.counts.to(torch.float64))
    return expected


def _multinomial(proposal: Tensor, n: int) -> Iterator[tuple[float, Draw]]:
    ends = proposal.cumsum(0)
    middles = (ends - proposal / 2) / ends[-1]
    for cells in itertools.product(proposal.nonzero()[:, 0].tolist(), repeat=n):
        yield float(proposal[list(cells)].prod()), multinomial_at(proposal, middles[list(cells)])


def _systematic(
    proposal: Tensor, positive: Tensor, orders: Mapping[Order, float], n: int
) -> Iterator[tuple[float, Draw]]:
    chances = proposal[positive]
    for order, share in orders.items():
        along = torch.tensor(order)
        for low, high in itertools.pairwise(_breakpoints(chances, along, n)):
            middle = torch.tensor((low + high) / 2, dtype=torch.float64)
            drawn = systematic_at(chances, along, n, middle)
            yield share * (high - low), Draw(positive[drawn.indices], drawn.counts, drawn.expected)


def _breakpoints(chances: Tensor, order: Tensor, n: int) -> list[float]:
    """Offsets u at which the outcome changes: where a point u + j passes the end of a cell."""
    ends = inclusion(chances, n)[order].cumsum(0)
    ends = ends * (n / ends[-1])
    return sorted({0.0, 1.0, *(ends % 1).tolist()})
