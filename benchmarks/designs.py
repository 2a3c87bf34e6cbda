"""How much the designs differ in variance, and how long a draw takes.

Run ``python -m benchmarks.designs``. The variance is that of the estimate of Phi and of its gradient with
respect to the attention logits, summed over dimensions, for spatially smooth attention and features on 48
x 48 cells; ``multinomial`` divided by the design, so larger is better. Times are medians of one process on
whatever machine runs this; compare them with each other.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter
from torch import Tensor

from wsi_ats.nn.expectation import linear, weights
from wsi_ats.nn.sampling import draw
from wsi_ats.tables import write_csv

_SIDE, _DIMENSIONS, _REPEATS = 48, 8, 2000
_DESIGNS = ("multinomial", "uniform", "sequential", "systematic")


def _smooth(channels: int, rng: np.random.Generator) -> Tensor:
    fields = gaussian_filter(rng.normal(size=(channels, _SIDE, _SIDE)), (0, 3, 3), mode="wrap")
    fields /= fields.std(axis=(1, 2), keepdims=True)
    return torch.from_numpy(fields.reshape(channels, -1))


def variances(design: str, n: int, spread: float, *, repeats: int = _REPEATS) -> tuple[float, float]:
    """Variance of the estimate, and of its gradient with respect to the logits."""
    rng = np.random.default_rng(0)
    logits = (spread * _smooth(1, rng)[0]).requires_grad_()
    features = torch.nn.functional.normalize(_smooth(_DIMENSIONS, rng), dim=0).T.contiguous()
    direction = torch.from_numpy(rng.normal(size=_DIMENSIONS))
    cells, generator = torch.arange(_SIDE**2), torch.Generator().manual_seed(1)
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
    rows: dict[str, list[object]] = {name: [] for name in ("n", "logit_std", "design", "value", "gradient")}
    for n in (10, 50):
        for spread in (3.0, 6.0):
            reference = variances("multinomial", n, spread)
            for design in _DESIGNS:
                value, gradient = variances(design, n, spread)
                row = (n, spread, design, reference[0] / value, reference[1] / gradient)
                for column, cell in zip(rows.values(), row, strict=True):
                    column.append(cell)
    _report("variance of multinomial / variance of design", "variance", rows)
    times: dict[str, list[object]] = {"cells": [], "design": [], "milliseconds": []}
    for cells in (10**4, 10**5, 10**6):
        for design in _DESIGNS:
            for column, cell in zip(
                times.values(), (cells, design, milliseconds(design, cells)), strict=True
            ):
                column.append(cell)
    _report("one draw of 64 cells", "draw", times)


def _report(title: str, name: str, columns: dict[str, list[object]]) -> None:
    table = Table(*columns, title=title)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)
    folder = Path("results")
    folder.mkdir(exist_ok=True)
    write_csv(folder / f"designs_{name}.csv", columns)


if __name__ == "__main__":
    main()
