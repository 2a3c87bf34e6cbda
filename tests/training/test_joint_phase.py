"""Joint training: kept up to the best validation, left out where attention is not trusted."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch

from training.phase_runs import ATTENTION, CLASSIFIER, PHASES, assert_same, recorded
from training.runs import TRAINING, VALIDATION, run, slide_of, trained
from wsi_ats.errors import SlideReadError
from wsi_ats.models import drawing
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.training import attention as attention_phase
from wsi_ats.training import distillation as distilling
from wsi_ats.training.validation import Metrics

pytestmark = pytest.mark.usefixtures("trusted")


def spoil(monkeypatch, values: list[float]) -> list[dict[str, torch.Tensor]]:
    """Validation losses by hand, in the phase in which all learns; gives the weights that had each."""
    seen: list[dict[str, torch.Tensor]] = []
    real = Metrics.validate

    def validate(self, prefix="validation_"):
        found = real(self, prefix)
        if self.journal.phase.name == "joint" and prefix == "validation_":
            seen.append({name: each.clone() for name, each in self.learner.final.state_dict().items()})
            found["validation_loss"] = values[len(seen) - 1]
        return found

    monkeypatch.setattr(Metrics, "validate", validate)
    return seen


@pytest.mark.parametrize(
    ("values", "best"), [([1, 2, 3], 0), ([3, 1, 2], 1), ([3, 2, 1], 2), ([1, 1, 1], 0)], ids=str
)
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_joint_epochs_are_kept_up_to_the_best_validation(tmp_path, monkeypatch, values, best, ema):
    seen = spoil(monkeypatch, values)
    found = trained(tmp_path, *PHASES, f"training.ema={ema}")
    assert len(seen) == 3
    assert all(torch.equal(each, seen[best][name]) for name, each in found.model.state_dict().items())
    assert not torch.equal(seen[0]["head.weight"], seen[1]["head.weight"])
    assert not torch.equal(seen[1]["head.weight"], seen[2]["head.weight"])


def test_without_validation_slides_all_joint_epochs_are_kept(tmp_path):
    before = run(tmp_path / "before", *ATTENTION, validation=[])
    after = run(tmp_path / "after", *PHASES, validation=[])
    assert not torch.equal(before.head.weight, after.head.weight)
    assert not (tmp_path / "after" / "checkpoints" / "best.safetensors").exists()


def test_joint_training_without_a_defined_metric_is_skipped_with_a_warning(tmp_path, caplog):
    alike = [each for each in VALIDATION if each.target == VALIDATION[0].target]
    before = trained(tmp_path / "before", *ATTENTION, validation=alike)
    changes = [*PHASES, "training.monitor=score"]
    for _ in range(2):  # the second goes on from a run that has ended
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            after = trained(tmp_path / "after", *changes, validation=alike)
        assert_same(before, after)
        assert [row["phase"] for row in after.rows] == ["classifier"] * 2 + ["attention"] * 3
        assert "joint training is skipped: validation_auc is not defined" in caplog.text


def test_patience_with_slides_that_turn_unreadable_ends_the_phase(tmp_path, monkeypatch):
    real = Metrics.validate

    def validate(self, prefix="validation_"):
        found = real(self, prefix)
        readable = (
            self.journal.phase.name != "joint" or self.journal.progress.step == self.journal.progress.start
        )
        return found if readable else dict.fromkeys(found)

    monkeypatch.setattr(Metrics, "validate", validate)
    changes = [*PHASES, "training.attention_epochs=0", "training.joint_epochs=5", "training.patience=2"]
    found = trained(tmp_path, *changes)
    assert [row["phase"] for row in found.rows] == ["classifier"] * 2 + ["joint"] * 2


def test_attention_that_was_not_trained_is_compared_with_nothing(tmp_path):
    found, asked = recorded(tmp_path, *CLASSIFIER)
    assert found.trust == distilling.Trust(0.0, None, None, None, 0)
    assert found.by_attention == found.by_uniform
    watched = Counter(slide for slide, _ in asked)["s20p"]
    assert watched == 3 * (2 + 4)  # by one draw in each epoch, and by four in the end


def test_jointly_trained_attention_is_used_unscaled(tmp_path):
    assert trained(tmp_path, "training.joint_epochs=1").trust == distilling.Trust(1.0, None, None, None, 0)


def test_joint_training_is_left_out_where_attention_is_not_trusted(tmp_path, monkeypatch, caplog):
    """The attention network would be left out, with its supervision."""

    def trust(model, *given, **options):
        model.attention_scale.fill_(0.0)
        return distilling.Trust(0.0, False, 0.1, 0.6, 4)

    monkeypatch.setattr(attention_phase, "trust", trust)
    before = trained(tmp_path / "before", *ATTENTION)
    for _ in range(2):  # the second goes on from a run that has ended
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            after = trained(tmp_path / "after", *PHASES)
        assert_same(before, after)
        assert [row["phase"] for row in after.rows] == ["classifier"] * 2 + ["attention"] * 3
        assert "joint training is skipped: the validation slides call for uniform draws" in caplog.text


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_joint_training_draws_by_attention_as_far_as_trusted(tmp_path, monkeypatch, scale):
    logits: list[torch.Tensor] = []
    real = drawing.draw_cells

    def draw_cells(given, tissue, settings, seed):
        if settings.tiles == 3:
            logits.append(given.detach().clone())
        return real(given, tissue, settings, seed)

    def trust(model, judges, figure, *, tiles, exploration, seed):
        assert (tiles, exploration, seed, len(judges)) == (3, 0.1, 0, 4)
        assert figure(torch.zeros(4, 2), range(4)) == 0.5  # the area under the curve
        model.attention_scale.fill_(scale)
        return distilling.Trust(scale, True, 0.5, 0.6, 4)

    monkeypatch.setattr(drawing, "draw_cells", draw_cells)
    monkeypatch.setattr(attention_phase, "trust", trust)
    found = trained(tmp_path, *PHASES)
    assert found.model.attention_scale == scale
    assert found.trust == distilling.Trust(scale, True, 0.5, 0.6, 4)
    overview = TRAINING[0].overview
    attention = found.model.score_cells(
        torch.from_numpy(overview.thumbnail), torch.arange(20), overview.tissue.grid.shape
    )
    assert attention.detach().any()
    joint = logits[-16 - 4 * 2 * (1 + 4) :]
    assert any(each.any() for each in joint)


class OneBadTile(MemorySlide):
    """One of its twenty tiles cannot be read: some draws meet it, others do not."""

    def read_regions(self, level, corners, width, height):
        if [16, 16] in corners.tolist():
            raise SlideReadError(self.path, "tile 6 is damaged")
        return super().read_regions(level, corners, width, height)


def test_a_slide_that_only_some_draws_can_read_is_left_out_of_the_comparison(tmp_path):
    def opener(ref):
        slide = slide_of(ref.id)
        return OneBadTile(slide._pyramid, mpp=0.5, path=ref.id) if ref.id == "s21v" else slide

    changes = ["training.joint_epochs=1", "training.attention_learning_rate=0.1"]
    found = trained(tmp_path / "bad", *changes, opener=opener)
    others = [each for each in VALIDATION if each.ref.id != "s21v"]
    expected = trained(tmp_path / "without", *changes, validation=others)
    assert found.by_attention == pytest.approx(expected.by_attention)
    assert found.by_uniform == pytest.approx(expected.by_uniform)
    assert found.by_attention != found.by_uniform


def test_attention_is_compared_with_the_kept_epoch_of_the_classifier(tmp_path, monkeypatch):
    """Which need not be the last."""
    values = iter([3.0, 1.0, 2.0, 2.0])
    real = Metrics.validate

    def validate(self, prefix="validation_"):
        found = real(self, prefix)
        if self.journal.phase.name == "classifier":
            kept.append(found["validation_loss"])
            found["validation_loss"] = next(values)
        return found

    kept: list[float] = []
    monkeypatch.setattr(Metrics, "validate", validate)
    rows: list = []
    changes = [*ATTENTION, "training.epochs=6", "training.patience=2", "training.attention_epochs=2"]
    trained(tmp_path, *changes, on_epoch=rows.append)
    assert [row["phase"] for row in rows] == ["classifier"] * 4 + ["attention"] * 2
    assert len(set(kept)) == 4
    assert [row["uniform_loss"] for row in rows[4:]] == [kept[1]] * 2
