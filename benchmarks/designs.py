"""Variance of the designs, and time of a draw.

Run ``python -m benchmarks.designs``. The variance is that of the estimate of Phi and of its gradient with
respect to the attention logits, summed over dimensions, for unit features that change smoothly over 48 x 48
cells and normal logits that are independent from cell to cell or change as smoothly; ``multinomial`` divided
by the design, so larger is better. Each number is the geometric mean over several random fields. Times are
medians on one thread of this machine; compare them only with one another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import geometric_mean

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks.report import Rows, command, report
from benchmarks.timing import interleaved
from wsi_ats.nn.expectation import linear, weights
from wsi_ats.nn.sampling import draw

_SIDE, _DIMENSIONS, _REPEATS, _FIELDS = 48, 8, 500, 4
_SMOOTH = 3.0  # standard deviation of the kernel, cells
_DESIGNS = ("uniform", "sequential", "systematic")


def _field(channels: int, smooth: float, rng: np.random.Generator) -> Tensor:
    fields = gaussian_filter(rng.normal(size=(channels, _SIDE, _SIDE)), (0, smooth, smooth), mode="wrap")
    fields /= fields.std(axis=(1, 2), keepdims=True)
    return torch.from_numpy(fields.reshape(channels, -1))


def variances(
    design: str, n: int, spread: float, smooth: float, *, field: int, repeats: int
) -> tuple[float, float]:
    """Return the variance of the estimate, and of its gradient with respect to the logits."""
    rng = np.random.default_rng(field)
    logits = (spread * _field(1, smooth, rng)[0]).requires_grad_()
    features = torch.nn.functional.normalize(_field(_DIMENSIONS, _SMOOTH, rng), dim=0).T.contiguous()
    direction = torch.from_numpy(rng.normal(size=_DIMENSIONS))
    cells, generator = torch.arange(_SIDE**2), torch.Generator().manual_seed(field)
    values, gradients = [], []
    for _ in range(repeats):
        attention = torch.softmax(logits, 0)
        one = draw(design, attention, cells=cells, shape=(_SIDE, _SIDE), n=n, generator=generator)
        value = linear(weights(attention, one), features[one.indices])
        gradients.append(torch.autograd.grad(value @ direction, logits)[0])
        values.append(value.detach())
    return torch.stack(values).var(0).sum().item(), torch.stack(gradients).var(0).sum().item()


def gains(
    design: str, n: int, spread: float, smooth: float, *, repeats: int = _REPEATS
) -> tuple[float, float]:
    """Return the variance of ``multinomial`` over a design's, for the estimate and for its gradient."""
    ratios = []
    for field in range(_FIELDS):
        of = partial(variances, n=n, spread=spread, smooth=smooth, field=field, repeats=repeats)
        ratios.append([a / b for a, b in zip(of("multinomial"), of(design), strict=True)])
    value, gradient = zip(*ratios, strict=True)
    return geometric_mean(value), geometric_mean(gradient)


def one_draw(design: str, cells: int, n: int = 64) -> Callable[[], object]:
    """Return a function that draws."""
    side = int(cells**0.5)
    proposal = torch.softmax(torch.randn(side * side, generator=torch.Generator().manual_seed(0)), 0)
    numbers, generator = torch.arange(side * side), torch.Generator().manual_seed(1)
    return partial(draw, design, proposal, cells=numbers, shape=(side, side), n=n, generator=generator)


def main() -> None:
    """Print both tables and write them to ``designs_*.csv``."""
    options = command(__doc__).parse_args()
    torch.set_num_threads(1)
    rows: Rows = []
    for logits, smooth in (("independent", 0.0), ("smooth", _SMOOTH)):
        for spread in (3.0, 6.0):
            for n in (10, 50):
                for design in _DESIGNS:
                    value, gradient = gains(design, n, spread, smooth)
                    rows.append({"logits": logits, "logit_std": spread, "n": n, "design": design})
                    rows[-1] |= {"value": value, "gradient": gradient}
    report("variance of multinomial / variance of design", "designs_variance", rows, options.out)
    rows = []
    for cells in (10**4, 10**5, 10**6):
        times = interleaved({name: one_draw(name, cells) for name in ("multinomial", *_DESIGNS, "top")}, 9)
        rows += [
            {"cells": cells, "design": name, "milliseconds": 1e3 * each.seconds}
            for name, each in times.items()
        ]
    report("one draw of 64 cells", "designs_draw", rows, options.out)


if __name__ == "__main__":
    main()
