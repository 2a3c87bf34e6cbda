"""Records that a user keeps: consistent, and tables as promised."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, Region
from wsi_ats.overview.records import TissueMask
from wsi_ats.results.records import AttentionMap, Prediction, Selection, Status, Stop

GRID = Grid(1000, 600, cell=256.5, tile_size=128)
COLUMNS = ("prob_a", "prob_b")


def selection(**changes) -> Selection:
    values = {
        "slide_id": "case7",
        "path": "case7.svs",
        "grid": GRID,
        "level": 1,
        "mpp": 0.25,
        "bounds": Region(0, 0, 1000, 600),
        "cells": np.array([5, 0, 11, 5]),
        "attention": np.array([0.5, 0.1, 0.2, 0.5]),
        "inclusion": np.array([1.0, 0.2, 0.4, 1.0]),
        "weight": np.array([0.5, 0.5, 0.5, 0.5]),
        "draw": np.array([0, 0, 0, 1]),
        "order": np.array([0, 1, 2, 0]),
        "scores": {"prob_a": 0.3, "prob_b": 0.7},
        "evidence": {"a": np.array([0.1, np.nan, 0.2, 0.1])},
    }
    return Selection(**(values | changes))


def prediction(**changes) -> Prediction:
    values = {
        "slide_id": "case7",
        "case_id": "patient",
        "path": "case7.svs",
        "status": Status.DONE,
        "scores": {"prob_a": 0.25, "prob_b": 0.75},
        "predicted": "b",
        "logit_se": 0.1,
        "stopped_by": Stop.DRAWS,
        "draws": 2,
        "tiles_read": 3,
        "tiles_total": 12,
        "tiles_empty": 0,
        "bytes_read": 1000,
        "seconds": 0.5,
        "model_digest": "abc",
        "seed": 0,
    }
    return Prediction(**(values | changes))


def test_the_table_of_tiles_has_the_documented_columns_in_level0_pixels():
    table = selection().columns()
    assert list(table) == [
        *["slide_id", "x", "y", "width", "height", "level", "row", "col"],
        *["attention", "inclusion", "weight", "draw", "order", "evidence_a"],
    ]
    assert table["evidence_a"] == [0.1, None, 0.2, 0.1]
    assert {len(column) for column in table.values()} == {4}
    for i, cell in enumerate([5, 0, 11, 5]):
        assert tuple(table[name][i] for name in ("x", "y", "width", "height")) == GRID.region(cell)
        assert (table["row"][i], table["col"][i]) == divmod(cell, 4)
    assert table["draw"] == [0, 0, 0, 1]
    assert table["level"] == [1] * 4


def test_the_table_holds_plain_values_that_any_writer_takes():
    plain = {str, int, float, type(None)}
    assert {type(value) for column in selection().columns().values() for value in column} == plain


def test_an_empty_selection_has_an_empty_table():
    none = np.array([], dtype=np.int64)
    names = ("cells", "attention", "inclusion", "weight", "draw", "order")
    assert all(
        not column for column in selection(**dict.fromkeys(names, none), evidence={}).columns().values()
    )


@pytest.mark.parametrize("name", ["cells", "attention", "inclusion", "weight", "draw", "order"])
def test_columns_of_different_lengths_are_refused(name):
    with pytest.raises(SettingsError, match="case7: columns of one length"):
        selection(**{name: np.array([1, 2, 3])})
    with pytest.raises(SettingsError, match="case7: columns of one length"):
        selection(**{name: np.array([[1], [2], [3], [4]])})


def test_a_row_has_every_column_of_the_model_even_without_a_score():
    failed = prediction(status=Status.FAILED, scores={}, predicted=None, logit_se=None, error="why")
    done, not_done = prediction().row(COLUMNS), failed.row(COLUMNS)
    assert list(done) == list(not_done)
    assert (done["prob_a"], done["prob_b"], done["status"]) == (0.25, 0.75, "done")
    assert (not_done["prob_a"], not_done["status"], not_done["error"]) == (None, "failed", "why")
    assert type(done["status"]) is str


def test_masks_and_maps_must_be_of_the_grid():
    right, wrong = np.zeros(GRID.shape), np.zeros((GRID.shape[1], GRID.shape[0]))
    for fraction, mask in ((right, wrong), (wrong, right), (wrong, wrong)):
        with pytest.raises(SettingsError, match=r"\(3, 4\) is needed"):
            TissueMask(GRID, fraction.astype(np.float32), mask.astype(bool))
        with pytest.raises(SettingsError, match=r"\(3, 4\) is needed"):
            AttentionMap(GRID, fraction, mask.astype(bool))


def test_cells_of_a_mask_are_flat_numbers_row_by_row():
    mask = np.zeros(GRID.shape, bool)
    mask[0, 3] = mask[2, 1] = True
    assert TissueMask(GRID, mask.astype(np.float32), mask).cells.tolist() == [3, 9]
    assert TissueMask(GRID, np.zeros(GRID.shape, np.float32), ~mask & False).cells.shape == (0,)


def test_records_are_frozen_and_cross_process_borders():
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction().seed = 3
    assert pickle.loads(pickle.dumps(prediction())) == prediction()
    assert pickle.loads(pickle.dumps(selection())).columns() == selection().columns()
