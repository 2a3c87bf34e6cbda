r"""The estimator of a slide's feature from drawn tiles.

The model is the soft attention over all K cells,

.. math:: \Phi = \sum_i a_i f_i,

and only n << K tiles are read. One rule makes every design differentiable (Katharopoulos & Fleuret
2019, generalised by Horvitz & Thompson 1952 and Hansen & Hurwitz 1943): with ``pi_i`` the expected
number of draws of cell i, computed without gradient,

.. math:: W_i = a_i / \mathrm{stopgrad}(\pi_i), \qquad \hat\Phi = \sum_{i \in S} W_i f_i,

so that ``E[W_i * draws_i] = a_i``, and plain autograd is unbiased for Phi, for its gradient with respect
to the features and for its gradient with respect to the attention. Everything *not* linear in Phi
(the head, the loss and :func:`gated`) is biased by its curvature; this bias falls with the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsi_ats.nn.sampling import Draw
from wsi_ats.nn.shapes import CellFeatures, Feature, OfCells, OfRegions, OfTiles, Scalar, TileFeatures

# If tiles are not drawn by attention, the attention of all drawn tiles may have underflowed to zero. They
# then weigh the same, because 0 / 0 is undefined. This is small compared with any weight that matters, and
# its reciprocal fits in float32.
_SMALLEST = 1e-20


def weights(attention: OfCells, drawn: Draw) -> OfTiles:
    """Return the weight of each drawn tile: ``draws * a / stop_gradient(pi)``.

    Parameters
    ----------
    attention
        Attention over all candidate cells, shape (K,), sums to 1, with gradient. The cells may come from any
        proposal with the same support; the estimate is unbiased.
    drawn
        The draw.

    Examples
    --------
    >>> from wsi_ats.nn.sampling import multinomial
    >>> a = torch.tensor([0.25, 0.75], dtype=torch.float64)
    >>> one = multinomial(a, (1, 2), torch.arange(2), 8, torch.Generator().manual_seed(0))
    >>> round(weights(a, one).sum().item(), 12)
    1.0
    """
    share = (drawn.counts / drawn.inclusion).detach()
    return attention[drawn.indices] * share.to(attention.dtype)


def joint(outer: OfRegions, inner: Sequence[Tensor]) -> OfTiles:
    r"""Return the weights of two-level sampling: :math:`(A_t / \Pi_t) (B_{s|t} / \pi_{s|t})`.

    Regions t are drawn by an attention A over all regions, and cells s in each region drawn by an attention
    :math:`B_{\cdot|t}` over the cells of this region alone. The inner weights are unbiased for B given the
    regions, and the outer weights are unbiased for A, so their product is unbiased for
    :math:`\sum_t A_t \sum_s B_{s|t} f_{ts}`, in value and gradients.

    Parameters
    ----------
    outer
        Weight of each region drawn, shape (r,).
    inner
        Weights of the cells drawn in each of these regions, shape (m_t,); the m_t sum to m.
    """
    return torch.cat([weight * within for weight, within in zip(outer, inner, strict=True)])


def linear(weight: OfTiles, features: TileFeatures) -> Feature:
    r"""Estimate :math:`\sum_i a_i f_i` without bias.

    Parameters
    ----------
    weight
        Weights of the drawn tiles, shape (m,).
    features
        Features of the tiles, shape (m, D).
    """
    return weight.to(features.dtype) @ features


def gated(weight: OfTiles, features: TileFeatures, gate: OfTiles) -> Feature:
    r"""Estimate :math:`\sum_i a_i e^{h_i} f_i / \sum_i a_i e^{h_i}`: a gate adjusts the weight of each tile.

    The limit is the attention pooling of Ilse et al. (2018) with the thumbnail's attention as a prior. As a
    ratio of two unbiased estimates, it is consistent, with a bias that falls as 1/n.

    Parameters
    ----------
    weight
        Weights of the drawn tiles, shape (m,).
    features
        Features of the tiles, shape (m, D).
    gate
        Gate logits h of the tiles, shape (m,).
    """
    # Half precision is not enough for a ratio of sums, nor for the smallest weight.
    wide = torch.promote_types(features.dtype, torch.float32)
    scaled = _gated_share(weight.to(wide), gate)
    return (scaled @ features.to(wide) / scaled.sum()).to(features.dtype)


def _gated_share(weight: OfTiles, gate: OfTiles) -> OfTiles:
    # Dividing both sums of the ratio by the largest e^h keeps them finite and their ratio the same.
    return weight.clamp(min=_SMALLEST) * (gate - gate.max().detach()).to(weight.dtype).exp()


def exact(attention: OfCells, features: CellFeatures, gate: OfCells | None = None) -> Feature:
    """Pool all tiles by attention: the limit of the estimates.

    Parameters
    ----------
    attention
        Shape (K,), sums to 1.
    features
        Shape (K, D).
    gate
        Shape (K,), for :func:`gated` pooling.
    """
    if gate is None:
        return linear(attention, features)
    return gated(attention, features, gate)


def effective_size(weight: OfTiles) -> float:
    """Return the effective sample size (Kong 1992): the number of equal-weight tiles of the same variance.

    It is the number of tiles if they were drawn from the attention that weighs them and none was drawn for
    certain. It falls as attention changes after the draw.

    Parameters
    ----------
    weight
        Weights of the drawn tiles, shape (m,).

    Examples
    --------
    >>> effective_size(torch.tensor([0.5, 0.5])), effective_size(torch.tensor([1.0, 0.0]))
    (2.0, 1.0)
    """
    wide = weight.detach().double()
    # Attention may have moved away from all of them.
    return float(wide.sum() ** 2 / wide.square().sum()) if wide.any() else 0.0


def entropy(attention: OfCells) -> Scalar:
    """Return the entropy of a distribution in nats, with 0 log 0 = 0 and finite gradients there.

    Parameters
    ----------
    attention
        Shape (K,), sums to 1.
    """
    positive = attention > 0
    # The inner `where` keeps log(0) out of the backward pass, where 0 * inf would be NaN.
    logs = torch.where(positive, attention, 1).log()
    return -(attention * logs).sum()


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
    share
        Function from weights (m,) and gate logits (m,) to a number (m,) for each tile. The estimate is the
        sum of the features times these numbers, divided by the sum of the numbers if it divides.
    log_mass
        Function from weights (m,) and gate logits (m,) to the logarithm of the estimate's divisor, shape ():
        the weight of a slide among those of its case.
    """

    gated: bool
    estimate: Callable[[Tensor, Tensor, Tensor], Tensor]
    divides: bool
    share: Callable[[Tensor, Tensor], Tensor]
    log_mass: Callable[[Tensor, Tensor], Tensor]

    def estimate_without(self, weights: Tensor, features: Tensor, gate: Tensor, group: Tensor) -> Tensor:
        """Estimate the slide's feature without each group of tiles in turn.

        Parameters
        ----------
        weights, features, gate
            Weights (m,), features (m, D) and gate logits (m,) of drawn tiles.
        group
            Number of each tile's group, from 0 to G - 1, int64, shape (m,); each group has a tile.

        Returns
        -------
        Tensor, shape (G, D), float64
            NaN where no tile remains and the estimate divides.

        Examples
        --------
        >>> weights, features = torch.tensor([0.5, 0.5, 1.0]), torch.tensor([[1.0], [2.0], [4.0]])
        >>> without = POOLINGS["linear"].estimate_without
        >>> without(weights, features, torch.zeros(3), torch.tensor([0, 0, 1])).tolist()
        [[4.0], [1.5]]
        """
        share = self.share(weights.double(), gate.double())
        groups = int(group.max()) + 1
        sums = share.new_zeros(groups, features.shape[1] + 1)
        sums.index_add_(
            0, group, torch.cat([features.double(), torch.ones_like(share)[:, None]], 1) * share[:, None]
        )
        # Sums of the groups before and after each: a difference would lose the digits of a small rest.
        none = torch.zeros_like(sums[:1])
        before = torch.cat([none, sums[:-1].cumsum(0)])
        after = torch.cat([sums[1:].flip(0).cumsum(0).flip(0), none])
        rest = before + after
        return rest[:, :-1] / rest[:, -1:] if self.divides else rest[:, :-1]


def _log_divisor(weights: Tensor, gate_logits: Tensor) -> Tensor:
    gate = gate_logits.to(weights.dtype)
    return torch.logsumexp(weights.clamp(min=torch.finfo(weights.dtype).tiny).log() + gate, 0)


POOLINGS: Mapping[str, Pooling] = {
    "linear": Pooling(
        gated=False,
        estimate=lambda weights, features, _: linear(weights, features),
        divides=False,
        share=lambda weights, _: weights,
        log_mass=lambda weights, _: weights.new_zeros(()),
    ),
    "gated": Pooling(gated=True, estimate=gated, divides=True, share=_gated_share, log_mass=_log_divisor),
}
"""Poolings by their name in ``model.pool``."""
