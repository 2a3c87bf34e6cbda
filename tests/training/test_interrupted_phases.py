"""A run stopped in any phase, at any read or step, ends the same."""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path

import pytest

from training.phase_runs import ATTENTION, PHASES, assert_same, recorded
from training.runs import VALIDATION, metrics_in, progress, slide_of, trained
from wsi_ats.errors import ArtifactError
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.training.learner import Learner

pytestmark = pytest.mark.usefixtures("trusted")


def stop(folder: Path, *changes: str, **options) -> None:
    """Train until something interrupts the run."""
    with pytest.raises(KeyboardInterrupt):
        trained(folder, *changes, **options)


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def test_a_run_stopped_after_every_epoch_ends_the_same(tmp_path, whole):
    epochs: list[int] = []
    for _ in range(7):
        stop(tmp_path, *PHASES, on_epoch=lambda row: (epochs.append(row["epoch"]), interrupt()))
    assert epochs == list(range(7))
    assert_same(trained(tmp_path, *PHASES, on_epoch=pytest.fail), whole[0])
    assert metrics_in(tmp_path) == metrics_in(whole[1])
    assert not (tmp_path / "features").exists()  # the backbone learns, if not in each phase


# Reads of each attempt, and the epochs of the state that it leaves. There are 8 and 4 in each epoch of the
# classifier, after 8 for calibration; 12 slides are surveyed; then 4 are watched.
READS = [(8 + 5, 0), (12 + 10, 1), (12 + 1, 2), (7, 2), (12, 2), (12 + 3, 2), (12 + 22, 5)]


def test_a_run_stopped_at_any_read_ends_the_same(tmp_path, whole):
    def stop_at(last: int) -> None:
        reads = itertools.count(1)

        class Stops(MemorySlide):
            def read_regions(self, *args):
                return interrupt() if next(reads) == last else super().read_regions(*args)

        stop(tmp_path, *PHASES, opener=lambda ref: Stops(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id))

    stop_at(3)
    assert not [*tmp_path.rglob("step_*")]
    for read, epochs in READS:
        stop_at(read)
        assert len(progress(tmp_path)["rows"]) == epochs
    assert_same(trained(tmp_path, *PHASES), whole[0])
    assert metrics_in(tmp_path) == metrics_in(whole[1])


def test_a_run_stopped_at_any_step_goes_on_from_the_state_before_and_ends_the_same(tmp_path, monkeypatch):
    changes = [*PHASES, "training.checkpoint_steps=3", "training.read_ahead=0", "training.ema=0.5"]
    whole = trained(tmp_path / "whole", *changes)
    real = Learner.take_step
    for step in range(1, 28, 3):

        def take_step(self, count, check, last=step):
            return interrupt() if check.keywords["step"] == last else real(self, count, check)

        monkeypatch.setattr(Learner, "take_step", take_step)
        stop(tmp_path / "stopped", *changes)
        assert progress(tmp_path / "stopped")["step"] == max(step - step % 4, step - step % 3)
    monkeypatch.undo()
    assert_same(trained(tmp_path / "stopped", *changes), whole)
    assert metrics_in(tmp_path / "stopped") == metrics_in(tmp_path / "whole")


def test_a_run_that_has_ended_gives_the_same_again_and_reads_only_what_is_watched(tmp_path, whole):
    shutil.copytree(whole[1], tmp_path / "again")
    again, asked = recorded(tmp_path / "again", *PHASES)
    assert_same(again, whole[0])
    assert {slide for slide, _ in asked} == {each.ref.id for each in VALIDATION}


def stop_in_attention(folder: Path, *changes: str) -> None:
    stop(folder, *changes, on_epoch=lambda row: interrupt() if row["phase"] == "attention" else None)


@pytest.fixture(scope="module", params=["full", "frozen"])
def surveyed(request, tmp_path_factory, trusted):
    """Settings, a run that nothing disturbs, and the folders of that and of one stopped after the survey."""
    folder, changes = (
        tmp_path_factory.mktemp("surveyed"),
        [*ATTENTION, f"training.fine_tuning={request.param}"],
    )
    stop_in_attention(folder / "stopped", *changes)
    return changes, trained(folder / "whole", *changes), folder


@pytest.mark.parametrize("fate", ["missing", "cut short", "no state"])
def test_a_lost_survey_is_repeated(tmp_path, caplog, fate, surveyed):
    changes, whole, folder = surveyed
    shutil.copytree(folder / "stopped", tmp_path / "lost")
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
    assert metrics_in(tmp_path / "lost") == metrics_in(folder / "whole")


def test_the_survey_of_another_run_is_refused(tmp_path):
    for seed in (0, 1):
        stop_in_attention(tmp_path / str(seed), *ATTENTION, f"training.seed={seed}")
    path = Path("checkpoints") / "survey.safetensors"
    (tmp_path / "0" / path).write_bytes((tmp_path / "1" / path).read_bytes())
    with pytest.raises(ArtifactError, match=r"survey\.safetensors belongs to a run with other settings"):
        trained(tmp_path / "0", *ATTENTION)
