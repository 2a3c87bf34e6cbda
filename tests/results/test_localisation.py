"""Drawn tiles and attention beside annotations, computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotation_files import rectangle
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from wsi_ats.annotations.record import Annotations, Drawn, Frame
from wsi_ats.annotations.shapes import Outline
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.localisation import Localisation, curve, locate, metrics_of
from wsi_ats.results.records import AttentionMap, Selection

GRID = Grid(60, 20, 10, 10)  # two rows of six cells; the last has no tissue
WEIGHTS = np.array([20, 8, 3, 30, 2, 10, 7, 1, 15, 2.5, 1.5, 0])
AREAS = (
    rectangle(0, 0, 25, 10),  # all of cells 0 and 1, half of cell 2
    rectangle(24, 14, 2, 2),  # a speck in cell 8
    rectangle(52, 12, 5, 5),  # where there is no tissue
)


def annotations(*areas):
    outlines = [Outline("Tumor", np.array(each, dtype=float)) for each in areas]
    frame = Frame(GRID.width, GRID.height, Region(0, 0, GRID.width, GRID.height))
    return Annotations.of(Path("a.xml"), Drawn("ASAP", outlines), frame).only([])


def selection(cells):
    numbers = np.ones(len(cells))
    return Selection(
        slide_id="a",
        path="a.svs",
        grid=GRID,
        level=0,
        mpp=0.5,
        bounds=Region(0, 0, 60, 20),
        cells=np.array(cells),
        attention=numbers,
        inclusion=numbers,
        weight=numbers,
        draw=np.arange(len(cells)),
        order=np.zeros(len(cells), np.int64),
        scores={},
        evidence={},
    )


def attention(weights=WEIGHTS):
    values = (weights / weights.sum()).reshape(GRID.shape)
    return AttentionMap(GRID, values, values > 0)


def located(*areas, seed=0, weights=WEIGHTS):
    return locate(selection([0, 3, 0, 2]), attention(weights), annotations(*areas), seed=seed)


def test_hits_chance_and_attention_by_hand():
    found = located(*AREAS)
    assert (found.tissue, found.annotated, found.tiles, found.hits) == (11, 3, 4, 3)
    assert found.hit_rate == 3 / 4
    assert found.share == 3 / 11
    assert found.mass == pytest.approx(31 / 100)
    annotated = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert found.auc == pytest.approx(roc_auc_score(annotated, WEIGHTS[:-1]), rel=1e-12)


def test_areas_are_found_in_order_of_attention():
    """Cells 3, 0, 8 and 5 come first; the speck is found by its cell, and nothing finds the third area."""
    found = located(*AREAS)
    assert sorted(found.found.tolist()) == [0, 2, 3]
    assert found.false.tolist() == [1, 4, 6, 8, 9, 10, 11]
    points = curve([found])
    assert points["tiles"] == list(range(1, 12))
    assert points["false_positives"][:6] == [1, 1, 1, 2, 2, 3]
    assert points["sensitivity"] == [0, 1 / 3, *[2 / 3] * 9]
    # None at 1/4 and 1/2 false positives, for the first tile is one; two of three at 1, 2, 4 and 8.
    assert metrics_of([found])["froc"] == pytest.approx((0 + 0 + 4 * 2 / 3) / 6)


def test_means_are_over_slides_with_annotations_and_false_positives_over_all():
    some, none = located(*AREAS), located()
    assert (none.annotated, none.auc, none.mass, none.hits) == (0, None, 0, 0)
    alone, both = metrics_of([some]), metrics_of([some, none])
    for name in ("hit_rate", "annotated_tissue", "attention_auc", "attention_mass"):
        assert alone[name] == both[name]
    points = curve([some, none])
    assert points["false_positives"][:4] == [1, 1.5, 2, 3]
    assert points["sensitivity"][:3] == [0, 1 / 3, 2 / 3]
    # One false positive a slide on average is reached by one tile of each.
    assert both["froc"] == pytest.approx((0 + 0 + 0 + 3 * 2 / 3) / 6)


def test_without_annotations_nothing_is_defined():
    assert metrics_of([located()]) == {
        **dict.fromkeys(("hit_rate", "annotated_tissue", "attention_auc", "attention_mass", "froc"))
    }
    assert curve([located()]) == {"tiles": [], "false_positives": [], "sensitivity": []}
    assert curve([]) == {"tiles": [], "false_positives": [], "sensitivity": []}


def test_equal_attention_finds_nothing_and_its_order_is_by_chance():
    even = np.where(WEIGHTS > 0, 1.0, 0.0)
    found = [located(*AREAS, seed=seed, weights=even) for seed in range(300)]
    assert {each.auc for each in found} == {0.5}
    assert found[0].mass == pytest.approx(found[0].share)
    first = [each.found[0] for each in found if each.found[0]]
    assert len(set(first)) > 5
    again = located(*AREAS, seed=7, weights=even)
    np.testing.assert_array_equal(again.found, found[7].found)


def test_attention_of_regions_and_tiles_of_cells():
    """With two levels, attention is of blocks of cells; hits are counted in cells."""
    blocks = Grid(60, 20, 20, 20)
    on_blocks = AttentionMap(blocks, np.array([[0.7, 0.2, 0.1]]), np.ones((1, 3), bool))
    found = locate(selection([0, 2, 5]), on_blocks, annotations(rectangle(0, 0, 25, 20)), seed=0)
    assert (found.tissue, found.annotated) == (3, 1)
    assert (found.tiles, found.hits) == (3, 2)
    assert found.mass == pytest.approx(0.7)


SLIDES = st.lists(
    st.integers(1, 40).flatmap(
        lambda tissue: st.tuples(
            st.just(tissue),
            st.lists(st.integers(0, tissue), max_size=4),
            st.sets(st.integers(1, tissue), max_size=tissue),
        )
    ),
    min_size=1,
    max_size=5,
)


@given(SLIDES)
def test_sensitivities_at_false_positives_are_those_of_the_whole_curve(slides):
    made = [
        Localisation(tissue, 1, 1, 1, 0.5, 0.5, np.array(found, np.int64), np.array(sorted(false), np.int64))
        for tissue, found, false in slides
    ]
    areas = [rank for _, found, _ in slides for rank in found]
    if not areas:
        assert metrics_of(made)["froc"] is None
        return
    expected = []
    for allowed in (0.25, 0.5, 1, 2, 4, 8):
        best = 0.0
        for k in range(41):
            false = sum(rank <= k for _, _, ranks in slides for rank in ranks) / len(slides)
            if false <= allowed:
                best = max(best, sum(0 < rank <= k for rank in areas) / len(areas))
        expected.append(best)
    assert metrics_of(made)["froc"] == pytest.approx(np.mean(expected))
