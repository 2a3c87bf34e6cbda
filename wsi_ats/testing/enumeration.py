"""Every outcome of a sampling design with its probability: expectations without sampling error.

On a few cells a design has few outcomes, so that "unbiased" can be proved to rounding error instead of
estimated from many draws::

    outcomes = enumerate_draws("systematic", proposal, cells=cells, shape=shape, n=3)
    mean = sum(p * estimate(drawn) for p, drawn in outcomes)

A design is a deterministic function of uniform random numbers, and each of its outcomes is the image of a box
of them. Here that function (:func:`~wsi_ats.nn.sampling.multinomial_at`,
:func:`~wsi_ats.nn.sampling.systematic_at`) is called once in the middle of each box, and the box's volume is
the probability, so no part of a design is written a second time. Two parts are independent: the order of
cells along a curve is found by sorting, which also tests the search without sorting, and the probability that
cells are drawn in a certain order comes from the textbook formula.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wsi_ats.errors import SettingsError
from wsi_ats.nn.curve import Curve
from wsi_ats.nn.sampling import (
    Draw,
    draw,
    inclusion_probabilities,
    multinomial_at,
    sequential_at,
    systematic_at,
)


def enumerate_draws(
    design: str, proposal: Tensor, *, cells: Tensor, shape: tuple[int, int], n: int
) -> list[tuple[float, Draw]]:
    """List every outcome of :func:`wsi_ats.nn.sampling.draw` with its probability.

    Parameters
    ----------
    design
        A name in :data:`wsi_ats.nn.sampling.DESIGNS`.
    proposal
        Probability of each candidate cell, shape (K,), sums to 1. The K^n outcomes of ``multinomial``
        must be few, and the K! / (K - n)! of ``sequential``.
    cells
        Flat numbers of the candidates on the grid, shape (K,), ascending.
    shape
        Rows and columns of the grid.
    n
        Number of draws.

    Returns
    -------
    list of (float, Draw)
        Probabilities sum to 1; an outcome may occur more than once.

    Raises
    ------
    SettingsError
        For a design whose outcomes cannot be enumerated.

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
    elif design not in {"sequential", "systematic", "top"}:
        raise SettingsError(f"the outcomes of design {design!r} cannot be enumerated")
    if design == "top" or proposal.count_nonzero() <= n:  # the draw is deterministic
        only = draw(design, proposal, cells=cells, shape=shape, n=n, generator=torch.Generator())
        return [(1.0, only)]
    if design == "sequential":
        return list(_sequential(proposal, n))
    return list(_systematic(proposal, cells, shape, n))


def curves(cells: Tensor, shape: tuple[int, int]) -> dict[tuple[int, ...], tuple[float, Curve]]:
    """Return every order in which the random curve can visit cells.

    Parameters
    ----------
    cells
        Flat numbers of the cells, shape (K,).
    shape
        Rows and columns of the grid.

    Returns
    -------
    dict
        Keys are places in ``cells`` in the order visited; values are the probability of this order, and a
        curve with it.

    Examples
    --------
    >>> len(curves(torch.arange(4), (2, 2)))  # by rows and by columns
    2
    """
    side = Curve.side(shape)
    every = [
        Curve(shape, (row, column), turned)
        for row, column, turned in itertools.product(range(side), range(side), (False, True))
    ]
    orders = [tuple(order_along(cells, curve).tolist()) for curve in every]
    return {
        order: (times / len(every), every[orders.index(order)]) for order, times in Counter(orders).items()
    }


def order_along(cells: Tensor, curve: Curve) -> Tensor:
    """Sort cells along a curve, by their Morton codes; places in ``cells``, shape (K,)."""
    rows, columns = cells // curve.shape[1] + curve.origin[0], cells % curve.shape[1] + curve.origin[1]
    if curve.turned:
        rows, columns = columns, rows
    bits = range(2 * Curve.side(curve.shape).bit_length())
    codes = sum((rows >> bit & 1) << 2 * bit + 1 | (columns >> bit & 1) << 2 * bit for bit in bits)
    return torch.as_tensor(codes).argsort()


def inclusion_of(outcomes: Sequence[tuple[float, Draw]], size: int) -> Tensor:
    """Return the expected number of draws of each cell, shape (size,), float64, summed over outcomes.

    Parameters
    ----------
    outcomes
        Outcomes from :func:`enumerate_draws`.
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


def _sequential(proposal: Tensor, n: int) -> Iterator[tuple[float, Draw]]:
    for cells in itertools.permutations(proposal.nonzero()[:, 0].tolist(), n):
        chance = 1.0
        for place, cell in enumerate(cells):
            left = proposal.clone()
            left[list(cells[:place])] = 0
            chance *= float(proposal[cell] / left.sum())
        yield chance, sequential_at(proposal, torch.tensor(cells))


def _systematic(
    proposal: Tensor, cells: Tensor, shape: tuple[int, int], n: int
) -> Iterator[tuple[float, Draw]]:
    expected, certain = inclusion_probabilities(proposal, n)
    mass = expected.scatter(0, certain, 0.0)
    # Cells of probability 0 have no place in the order, and do not affect the order of the others.
    possible = mass.nonzero()[:, 0]
    for order, (share, curve) in curves(cells[possible], shape).items():
        ends = mass[possible[list(order)]].cumsum(0)
        ends = ends * ((n - len(certain)) / ends[-1])
        # The outcome changes at offsets u where a point u + j passes the end of a cell.
        for low, high in itertools.pairwise(sorted({0.0, 1.0, *(ends % 1).tolist()})):
            middle = torch.tensor((low + high) / 2, dtype=torch.float64)
            yield share * (high - low), systematic_at(proposal, cells, n, curve, middle)
