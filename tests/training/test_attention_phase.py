"""The phase in which attention learns by distillation from the classifier."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from training.phase_runs import ATTENTION, CLASSIFIER, PHASES, Recorded
from training.runs import (
    SETTINGS,
    TARGET,
    TRAINING,
    VALIDATION,
    assert_same_weights,
    progress,
    trained,
    unreadable,
)
from wsi_ats.errors import ModelError
from wsi_ats.nn import model
from wsi_ats.training import attention as attention_phase
from wsi_ats.training import distillation as distilling
from wsi_ats.training.fit import fit
from wsi_ats.training.learner import Learner
from wsi_ats.training.processes import Processes

pytestmark = pytest.mark.usefixtures("trusted")


def test_attention_learns_from_the_survey_alone_and_the_classifier_stays_as_it_is(tmp_path):
    asked: list[list[tuple[str, int]]] = []
    with Recorded() as reader:

        def on_epoch(row):
            asked.append(list(reader.asked))
            reader.asked.clear()

        def attention_of(folder, *changes):
            return fit(
                TRAINING, [], SETTINGS.with_values(changes), target=TARGET, folder=folder,
                device=torch.device("cpu"), on_epoch=on_epoch, reader=reader,
            ).model  # fmt: skip

        before = attention_of(tmp_path / "before", *CLASSIFIER)
        asked.clear()
        after = attention_of(tmp_path / "after", *ATTENTION)
    for name in ("encoder", "head", "gate"):
        assert_same_weights(getattr(before, name), getattr(after, name))
    learned = zip(before.attention.parameters(), after.attention.parameters(), strict=True)
    assert all(not torch.equal(one, other) for one, other in learned)
    _, _, survey, *rest = asked
    assert Counter(slide for slide, _ in survey) == {each.ref.id: 10 for each in TRAINING}
    assert len(set(survey)) == len(survey)
    assert rest == [[], []]


def test_gradients_of_attention_are_clipped_by_their_own_norm(tmp_path, monkeypatch):
    """Those that the classifier's last step has left are not among them."""
    owners: dict[str, set[str]] = {}
    real = Learner.take_step

    def take_step(self, count, check):
        names = {name.split(".")[0] for name, each in self.model.named_parameters() if each.grad is not None}
        owners.setdefault(check.func.__self__.phase.name, set()).update(names)
        return real(self, count, check)

    monkeypatch.setattr(Learner, "take_step", take_step)
    trained(tmp_path, *PHASES)
    assert owners["classifier"] == {"encoder", "gate", "head"}
    assert owners["attention"] == {"attention"}
    assert owners["joint"] <= {"encoder", "gate", "head", "attention"}


def test_attention_approaches_its_target(tmp_path):
    """As its cross-entropy falls, its draws come closer to the target."""
    rows: list = []
    changes = [*ATTENTION, "training.attention_epochs=20", "training.epochs=8", "training.weight_decay=0.0"]
    trained(tmp_path, *changes, on_epoch=rows.append)
    learned = [row for row in rows if row["phase"] == "attention"]
    assert learned[0]["loss"] == pytest.approx(math.log(20), rel=0.05)  # of flat attention
    assert learned[-1]["loss"] < learned[0]["loss"] - 0.05
    assert learned[-1]["effective_cells"] < learned[0]["effective_cells"]


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_first_process_decides_the_trust_in_attention(tmp_path, monkeypatch, scale):
    """If each went by its own verdict, they could wait for one another in different phases."""
    verdict = distilling.Trust(scale, scale > 0, 0.5, 0.1, 4)

    class Second(Processes):
        def gather(self, value):
            return [verdict, value] if isinstance(value, distilling.Trust) else [value]

    def trust(model, *args, **options):
        model.attention_scale.fill_(2.0)
        return distilling.Trust(2.0, True, 1.0, 0.1, 4)

    monkeypatch.setattr(attention_phase, "trust", trust)
    found = trained(tmp_path, *ATTENTION, processes=Second())
    assert found.trust == verdict
    assert found.model.attention_scale == scale


def test_slides_surveyed_in_this_run_are_not_reloaded(tmp_path, monkeypatch):
    """With two levels that would read the fine thumbnails of regions again."""
    recalled: list[list[int]] = []
    real = attention_phase.recall

    def recall(method, examples, reader, seed, found, *, on_bad):
        recalled.append(sorted(found))
        return real(method, examples, reader, seed, found, on_bad=on_bad)

    monkeypatch.setattr(attention_phase, "recall", recall)
    trained(tmp_path, *ATTENTION)
    assert recalled == [[]]


