r"""Pool the outputs of several slides into those of their case.

Heads are linear, so the outputs of a weighted mean of slide features are the weighted mean of the outputs:

.. math:: y = \sum_s \omega_s y_s, \qquad \omega = \mathrm{softmax}(\ell)

With all :math:`\ell_s` equal, every slide has the same weight. The alternative is attention over the *union*
of the cells of all slides, of which each slide's draw is a stratum: :math:`\ell_s` is then the logarithm of
the attention mass of slide s before normalisation, :math:`\log \sum_i e^{z_{si}}` over its cells, plus that
of the gate's divisor. With all tiles drawn this is exact. With fewer, the outputs and the divisor are
estimates, but the attention mass of each slide is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pool_slides(outputs: Tensor, log_weight: Tensor, case: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Pool the outputs of slides into those of their cases.

    Parameters
    ----------
    outputs
        Outputs of each slide, shape (B, outputs).
    log_weight
        Logarithm of each slide's weight, up to a constant, shape (B,).
    case
        Number of each slide's case.

    Returns
    -------
    Tensor, shape (C, outputs), and list of int
        Outputs and number of each case that has a slide, in order of first appearance.

    Examples
    --------
    >>> pool_slides(torch.tensor([[0.0], [4.0], [7.0]]), torch.zeros(3), [5, 5, 2])
    (tensor([[2.],
            [7.]]), [5, 2])
    """
    numbers = list(dict.fromkeys(case))
    pooled = []
    for number in numbers:
        own = [place for place, each in enumerate(case) if each == number]
        pooled.append(torch.softmax(log_weight[own], 0).to(outputs.dtype) @ outputs[own])
    return torch.stack(pooled) if pooled else outputs, numbers
