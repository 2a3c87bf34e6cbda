"""Sampling designs: draw the cells to read.

A design draws cells and returns the divisor of their attention, the inclusion ``pi_i = E[number of times i is
drawn]``. The estimate from the tiles is the same for every design (:mod:`wsi_ats.nn.expectation`). Nothing
here carries a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from wsi_ats.errors import SettingsError
from wsi_ats.nn.curve import Curve, locate

# A cell whose pi is within this of 1 is drawn for certain: the points of a systematic draw lie 1 apart, and
# the rounding of their places, about n * 2^-50, could otherwise put two of them into it.
_NEARLY_CERTAIN = 1e-10


@dataclass(frozen=True, slots=True)
class Draw:
    """Outcome of one draw.

    Parameters
    ----------
    indices
        The distinct cells drawn, in the order of the draw, shape (m,), m <= n, int64.
    counts
        Number of draws of each, shape (m,), int64.
    inclusion
        Expected number of draws of each (pi), shape (m,), float64. For ``sequential``
        the number that replaces it, which depends on the cells drawn before; see :func:`sequential_at`.
    """

    indices: Tensor
    counts: Tensor
    inclusion: Tensor

    def to(self, device: torch.device) -> Draw:
        """Copy to a device."""
        return Draw(self.indices.to(device), self.counts.to(device), self.inclusion.to(device))


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
        Probability of each candidate cell, shape (K,), sums to 1; usually the attention. Only ``uniform``
        draws cells of probability zero.
    cells
        Flat numbers of the candidates on the grid, shape (K,), ascending: designs may spread a draw in
        space.
    shape
        Rows and columns of the grid.
    n
        Number of draws. If no more than ``n`` cells have a positive probability, all designs but
        ``multinomial`` take them all.
    generator
        Source of randomness, on the CPU: the same seed draws the same cells on any device.

    Returns
    -------
    Draw
        The draw, with indices into ``proposal``, on its device.

    Raises
    ------
    SettingsError
        For an unknown design, ``n < 1``, a proposal that is not a distribution, or cells that are not
        ascending numbers of the grid.

    Examples
    --------
    >>> cells = torch.arange(6)
    >>> one = draw("systematic", torch.full((6,), 1 / 6), cells=cells, shape=(2, 3), n=3,
    ...            generator=torch.Generator().manual_seed(0))
    >>> one.counts.tolist(), one.inclusion.tolist()
    ([1, 1, 1], [0.5, 0.5, 0.5])
    """
    if design not in DESIGNS:
        raise SettingsError(f"unknown design {design!r}; choose one of {', '.join(DESIGNS)}")
    if n < 1:
        raise SettingsError(f"at least one tile must be drawn, not {n}")
    if proposal.ndim != 1 or proposal.shape != cells.shape:
        raise SettingsError(
            f"a proposal needs one probability for each cell, but has shape {tuple(proposal.shape)} for "
            f"cells of shape {tuple(cells.shape)}"
        )
    probabilities = proposal.detach().to(torch.float64)
    total = probabilities.sum().item()
    if not (math.isfinite(total) and total > 0 and probabilities.min().item() >= 0):
        raise SettingsError(
            f"a proposal over {proposal.numel()} cells is not a distribution: its sum is {total}"
        )
    size = shape[0] * shape[1]
    if not (min(shape) > 0 and cells[0] >= 0 and cells[-1] < size and bool((cells[1:] > cells[:-1]).all())):
        raise SettingsError(f"cells must be ascending numbers of a grid of {shape[0]} x {shape[1]} cells")
    return DESIGNS[design](probabilities / total, shape, cells.contiguous(), n, generator)


def explore(attention: Tensor, share: float) -> Tensor:
    """Return a proposal with a share of uniform draws: ``(1 - share) a + share / K``.

    Weights stay unbiased, see :func:`wsi_ats.nn.expectation.weights`, but their sum is no longer exactly 1.

    Parameters
    ----------
    attention
        Shape (K,), sums to 1; cells of attention zero are explored as well.
    share
        Share of uniform draws, in [0, 1].

    Raises
    ------
    SettingsError
        For a share outside [0, 1], or if there are no candidates.
    """
    if not 0 <= share <= 1:
        raise SettingsError(f"the share of exploration must be in [0, 1], not {share}")
    if not len(attention):
        raise SettingsError("there are no candidates to explore")
    return (1 - share) * attention.detach() + share / len(attention)


