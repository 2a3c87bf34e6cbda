"""Stored selections come back exactly."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.errors import ArtifactError
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.records import Selection
from wsi_ats.results.selections import read_selection, write_selection
from wsi_ats.tables.files import read_parquet, write_parquet

NAMES = ("tumour", "normal ü")


def selection(count=7, seed=0, slide_id="s1", grid=None):
    rng = np.random.default_rng(seed)
    grid = grid or Grid(10_000, 6000, 64 * 3.9997, 64)
    return Selection(
        slide_id=slide_id,
        path=f"scans/{slide_id}.svs",
        grid=grid,
        level=1,
        mpp=0.25,
        bounds=Region(10, 20, 9000, 5000),
        cells=rng.integers(0, grid.size, count),
        attention=rng.random(count) / 3,
        inclusion=rng.random(count),
        weight=rng.random(count),
        draw=np.sort(rng.integers(0, 3, count)),
        order=np.arange(count),
        scores={"prob_tumour": 1 / 3, "prob_normal ü": 2 / 3},
        evidence={name: np.where(rng.random(count) < 0.9, rng.normal(size=count), np.nan) for name in NAMES},
    )


def assert_equal(one, other):
    for field in fields(Selection):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, dict):
            assert list(a) == list(b)
            for name, values in a.items():
                np.testing.assert_array_equal(values, b[name], strict=field.name == "evidence")
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, strict=True)
        else:
            assert a == b
            assert type(a) is type(b)


@given(
    count=st.integers(0, 50),
    seed=st.integers(0, 1000),
    cell=st.floats(1, 700),
    stride=st.one_of(st.none(), st.floats(0.2, 1)),
)
def test_a_selection_comes_back_exactly(tmp_path_factory, count, seed, cell, stride):
    grid = Grid(5003, 3001, max(cell, 5.0), 64, stride and max(max(cell, 5.0) * stride, 1.0))
    path = tmp_path_factory.mktemp("s") / "s.parquet"
    written = selection(count, seed, grid=grid)
    write_selection(path, written)
    assert_equal(read_selection(path), written)


def test_the_columns_are_those_of_the_documentation(tmp_path):
    write_selection(tmp_path / "s.parquet", selection())
    columns, metadata = read_parquet(tmp_path / "s.parquet")
    names = "slide_id x y width height level row col attention inclusion weight draw order"
    assert list(columns) == [*names.split(), "evidence_tumour", "evidence_normal ü"]
    assert metadata["bounds"] == [10, 20, 9000, 5000]


def test_a_file_that_is_not_a_selection_is_refused(tmp_path):
    path = tmp_path / "s.parquet"
    with pytest.raises(ArtifactError, match="no such file"):
        read_selection(path)
    write_parquet(path, {"a": [1]})
    with pytest.raises(ArtifactError, match="is not a selection of version 3"):
        read_selection(path)
    good = selection()
    write_selection(path, good)
    columns, metadata = read_parquet(path)
    for damaged in ({"grid": None}, {"grid": metadata["grid"] | {"cell": -1}}, {"bounds": [1]}):
        write_parquet(path, columns, metadata=metadata | damaged)
        with pytest.raises(ArtifactError, match="metadata is damaged"):
            read_selection(path)
    write_parquet(path, columns, metadata=metadata | {"version": 1})
    with pytest.raises(ArtifactError, match="version 1"):
        read_selection(path)
