"""Diagnosis of a training: advice where something is wrong, and none otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.runs import example, run
from wsi_ats.settings import Settings
from wsi_ats.training.diagnosis import compare, diagnose

SETTINGS = Settings().with_values(["sampling.tiles=16"])
ENOUGH = ["a", "b"] * 20


def row(epoch: int = 0, phase: str = "attention", **changes):
    """An epoch in which all is well."""
    figures = {
        "epoch": epoch,
        "phase": phase,
        "gain": None if phase == "attention" else 0.6,
        "effective_cells": 200.0,
        "validation_loss": 0.4,
        "validation_gain": 0.5,
        "uniform_gain": 0.4,
    }
    return {**figures, **changes}


def said(*rows, classes=ENOUGH) -> list[str]:
    return diagnose(rows, SETTINGS, classes=classes)


def test_a_good_run_has_no_warnings():
    assert said(row(0, "classifier"), row(1), row(2)) == []
    assert said() == []
    assert diagnose([row(0, "classifier")], SETTINGS, classes=[]) == []


def test_a_class_of_few_cases_is_named():
    (line,) = said(classes=["a"] * 12 + ["b"] * 3)
    assert "class 'b' has only 3 training cases" in line
    assert "crossval" in line
    (line,) = said(classes=[f"class {number}" for number in range(1000)])  # a thousand of one case each
    assert "1 training case (999 more classes have fewer than 10)" in line


@pytest.mark.parametrize("gain", [-0.3, 0.04])
def test_a_classifier_without_signal_is_reported(gain):
    (line,) = said(row(0, "classifier", gain=gain, uniform_gain=gain))
    assert "found nothing" in line
    assert f"{1 - gain:.0%}" in line


def test_overfitting_is_distinguished_from_a_good_fit():
    (line,) = said(row(0, "classifier", gain=0.95, uniform_gain=-0.2))
    assert "memorised its training slides" in line
    assert said(row(0, "classifier", gain=0.95, uniform_gain=0.6)) == []
    assert said(row(0, "classifier", gain=0.95, uniform_gain=None, validation_gain=None)) == []


def test_attention_that_is_narrower_than_the_draw_has_collapsed():
    (line,) = said(row(0, "classifier"), row(1, effective_cells=9.0, validation_gain=0.3))
    assert "collapsed" in line
    assert "9 cells" in line
    assert said(row(0, "classifier"), row(1, effective_cells=9.0)) == []  # it found something small
    assert said(row(0, "classifier", effective_cells=9.0)) == []  # a slide of nine cells, drawn uniformly
    small = row(0, "classifier", effective_cells=9.0), row(1, effective_cells=8.0, validation_gain=0.3)
    assert said(*small) == []
    last = {"effective_cells": 9.0, "validation_gain": 0.3}
    for phase, advice in (("attention", "training.attention_epochs)"), ("joint", "training.entropy")):
        (line,) = said(row(0, "classifier"), row(1, phase, **last))
        assert line.endswith(advice)


def test_rising_validation_loss_with_narrowing_attention_is_reported():
    rows = [row(0, "joint", gain=0.6, validation_loss=0.3, effective_cells=300.0)]
    (line,) = said(*rows, row(1, "joint", validation_loss=0.5, effective_cells=50.0))
    assert "rose from 0.300 in epoch 0 to 0.500 while attention narrowed from 300 to 50" in line
    assert said(*rows, row(1, "joint", validation_loss=0.5, effective_cells=290.0)) == []
    assert said(*rows, row(1, "joint", validation_loss=0.31, effective_cells=50.0)) == []


def test_attention_is_compared_with_uniform_draws_in_words():
    judged = {"slides": 30, "tiles": 16, "scale": 1.0, "foretells": True, "cases": 30}

    def last(attention: float, uniform: float, **changes) -> str:
        figures = ({"loss": 0.5, "gain": 0.2, "auc": auc} for auc in (attention, uniform))
        return compare(*figures, **{**judged, **changes})[-1]

    assert "on these 30 slides attention raises auc by 0.100" in last(0.9, 0.8)
    assert "on these 30 slides attention lowers auc by 0.100" in last(0.8, 0.9)
    assert "equally well" in last(0.9, 0.9)
    assert "the thumbnail does not show which tiles" in last(0.9, 0.8, scale=0.0, foretells=False)
    assert "attention predicts which tiles are informative, but" in last(0.9, 0.8, scale=0.0)
    unjudged = {**judged, "slides": 0, "foretells": None, "cases": 0}
    (line,) = compare({}, {}, **unjudged)
    assert line.startswith("attention was not evaluated, because there are no validation cases;")
    few = {**judged, "slides": 3, "foretells": None, "cases": 3}
    line, *others = compare({"auc": 0.9}, {"auc": 0.8}, **few)
    assert "there are 3 validation cases" in line
    assert "attention raises auc" in others[-1]
    lines = compare(*({"loss": 0.5, "gain": None, "auc": None},) * 2, **judged)  # a class is absent
    assert lines == [
        "30 validation slides, 16 tiles each, mean of several draws:",
        "  loss: 0.500 by attention, 0.500 by uniform draws",
    ]


def test_a_run_on_random_labels_is_reported(tmp_path):
    alike = [replace(example(f"s{number}p"), target=(float(number % 2),)) for number in range(40, 56)]
    rows: list = []
    changes = ("training.epochs=3", "training.joint_epochs=0", "training.head_learning_rate=0.003")
    run(tmp_path, *changes, examples=alike, validation=[], on_epoch=rows.append)
    (line,) = diagnose(rows, SETTINGS, classes=[])
    assert "found nothing" in line