def multinomial(
    proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator
) -> Draw:
    """Draw ``n`` times with replacement: ``pi = n q``, the paper's first design; see :func:`draw`."""
    del shape, cells
    points = torch.rand(n, generator=generator, dtype=torch.float64)
    return multinomial_at(proposal, points.to(proposal.device))


def multinomial_at(proposal: Tensor, points: Tensor) -> Draw:
    """Return the draw for given random points: :func:`multinomial` without its randomness.

    Parameters
    ----------
    proposal
        Probabilities, shape (K,), float64.
    points
        Random points in [0, 1), shape (n,), float64.
    """
    n = len(points)
    ends = proposal.cumsum(0)
    # A point that is rounded to the very end belongs to the last cell of positive probability.
    last = proposal.nonzero()[-1, 0]
    drawn = torch.searchsorted(ends, points * ends[-1], right=True).clamp(max=last)
    indices, inverse, counts = torch.unique(drawn, return_inverse=True, return_counts=True)
    first = torch.full_like(indices, n).scatter_reduce(
        0, inverse, torch.arange(n, device=indices.device), "amin"
    )
    order = first.argsort()
    indices, counts = indices[order], counts[order]
    return Draw(indices, counts, n * proposal[indices])


def sequential(
    proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator
) -> Draw:
    """Draw ``n`` distinct cells, one after the other, without replacement: the paper's second design.

    The cells are the ``n`` largest of ``log q`` plus Gumbel noise (Kool et al. 2019). See :func:`draw`.
    """
    del shape, cells
    if _possible(proposal) <= n:
        return _take_all(proposal)
    points = torch.rand(len(proposal), generator=generator, dtype=torch.float64)
    # A point of exactly 0 would give infinite noise, and NaN at a cell of probability zero.
    noise = -points.clamp(min=torch.finfo(torch.float64).tiny).log().neg().log()
    return sequential_at(proposal, (proposal.log() + noise.to(proposal.device)).topk(n).indices)


def sequential_at(proposal: Tensor, indices: Tensor) -> Draw:
    r"""Return the sequential draw of given cells in a given order.

    The expected number of draws of a cell has no closed form. Instead, after each draw, the cells so far plus
    the new one divided by its conditional probability estimate the sum without bias, and so does the mean of
    these estimates (Des Raj 1956), in which the k-th cell of n, k = 0 ... n-1, is divided by

    .. math:: \pi_k = \frac{n}{m_k / q_k + n - 1 - k}, \qquad m_k = 1 - \sum_{j<k} q_j.

    Parameters
    ----------
    proposal
        Probabilities, shape (K,), float64.
    indices
        The cells in the order drawn, shape (n,).
    """
    n, q = len(indices), proposal[indices]
    # Added up from the small end, because 1 - (sum of the large ones) would cancel.
    left = proposal.scatter(0, indices, 0.0).sum() + q.flip(0).cumsum(0).flip(0)
    later = torch.arange(n - 1, -1, -1, device=q.device)
    return Draw(indices, torch.ones_like(indices), n * q / (left + later * q))


def systematic(
    proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator
) -> Draw:
    """Draw ``n`` distinct cells spread in space: ``pi = min(1, c q)``, ``sum pi = n``.

    The threshold is that of Fearnhead & Clifford (2003); the draw is Madow's (1949) systematic one along a
    Z-order curve with random origin and orientation. With a fixed curve, the same cells would be drawn
    together each time, which biases learning through a non-linear loss. See :func:`draw`.
    """
    if _possible(proposal) <= n:
        return _take_all(proposal)
    curve = Curve.random(shape, generator)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    return systematic_at(proposal, cells, n, curve, offset.to(proposal.device))


