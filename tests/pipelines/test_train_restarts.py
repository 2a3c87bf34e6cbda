"""Training in several processes, and restarts of which the best is kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import LIMIT, ROOT, files, table
from training_runs import RUN_FILES, model_of

from wsi_ats.files import read_json
from wsi_ats.training.distillation import Trust


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
def test_two_processes_train_one_model_and_one_reports(slides, config, address, tmp_path):
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
def test_two_processes_report_completion_and_errors_once(trained, slides, config, address, tmp_path):
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


def test_the_restart_with_the_least_validation_loss_is_kept(train, trained, tmp_path):
    out = tmp_path / "out"
    ran = train(out, "--restarts", "2")
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
    train(out, "--restarts", "2", *published)
    assert len(files(out / "features")) == 6  # one for each slide
    assert files(out / "restarts" / "1") == ["checkpoints", "metrics.csv"]
    train(tmp_path / "alone", "--set", "training.seed=1", *published)  # as the second does
    second, alone = (
        sum(float(row["tiles"]) for row in table(folder / "metrics.csv"))
        for folder in (out / "restarts" / "1", tmp_path / "alone")
    )
    assert second < alone  # the second reuses tiles read by the first
    train(out, "--restarts", "2", *published, "--overwrite")
    assert len(files(out / "features")) == 6


@pytest.mark.parametrize("retries", [0, 1])
def test_a_run_whose_attention_finds_nothing_is_trained_again(train, tmp_path, monkeypatch, retries):
    def distrust(model, *args, **options):
        model.attention_scale.fill_(0.0)
        return Trust(0.0, False, 0.01, 0.02, 6)

    monkeypatch.setattr("wsi_ats.training.attention.trust", distrust)
    out = tmp_path / "out"
    ran = train(out, "--retries", str(retries))
    assert ran.stderr.count("attention found nothing in the thumbnails; training again") == retries
    assert (out / "restarts").exists() == bool(retries)
    if retries:
        said = next(line for line in ran.stderr.splitlines() if "is kept" in line)
        losses = [float(each) for each in re.findall(r"\d+\.\d+", said)]
        assert read_json(out / "run.json")["trained_with_seed"] == losses.index(min(losses))
    models = model_of(out)
    again = train(out, "--retries", str(retries), "--overwrite")
    assert (again.exit_code, model_of(out)) == (0, models)
