"""A run stopped in any phase, at any read or step, ends the same."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from training.phase_runs import ATTENTION, PHASES, assert_same, recorded
from training.runs import VALIDATION, metrics_in, progress, slide_of, trained
from wsi_ats.errors import ArtifactError
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.training.learner import Learner

pytestmark = pytest.mark.usefixtures("trusted")


@pytest.mark.parametrize("done", range(7))
def test_a_run_stopped_after_any_epoch_ends_the_same(tmp_path, done, whole):
    def stop(row):
        if row["epoch"] == done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *PHASES, on_epoch=stop)
    rows: list = []
    assert_same(trained(tmp_path, *PHASES, on_epoch=rows.append), whole[0])
    assert [row["epoch"] for row in rows] == list(range(done + 1, 7))
    assert metrics_in(tmp_path) == metrics_in(whole[1])
    assert not (tmp_path / "features").exists()  # the backbone learns, if not in each phase


# Reads: 8 for calibration, 8 and 4 in each epoch of the classifier, 12 surveyed, then 4 of each watched.
@pytest.mark.parametrize(
    "read", [3, 8 + 5, 8 + 12 + 10, 8 + 24 + 1, 8 + 24 + 7, 8 + 24 + 12, 8 + 24 + 12 + 3, 66]
)
def test_a_run_stopped_at_any_read_ends_the_same(tmp_path, read, whole):
    reads: list[str] = []

    class Stops(MemorySlide):
        def read_regions(self, *args):
            reads.append(self.path)
            if len(reads) == read:
                raise KeyboardInterrupt
            return super().read_regions(*args)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *PHASES, opener=lambda ref: Stops(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id))
    assert_same(trained(tmp_path, *PHASES), whole[0])
    assert metrics_in(tmp_path) == metrics_in(whole[1])


STATES = [*PHASES, "training.checkpoint_steps=3", "training.read_ahead=0", "training.ema=0.5"]


@pytest.fixture(scope="module")
def whole_with_states(tmp_path_factory):
    """A run that nothing disturbs, with states after every third step, and its folder."""
    folder = tmp_path_factory.mktemp("states")
    return trained(folder, *STATES), folder


@pytest.mark.parametrize("step", range(1, 28, 3))
def test_a_run_stopped_at_any_step_goes_on_from_the_state_before_and_ends_the_same(
    tmp_path, monkeypatch, step, whole_with_states
):
    real = Learner.take_step

    def take_step(self, count, check):
        if check.keywords["step"] == step:
            raise KeyboardInterrupt
        return real(self, count, check)

    monkeypatch.setattr(Learner, "take_step", take_step)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *STATES)
    monkeypatch.undo()
    assert progress(tmp_path)["step"] == max(step - step % 4, step - step % 3)
    assert_same(trained(tmp_path, *STATES), whole_with_states[0])
    assert metrics_in(tmp_path) == metrics_in(whole_with_states[1])


def test_a_run_that_has_ended_gives_the_same_again_and_reads_only_what_is_watched(tmp_path):
    first, _ = recorded(tmp_path, *PHASES)
    again, asked = recorded(tmp_path, *PHASES)
    assert_same(again, first)
    assert {slide for slide, _ in asked} == {each.ref.id for each in VALIDATION}


@pytest.mark.parametrize("fate", ["missing", "cut short", "no state"])
@pytest.mark.parametrize("backbone", ["full", "frozen"])
def test_a_lost_survey_is_repeated(tmp_path, caplog, fate, backbone):
    def stop(row):
        if row["phase"] == "attention":
            raise KeyboardInterrupt

    changes = [*ATTENTION, f"training.fine_tuning={backbone}"]
    whole = trained(tmp_path / "whole", *changes)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "lost", *changes, on_epoch=stop)
    path = tmp_path / "lost" / "checkpoints" / "survey.safetensors"
    kept = path.read_bytes()
    path.unlink()
    if fate != "missing":
        path.write_bytes(kept[:-100] if fate == "cut short" else b"nothing that can be read")
    with caplog.at_level(logging.WARNING):
        assert_same(trained(tmp_path / "lost", *changes), whole)
    assert "survey.safetensors is missing or damaged" in caplog.text
    assert "slides are surveyed again" in caplog.text
    assert path.read_bytes() == kept
    assert metrics_in(tmp_path / "lost") == metrics_in(tmp_path / "whole")


def test_the_survey_of_another_run_is_refused(tmp_path):
    def stop(row):
        if row["phase"] == "attention":
            raise KeyboardInterrupt

    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / str(seed), *ATTENTION, f"training.seed={seed}", on_epoch=stop)
    path = Path("checkpoints") / "survey.safetensors"
    (tmp_path / "0" / path).write_bytes((tmp_path / "1" / path).read_bytes())
    with pytest.raises(ArtifactError, match=r"survey\.safetensors belongs to a run with other settings"):
        trained(tmp_path / "0", *ATTENTION)