def systematic_at(proposal: Tensor, cells: Tensor, n: int, curve: Curve, offset: Tensor) -> Draw:
    """Return the draw along a given curve from a given offset: :func:`systematic` without its randomness.

    Cells that are drawn for certain come first. Removing them from the curve does not change the rest: each
    is exactly as long as the distance between points, so it holds one point and shifts the others by one.

    Parameters
    ----------
    proposal
        Probabilities, more than ``n`` of them positive, shape (K,), float64.
    cells
        Flat numbers of the cells, shape (K,), ascending.
    n
        Number of draws.
    curve
        The order of the cells.
    offset
        Offset of the points, in [0, 1), float64, shape ().
    """
    inclusion, certain = inclusion_probabilities(proposal, n)
    mass = inclusion.new_zeros(curve.shape[0] * curve.shape[1])
    mass.scatter_(0, cells, inclusion.scatter(0, certain, 0.0))
    others = n - len(certain)
    places = (torch.arange(others, device=mass.device) + offset) / others
    found = torch.searchsorted(cells, locate(mass.view(curve.shape), curve, places))
    indices = torch.cat([certain, found])
    return Draw(indices, torch.ones_like(indices), inclusion[indices])


def uniform(
    proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator
) -> Draw:
    """Draw ``n`` distinct cells with equal probability, whatever the proposal: the baseline.

    Cells of probability zero are drawn as well, with weight 0: attention that is zero in most places must not
    influence a baseline that ignores it. See :func:`draw`.
    """
    return systematic(torch.full_like(proposal, 1 / len(proposal)), shape, cells, n, generator)


def top(proposal: Tensor, shape: tuple[int, int], cells: Tensor, n: int, generator: torch.Generator) -> Draw:
    """Take the ``n`` most probable cells: **biased**, for comparison at scoring only.

    ``pi`` is their share of the proposal, so that weights sum to 1. See :func:`draw`.
    """
    del shape, cells, generator
    largest = proposal.topk(min(n, _possible(proposal)))
    counts = torch.ones_like(largest.indices)
    return Draw(largest.indices, counts, largest.values.sum().expand(len(counts)).clone())


DESIGNS: Mapping[str, Design] = MappingProxyType(
    {
        "multinomial": multinomial,
        "sequential": sequential,
        "systematic": systematic,
        "uniform": uniform,
        "top": top,
    }
)
BIASED = frozenset({"top"})
"""Designs that favour some cells without correcting for it; they must not be used in training."""


def inclusion_probabilities(proposal: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return inclusion probabilities ``min(1, c q)`` that sum to ``n`` (Fearnhead & Clifford 2003).

    Parameters
    ----------
    proposal
        Probabilities, more than ``n`` of them positive, shape (K,), float64.
    n
        Number of draws.

    Returns
    -------
    inclusion : Tensor, shape (K,)
        The inclusion probabilities, float64.
    certain : Tensor, shape (k,), k < n
        Cells of inclusion probability 1, the most probable first, int64. Those within 1e-10 of it are
        rounded up, and the others adjusted: probabilities still sum to ``n``.
    """
    largest = proposal.topk(n)  # only the n largest can be certain: no sort of K is needed
    tail = proposal.scatter(0, largest.indices, 0.0).sum()
    # The probability of the others once the k largest are certain, k = 0 .. n-1; summed from the small end,
    # because 1 - (sum of the large ones) would cancel.
    rest = tail + largest.values.flip(0).cumsum(0).flip(0)
    draws_left = torch.arange(n, 0, -1, device=proposal.device)
    passing = (draws_left * largest.values > rest * (1 - _NEARLY_CERTAIN)).cumprod(0)
    count = min(int(passing.sum()), n - 1)  # the last draw may always fall elsewhere
    # Divided first: the inverse of a tiny rest may be infinite.
    inclusion = (proposal / rest[count] * draws_left[count]).clamp(max=1)
    certain = largest.indices[:count]
    return inclusion.scatter(0, certain, 1.0), certain


def _possible(proposal: Tensor) -> int:
    return int(proposal.count_nonzero())


def _take_all(proposal: Tensor) -> Draw:
    positive = proposal.nonzero()[:, 0]
    ones = torch.ones_like(positive)
    return Draw(positive, ones, ones.to(torch.float64))
