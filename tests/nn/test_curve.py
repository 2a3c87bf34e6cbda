"""Places along the curve are found without a sort: against an oracle that sorts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ats.nn.curve import Curve, locate
from wsi_ats.testing.enumeration import curves, order_along

SHAPES = [(1, 1), (1, 2), (1, 7), (7, 1), (2, 2), (5, 6), (8, 8), (3, 17)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def along(mass: torch.Tensor, curve: Curve) -> list[int]:
    """Cells with mass in the order of the curve, each found by a place in its middle."""
    order = order_along(torch.arange(mass.numel()), curve)
    shares = mass.flatten()[order] / mass.sum()
    middles = (shares.cumsum(0) - shares / 2)[shares > 0]
    return locate(mass, curve, middles).tolist()


@settings(max_examples=150)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 10**6),
    st.floats(0, 0.95),
    st.booleans(),
)
def test_every_cell_with_mass_lies_where_sorting_puts_it(shape, seed, empty, turned):
    generator = seeded(seed)
    mass = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.01
    mass[torch.rand(shape, generator=generator) < empty] = 0
    mass[-1, 0] = 1
    side = Curve.side(shape)
    curve = Curve(shape, tuple(torch.randint(side, (2,), generator=generator).tolist()), turned)
    order = order_along(torch.arange(mass.numel()), curve)
    assert along(mass, curve) == order[mass.flatten()[order] > 0].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_curve_visits_every_cell_once(shape):
    cells = torch.arange(shape[0] * shape[1])
    found = curves(cells, shape)
    assert sum(share for share, _ in found.values()) == pytest.approx(1)
    for order, (_, curve) in found.items():
        assert sorted(order) == cells.tolist()
        assert tuple(along(torch.ones(shape, dtype=torch.float64), curve)) == order


def test_the_curve_keeps_neighbours_together():
    """Four cells of an aligned square follow one another, whichever way it runs."""
    for turned in (False, True):
        order = torch.tensor(along(torch.ones(8, 8, dtype=torch.float64), Curve((8, 8), turned=turned)))
        for start in range(0, 64, 4):
            rows, columns = order[start : start + 4] // 8, order[start : start + 4] % 8
            assert rows.max() - rows.min() == columns.max() - columns.min() == 1


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.floats(-300, 0), st.sampled_from([0.0, 5e-324, 2.0**-53, 0.5, 1 - 2.0**-53]))
def test_no_position_maps_to_a_cell_without_mass(seed, smallest, place):
    """Masses from 1e-300 to 1 side by side, most cells empty, places on every edge."""
    generator = seeded(seed)
    mass = 10 ** (smallest * torch.rand(9, 13, generator=generator, dtype=torch.float64))
    mass[torch.rand(9, 13, generator=generator) < 0.7] = 0
    mass[4, 4] = 1e-300
    curve = Curve.random((9, 13), generator)
    order = order_along(torch.arange(117), curve)
    ends = (mass.flatten()[order].cumsum(0) / mass.sum()).clamp(max=math.nextafter(1, 0))
    places = torch.cat([torch.tensor([place], dtype=torch.float64), ends])
    assert (mass.flatten()[locate(mass, curve, places)] > 0).all()


def test_a_random_curve_is_a_function_of_its_generator_and_covers_all_orders():
    first, again = (Curve.random((5, 9), seeded(3)) for _ in range(2))
    assert first == again
    generator = seeded(0)
    drawn = {Curve.random((2, 2), generator) for _ in range(400)}
    assert len(drawn) == 2 * Curve.side((2, 2)) ** 2
