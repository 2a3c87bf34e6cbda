"""Training through the command line; stopped and taken up again."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import LIMIT, ROOT, SETTINGS, files, start, table

from pipelines._console import ConsoleReporter
from pipelines._runs import Execution, Summary
from pipelines.train import _write_splits
from wsi_ats.errors import SlideReadError
from wsi_ats.files import read_json
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.training.distillation import Trust

RUN_FILES = [
    *("checkpoints", "config.toml", "metrics.csv", "model.json", "model.safetensors", "prepared", "records"),
    *("run.json", "slides.csv", "slides.parquet", "splits.csv", "thumbnails"),
]


@pytest.fixture
def train(run, slides, config):
    def train(out, *options, source=slides, labels=slides / "labels.csv"):
        return run("train", source, "--labels", labels, "--out", out, "--config", config, "--json", *options)

    return train


def model_of(out) -> str:
    return str(read_json(out / "model.json")["digest"])


@pytest.fixture(scope="session")
def trained(slides, client, tmp_path_factory):
    from pipelines._runs import Execution
    from pipelines.train import train
    from wsi_ats.tables.manifest import read_manifest

    out = tmp_path_factory.mktemp("trained")
    refs = read_manifest(slides, labels=slides / "labels.csv")
    assert train(refs, out, settings=SETTINGS, execution=Execution(scheduler=client)).exit_code == 0
    return out


def test_what_it_writes(trained):
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


def test_who_reads_tiles_changes_nothing_but_by_what_jpeg_loses(train, trained, tmp_path):
    assert train(tmp_path / "threads", "--readers", "threads:3").exit_code == 0
    assert model_of(tmp_path / "threads") == model_of(trained)
    assert train(tmp_path / "dask", "--readers", "dask").exit_code == 0
    here, there = (table(out / "metrics.csv") for out in (trained, tmp_path / "dask"))
    assert [row["tiles"] for row in there] == [row["tiles"] for row in here]
    for first in (0, 2):  # of the classifier, and of attention
        one, other = here[first], there[first]
        assert float(other["effective_cells"]) == pytest.approx(float(one["effective_cells"]), rel=1e-3)
        assert float(other["loss"]) == pytest.approx(float(one["loss"]), rel=0.05)
    again = train(tmp_path / "dask")
    assert again.exit_code == 2
    assert "digests.tiles is jpeg there and None now" in again.stderr


def test_readers_that_do_not_exist_are_refused_before_the_work(train, tmp_path):
    ran = train(tmp_path / "run", "--readers", "processes")
    assert ran.exit_code == 2
    assert "--readers must be threads, threads:N or dask, not 'processes'" in ran.stderr
    assert not (tmp_path / "run").exists()


def test_patience_without_slides_to_watch_is_refused_before_the_work(train, tmp_path):
    ran = train(tmp_path / "run", "--set", "training.patience=2", "--set", "training.validation=0")
    assert ran.exit_code == 2
    assert "training.patience is 2, but no slides are set aside to watch" in ran.stderr
    assert not (tmp_path / "run").exists()


def test_tensorboard_that_is_not_installed_is_missed_before_the_work(train, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines._tensorboard.find_spec", lambda name: None)
    ran = train(tmp_path / "run", "--tensorboard")
    assert ran.exit_code == 2
    assert 'pip install "wsi-ats[tensorboard]"' in ran.stderr
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_left_as_it_is(train, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    ran = train(tmp_path / "run")
    assert ran.exit_code == 0
    assert "nothing to do" in ran.stderr
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "lost", ["metrics.csv", "splits.csv", "slides.parquet", "model.safetensors", "other weights"]
)
def test_what_a_finished_run_has_lost_is_written_again(train, trained, tmp_path, lost):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    if lost == "other weights":
        content = (out / "model.safetensors").read_bytes()
        (out / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (out / lost).unlink()
    ran = train(out)
    assert ran.exit_code == 0, ran.stderr
    assert "nothing to do" not in ran.stderr
    assert ran.json["reused"] == 6
    for name in ("model.safetensors", "metrics.csv", "splits.csv"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()
    assert files(out) == RUN_FILES
    assert "nothing to do" in train(out).stderr


def test_the_summary_says_what_is_learned_from(train, trained, tmp_path):
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
def test_classes_that_differ_in_writing_only_are_pointed_out(train, slides, tmp_path, names):
    rows = table(slides / "labels.csv")
    lines = [f"{row['slide_id']},{names[i % 2]}" for i, row in enumerate(rows)]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,label", *lines, ""]))
    ran = train(tmp_path / "run", "--dry-run", labels=tmp_path / "labels.csv")
    assert ran.exit_code == 0
    one, other = sorted(names)
    assert f"{one!r} and {other!r} count as different labels" in ran.stderr
    assert "different labels" not in train(tmp_path / "run", "--dry-run").stderr


def test_slides_of_several_sources(run, slides, config, tmp_path):
    paths = sorted(slides.glob("*.tif"))
    rest = ("--labels", slides / "labels.csv", "--out", tmp_path / "run", "--config", config, "--dry-run")
    ran = run("train", *paths, *rest, "--json")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr == ""
    assert ran.json["counts"] == {"to_do": 6, "finished": 0}
    assert ran.json["notes"]["classes"] == {"negative": 3, "positive": 3}


def test_other_settings_or_labels_are_refused(train, trained, slides, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    ran = train(tmp_path / "run", "--set", "training.epochs=3")
    assert ran.exit_code == 2
    assert "settings.training.epochs is 2 there and 3 now" in ran.stderr
    rows = table(slides / "labels.csv")
    rows[0]["label"], rows[1]["label"] = "positive", "negative"
    rows[2]["label"] = {"positive": "negative", "negative": "positive"}[rows[2]["label"]]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["slide_id", "case_id", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    other = train(tmp_path / "run", labels=tmp_path / "labels.csv")
    assert other.exit_code == 2


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


def test_interrupted_between_epochs_and_taken_up_again(train, trained, tmp_path, monkeypatch):
    def interrupt(self, text):
        if text.startswith("train 1/4"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleReporter, "message", interrupt)
        ran = train(tmp_path / "run")
    assert ran.exit_code == 130
    assert not (tmp_path / "run" / "model.json").exists()
    assert train(tmp_path / "run").exit_code == 0
    assert model_of(tmp_path / "run") == model_of(trained)


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(train, trained, slides, config, address, tmp_path, monkeypatch):
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
    assert train(out).exit_code == 0
    assert model_of(out) == model_of(trained)


def test_a_slide_that_cannot_be_used_is_left_out(train, slides, tmp_path):
    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    (folder / "text.svs").write_text("this is no slide")
    with (folder / "labels.csv").open("a") as file:
        file.write("text,case_x,text.svs,positive\n")
    ran = train(tmp_path / "run", source=folder, labels=folder / "labels.csv")
    assert ran.exit_code == 1
    assert ran.json["failed"].keys() == {"text"}
    assert (tmp_path / "run" / "model.json").exists()
    assert "text" not in {row["slide_id"] for row in table(tmp_path / "run" / "splits.csv")}
    again = train(tmp_path / "run", source=folder, labels=folder / "labels.csv")
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
    ran = train(out, *validation)
    assert ran.exit_code == 1
    assert ran.json["failed"].keys() == {"slide_000"}
    assert ran.json["notes"]["unreadable_in_training"] == 1
    assert ran.json["counts"] == {"done": 5, "failed": 1, "no_tissue": 0}
    assert ran.stderr.count("training goes on without slide_000") == 1
    assert (out / "model.json").exists()
    again = train(out, *validation)
    assert (again.exit_code, again.json["failed"].keys()) == (1, {"slide_000"})
    refused = train(tmp_path / "other", *validation, "--max-bad", "0")
    assert refused.exit_code == 2
    assert "--max-bad allows 0" in refused.stderr
    assert "tile 3 is damaged" in refused.stderr


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("slide_id,label\nsomebody,a\nelse,b\n", "no label belongs to any slide"),
        ("slide_id,label\n" + "".join(f"slide_{i:03d},a\n" for i in range(6)), "two classes are needed"),
        ("slide_id,label\n" + "".join(f"slide_{i:03d},nan\n" for i in range(6)), "has a label"),
        ("slide_id,label\nslide_000,a\nslide_001,b\nslide_002,b\n", "patients or more"),
        ("slide_id,label\nslide_000,a\nslide_000,b\n", "slide_000"),
        ("", "is empty"),
    ],
)
def test_labels_that_cannot_be_learned_from(train, tmp_path, labels, said):
    (tmp_path / "labels.csv").write_text(labels)
    ran = train(tmp_path / "run", labels=tmp_path / "labels.csv")
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(train, tmp_path):
    ran = train(tmp_path / "run", "--dry-run")
    assert ran.json["counts"] == {"to_do": 6, "finished": 0}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.backbone=no_such_network", "'no_such_network' cannot be built"),
        ("model.attention=no_such_network", "'no_such_network' cannot be built"),
        ("model.checkpoint=nowhere.pth", "model.checkpoint 'nowhere.pth' is no file"),
    ],
)
def test_a_network_that_cannot_be_had_is_found_before_any_work(train, tmp_path, change, said, options):
    out = tmp_path / "run"
    ran = train(out, "--set", change, *options)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert not (out / "prepared").exists()


def test_a_biased_design_is_refused_before_anything_is_written(train, tmp_path):
    done = train(tmp_path / "run", "--set", "sampling.design=top")
    assert done.exit_code == 2
    assert "biased" in done.stderr
    assert not (tmp_path / "run").exists()


def test_half_of_what_torchrun_sets_is_refused(run, slides, config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    labels = slides / "labels.csv"
    for command in ("train", "crossval"):
        ran = run(command, slides, "--labels", labels, "--out", tmp_path / command, "--config", config)
        assert ran.exit_code == 2
        assert "LOCAL_RANK, MASTER_ADDR, MASTER_PORT, RANK are not set; start with torchrun" in ran.stderr
        assert not (tmp_path / command).exists()


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Start a command in two processes that train together."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "pipelines", *map(str, arguments)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_train_one_model_and_one_of_them_speaks(slides, config, address, tmp_path):
    words = ("train", slides, "--labels", slides / "labels.csv", "--config", config, "--json")
    out = tmp_path / "run"
    done = torchrun(*words, "--out", out, "--scheduler", address)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # of one
    assert summary["counts"]["done"] == 6
    assert files(out) == RUN_FILES
    assert model_of(out) == read_json(out / "run.json")["model"]
    assert done.stderr.count("train 1/4") == done.stderr.count("prepare 6/6") == 1
    assert len(table(out / "metrics.csv")) == 4
    assert not list(out.glob(".owner*"))


@pytest.mark.slow
def test_two_processes_say_once_that_all_is_done_and_what_is_wrong(
    trained, slides, config, address, tmp_path
):
    words = ("train", slides, "--labels", slides / "labels.csv", "--config", config, "--json")
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    again = torchrun(*words, "--out", out, "--scheduler", address)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing to do") == 1
    failed = torchrun(*words, "--out", out, "--set", "training.epochs=3")
    assert failed.returncode != 0
    assert failed.stderr.count("training.epochs is 2 there and 3 now") == 1
    assert "Traceback" not in failed.stderr.split("torch/distributed")[0]


def test_a_case_with_two_labels_is_refused_before_work_where_cases_are_taken_as_one(train, slides, tmp_path):
    rows = table(slides / "labels.csv")
    text = "".join(f"{row['slide_id']},patient,{row['label']}\n" for row in rows)
    (tmp_path / "labels.csv").write_text("slide_id,case_id,label\n" + text)
    options = ("--set", "model.cases=mean", "--set", "training.validation=0")
    # Two classes need two cases each, so one patient more of each.
    extra = "".join(f"{row['slide_id']},{row['slide_id']},{row['label']}\n" for row in rows[2:])
    (tmp_path / "labels.csv").write_text(
        "slide_id,case_id,label\n" + "".join(text.splitlines(keepends=True)[:2]) + extra
    )
    ran = train(tmp_path / "run", *options, labels=tmp_path / "labels.csv")
    assert ran.exit_code == 2
    assert "case 'patient' have different labels" in ran.stderr
    assert not (tmp_path / "run").exists()


def test_of_several_restarts_the_one_with_the_least_validation_loss_is_kept(train, trained, tmp_path):
    out = tmp_path / "out"
    ran = train(out, "--restarts", "2")
    assert ran.exit_code == 0
    alone = [table(folder / "metrics.csv") for folder in (trained, out / "restarts" / "1")]
    said = next(line for line in ran.stderr.splitlines() if "is kept" in line)
    losses = [float(each) for each in re.findall(r"\d+\.\d+", said)]
    best = losses.index(min(losses))
    assert f"run {best} is kept" in said
    assert (model_of(out) == model_of(trained)) == (best == 0)
    assert read_json(out / "run.json")["trained_with_seed"] == best
    seconds = {"seconds"}
    kept = [{k: v for k, v in row.items() if k not in seconds} for row in table(out / "metrics.csv")]
    assert kept == [{k: v for k, v in row.items() if k not in seconds} for row in alone[best]]


def test_restarts_with_a_frozen_backbone_share_its_features(train, published, tmp_path):
    out = tmp_path / "out"
    ran = train(out, "--restarts", "2", *published)
    assert ran.exit_code == 0, ran.stderr
    assert len(files(out / "features")) == 6  # one for each slide
    assert files(out / "restarts" / "1") == ["checkpoints", "metrics.csv"]
    train(tmp_path / "alone", "--set", "training.seed=1", *published)  # as the second does
    second, alone = (
        sum(float(row["tiles"]) for row in table(folder / "metrics.csv"))
        for folder in (out / "restarts" / "1", tmp_path / "alone")
    )
    assert second < alone  # what the first has read the second need not
    ran = train(out, "--restarts", "2", *published, "--overwrite")
    assert ran.exit_code == 0, ran.stderr
    assert len(files(out / "features")) == 6


@pytest.mark.parametrize("retries", [0, 1])
def test_a_run_whose_attention_finds_nothing_is_trained_again(train, tmp_path, monkeypatch, retries):
    def distrust(model, *args, **options):
        model.attention_scale.fill_(0.0)
        return Trust(0.0, False, 0.01, 0.02, 6)

    monkeypatch.setattr("wsi_ats.training.attention.trust", distrust)
    out = tmp_path / "out"
    ran = train(out, "--retries", str(retries))
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr.count("attention found nothing in the thumbnails; training again") == retries
    assert (out / "restarts").exists() == bool(retries)
    if retries:
        said = next(line for line in ran.stderr.splitlines() if "is kept" in line)
        losses = [float(each) for each in re.findall(r"\d+\.\d+", said)]
        assert read_json(out / "run.json")["trained_with_seed"] == losses.index(min(losses))
    models = model_of(out)
    again = train(out, "--retries", str(retries), "--overwrite")
    assert (again.exit_code, model_of(out)) == (0, models)


def test_restarts_without_slides_to_choose_by_are_refused(train, tmp_path):
    ran = train(tmp_path / "out", "--restarts", "2", "--set", "training.validation=0")
    assert ran.exit_code == 2
    assert "--restarts 2 keeps the run with the least validation loss" in ran.stderr


def test_what_attention_gives_is_said_and_recorded(train, tmp_path):
    ran = train(tmp_path / "out")
    assert ran.exit_code == 0
    card = read_json(tmp_path / "out" / "model.json")["attention"]
    assert set(card) == {"scale", "foretells", "foresight", "error", "cases"}
    assert "by attention" in ran.stderr or "does not tell where to look" in ran.stderr or card["cases"] < 4
    assert "training cases" in ran.stderr  # two classes of two


@pytest.mark.parametrize(
    ("changes", "scale", "said"),
    [
        (("training.epochs=0", "training.joint_epochs=1"), 1, "slides, 8 tiles each, mean of several"),
        (("training.epochs=1",), 0, "attention was not trained; tiles are drawn uniformly"),
    ],
    ids=["together with all the rest", "not at all"],
)
def test_what_attention_gives_is_said_without_epochs_of_its_own(train, tmp_path, changes, scale, said):
    changes = (*changes, "training.attention_epochs=0")
    ran = train(tmp_path / "out", *(word for change in changes for word in ("--set", change)))
    assert ran.exit_code == 0
    assert said in ran.stderr
    card = read_json(tmp_path / "out" / "model.json")["attention"]
    assert card == {"scale": scale, "foretells": None, "foresight": None, "error": None, "cases": 0}


def test_features_in_place_of_a_backbone_are_refused_before_the_work(train, run, slides, model, tmp_path):
    """Which only a reader that is given from Python has."""
    said = "model.backbone is features:12, but the commands do not read files of features yet"
    ran = train(tmp_path / "out", "--set", "model.backbone=features:12")
    assert (ran.exit_code, said in ran.stderr) == (2, True)
    labels = ("--labels", slides / "labels.csv")
    ran = run("crossval", slides, *labels, "--out", tmp_path / "out", "--set", "model.backbone=features:12")
    assert (ran.exit_code, said in ran.stderr) == (2, True)
    shutil.copytree(model, tmp_path / "model")
    card = read_json(tmp_path / "model" / "model.json")
    card["settings"]["model"]["backbone"] = "features:12"
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    ran = run("score", slides, "--model", tmp_path / "model", "--out", tmp_path / "out")
    assert (ran.exit_code, said in ran.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
