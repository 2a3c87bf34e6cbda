"""The comparison runs from a folder of images to a table and a figure, and its figures are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import histology
from wsi_ats.config import Settings
from wsi_ats.slides import SlideRef
from wsi_ats.tables import read_csv


def test_errors_are_pooled_over_folds_and_their_spread_is_told():
    scores = [
        {"fold": 0, "label": "x", "x": 0.9, "y": 0.1},
        {"fold": 0, "label": "y", "x": 0.2, "y": 0.8},
        {"fold": 0, "label": "y", "x": 0.6, "y": 0.4},
        {"fold": 1, "label": "x", "x": 0.3, "y": 0.7},
    ]
    found = histology.figures_of(scores, ["x", "y"])
    assert found["error"] == 0.5
    assert found["best fold"] == pytest.approx(1 / 3)
    assert found["worst fold"] == 1.0
    assert found["AUC"] == 0.75


def test_the_majority_is_that_of_the_training_slides():
    labels = {"a": "xxx", "b": "yy", "c": "yz"}
    refs = [SlideRef(f"{c}{i}", "", c, label) for c, of in labels.items() for i, label in enumerate(of)]
    made = [
        [SlideRef(r.id, r.path, r.case, r.label, "test" if r.case == case else "train") for r in refs]
        for case in labels
    ]
    # Without a: 3 y of 4, so x is wrong three times; without b: x; without c: x.
    assert histology.majority_error(made) == 1.0


def test_every_method_is_compared_in_two_settings_that_are_valid():
    chosen = histology.arms([5, 20], [0.5, 1.0], 2.0)
    assert len(chosen) == len({(arm.method, arm.setting) for arm in chosen}) == 10
    made = [Settings().with_values([*histology._SETTINGS, *arm.changes]) for arm in chosen]
    for settings in made:
        settings.check_trainable()
    assert {settings.model.kind for settings in made} == {"sampling", "uniform", "mil", "image"}
    assert {settings.tile.mpp for settings in made if settings.model.kind == "mil"} == {2.0, 4.0}


def test_a_folder_of_images_becomes_a_table_and_a_figure(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for case in range(2):
        for label in ("x", "y"):
            image = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "images" / f"{label}___Case-{case}-1.jpg")
    # In this process, to save the seconds that another needs to start.
    monkeypatch.setattr(histology, "_alone", lambda function, job: function(job))
    threads = torch.get_num_threads()
    histology.main(
        [
            *(str(tmp_path / "images"), "--work", str(tmp_path / "work"), "--out", str(tmp_path)),
            *("--epochs", "1", "--folds", "2", "--tile-mpp", "1", "--tiles", "2", "--scales", "1"),
            *("--set", "tile.size=32", "training.calibration_tiles=8"),
        ]
    )
    torch.set_num_threads(threads)
    table = read_csv(tmp_path / "histology.csv")
    assert table["method"] == [
        "attention sampling",
        "uniform patches",
        "attention MIL",
        "attention MIL, frozen features",
        "CNN on the image",
        "guessing",
        "majority of training",
    ]
    assert table["error"][-2:] == ["0.5", "0.5"]
    for name in ("error", "AUC", "train ms", "score ms"):
        assert all(float(value) >= 0 for value in table[name][:-2]), name
    with Image.open(tmp_path / "histology.png") as picture:
        assert min(picture.size) > 300
    assert "osteosarcoma" not in capsys.readouterr().out
