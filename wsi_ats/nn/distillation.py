r"""Distil attention from a trained classifier: attention learns which tiles determine its output.

The classifier has learned from uniform draws. The target is the proposal whose draws would have estimated
its output best. A draw in proportion to a proposal p estimates the pooled feature, and the linear head its
outputs z, with a variance that, to first order in the ratio of gated pooling, is

.. math:: \frac1n \sum_i \frac{q_i^2 \lVert z_i - z \rVert^2}{p_i}, \qquad q_i \propto a_i e^{h_i},

with :math:`z_i` the outputs of tile i alone and a the attention of the pooling, here uniform. The variance is
least for :math:`p_i \propto q_i \lVert z_i - z \rVert` (Cauchy-Schwarz; Kahn & Marshall 1953): a tile should
be drawn in proportion to its weight times its difference from the whole slide. Linear pooling does not
divide, and its tiles should be drawn in proportion to their summands, :math:`a_i \lVert W f_i \rVert`: the
outputs without the head's bias.

The attention network learns this target by cross-entropy, from uniformly drawn tiles. The classifier is
frozen meanwhile, so attention does not feed back to it, and where the thumbnail carries no information,
uniform attention has the least loss. The target is the best proposal for the *uniform* pooling that the
classifier learned with. At scoring, attention enters the pooling as well, and the weight that it removes from
uninformative tiles is deliberate bias (``docs/explanation/training.md``).

For classes only differences between outputs matter, so :math:`z` is relative to its mean over them. Outputs
of other tasks (log-odds of each label, a value, a log-hazard) are used as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsi_ats.nn.shapes import OfTiles, Outputs, Scalar, TileOutputs

# Avoids 0 / 0 where no tile differs.
_SMALLEST = 1e-20


def influence(
    weight: OfTiles,
    gate: OfTiles,
    outputs: TileOutputs,
    *,
    zero_outputs: Outputs | None = None,
    classes: bool,
) -> OfTiles:
    r"""Return each tile's gate times its difference from the slide: :math:`e^{h_i} \lVert z_i - z \rVert`.

    Parameters
    ----------
    weight
        Weights of the drawn tiles, shape (m,).
    gate
        Gate logits h of the tiles, shape (m,); zeros with linear pooling.
    outputs
        The classifier's outputs of each tile alone, shape (m, O).
    zero_outputs
        The classifier's outputs for a feature of zeros, shape (O,). With linear pooling, tiles are compared
        with these instead of the whole slide.
    classes
        Whether the outputs are logits of classes, of which only differences matter.

    Returns
    -------
    Tensor, shape (m,), float64
        The largest is 1; zeros where no tile differs.

    Examples
    --------
    >>> weight, outputs = torch.full((4,), 0.25), torch.tensor([[0.0], [0.0], [0.0], [4.0]])
    >>> influence(weight, torch.zeros(4), outputs, classes=False).tolist()
    [0.3333333333333333, 0.3333333333333333, 0.3333333333333333, 1.0]
    """
    weight, gate, outputs = (each.detach().double() for each in (weight, gate, outputs))
    if classes:
        outputs = outputs - outputs.mean(1, keepdim=True)
    counts = (gate - gate.max()).exp()
    share = weight * counts
    whole = share @ outputs / share.sum()
    if zero_outputs is not None:
        whole = zero_outputs.detach().double()
        whole = whole - whole.mean() if classes else whole
    each: Tensor = counts * torch.linalg.vector_norm(outputs - whole, dim=1)
    return each / each.max().clamp(min=_SMALLEST)


def target(weight: OfTiles, influences: OfTiles) -> OfTiles:
    """Return the share of the least-variance draws that each tile represents, shape (m,), sums to 1.

    Parameters
    ----------
    weight
        Weights of the drawn tiles, shape (m,).
    influences
        See :func:`influence`. Where no tile differs from the others, each gets its weight's share.
    """
    share = weight.detach().double() * influences
    total = share.sum()
    return share / total if total > 0 else weight.detach().double() / weight.detach().double().sum()


def distillation(targets: OfTiles, log_attention: OfTiles) -> Scalar:
    r"""Return the cross-entropy :math:`-\sum_i t_i \log a_i` between target and attention, shape ().

    Parameters
    ----------
    targets
        See :func:`target`.
    log_attention
        Logarithm of the attention of the same tiles, shape (m,), with gradient; over *all* cells attention
        sums to 1.
    """
    return -(targets.to(log_attention.dtype) * log_attention).sum()
