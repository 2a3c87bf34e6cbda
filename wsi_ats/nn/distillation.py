r"""Teaching attention where to look, by a classifier that knows already what to look for.

The classifier has learned from uniform draws. Which draws would have told its output best? A draw in
proportion to a proposal p estimates the pooled feature, and the linear head its outputs z, with a variance
that to first order in the ratio of gated pooling is

.. math:: \frac1n \sum_i \frac{q_i^2 \lVert z_i - z \rVert^2}{p_i}, \qquad q_i \propto a_i e^{h_i},

with :math:`z_i` the outputs of tile i alone and a the attention that the pooling has, here uniform. It is
least for :math:`p_i \propto q_i \lVert z_i - z \rVert` (Cauchy-Schwarz; Kahn & Marshall 1953): a tile is
worth reading as far as it counts and as it differs from the whole. Linear pooling does not divide, and its
tiles are worth as much as they add: :math:`a_i \lVert W f_i \rVert`, the outputs without the head's bias.

That is the target, and the attention network is taught it by cross-entropy, from tiles that were drawn
uniformly. The classifier is fixed meanwhile, so nothing that attention learns comes back to it, and where the
thumbnail tells nothing the best answer is flat. It is the best proposal for the *uniform* pooling that the
classifier learned with. At scoring the attention is in the pooling, too, and what it takes away from tiles
that tell little is bias on purpose (``docs/training.md``).

Of a classifier only differences between classes matter, so :math:`z` is taken relative to its mean over them;
the outputs of other tasks (log-odds of each label, a value, a log-hazard) are taken as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Where no tile differs at all there is nothing to divide by.
_SMALLEST = 1e-20


def influence(
    weight: Tensor, gate: Tensor, outputs: Tensor, *, nothing: Tensor | None = None, classes: bool
) -> Tensor:
    r"""How much each tile counts and differs from the whole: :math:`e^{h_i} \lVert z_i - z \rVert`.

    Parameters
    ----------
    weight
        Weights of the drawn tiles, shape (m,).
    gate
        Their logits h, shape (m,); zeros with linear pooling.
    outputs
        What the classifier says of each tile alone, shape (m, O).
    nothing
        With linear pooling, what it says of a feature of zeros, shape (O,): tiles are compared with that, and
        not with the whole.
    classes
        Whether only differences between outputs matter.

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
    if nothing is not None:
        whole = nothing.detach().double()
        whole = whole - whole.mean() if classes else whole
    each: Tensor = counts * torch.linalg.vector_norm(outputs - whole, dim=1)
    return each / each.max().clamp(min=_SMALLEST)


def target(weight: Tensor, influences: Tensor) -> Tensor:
    """Share of the least-variance draws that each known tile stands for, shape (m,), sums to 1.

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


def distillation(targets: Tensor, log_attention: Tensor) -> Tensor:
    r"""Cross-entropy :math:`-\sum_i t_i \log a_i` between target and attention, shape ().

    Parameters
    ----------
    targets
        See :func:`target`.
    log_attention
        Logarithm of the attention of the same tiles, shape (m,), with gradient; over *all* cells attention
        sums to 1.
    """
    return -(targets.to(log_attention.dtype) * log_attention).sum()
