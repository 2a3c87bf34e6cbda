"""The experiment on the cold start, small."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cold_start
from benchmarks.cold_start import ARMS, Setup, Training, signal_to_noise
from wsi_ats.nn.sampling import Draw

SMALL = ["--training", "4", "--held-out", "4", "--side", "1024", "--epochs", "1", "--lesion", "0.05"]
SOME = [
    "taught, scan",
    "taught, running",
    "taught, layer",
    "taught, earlier draws pooled",
    "attention frozen",
]


@pytest.fixture(scope="module")
def slides():
    return Setup(training=4, side=1024, lesion=0.05).slides(1)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("cold_start")
    cold_start.main([*SMALL, "--seeds", "1", "--arms", *SOME, "--out", str(out)])
    return out


def test_each_arm_leaves_a_row(out):
    rows = {row["arm"]: row for row in cold_start.read(out / "cold_start.csv")}
    assert list(rows) == SOME
    for row in rows.values():
        assert 0 <= row["auc"] <= 1
        assert 0 <= row["attention_on_lesion"] <= row["attention_on_regions"] + 0.5
    drawn = 4 * 16
    assert rows["attention frozen"]["tiles_read"] == drawn
    assert rows["taught, scan"]["tiles_read"] > drawn


def test_what_is_measured_is_not_measured_again(out, capsys, monkeypatch):
    monkeypatch.setattr(cold_start, "run", None)
    cold_start.main([*SMALL, "--seeds", "1", "--arms", *SOME, "--out", str(out)])
    assert "attention frozen" in capsys.readouterr().out


def test_the_same_seed_trains_the_same_network(slides):
    one, other = (Training(ARMS["taught"], slides, seed=3) for _ in range(2))
    for training in (one, other):
        training.step([0, 1, 2, 3], epoch=0, done=0.5)
    for left, right in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_frozen_attention_stays_uniform(slides):
    training = Training(ARMS["attention frozen"], slides, seed=3)
    training.step([0, 1, 2, 3], epoch=0, done=0.5)
    attention = training.attend(slides[0])
    assert attention.min() == attention.max()


def test_earlier_draws_are_weighed_by_attention_as_it_is_now(slides):
    training = Training(ARMS["earlier draws pooled"], slides, seed=3)
    attention = torch.tensor([0.5, 0.25, 0.25])
    one = Draw(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.25]))
    other = Draw(torch.tensor([2]), torch.tensor([1]), torch.tensor([0.5]))
    training.pooled(0, attention, one, torch.zeros(1, 2))
    cells, weight, features = training.pooled(0, attention, other, torch.ones(1, 2))
    assert cells.tolist() == [2, 0]
    assert weight.tolist() == [0.25, 1.0]  # half of a / pi, for each of two draws
    assert features[:, 0].tolist() == [1, 0]


def test_a_signal_is_a_number(slides):
    training = Training(ARMS["taught"], slides, seed=3)
    assert 0 <= signal_to_noise(training, batches=3) < 100
