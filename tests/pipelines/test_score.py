"""Scoring slides, through the command line; stopped and taken up again."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import LIMIT, ROOT, SETTINGS, files, start, table, without_times

from pipelines._runs import Execution
from pipelines.score import ScoreTask, score
from wsi_ats.files import read_json
from wsi_ats.models.card import read_card
from wsi_ats.results.selections import load_attention, read_selection
from wsi_ats.tables.files import read_parquet
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.tasks.targets import Target

COLUMNS = [
    *("slide_id", "case_id", "path", "status", "prob_negative", "prob_positive", "predicted", "logit_se"),
    *("stopped_by", "draws", "tiles_read", "tiles_total", "tiles_empty", "bytes_read", "seconds"),
    *("model_digest", "seed", "error"),
]
SELECTION_COLUMNS = [
    *("slide_id", "x", "y", "width", "height", "level", "row", "col", "attention", "inclusion", "weight"),
    *("draw", "order", "evidence_negative", "evidence_positive"),
]


@pytest.fixture(scope="session")
def many(slides, tmp_path_factory):
    """Enough slides that a run can be stopped in the middle."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(48):
        (folder / f"case_{i:02d}.tif").symlink_to(slides / f"slide_{i % 6:03d}.tif")
    return folder


@pytest.fixture
def scored(run, slides, model, tmp_path):
    run("score", slides, "--model", model, "--out", tmp_path / "scores", "--draws", 2, "--json")
    return tmp_path / "scores"


def test_output_files(scored, model):
    assert files(scored) == [
        *("attention", "predictions.csv", "predictions.parquet", "records", "run.json", "selections")
    ]
    rows = table(scored / "predictions.csv")
    assert list(rows[0]) == COLUMNS
    columns, _ = read_parquet(scored / "predictions.parquet")
    assert list(columns) == COLUMNS
    assert columns["slide_id"] == [f"slide_{i:03d}" for i in range(6)]
    for row in rows:
        assert math.isclose(float(row["prob_negative"]) + float(row["prob_positive"]), 1, rel_tol=1e-6)
        assert (row["status"], row["draws"], row["seed"]) == ("done", "2", "0")
        assert 8 <= int(row["tiles_read"]) <= 16
        assert int(row["tiles_total"]) > 16
        assert float(row["logit_se"]) >= 0
        assert row["model_digest"] == read_json(model / "model.json")["digest"]
    selections, _ = read_parquet(scored / "selections" / "slide_000.parquet")
    assert list(selections) == SELECTION_COLUMNS
    assert set(selections["draw"]) == {0, 1}
    attention = load_attention(scored / "attention" / "slide_000.npz")
    assert attention.attention.sum() == pytest.approx(1)
    record = read_json(scored / "run.json")
    assert record["digests"]["model"] == rows[0]["model_digest"]
    assert record["counts"] == {"done": 6, "failed": 0, "no_tissue": 0}


def test_the_same_command_does_nothing_and_another_is_refused(scored, run, slides, model):
    same = ("score", slides, "--model", model, "--out", scored, "--draws", 2, "--json")
    assert run(*same).json["reused"] == 6
    for change, said in (
        (("--seed", 1), "seed is 0 there and 1 now"),
        (("--tiles", 9), "settings.sampling.tiles is 8 there and 9 now"),
    ):
        ran = run(*same, *change, code=2)
        assert said in ran.stderr
    run(*same, "--seed", 1, "--overwrite")
    assert {row["seed"] for row in table(scored / "predictions.csv")} == {"1"}


def test_draws_are_added_until_the_error_is_small_or_the_tiles_are_spent(run, slides, model, tmp_path):
    command = ("score", slides, "--model", model, "--tiles", 4, "--json")
    fixed = run(*command, "--out", tmp_path / "fixed", "--draws", 8)
    assert "above_tolerance" not in fixed.json["notes"]
    errors = sorted(float(row["logit_se"]) for row in table(tmp_path / "fixed" / "predictions.csv"))
    middle = (errors[2] + errors[3]) / 2
    limits = ("--tolerance", middle, "--max-tiles", 32)
    ran = run(*command, "--out", tmp_path / "any", *limits)
    rows = table(tmp_path / "any" / "predictions.csv")
    for row in rows:
        within = float(row["logit_se"]) <= middle
        assert row["stopped_by"] == ("tolerance" if within else "max_tiles")
        assert int(row["draws"]) >= 8
        assert int(row["tiles_read"]) <= 32
    assert {row["stopped_by"] for row in rows} == {"tolerance", "max_tiles"}
    above = sum(row["stopped_by"] == "max_tiles" for row in rows)
    assert ran.json["notes"]["above_tolerance"] == above
    settings = read_json(tmp_path / "any" / "run.json")["settings"]["sampling"]
    assert (settings["tolerance"], settings["max_tiles"]) == (middle, 32)

    again = run(*command, "--out", tmp_path / "any", "--tolerance", middle, "--max-tiles", 33, code=2)
    assert "settings.sampling.max_tiles is 32 there and 33 now" in again.stderr


