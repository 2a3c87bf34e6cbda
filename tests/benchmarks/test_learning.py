"""Every arm of the benchmark of learning runs on bags by the product's own training."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_tissue_bags import images, table  # noqa: F401  (fixtures)

from benchmarks import end_to_end, learning
from benchmarks.engine import examples_of
from benchmarks.learning import Case, read_rows, run, summary
from benchmarks.report import report
from benchmarks.tissue import collect, write_slides
from wsi_ats.settings import Settings

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

    def go(arm, *changes):
        return run(Case("colon", 0.05, True, 3, arm, changes, "quick", (8,)), Path(), Path())

    return go


def test_attention_is_scored_beside_uniform_draws_and_all_tiles_of_the_same_classifier(ran):
    rows = ran("attention", *QUICK)
    assert [(row["arm"], row["tiles"]) for row in rows] == [
        ("attention", 8),
        ("uniform", 8),
        ("all tiles", 0),
    ]
    assert all(0 <= row["auc"] <= 1 and np.isfinite(row["loss"]) for row in rows)
    assert rows[1]["scale"] == 0
    # 64 to measure the features' spread, two epochs of 16 and a survey of 32; some may come twice.
    assert 64 <= rows[0]["read"] <= 128 * rows[0]["runs"]


def test_mil_and_colour_have_a_row_each(ran):
    (mil,), (colour,) = ran("mil subset", "training.epochs=2"), ran("mean colour")
    assert (mil["arm"], mil["tiles"], colour["arm"], colour["tiles"]) == ("mil subset", 0, "mean colour", 0)
    assert 64 <= mil["read"] <= 192
    assert 0 <= colour["auc"] <= 1


def test_controls_have_a_row_each(ran):
    for arm, changes in (("mil", ["training.epochs=2"]), ("shuffled", QUICK), ("oracle", [])):
        (row,) = ran(arm, *changes)
        assert (row["arm"], row["tiles"]) == (arm, 8 if arm == "shuffled" else 0)
        assert 0 <= row["auc"] <= 1


def test_tables_are_joined_and_drawn_with_every_seed_the_worst_first(tmp_path, monkeypatch, capsys):
    rows = [
        {"material": "oral", "lesion": 0.05, "visible": thumbnail, "seed": seed, "arm": "uniform"}
        | {"variant": "", "tiles": 45, "auc": auc}
        for thumbnail in (True, False)
        for seed, auc in enumerate((0.9, 0.7, 0.8))
    ]
    assert summary(rows[:3]) == [
        "oral 0.05 visible  uniform 45: median 0.800, worst 0.700; 0.700 0.800 0.900"
    ]
    first, out, picture = (tmp_path / name for name in ("first.csv", "out.csv", "seeds.png"))
    report("first", "learning", rows, first)
    options = ["--arms", "--join", str(first), str(first), "--out", str(out), "--figure", str(picture)]
    monkeypatch.setattr("sys.argv", ["learning", *options])
    learning.main()
    assert read_rows(out) == rows + rows
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height


def test_a_slide_as_a_file_shows_training_the_same_as_its_bag(table, tmp_path):  # noqa: F811
    collection = collect(table, lesion=0.2, visible=True, slides=(4, 2, 4), seed=3)
    write_slides(collection, tmp_path)
    settings = Settings().with_values(end_to_end.COMMON)
    files = [replace(bag.ref, path=str(tmp_path / bag.ref.path)) for bag in collection.train]
    for bag, example in zip(collection.train, examples_of(files, settings), strict=True):
        both = np.intersect1d(bag.tissue.cells, example.overview.tissue.cells)
        assert len(both) > 0.95 * max(len(bag.tissue.cells), len(example.overview.tissue.cells))
        assert np.abs(bag.thumbnail.astype(float) - example.overview.thumbnail).mean() < 4
        assert example.target == (float(bag.positive),)


def test_files_and_bags_are_trained_on_and_scored_end_to_end(table, tmp_path, monkeypatch):  # noqa: F811
    collection = collect(table, lesion=0.2, visible=True, slides=(4, 2, 4), seed=3)
    quick = ("training.epochs=1", "training.tiles=4", "training.attention_epochs=1")
    small = ("model.backbone=test_resnet",)
    bags = (f"model.backbone=features:{collection.features.shape[1]}", "training.fine_tuning=frozen")
    arms = {"trained": small, "frozen": (*small, "training.fine_tuning=frozen"), "bags": bags}
    for name, value in {
        "make_collection": lambda *_, **__: collection,
        "COMMON": (*end_to_end.COMMON, *quick, "training.attention_tiles=8"),
        "ARMS": arms,
        "TILES": (4,),
        "DRAWS": 2,
        "weights_file": lambda cache: "",
    }.items():
        monkeypatch.setattr(end_to_end, name, value)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    monkeypatch.setattr("sys.argv", ["end_to_end", "--seeds", "3", "--out", str(tmp_path / "table.csv")])
    end_to_end.main()
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["draws"]) for row in rows] == [
        (arm, draws) for arm in arms for draws in ("attention", "uniform")
    ]
    assert all(0 <= float(row["auc"]) <= 1 for row in rows)
