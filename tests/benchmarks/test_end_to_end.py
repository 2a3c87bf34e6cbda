"""Slides of the bags as files, through the whole product."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from test_tissue_bags import images, table  # noqa: F401  (fixtures)

from benchmarks import end_to_end
from benchmarks.end_to_end import COMMON, seen
from benchmarks.tissue import collect, write_slides
from wsi_ats.settings import Settings


@pytest.fixture
def collection(table):  # noqa: F811
    return collect(table, lesion=0.2, visible=True, slides=(4, 2, 4), seed=3)


def test_a_slide_shows_training_what_its_bag_does(collection, tmp_path):
    write_slides(collection, tmp_path)
    settings = Settings().with_values(COMMON)
    for bag, example in zip(collection.train, seen(collection.train, tmp_path, settings), strict=True):
        both = np.intersect1d(bag.tissue.cells, example.overview.tissue.cells)
        assert len(both) > 0.95 * max(len(bag.tissue.cells), len(example.overview.tissue.cells))
        assert np.abs(bag.thumbnail.astype(float) - example.overview.thumbnail).mean() < 4
        assert example.target == (float(bag.positive),)
        assert example.overview.tissue.grid.shape == bag.tissue.grid.shape


def test_every_arm_is_trained_and_scored_by_attention_and_uniform_draws(collection, tmp_path, monkeypatch):
    quick = ("training.epochs=1", "training.tiles=4", "training.attention_epochs=1")
    monkeypatch.setattr(end_to_end, "make_collection", lambda *_, **__: collection)
    monkeypatch.setattr(end_to_end, "COMMON", (*COMMON, *quick, "training.attention_tiles=8"))
    small = ("model.backbone=test_resnet",)
    bags = (f"model.backbone=features:{collection.features.shape[1]}", "training.fine_tuning=frozen")
    arms = {"trained": small, "frozen": (*small, "training.fine_tuning=frozen"), "bags": bags}
    monkeypatch.setattr(end_to_end, "ARMS", arms)
    monkeypatch.setattr(end_to_end, "TILES", (4,))
    monkeypatch.setattr(end_to_end, "DRAWS", 2)
    monkeypatch.setattr(end_to_end, "weights_file", lambda cache: "")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    out = tmp_path / "table.csv"
    monkeypatch.setattr("sys.argv", ["end_to_end", "--seeds", "3", "--out", str(out)])
    end_to_end.main()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["draws"]) for row in rows] == [
        (arm, draws) for arm in arms for draws in ("attention", "uniform")
    ]
    assert all(0 <= float(row["auc"]) <= 1 for row in rows)
