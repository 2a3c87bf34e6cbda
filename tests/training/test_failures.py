"""Training that is refused, or that leaves out slides which cannot be read."""

from __future__ import annotations

import logging
import math

import pytest
from safetensors.torch import load_file

from training.runs import TRAINING, VALIDATION, newest, progress, run, unreadable
from wsi_ats.errors import ArtifactError, ModelError, SettingsError
from wsi_ats.tasks.classification import Classification


def test_an_image_that_does_not_fit_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 100_000}))
    with pytest.raises(ModelError, match=r"at model\.scale 1\.0: training would need .* GB on cpu"):
        run(
            tmp_path,
            *("model.kind=image", "model.scale=1.0", "training.epochs=1", "training.joint_epochs=0"),
            opener=unreadable(*(each.ref.id for each in TRAINING)),
        )


@pytest.mark.parametrize(
    "other",
    [
        {"changes": ["training.joint_epochs=4"]},
        {"changes": ["training.epochs=1"]},
        {"changes": ["training.attention_tiles=7"]},
        {"changes": ["sampling.tiles=4"]},
        {"examples": TRAINING[:-1]},
        {"validation": VALIDATION[:-1]},
    ],
    ids=["joint epochs", "epochs", "tiles of the survey", "tiles", "slides", "validation slides"],
)
def test_the_state_of_another_run_is_refused(tmp_path, other):
    run(tmp_path, "training.joint_epochs=1")
    state = newest(tmp_path)
    before = state.read_bytes()
    changes = ["training.joint_epochs=1", *other.pop("changes", [])]
    with pytest.raises(ArtifactError, match=r"other settings or slides.*--overwrite"):
        run(tmp_path, *changes, **other)
    assert state.read_bytes() == before


def test_a_damaged_state_is_refused_rather_than_restarted(tmp_path):
    run(tmp_path, "training.joint_epochs=1")
    state = newest(tmp_path)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="damaged"):
        run(tmp_path, "training.joint_epochs=1")


def test_a_slide_that_cannot_be_read_is_left_out_counted_and_named(tmp_path, caplog):
    rows = []
    with caplog.at_level(logging.WARNING):
        model = run(tmp_path, opener=unreadable("s2p"), on_epoch=rows.append)
    assert [row["failed"] for row in rows] == [1, 1, 1]
    assert [row["tiles"] for row in rows] == [21, 21, 21]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert caplog.text.count("s2p: tile 3 is damaged") == 1  # not in every epoch


def test_a_step_none_of_whose_slides_can_be_read_is_left_out(tmp_path):
    rows = []
    run(
        tmp_path,
        "training.slides_per_step=1",
        "training.joint_epochs=1",
        opener=unreadable("s2p", "s3v", *(e.ref.id for e in VALIDATION)),
        on_epoch=rows.append,
    )
    assert rows[0]["failed"] == 2
    assert rows[0]["validation_loss"] is rows[0]["validation_auc"] is None


def test_no_readable_slide_is_an_error_that_says_why(tmp_path):
    names = [each.ref.id for each in TRAINING]
    with pytest.raises(ModelError, match=r"calibration.*s0p: tile 3 is damaged"):
        run(tmp_path / "from the start", opener=unreadable(*names))
    with pytest.raises(ModelError, match="no training slide could be read"):
        run(tmp_path / "after calibration", opener=unreadable(*names, left=1))
    assert not (tmp_path / "after calibration" / "metrics.csv").exists()


def test_a_diverging_learning_rate_stops_training_with_advice(tmp_path):
    for rate in ("head_learning_rate", "gate_learning_rate", "attention_learning_rate", "learning_rate"):
        with pytest.raises(ModelError, match=r"(loss|norm|attention) is .*try lower learning rates"):
            run(tmp_path / rate, f"training.{rate}=1e36", "training.warmup=0.0", validation=[])


@pytest.mark.parametrize("what", ["loss", "gradient's norm"])
def test_nan_loss_reports_epoch_step_and_slides_and_is_never_stored(tmp_path, monkeypatch, what):
    real, calls = Classification.losses, []

    def in_the_second_epoch(task, outputs, targets):
        loss = real(task, outputs, targets)
        if not loss.requires_grad:  # of watched slides, and of a guess
            return loss
        calls.append(1)
        if len(calls) == 5:  # three steps; then the second step
            if what == "loss":
                return loss * math.nan
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(Classification, "losses", in_the_second_epoch)
    said = rf"{what} is (nan|inf) in step 4, epoch 1 \(slides s\d.*step_000000003.safetensors; try"
    with pytest.raises(ModelError, match=said):
        run(tmp_path)
    assert len(progress(tmp_path)["rows"]) == 1
    assert all(value.isfinite().all() for value in load_file(newest(tmp_path)).values())


def test_slides_in_other_colours_than_the_settings_ask_for_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"s0p: its colour is 'stored', but tile\.colour is 'srgb'"):
        run(tmp_path, "tile.colour=srgb")
