r"""Calibrate outputs by a scale and a shift, fitted on held-out slides.

A network that classifies all its training slides correctly becomes more and more confident. It then scores
slides of other patients with the confidence and the decision boundary of the training slides: their ranking
stays right, but their probabilities are wrong. Platt (1999) corrects them by two numbers, fitted on held-out
slides,

.. math:: z \mapsto t z + b,

with one b for each output, and one t for all classes (Guo et al. 2017) or one for each label or value. They
minimise the task's loss on these slides, with a weak prior around the identity: the slides may be few, and
may all be classified correctly too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Standard deviations of the logarithm of the scale, and of the shift in outputs: the confidence may well
# be wrong by a factor of ten, but few boundaries are off by more than three in log-odds.
_SCALE, _SHIFT = 2.0, 3.0

_STEPS = 100


class Calibration(NamedTuple):
    """Scale and shift of outputs.

    Parameters
    ----------
    scale
        Shape (1,) or (O,), positive.
    shift
        Shape (O,).
    """

    scale: Tensor
    shift: Tensor

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the calibrated outputs (..., O)."""
        return outputs * self.scale.to(outputs) + self.shift.to(outputs)

    @torch.no_grad()
    def into(self, head: nn.Linear) -> None:
        """Fold the calibration into the weights of a ``head``."""
        head.weight.mul_(self.scale.to(head.weight)[:, None])
        head.bias.copy_(self(head.bias))


def calibration(outputs: Tensor, loss: Callable[[Tensor], Tensor], *, classes: bool) -> Calibration:
    """Find the scale and shift of outputs that minimise a loss.

    Parameters
    ----------
    outputs
        Outputs of N slides, or cases, from each of R draws, shape (R, N, O).
    loss
        Function from the outputs (N, O) of one draw to the mean loss of the slides, shape ().
    classes
        Whether the outputs are logits of classes, which share one scale.

    Examples
    --------
    >>> outputs = torch.tensor([[[5.0], [1.0], [4.0], [0.0]]])  # ranked correctly, but all too high
    >>> labels = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    >>> found = calibration(
    ...     outputs, lambda z: nn.functional.binary_cross_entropy_with_logits(z, labels.to(z)), classes=False
    ... )
    >>> (found(outputs)[0, :, 0] > 0).tolist()
    [True, False, True, False]
    """
    given = outputs.detach().double().cpu()
    slides, width = given.shape[1:]
    log_scale = torch.zeros(1 if classes else width, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, shift], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        prior = (log_scale / _SCALE).square().sum() + (shift / _SHIFT).square().sum()
        changed = given * log_scale.exp() + shift
        total = torch.stack([loss(each) for each in changed]).mean() + prior / (2 * slides)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return Calibration(log_scale.detach().exp(), shift.detach())
