"""How much the designs differ in variance, and how long a draw takes.

Run ``python -m benchmarks.designs``. The variance is that of the estimate of Phi and of its gradient with
respect to the attention logits, summed over dimensions, for unit features that change smoothly over 48 x 48
cells and normal logits that are independent from cell to cell or change as smoothly; ``multinomial`` divided
by the design, so larger is better. Each figure is the geometric mean over several random fields. Times are
medians of one thread of whatever machine runs this; compare them with each other.
"""

from __future__ import annotations

import time
from statistics import geometric_mean, median

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks.report import report
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
    design: str, n: int, spread: float, smooth: float, *, field: int, repeats: int = _REPEATS
) -> tuple[float, float]:
    """Variance of the estimate, and of its gradient with respect to the logits."""
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
        (gradient,) = torch.autograd.grad(value @ direction, logits)
        values.append(value.detach())
        gradients.append(gradient)
    return (
        torch.stack(values).var(0).sum().item(),
        torch.stack(gradients).var(0).sum().item(),
    )


def gains(
    design: str, n: int, spread: float, smooth: float, *, repeats: int = _REPEATS
) -> tuple[float, float]:
    """Variance of ``multinomial`` over that of a design, for the estimate and for its gradient."""
    ratios = []
    for field in range(_FIELDS):
        reference, other = (
            variances(name, n, spread, smooth, field=field, repeats=repeats)
            for name in ("multinomial", design)
        )
        ratios.append((reference[0] / other[0], reference[1] / other[1]))
    value, gradient = zip(*ratios, strict=True)
    return geometric_mean(value), geometric_mean(gradient)


def milliseconds(design: str, cells: int, *, n: int = 64, repeats: int = 9) -> float:
    """Median time of one draw."""
    side = int(cells**0.5)
    proposal = torch.softmax(torch.randn(side * side, generator=torch.Generator().manual_seed(0)), 0)
    numbers, generator, times = torch.arange(side * side), torch.Generator().manual_seed(1), []
    for _ in range(repeats):
        begin = time.perf_counter()
        draw(design, proposal, cells=numbers, shape=(side, side), n=n, generator=generator)
        times.append(time.perf_counter() - begin)
    return 1e3 * median(times)


def main() -> None:
    """Print both tables and write them to ``results/designs_*.csv``."""
    torch.set_num_threads(1)
    names = ("logits", "logit_std", "n", "design", "value", "gradient")
    rows: dict[str, list[object]] = {name: [] for name in names}
    for logits, smooth in (("independent", 0.0), ("smooth", _SMOOTH)):
        for spread in (3.0, 6.0):
            for n in (10, 50):
                for design in _DESIGNS:
                    row = (logits, spread, n, design, *gains(design, n, spread, smooth))
                    for column, cell in zip(rows.values(), row, strict=True):
                        column.append(cell)
    report("variance of multinomial / variance of design", "designs_variance", rows)
    times: dict[str, list[object]] = {"cells": [], "design": [], "milliseconds": []}
    for cells in (10**4, 10**5, 10**6):
        for design in ("multinomial", *_DESIGNS, "top"):
            row = (cells, design, milliseconds(design, cells))
            for column, cell in zip(times.values(), row, strict=True):
                column.append(cell)
    report("one draw of 64 cells", "designs_draw", times)


if __name__ == "__main__":
    main()
