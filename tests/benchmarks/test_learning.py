"""The benchmark of learning: every arm runs on bags by the product's own training, and all seeds are told."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_tissue_bags import images, table  # noqa: F401  (fixtures)

from benchmarks import learning
from benchmarks.learning import Case, Row, line, run, summary
from benchmarks.tissue import collect
from wsi_ats.tables.files import write_csv

QUICK = (
    "training.epochs=2",
    "training.tiles=16",
    "training.attention_epochs=2",
    "training.attention_tiles=32",
)


@pytest.fixture
def ran(table, monkeypatch):  # noqa: F811
    """Runs an arm on a few slides of a collection made here."""

    def make(material, *, lesion, visible, slides, seed, cache, data):
        return collect(table, lesion=lesion, visible=visible, slides=(8, 4, 6), seed=seed)

    monkeypatch.setattr(learning, "make_collection", make)
    monkeypatch.setattr(learning, "DRAWS", 2)
    monkeypatch.setattr(learning, "TILES", (8,))

    def go(arm: str, *changes: str) -> list[Row]:
        return run(Case("colon", 0.05, True, 3, arm, changes, "quick"), Path(), Path())

    return go


def test_attention_is_scored_beside_uniform_draws_and_all_tiles_of_the_same_classifier(ran):
    rows = ran("attention", *QUICK)
    assert [(row.arm, row.tiles) for row in rows] == [("attention", 8), ("uniform", 8), ("all tiles", 0)]
    assert all(0 <= row.auc <= 1 and np.isfinite(row.loss) for row in rows)
    assert rows[1].scale == 0
    # 64 to measure the features' spread, two epochs of 16 and a survey of 32; some may come twice.
    assert 64 <= rows[0].read <= 128 * rows[0].runs
    assert "quick attention 8" in line(rows[0])


@pytest.mark.parametrize(("arm", "least", "most"), [("mil", 1000, 1300), ("mil subset", 64, 192)])
def test_mil_reads_all_tiles_or_a_subset_in_each_step(ran, arm, least, most):
    (row,) = ran(arm, "training.epochs=2")
    assert (row.arm, row.tiles) == (arm, 0)
    assert least <= row.read <= most


def test_shuffled_labels_are_other_labels_of_the_same_number(ran):
    rows = ran("shuffled", *QUICK)
    assert {row.arm for row in rows} == {"shuffled"}


def test_controls_are_scored_without_a_training(ran):
    for arm in learning.CONTROLS:
        (row,) = ran(arm)
        assert 0 <= row.auc <= 1
        assert row.read == row.seconds == 0


def test_the_summary_has_every_seed_the_worst_first():
    rows = [
        Row("oral", 0.05, True, seed, "mil", "", 0, auc, 0, 0, 1, 0, 0, 1)
        for seed, auc in enumerate((0.9, 0.7, 0.8))
    ]
    assert summary(rows) == ["oral 0.05 visible  mil 0: median 0.800, worst 0.700; 0.700 0.800 0.900"]


def test_tables_are_joined_and_drawn(tmp_path, monkeypatch, capsys):
    rows = [
        Row("oral", 0.05, thumbnail, 1, arm, "", 45, 0.9, 0.01, 0.3, 1.0, 12.0, 3.0, 1)
        for thumbnail in (True, False)
        for arm in ("attention", "uniform")
    ]
    first = tmp_path / "first.csv"
    write_csv(first, {name: [getattr(row, name) for row in rows] for name in asdict(rows[0])})
    assert learning.read_rows(first) == rows
    out, picture = tmp_path / "out.csv", tmp_path / "seeds.png"
    monkeypatch.setattr(
        "sys.argv",
        ["learning", "--arms", "--join", str(first), str(first), "--out", str(out), "--figure", str(picture)],
    )
    learning.main()
    assert learning.read_rows(out) == rows + rows
    assert capsys.readouterr().out.splitlines() == summary(rows + rows)
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height
