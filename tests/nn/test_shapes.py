"""Tensors have the axes that signatures of the estimator name."""

from __future__ import annotations

import inspect
from typing import get_args, get_type_hints

import pytest
import torch

from wsi_ats.nn import distillation, expectation, supervision
from wsi_ats.nn.sampling import draw

SIZES = {"K": 12, "m": 5, "r": 2, "D": 7, "O": 3}
DRAWN = draw(
    "systematic",
    torch.full((12,), 1 / 12),
    cells=torch.arange(12),
    shape=(3, 4),
    n=5,
    generator=torch.Generator().manual_seed(0),
)
OTHERS = {"drawn": DRAWN, "inner": [torch.ones(2), torch.ones(3)], "classes": True}
FUNCTIONS = [
    each
    for module in (expectation, supervision, distillation)
    for name, each in vars(module).items()
    if inspect.isfunction(each) and each.__module__ == module.__name__ and not name.startswith("_")
]


def shape_of(hint) -> tuple[int, ...] | None:
    """Axes of an annotation, or of the first of a union."""
    axes = [meta for each in (hint, *get_args(hint)) for meta in getattr(each, "__metadata__", ())]
    return tuple(SIZES[axis] for axis in axes[0].split()) if axes else None


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: each.__name__)
def test_results_have_the_shapes_that_annotations_name(function):
    hints = get_type_hints(function, include_extras=True)
    shapes = {name: shape_of(hint) for name, hint in hints.items()}
    given = {
        name: OTHERS[name] if shapes[name] is None else torch.rand(shapes[name]) + 0.1
        for name in inspect.signature(function).parameters
    }
    found = function(**given)
    assert shapes["return"] == (tuple(found.shape) if isinstance(found, torch.Tensor) else None)