def test_one_worker_or_two_add_the_same_draws(slides, model, client, tmp_path):
    settings = SETTINGS.with_values(["sampling.tiles=4", "sampling.max_tiles=60"])
    refs = read_manifest(slides)
    score(refs, model, tmp_path / "two", settings=settings, execution=Execution(scheduler=client))
    card = read_card(model)
    task = ScoreTask(tmp_path, "x", model, card.digest, card.target, settings, 0)
    for ref in reversed(refs):
        task.files(ref.id)[0].parent.mkdir(exist_ok=True)
        task.files(ref.id)[1].parent.mkdir(exist_ok=True)
        here, _ = task.work(ref)
        assert here["stopped_by"] in {"max_tiles", "max_draws"}
        there = tmp_path / "two" / "selections" / f"{ref.id}.parquet"
        assert read_selection(task.files(ref.id)[0]).columns() == read_selection(there).columns()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tile.size=128", "tile.size is 128, but the model was trained with 64"),
        ("thumbnail.pixels_per_cell=8", "thumbnail.pixels_per_cell is 8, but the model was trained with 4"),
        ("tile.colour=srgb", "tile.colour is srgb, but the model was trained with stored"),
        ("tile.channel=DAPI", "tile.channel is DAPI, but the model was trained with none"),
        ("model.pool=linear", "model.pool is linear, but the model was trained with gated"),
        ("training.epochs=3", "training.epochs is 3, but it has no effect on scoring"),
    ],
)
def test_settings_that_contradict_the_model_are_refused(run, slides, model, tmp_path, change, said):
    ran = run("score", slides, "--model", model, "--out", tmp_path / "scores", "--set", change, code=2)
    assert said in ran.stderr
    assert not (tmp_path / "scores").exists()


def test_slides_of_several_sources(run, slides, model, tmp_path):
    some = (slides / "slide_000.tif", slides / "slide_00[12].tif")
    command = ("score", *some, "--model", model, "--out", tmp_path / "scores", "--dry-run", "--json")
    assert run(*command).json["counts"] == {"to_do": 3, "finished": 0}
    ran = run(*command[:-2], slides / "slide_001.tif", code=2)
    assert f"two slides are called 'slide_001': {slides / 'slide_001.tif'}" in ran.stderr
    assert f"(named by {some[1]})" in ran.stderr
    assert f"(named by {slides / 'slide_001.tif'})" in ran.stderr


def test_the_command_is_recorded_as_it_can_be_given_again(slides, model, address, tmp_path):
    arguments = [str(slides / "slide_000.tif"), "--model", str(model), "--out", str(tmp_path / "scores")]
    arguments += ["--scheduler", address]
    module = [sys.executable, "-m", "pipelines", "score", *arguments]
    subprocess.run(module, cwd=ROOT, check=True, capture_output=True)
    record = read_json(tmp_path / "scores" / "run.json")
    assert record["command"] == shlex.join(["wsi-ats", "score", *arguments])


def test_a_dry_run_says_what_is_left(scored, run, slides, model):
    (scored / "selections" / "slide_003.parquet").unlink()
    before = files(scored)
    ran = run("score", slides, "--model", model, "--out", scored, "--draws", 2, "--dry-run", "--json")
    assert ran.json["counts"] == {"to_do": 1, "finished": 5}
    assert files(scored) == before


def test_a_slide_whose_tiles_cannot_be_read(run, slides, model, tmp_path):
    import tifffile

    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("slide_000.tif", "slide_001.tif"):
        shutil.copy(slides / name, folder / name)
    with tifffile.TiffFile(folder / "slide_001.tif") as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with (folder / "slide_001.tif").open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(b"\0" * size)
    ran = run("score", folder, "--model", model, "--out", tmp_path / "scores", "--json", code=1)
    good, bad = table(tmp_path / "scores" / "predictions.csv")
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert "cannot be read" in bad["error"]
    assert [bad[name] for name in ("prob_positive", "predicted", "logit_se")] == ["", "", ""]
    assert files(tmp_path / "scores" / "selections") == ["slide_000.parquet"]
    assert "slide_001 failed" in ran.stderr
    assert ran.json["failed"].keys() == {"slide_001"}

    # Once the slide is mended, the same command does it, and it alone.
    shutil.copy(slides / "slide_001.tif", folder / "slide_001.tif")
    again = run("score", folder, "--model", model, "--out", tmp_path / "scores", "--json")
    assert (again.exit_code, again.json["reused"]) == (0, 1)


