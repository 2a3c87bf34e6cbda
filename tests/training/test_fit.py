"""Training learns, and ends in the same weights however it was interrupted."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch

from training.runs import SETTINGS, TARGET, assert_same_weights, metrics_in, run, slide_of
from wsi_ats.models.kinds import model_for
from wsi_ats.nn.optimisation import share_of_peak
from wsi_ats.tables.files import read_csv

# Learning


def test_training_learns_a_class_that_shows_in_half_of_the_cells(tmp_path):
    rows = []
    model = run(tmp_path, "training.joint_epochs=25", "training.learning_rate=0.001", on_epoch=rows.append)
    assert not model.training
    assert len(rows) == 25
    assert np.mean([row["loss"] for row in rows[:3]]) > 0.4
    assert np.mean([row["loss"] for row in rows[-3:]]) < 0.2
    assert rows[-1]["validation_loss"] < 0.3
    assert rows[-1]["validation_auc"] == 1.0
    assert rows[0]["effective_cells"] > rows[-1]["effective_cells"]  # attention has moved away from uniform
    assert rows[-1]["top_share"] > rows[0]["top_share"]


def test_every_epoch_has_a_row_of_metrics(uninterrupted):
    _, folder = uninterrupted
    table = read_csv(folder / "metrics.csv")
    assert list(table) == [
        *("epoch", "phase", "loss", "gain", "effective_cells", "top_share", "effective", "staleness"),
        *("tiles", "failed", "validation_loss", "validation_gain", "validation_auc", "uniform_loss"),
        *("uniform_gain", "uniform_auc", "seconds"),
    ]
    assert [float(value) for value in table["epoch"]] == [0, 1, 2]
    assert [float(value) for value in table["tiles"]] == [24, 24, 24]  # 8 slides, 3 tiles each
    assert table["phase"] == ["joint"] * 3
    assert float(table["effective_cells"][0]) == pytest.approx(20, rel=0.03)
    assert float(table["top_share"][0]) == pytest.approx(1 / 20, rel=0.2)  # one cell of twenty
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "metrics.csv",
        "step_000000006.safetensors",
        "step_000000009.safetensors",
    ]


def test_training_without_validation_slides_leaves_their_metrics_empty(tmp_path):
    rows = []
    run(tmp_path, "training.joint_epochs=1", validation=[], on_epoch=rows.append)
    assert rows[0]["validation_loss"] is rows[0]["validation_auc"] is None
    assert read_csv(tmp_path / "metrics.csv")["validation_auc"] == [""]


def test_the_learning_rate_warms_up_holds_and_decays_to_zero():
    rates = [share_of_peak(done / 100, 0.2) for done in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert rates[20:51] == pytest.approx([1] * 31)
    assert all(a > b for a, b in itertools.pairwise(rates[50:]))
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert share_of_peak(0, 0) == 1


def test_attention_stays_as_it_starts_while_the_classifier_learns(tmp_path):
    changes = ("training.joint_epochs=0", "training.epochs=2", "model.attention=test_resnet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = model_for(SETTINGS.with_values(changes), TARGET)
    end = run(tmp_path, *changes)
    assert_same_weights(end.attention, start.attention)
    assert not torch.equal(end.head.weight, start.head.weight)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(end.encoder.parameters(), start.encoder.parameters(), strict=True)
    )


# The same weights


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, uninterrupted):
    model, folder = uninterrupted
    assert_same_weights(run(tmp_path / "again"), model)
    assert metrics_in(tmp_path / "again") == metrics_in(folder)
    other = run(tmp_path / "other", "training.seed=1")
    assert not torch.equal(other.head.weight, model.head.weight)


def test_training_neither_uses_nor_moves_the_global_generator(tmp_path, uninterrupted):
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert_same_weights(run(tmp_path), uninterrupted[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("threads", [1, 4])
def test_number_of_reading_threads_and_their_order_change_nothing(tmp_path, threads, uninterrupted):
    def slow_for_some(ref):
        time.sleep(0.003 * (hash(ref.id) % 4))
        return slide_of(ref.id)

    assert_same_weights(run(tmp_path, threads=threads, opener=slow_for_some), uninterrupted[0])


# Every kind of model


@pytest.mark.parametrize("kind", ["mil", "sampling"])
def test_validating_only_the_last_epoch_of_a_phase_changes_nothing_else(tmp_path, kind):
    changes = ["training.epochs=3", "training.joint_epochs=0", f"model.kind={kind}"]
    changes += ["training.attention_epochs=2", "training.attention_tiles=4"] * (kind == "sampling")
    model = run(tmp_path / "every", *changes)
    assert_same_weights(run(tmp_path / "last", *changes, every_epoch=False), model)
    every, last = metrics_in(tmp_path / "every"), metrics_in(tmp_path / "last")
    phases = every["phase"]
    ends = [number for number, phase in enumerate(phases) if phase not in phases[number + 1 :]]
    for name, column in every.items():
        if name.startswith(("validation_", "uniform_")):
            column = [each if number in ends else "" for number, each in enumerate(column)]
        assert last[name] == column, name
    assert every["validation_loss"][0] != "" == last["validation_loss"][0]


@pytest.mark.parametrize("change", ["training.patience=1", "training.epochs=1"])
def test_epochs_that_may_be_kept_as_the_best_are_always_validated(tmp_path, change):
    run(tmp_path, change, every_epoch=False)
    assert "" not in metrics_in(tmp_path)["validation_loss"]


def test_mil_learns_a_class_that_shows_in_half_of_the_cells(tmp_path):
    rows = []
    run(
        tmp_path,
        *("model.kind=mil", "training.epochs=10", "training.joint_epochs=0", "training.learning_rate=0.001"),
        on_epoch=rows.append,
    )
    assert rows[-1]["loss"] < 0.2
    assert rows[-1]["validation_auc"] == 1.0
