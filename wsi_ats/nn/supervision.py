r"""Supervise attention by the drawn tiles.

The gradient of the slide's loss reaches attention through the weights of a few tiles, and it is noise until
the classifier has learned something. Attention that learns from noise drifts towards the tiles that it
already favours. This module is a second path from the slide's label to attention, with zero gradient until
some drawn tile explains the label better than the others.

Assume that one unknown tile explains the slide's label, and that attention is its *prior*: tile i with
probability :math:`a_i`. A tile that was read explains the label with likelihood
:math:`e^{h_i} e^{-\beta l_i}`: its gate, and the loss :math:`l_i` of the classifier on its feature alone. The
posterior over all cells, and its self-normalised importance estimate from the drawn ones
(:math:`W_i = a_i / \pi_i`, see :mod:`wsi_ats.nn.expectation`), are

.. math:: r_i = \frac{a_i e^{h_i - \beta l_i}}{\sum_j a_j e^{h_j - \beta l_j}} \approx
          \frac{W_i e^{h_i - \beta l_i}}{\sum_{j \in S} W_j e^{h_j - \beta l_j}}.

Estimating it is the E step of expectation maximisation (Dempster et al. 1977). The M step, which the
attention network takes for all slides together, lowers the cross-entropy :math:`-\sum_i r_i \log a_i`.
Because :math:`\sum_i a_i \nabla \log a_i = 0`, a multiple of that sum can be subtracted. With
:math:`w_i = W_i / \sum_S W_j`, :func:`attention_supervision` returns

.. math:: -\sum_{i \in S} (r_i - w_i) \log a_i, \qquad r, w \text{ held constant.}

Related work: this is the score function estimator (Williams 1992) with reward :math:`r_i / w_i` and baseline
1; the mixture of tiles is the "one witness" of multiple instance learning (Maron & Lozano-Pérez 1998), and
learning a proposal from the posterior of its samples is the amortised proposal of reweighted wake-sleep
(Bornschein & Bengio 2015). If all cells are read, the gradient is that of the mixture's negative
log-likelihood :math:`-\log \sum_i a_i e^{h_i - \beta l_i}` (Fisher's identity). With fewer, the
ratio biases it by the order of 1/n, unlike the estimate of the slide's feature. That bias changes the draws,
not the estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsi_ats.nn.shapes import OfTiles, Scalar

# If tiles are not drawn by attention, the attention of some may have underflowed to zero. Their weight is
# then negligible. This is small compared with any weight that matters, and its reciprocal fits in float32.
_SMALLEST = 1e-20


def posterior(weight: OfTiles, gate: OfTiles, evidence: OfTiles) -> OfTiles:
    r"""Return the posterior probability that each drawn tile explains the label; it sums to 1.

    It carries no gradient.

    Parameters
    ----------
    weight
        Weights of the drawn tiles, not negative, shape (m,); if all cells are drawn, their attention.
    gate
        Gate logits h of the tiles, shape (m,); zeros with linear pooling.
    evidence
        Log-likelihood of the label given the tile, up to a constant, shape (m,): minus the loss of the
        classifier on the tile's feature alone, times :math:`\beta`.

    Examples
    --------
    >>> evidence = torch.tensor([1.0, 1.0, 4.0]).log()  # the third tile is four times as likely
    >>> found = posterior(torch.tensor([0.5, 0.25, 0.25]), torch.zeros(3), evidence)
    >>> [round(each, 3) for each in found.tolist()]
    [0.286, 0.143, 0.571]
    """
    # Half precision is not enough for the smallest weight.
    wide = torch.promote_types(weight.dtype, torch.float32)
    likelihood = (gate.to(wide) + evidence.to(wide)).detach()
    # If all are equal, subtracting the largest leaves zeros, and the result is exactly the weights' share.
    return torch.softmax(_logarithm(weight.detach().to(wide)) + (likelihood - likelihood.max()), dim=0)


def attention_supervision(weight: OfTiles, attention: OfTiles, gate: OfTiles, evidence: OfTiles) -> Scalar:
    r"""Return a loss whose gradient moves attention to tiles with a posterior above their prior.

    Its value has no meaning. Its gradient reaches only attention, and is exactly zero while all drawn tiles
    explain the label equally well.

    Parameters
    ----------
    weight, gate, evidence
        See :func:`posterior`.
    attention
        Attention of the drawn tiles, shape (m,), with gradient.

    Examples
    --------
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> attention = torch.softmax(logits, 0)
    >>> evidence = torch.tensor([1.0, 1.0, 1.0, 4.0]).log()
    >>> attention_supervision(attention, attention, torch.zeros(4), evidence).backward()
    >>> [round(each, 3) for each in (-logits.grad).tolist()]  # posterior minus attention
    [-0.107, -0.107, -0.107, 0.321]
    """
    surprise = posterior(weight, gate, evidence) - posterior(
        weight, torch.zeros_like(gate), torch.zeros_like(gate)
    )
    return -(surprise * _logarithm(attention.to(surprise.dtype))).sum()


def _logarithm(weight: Tensor) -> Tensor:
    return weight.clamp(min=_SMALLEST).log()