def test_a_slide_without_tissue_has_its_own_status(run, slides, model, tmp_path):
    import numpy as np
    import tifffile

    glass = np.full((512, 768, 3), 240, np.uint8)
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    path = tmp_path / "glass.tif"
    tifffile.imwrite(path, glass, **options, resolution=(20000, 20000), resolutionunit=3)
    run("score", path, "--model", model, "--out", tmp_path / "scores", "--json")
    [row] = table(tmp_path / "scores" / "predictions.csv")
    assert (row["status"], row["prob_positive"], row["tiles_read"]) == ("no_tissue", "", "0")
    run("export", tmp_path / "scores", "--to", "qupath", "--out", tmp_path / "q")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--set", "nonsense"), "section.name=value"),
        (("--set", "sampling.tile=3"), "unknown setting"),
        (("--tolerance", "-1"), "sampling.tolerance must not be negative"),
        (("--tolerance", "inf"), "sampling.tolerance must be a finite number"),
        (("--max-tiles", "7"), "sampling.max_tiles is 7, but the minimum of 1 draws of 8 tiles"),
        (("--tolerance", "0.1", "--max-tiles", "8"), "8 draws of 8 tiles may read 64"),
        (("--config", "missing.toml"), "missing.toml"),
    ],
)
def test_settings_that_cannot_work(run, slides, model, tmp_path, change, said):
    ran = run("score", slides, "--model", model, "--out", tmp_path / "scores", *change, code=2)
    assert said in ran.stderr
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("kind", ["none", "half", "damaged"])
def test_folders_that_are_not_models(run, slides, model, tmp_path, kind):
    folder = tmp_path / "model"
    if kind != "none":
        shutil.copytree(model, folder)
    if kind == "half":
        (folder / "model.safetensors").unlink()
    if kind == "damaged":
        (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    ran = run("score", slides, "--model", folder, "--out", tmp_path / "scores", code=2)
    assert "model" in ran.stderr
    assert "Traceback" not in ran.stderr


def assert_same_results(one, other):
    assert without_times(table(one / "predictions.csv")) == without_times(table(other / "predictions.csv"))
    for folder in ("selections", "attention"):
        assert files(one / folder) == files(other / folder)
    for name in files(one / "selections"):
        mine, theirs = (read_selection(out / "selections" / name).columns() for out in (one, other))
        assert mine == theirs


@pytest.fixture(scope="session")
def uninterrupted(many, model, client, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    settings = SETTINGS.with_values(["sampling.draws=4"])
    score(read_manifest(many), model, out, settings=settings, execution=Execution(scheduler=client))
    return out


def stop_in_the_middle(command, records, number):
    """Run a command, stop it by a signal once three slides are done; returns its code and its complaints."""
    process = start(*command)
    while process.poll() is None and len(list(records.glob("*.json"))) < 3:
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, number)
    _, complaints = process.communicate(timeout=LIMIT)
    return process.returncode, complaints


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_results(
    run, many, model, address, uninterrupted, tmp_path, number
):
    for attempt in range(8):
        out = tmp_path / f"scores{attempt}"
        command = ("score", many, "--model", model, "--out", out, "--draws", 4)
        code, complaints = stop_in_the_middle((*command, "--scheduler", address), out / "records", number)
        if code != 0:  # else the machine was so busy that all was done before the signal came
            break
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL), complaints
    assert "Traceback" not in complaints
    assert not (out / "predictions.csv").exists()
    assert read_json(out / "run.json")["end"] is None

    again = run(*command, "--json")
    assert 0 < again.json["reused"] < 48
    assert_same_results(out, uninterrupted)


@pytest.mark.slow
def test_ctrl_c_with_workers_of_its_own(many, model, run, uninterrupted, tmp_path):
    command = ("score", many, "--model", model, "--out", tmp_path / "scores", "--draws", 4)
    process = start(*command, "--workers", 2)
    records = tmp_path / "scores" / "records"
    while process.poll() is None and len(list(records.glob("*.json"))) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    said = [line for line in complaints.splitlines() if not line.startswith(("score ", "Dask's workers"))]
    assert said == ["interrupted; run the same command again to continue"]
    run(*command)
    assert_same_results(tmp_path / "scores", uninterrupted)


def test_scoring_without_cases_warns_for_a_model_of_cases(run, slides, tmp_path):
    import torch

    from wsi_ats.models.checkpoints import save_model
    from wsi_ats.models.kinds import model_for

    settings = SETTINGS.with_values(["model.cases=mean"])
    target = Target("classification", ("negative", "positive"))
    torch.manual_seed(0)
    save_model(tmp_path / "model", model_for(settings, target), settings, target)
    told = "give a table of slides with the column case_id"
    ran = run("score", slides, "--model", tmp_path / "model", "--out", tmp_path / "alone")
    assert told in ran.stderr
    rows = table(slides / "labels.csv")
    text = "".join(f"{row['slide_id']},{slides / row['path']},patient\n" for row in rows)
    (tmp_path / "slides.csv").write_text("slide_id,path,case_id\n" + text)
    ran = run("score", tmp_path / "slides.csv", "--model", tmp_path / "model", "--out", tmp_path / "together")
    assert told not in ran.stderr
    [case] = table(tmp_path / "together" / "cases.csv")
    assert (case["case_id"], case["slides"]) == ("patient", str(len(rows)))
