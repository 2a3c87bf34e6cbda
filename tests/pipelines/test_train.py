"""Training through the command line; stopped and taken up again."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest
import torch
from conftest import LIMIT, SETTINGS, files, start, table
from training_runs import RUN_FILES, model_of

from pipelines._console import ConsoleReporter
from pipelines._runs import Execution, Summary
from pipelines.train import _write_splits
from wsi_ats.errors import SlideReadError
from wsi_ats.files import read_json
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings


def test_output_files(trained):
    assert files(trained) == RUN_FILES
    assert Settings.read(trained / "config.toml") == SETTINGS
    splits = table(trained / "splits.csv")
    assert list(splits[0]) == ["slide_id", "case_id", "label", "split"]
    assert {row["split"] for row in splits} == {"train", "val"}
    metrics = table(trained / "metrics.csv")
    assert [row["phase"] for row in metrics] == ["classifier", "classifier", "attention", "attention"]
    record = read_json(trained / "run.json")
    assert (record["stage"], record["model"]) == ("train", model_of(trained))
    assert record["counts"]["done"] == 6


def test_a_trained_model_scores(trained, run, slides, tmp_path):
    ran = run("score", slides, "--model", trained, "--out", tmp_path / "scores", "--json")
    assert ran.json["counts"]["done"] == 6


def test_reading_on_workers_changes_results_only_by_jpeg_loss(train, trained, tmp_path):
    train(tmp_path / "threads", "--readers", "threads:3")
    assert model_of(tmp_path / "threads") == model_of(trained)
    train(tmp_path / "dask", "--readers", "dask")
    here, there = (table(out / "metrics.csv") for out in (trained, tmp_path / "dask"))
    assert [row["tiles"] for row in there] == [row["tiles"] for row in here]
    for first in (0, 2):  # of the classifier, and of attention
        one, other = here[first], there[first]
        assert float(other["effective_cells"]) == pytest.approx(float(one["effective_cells"]), rel=1e-3)
        assert float(other["loss"]) == pytest.approx(float(one["loss"]), rel=0.05)
    again = train(tmp_path / "dask", code=2)
    assert "digests.tiles is jpeg there and None now" in again.stderr


def test_a_finished_run_is_left_as_it_is(train, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    ran = train(tmp_path / "run")
    assert "nothing to do" in ran.stderr
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "lost", ["metrics.csv", "splits.csv", "slides.parquet", "model.safetensors", "other weights"]
)
def test_missing_files_of_a_finished_run_are_restored(train, trained, tmp_path, lost):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    if lost == "other weights":
        content = (out / "model.safetensors").read_bytes()
        (out / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (out / lost).unlink()
    ran = train(out)
    assert "nothing to do" not in ran.stderr
    assert ran.json["reused"] == 6
    for name in ("model.safetensors", "metrics.csv", "splits.csv"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()
    assert files(out) == RUN_FILES
    assert "nothing to do" in train(out).stderr


def test_the_summary_counts_training_slides(train, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    notes = {
        "classes": {"negative": 3, "positive": 3},
        "training_slides": len([row for row in table(trained / "splits.csv") if row["split"] == "train"]),
        "validation_slides": len([row for row in table(trained / "splits.csv") if row["split"] == "val"]),
    }
    assert sum(notes["classes"].values()) == notes["training_slides"] + notes["validation_slides"]
    assert train(tmp_path / "run").json["notes"] == notes
    assert train(tmp_path / "dry", "--dry-run").json["notes"] == notes
    [(_, lines)] = Summary("train", tmp_path, {}, notes=notes).sections()
    assert lines[0] == ("classes", "negative 3, positive 3")
    assert lines[1][0] == "training slides"


@pytest.mark.parametrize("names", [["tumour", "Tumour"], ["1.0", "1"], ["low  grade", "Low grade"]])
def test_classes_that_differ_only_in_spelling_are_warned_about(train, slides, tmp_path, names):
    rows = table(slides / "labels.csv")
    lines = [f"{row['slide_id']},{names[i % 2]}" for i, row in enumerate(rows)]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,label", *lines, ""]))
    ran = train(tmp_path / "run", "--dry-run", labels=tmp_path / "labels.csv")
    one, other = sorted(names)
    assert f"{one!r} and {other!r} count as different labels" in ran.stderr
    assert "different labels" not in train(tmp_path / "run", "--dry-run").stderr


def test_slides_of_several_sources(run, slides, config, tmp_path):
    paths = sorted(slides.glob("*.tif"))
    rest = ("--labels", slides / "labels.csv", "--out", tmp_path / "run", "--config", config, "--dry-run")
    ran = run("train", *paths, *rest, "--json")
    assert ran.stderr == ""
    assert ran.json["counts"] == {"to_do": 6, "finished": 0}
    assert ran.json["notes"]["classes"] == {"negative": 3, "positive": 3}


def test_nothing_is_kept_of_runs_on_other_slides(refs, tmp_path):
    """The first run's states may be of other slides, and so may a retry's."""
    parts = [{"train": refs[:4], "val": refs[4:]}, {"train": refs[1:4], "val": refs[4:]}]
    for made in ("checkpoints", "restarts/1/checkpoints"):
        (tmp_path / made).mkdir(parents=True)
    _write_splits(tmp_path, parts[0], Execution())
    _write_splits(tmp_path, parts[0], Execution())
    assert (tmp_path / "checkpoints").exists()
    assert (tmp_path / "restarts").exists()
    shutil.rmtree(tmp_path / "checkpoints")
    _write_splits(tmp_path, parts[1], Execution())
    assert not (tmp_path / "restarts").exists()


def test_a_run_interrupted_between_epochs_resumes(train, trained, tmp_path, monkeypatch):
    def interrupt(self, text):
        if text.startswith("train 1/4"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleReporter, "message", interrupt)
        train(tmp_path / "run", code=130)
    assert not (tmp_path / "run" / "model.json").exists()
    train(tmp_path / "run")
    assert model_of(tmp_path / "run") == model_of(trained)


@pytest.mark.slow
def test_ctrl_c_stops_a_real_process_and_the_run_resumes(
    train, trained, slides, config, address, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    # Sums are rounded as the number of threads has it, and other tests may have changed ours.
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    process = start(
        *("train", slides, "--labels", slides / "labels.csv", "--out", out, "--config", config),
        *("--scheduler", address),
    )
    while process.poll() is None and not (out / "metrics.csv").exists():
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    train(out)
    assert model_of(out) == model_of(trained)


def test_a_slide_that_cannot_be_used_is_left_out(train, slides, tmp_path):
    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    (folder / "text.svs").write_text("this is no slide")
    with (folder / "labels.csv").open("a") as file:
        file.write("text,case_x,text.svs,positive\n")
    ran = train(tmp_path / "run", source=folder, labels=folder / "labels.csv", code=1)
    assert ran.json["failed"].keys() == {"text"}
    assert (tmp_path / "run" / "model.json").exists()
    assert "text" not in {row["slide_id"] for row in table(tmp_path / "run" / "splits.csv")}
    again = train(tmp_path / "run", source=folder, labels=folder / "labels.csv", code=1)
    assert "1 slides failed and are not part of it; try them again with --overwrite" in again.stderr
    assert (again.exit_code, again.json["failed"].keys()) == (1, {"text"})


def test_a_slide_that_turns_unreadable_in_training_is_left_out_and_has_failed(train, tmp_path, monkeypatch):
    calls = []

    def turning(slide, grid, cells):
        calls.append(slide.path)
        if "slide_000" in slide.path and len(calls) > 6:  # calibration could read it
            raise SlideReadError(slide.path, "tile 3 is damaged")
        return read_tiles(slide, grid, cells)

    monkeypatch.setattr("wsi_ats.models.batches.read_tiles", turning)
    out = tmp_path / "run"
    validation = ("--set", "training.validation=0")
    ran = train(out, *validation, code=1)
    assert ran.json["failed"].keys() == {"slide_000"}
    assert ran.json["notes"]["unreadable_in_training"] == 1
    assert ran.json["counts"] == {"done": 5, "failed": 1, "no_tissue": 0}
    assert ran.stderr.count("training goes on without slide_000") == 1
    assert (out / "model.json").exists()
    again = train(out, *validation, code=1)
    assert (again.exit_code, again.json["failed"].keys()) == (1, {"slide_000"})
    refused = train(tmp_path / "other", *validation, "--max-bad", "0", code=2)
    assert "--max-bad allows 0" in refused.stderr
    assert "tile 3 is damaged" in refused.stderr


def test_a_dry_run_writes_nothing(train, tmp_path):
    ran = train(tmp_path / "run", "--dry-run")
    assert ran.json["counts"] == {"to_do": 6, "finished": 0}
    assert not (tmp_path / "run").exists()


def test_the_gain_by_attention_is_reported_and_recorded(train, tmp_path):
    ran = train(tmp_path / "out")
    card = read_json(tmp_path / "out" / "model.json")["attention"]
    assert set(card) == {"scale", "foretells", "foresight", "error", "cases"}
    assert "by attention" in ran.stderr or "does not show which tiles" in ran.stderr or card["cases"] < 4
    assert "training cases" in ran.stderr  # two classes of two


@pytest.mark.parametrize(
    ("changes", "scale", "said"),
    [
        (("training.epochs=0", "training.joint_epochs=1"), 1, "slides, 8 tiles each, mean of several"),
        (("training.epochs=1",), 0, "attention was not trained; tiles are drawn uniformly"),
    ],
    ids=["together with all the rest", "not at all"],
)
def test_the_gain_by_attention_is_reported_without_attention_epochs(train, tmp_path, changes, scale, said):
    changes = (*changes, "training.attention_epochs=0")
    ran = train(tmp_path / "out", *(word for change in changes for word in ("--set", change)))
    assert said in ran.stderr
    card = read_json(tmp_path / "out" / "model.json")["attention"]
    assert card == {"scale": scale, "foretells": None, "foresight": None, "error": None, "cases": 0}
