"""The tiles shown are those that weigh most."""

from __future__ import annotations

import numpy as np

from benchmarks.qualitative import heaviest
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.records import Selection


def test_the_heaviest_tiles_come_first_and_of_equal_ones_those_of_most_attention():
    selection = Selection(
        slide_id="a",
        path="a.svs",
        grid=Grid(256, 256, cell=64, tile_size=64),
        level=0,
        bounds=Region(0, 0, 256, 256),
        cells=np.array([3, 5, 7, 9]),
        attention=np.array([0.1, 0.2, 0.3, 0.4]),
        inclusion=np.ones(4),
        weight=np.array([0.25, 0.5, 0.25, 0.1]),
        draw=np.zeros(4, int),
        order=np.arange(4),
        scores={"prob_x": 1.0},
    )
    shown = heaviest(selection, 3)
    assert shown.cells.tolist() == [5, 7, 3]
    assert shown.order.tolist() == [1, 2, 0]
    assert shown.attention.tolist() == [0.2, 0.3, 0.1]
