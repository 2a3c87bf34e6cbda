"""Training where classes are rare, tiles few or slides bad."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from tasks.examples import EXAMPLES

from training.choices import FEW, RARE, start_of
from training.runs import SETTINGS, TRAINING, VALIDATION, progress, run, unreadable
from wsi_ats.errors import ModelError, SettingsError
from wsi_ats.models.batches import balancing
from wsi_ats.tasks.classification import Classification
from wsi_ats.tasks.registry import TASKS
from wsi_ats.training.fit import fit

# Rare classes


def test_class_weights_balance_the_loss(tmp_path, monkeypatch):
    assert balancing([0, 0, 0, 1]) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert balancing([2, 2, 0, 0]) == [1, 1, 1, 1]
    noted = []

    def losses(task, outputs, targets):
        each = real(task, outputs, targets)
        if outputs.requires_grad:  # attention is supervised by losses of single tiles
            noted.extend(zip(targets[:, 0].tolist(), each.tolist(), strict=True))
        return each

    real = Classification.losses
    monkeypatch.setattr(Classification, "losses", losses)
    rows = []
    changes = ["training.balance=weights", "training.joint_epochs=1"]
    run(tmp_path, *changes, examples=RARE, validation=[], on_epoch=rows.append)
    weight = {0.0: 8 / (2 * 6), 1.0: 8 / (2 * 2)}
    assert Counter(target for target, _ in noted) == {0: 6, 1: 2}
    assert rows[0]["loss"] == pytest.approx(sum(weight[target] * loss for target, loss in noted) / 8)


@pytest.mark.parametrize(("balance", "chance"), [("none", 0.5623), ("weights", 0.6931), ("sampling", 0.6931)])
def test_an_untrained_network_has_no_gain_whatever_the_balancing(tmp_path, balance, chance):
    """Under a balanced loss or balanced draws it predicts equal probabilities of all classes."""

    def knows_nothing():
        model = start_of()
        torch.nn.init.zeros_(model.head.weight)
        with torch.no_grad():
            model.head.bias.copy_(torch.tensor([0.75, 0.25] if balance == "none" else [0.5, 0.5]).log())
        return model

    rates = [
        f"training.{name}=1e-30" for name in ("learning_rate", "head_learning_rate", "gate_learning_rate")
    ]
    rows = []
    changes = [f"training.balance={balance}", "training.joint_epochs=1", "training.weight_decay=0.0", *rates]
    run(tmp_path, *changes, examples=RARE, validation=RARE, network=knows_nothing, on_epoch=rows.append)
    assert rows[0]["loss"] == pytest.approx(chance, abs=1e-4)
    assert rows[0]["gain"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["validation_gain"] == pytest.approx(0, abs=1e-6)


def test_sampling_shows_classes_equally_often(tmp_path, begun):
    run(tmp_path, "training.balance=sampling", *FEW, examples=RARE, validation=[])
    for epoch in range(2):
        shown = Counter(slide for each in begun[4 * epoch : 4 * epoch + 4] for slide, _ in each)
        assert sum(shown.values()) == 8
        assert sum(n for slide, n in shown.items() if slide.endswith("v")) == 4
        assert max(n for slide, n in shown.items() if slide.endswith("p")) == 1
        assert shown["s1v"] == shown["s3v"] == 2


@pytest.mark.parametrize("cases", ["separate", "mean"])
def test_a_slide_drawn_twice_in_a_step_counts_twice(tmp_path, monkeypatch, cases):
    counted = []

    def losses(task, outputs, targets):
        if outputs.requires_grad:  # attention is supervised by losses of single tiles
            counted.append(targets[:, 0].tolist())
        return real(task, outputs, targets)

    real = Classification.losses
    monkeypatch.setattr(Classification, "losses", losses)
    changes = ["training.balance=sampling", "training.slides_per_step=8", f"model.cases={cases}"]
    run(tmp_path, *changes, "training.joint_epochs=2", examples=RARE, validation=[])
    assert [sorted(each) for each in counted] == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2  # two slides of class 1


@pytest.mark.parametrize("balance", ["weights", "sampling"])
@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if not task.has_classes])
def test_balancing_needs_classes(tmp_path, task, balance):
    with pytest.raises(SettingsError, match=rf"balance is {balance}, but {task} has no classes"):
        fit(
            TRAINING, VALIDATION, SETTINGS.with_values([f"training.balance={balance}", f"model.task={task}"]),
            target=EXAMPLES[task].target, folder=tmp_path, device=torch.device("cpu"), on_epoch=print,
            reader=None,
        )  # fmt: skip


# Few tiles and bad slides


def test_asking_for_more_tiles_than_exist_reads_each_once(tmp_path):
    rows = []
    run(tmp_path, "sampling.tiles=1000", *FEW, on_epoch=rows.append)
    assert [row["tiles"] for row in rows] == [8 * 20] * 2
    assert all(math.isfinite(row["loss"]) for row in rows)


def fit_with_bad(folder, bad, max_bad, reported, *, names=("s2p", "s5v"), stop=False):
    def on_epoch(row):
        if stop:
            raise KeyboardInterrupt

    def on_bad(slide_id, error):
        reported.append((slide_id, error))

    run(folder, *FEW, opener=unreadable(*names), on_epoch=on_epoch, max_bad=max_bad, on_bad=on_bad)


def test_tolerated_bad_slides_are_reported_once_a_run(tmp_path):
    reported: list = []
    with pytest.raises(KeyboardInterrupt):
        fit_with_bad(tmp_path, 2, 2, reported, stop=True)
    assert sorted(reported) == [("s2p", "s2p: tile 3 is damaged"), ("s5v", "s5v: tile 3 is damaged")]
    assert progress(tmp_path)["bad"] == dict(reported)
    reported.clear()
    fit_with_bad(tmp_path, 2, 2, reported)  # another epoch in which both fail again
    assert sorted(slide for slide, _ in reported) == ["s2p", "s5v"]


def test_more_bad_slides_than_allowed_end_training_with_all_messages(tmp_path):
    with pytest.raises(ModelError, match="2 slides could not be read, and --max-bad allows 1") as caught:
        fit_with_bad(tmp_path, 2, 1, [])
    assert "s2p: tile 3 is damaged" in str(caught.value)
    assert "s5v: tile 3 is damaged" in str(caught.value)
    with pytest.raises(ModelError, match="--max-bad allows 0: s21v: tile 3 is damaged"):
        fit_with_bad(tmp_path / "watched", 1, 0, [], names=["s21v"])  # one that is only watched counts, too
    with pytest.raises(ModelError, match="--max-bad allows 0"):
        fit_with_bad(tmp_path / "watched", 1, 0, [], names=["s21v"])  # and goes on counting
