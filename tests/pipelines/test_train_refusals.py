"""Training that is refused before any work."""

from __future__ import annotations

import csv
import shutil

import pytest
from conftest import table


def test_an_invalid_readers_option_is_refused_before_any_work(train, tmp_path):
    ran = train(tmp_path / "run", "--readers", "processes", code=2)
    assert "--readers must be threads, threads:N or dask, not 'processes'" in ran.stderr
    assert not (tmp_path / "run").exists()


def test_patience_without_validation_slides_is_refused_before_any_work(train, tmp_path):
    ran = train(tmp_path / "run", "--set", "training.patience=2", "--set", "training.validation=0", code=2)
    assert "training.patience is 2, but there are no validation slides" in ran.stderr
    assert not (tmp_path / "run").exists()


def test_missing_tensorboard_is_refused_before_any_work(train, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines._tensorboard.find_spec", lambda name: None)
    ran = train(tmp_path / "run", "--tensorboard", code=2)
    assert 'pip install "wsi-ats[tensorboard]"' in ran.stderr
    assert not (tmp_path / "run").exists()


def test_other_settings_or_labels_are_refused(train, trained, slides, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    ran = train(tmp_path / "run", "--set", "training.epochs=3", code=2)
    assert "settings.training.epochs is 2 there and 3 now" in ran.stderr
    rows = table(slides / "labels.csv")
    rows[0]["label"], rows[1]["label"] = "positive", "negative"
    rows[2]["label"] = {"positive": "negative", "negative": "positive"}[rows[2]["label"]]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["slide_id", "case_id", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    train(tmp_path / "run", labels=tmp_path / "labels.csv", code=2)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("slide_id,label\nsomebody,a\nelse,b\n", "no label belongs to any slide"),
        ("slide_id,label\n" + "".join(f"slide_{i:03d},a\n" for i in range(6)), "two classes or more"),
        ("slide_id,label\n" + "".join(f"slide_{i:03d},nan\n" for i in range(6)), "has a label"),
        ("slide_id,label\nslide_000,a\nslide_001,b\nslide_002,b\n", "patients or more"),
        ("slide_id,label\nslide_000,a\nslide_000,b\n", "slide_000"),
        ("", "is empty"),
    ],
)
def test_labels_that_cannot_be_learned_from(train, tmp_path, labels, said):
    (tmp_path / "labels.csv").write_text(labels)
    ran = train(tmp_path / "run", labels=tmp_path / "labels.csv", code=2)
    assert said in ran.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.backbone=no_such_network", "'no_such_network' cannot be built"),
        ("model.attention=no_such_network", "'no_such_network' cannot be built"),
        ("model.checkpoint=nowhere.pth", "model.checkpoint 'nowhere.pth' is not a file"),
    ],
)
def test_an_unavailable_network_is_refused_before_any_work(train, tmp_path, change, said, options):
    out = tmp_path / "run"
    ran = train(out, "--set", change, *options, code=2)
    assert said in ran.stderr
    assert not (out / "prepared").exists()


def test_a_biased_design_is_refused_before_anything_is_written(train, tmp_path):
    done = train(tmp_path / "run", "--set", "sampling.design=top", code=2)
    assert "biased" in done.stderr
    assert not (tmp_path / "run").exists()


def test_incomplete_torchrun_variables_are_refused(run, slides, config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    labels = slides / "labels.csv"
    for command in ("train", "crossval"):
        ran = run(
            command, slides, "--labels", labels, "--out", tmp_path / command, "--config", config, code=2
        )
        assert "LOCAL_RANK, MASTER_ADDR, MASTER_PORT, RANK are not set; start with torchrun" in ran.stderr
        assert not (tmp_path / command).exists()


def test_a_case_with_two_labels_is_refused_where_cases_are_pooled(train, slides, tmp_path):
    rows = table(slides / "labels.csv")
    text = "".join(f"{row['slide_id']},patient,{row['label']}\n" for row in rows)
    (tmp_path / "labels.csv").write_text("slide_id,case_id,label\n" + text)
    options = ("--set", "model.cases=mean", "--set", "training.validation=0")
    # Two classes need two cases each, so one patient more of each.
    extra = "".join(f"{row['slide_id']},{row['slide_id']},{row['label']}\n" for row in rows[2:])
    (tmp_path / "labels.csv").write_text(
        "slide_id,case_id,label\n" + "".join(text.splitlines(keepends=True)[:2]) + extra
    )
    ran = train(tmp_path / "run", *options, labels=tmp_path / "labels.csv", code=2)
    assert "case 'patient' have different labels" in ran.stderr
    assert not (tmp_path / "run").exists()


def test_restarts_without_validation_slides_are_refused(train, tmp_path):
    ran = train(tmp_path / "out", "--restarts", "2", "--set", "training.validation=0", code=2)
    assert "--restarts 2 keeps the run with the least validation loss" in ran.stderr