@pytest.mark.parametrize("turns", [True, False])
def test_attention_learns_from_all_orientations_and_is_applied_to_the_original(tmp_path, monkeypatch, turns):
    seen: list[tuple[bool, int]] = []
    real = model.score_turned

    def score_turned(network, thumbnail, mask, turn):
        seen.append((network.training, turn))
        return real(network, thumbnail, mask, turn)

    monkeypatch.setattr(model, "score_turned", score_turned)
    trained(tmp_path, *ATTENTION, f"augmentation.turns={turns}".lower())
    learning = [turn for training, turn in seen if training]
    assert len(learning) == 8 * 3
    assert {turn for training, turn in seen if not training} == {0}
    # Three slides in a row laid the same way, every time, are not chance.
    assert len(set(learning)) >= 5 if turns else set(learning) == {0}


def test_attention_learns_from_all_slides_of_a_pooled_case_together(tmp_path, monkeypatch):
    counts: list[int] = []
    real = attention_phase.loss

    def loss(evidence):
        counts.append(len(evidence.tile_outputs))
        return real(evidence)

    monkeypatch.setattr(attention_phase, "loss", loss)
    ordered = sorted(TRAINING, key=lambda each: each.target)
    pairs = [replace(each, ref=replace(each.ref, case=f"case {n // 2}")) for n, each in enumerate(ordered)]
    trained(tmp_path / "union", *ATTENTION, "model.cases=union", examples=pairs)
    assert counts == [20] * (4 * 3)  # of two slides
    counts.clear()
    trained(tmp_path / "mean", *ATTENTION, "model.cases=mean", examples=pairs)
    assert counts == [10] * (8 * 3)


def test_without_validation_slides_attention_is_not_judged(tmp_path):
    rows: list = []
    found = trained(tmp_path, *ATTENTION, validation=[], on_epoch=rows.append)
    assert found.trust == distilling.Trust(distilling.USUAL, None, None, None, 0)
    assert found.model.attention_scale == distilling.USUAL
    assert [row["tiles"] for row in rows] == [8 * 5, 8 * 5, 8 * 10, 0, 0]
    assert (found.by_attention, found.by_uniform) == ({}, {})
    watched = trained(tmp_path / "watched", *ATTENTION)
    assert watched.trust.cases == len(VALIDATION)


def test_slides_that_cannot_be_read_are_left_out_of_the_survey(tmp_path):
    rows: list = []
    bad: list[str] = []
    found = trained(
        tmp_path,
        *ATTENTION,
        opener=unreadable("s2p", "s21v"),
        on_epoch=rows.append,
        on_bad=lambda slide_id, error: bad.append(slide_id),
    )
    assert sorted(bad) == ["s21v", "s2p"]  # each once
    assert [row["tiles"] for row in rows[2:]] == [(7 + 3) * 10, 0, 0]
    assert found.trust.cases == 3
    with pytest.raises(ModelError, match=r"--max-bad allows 0: s21v: tile 3 is damaged"):
        trained(
            tmp_path / "none allowed",
            *ATTENTION,
            opener=unreadable("s21v", left=2),  # as often as it is watched before
            max_bad=0,
        )


def test_nan_in_attention_is_reported_with_slide_step_and_last_good_state(tmp_path, monkeypatch):
    real = attention_phase.AttentionPhase.take

    def poison(self, step, batch, begun):
        if step == 14:
            with torch.no_grad():
                self._learner.model.attention.logit.weight.fill_(torch.nan)
        return real(self, step, batch, begun)

    monkeypatch.setattr(attention_phase.AttentionPhase, "take", poison)
    said = r"s\d[pv]: attention is NaN .* \(step 14, epoch 3\); the last good state is .*step_000000012"
    with pytest.raises(ModelError, match=said):
        trained(tmp_path, *ATTENTION)
    assert progress(tmp_path)["step"] == 12


def test_nan_in_attention_during_validation_is_an_error(tmp_path):
    rate = ["training.attention_learning_rate=1e36", "training.warmup=0.0"]
    with pytest.raises(ModelError, match=r"(loss|norm|attention) is .*try lower learning rates"):
        trained(tmp_path, *ATTENTION, *rate)
