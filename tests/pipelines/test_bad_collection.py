"""Collections with bad slides, and faults of disk, model and clock."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from bad_slides import BAD, glass
from conftest import LIMIT, SETTINGS, files, start, table
from interruptions import in_the_middle, recorded, results

from pipelines._carry_out import complete
from pipelines._runs import Execution
from pipelines.score import ScoreTask, score
from wsi_ats.errors import ArtifactError
from wsi_ats.files import read_json
from wsi_ats.models.card import read_card
from wsi_ats.models.checkpoints import save_model
from wsi_ats.models.kinds import model_for
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.tasks.targets import Target

GOOD = 82
AWKWARD = {"comma": "with, comma.tif", "line": "two\nlines.tif", "letters": "näve 組織 [1].tif"}


@pytest.fixture(scope="module")
def collection(slides, tmp_path_factory) -> tuple[Path, Path]:
    """Tables of 100 slides, and of those among them that are not bad."""
    folder = tmp_path_factory.mktemp("collection")
    rows: list[tuple[str, Path]] = []
    for i in range(GOOD - len(AWKWARD) - 1):
        path = folder / f"case_{i:02d}.tif"
        path.symlink_to(slides / f"slide_{i % 6:03d}.tif")
        rows.append((path.stem, path))
    for name, file in AWKWARD.items():
        shutil.copy(slides / "slide_000.tif", folder / file)
        rows.append((name, folder / file))
    glass(folder / "glass.tif")
    rows.append(("glass", folder / "glass.tif"))
    bad = []
    for name, (suffix, make) in BAD.items():
        path = folder / f"{name}{suffix}"
        make(slides / "slide_001.tif", path)
        bad.append((name, path))
    for name, chosen in (("all.csv", rows + bad), ("good.csv", rows)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            # Bad ones among the others, not after them.
            csv.writer(file).writerows([("slide_id", "path"), *sorted(chosen, key=lambda row: row[0][::-1])])
    return folder / "all.csv", folder / "good.csv"


def test_bad_slides_among_many_fail_and_change_nothing(collection, run, model, tmp_path):
    everything, good = collection
    assert len(table(everything)) == 100
    mixed, alone = tmp_path / "mixed", tmp_path / "alone"
    ran = run("score", everything, "--model", model, "--out", mixed, "--timeout", 120, "--json", code=1)
    assert ran.json["counts"] == {"done": GOOD - 1, "failed": len(BAD), "no_tissue": 1}
    assert set(ran.json["failed"]) == set(BAD)
    assert "Traceback" not in ran.stderr
    rows = {row["slide_id"]: row for row in table(mixed / "predictions.csv")}
    for name, (suffix, _) in BAD.items():
        error = rows[name]["error"]
        assert f"/{name}{suffix}: " in error
        assert "took longer" not in error
        assert "\n" not in error
        assert f"{name} failed: {error}" in ran.stderr

    run("score", good, "--model", model, "--out", alone)
    found, expected = results(mixed), results(alone)
    own = found.pop("predictions"), expected.pop("predictions")
    assert [row for row in own[0] if row[0] not in BAD] == own[1]
    assert found == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_slide_that_may_not_be_read(slides, run, model, tmp_path):
    path = Path(shutil.copy(slides / "slide_000.tif", tmp_path / "secret.tif"))
    path.chmod(0)
    ran = run("score", path, "--model", model, "--out", tmp_path / "scores", code=1)
    assert "secret.tif" in ran.stderr


@pytest.fixture(scope="module")
def uninterrupted(some, model, client, tmp_path_factory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("uninterrupted")
    score(read_manifest(some), model, out, execution=Execution(scheduler=client))
    return results(out)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, little larger than a run asks for."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(ballast: Path) -> None:
    """Leave no room beside a file."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass


def test_a_disk_that_fills_up(some, model, client, uninterrupted, small_disk):
    out, ballast = small_disk / "scores", small_disk / "ballast"
    execution = Execution(scheduler=client)
    with (
        in_the_middle(out, 3, lambda: fill(ballast)),
        pytest.raises(ArtifactError, match="check the disk's free space"),
    ):
        score(read_manifest(some), model, out, execution=execution)
    done = recorded(out)
    assert 3 <= len(done) < 24
    for folder in (out, *(out / name for name in ("records", "selections", "attention"))):
        assert not list(folder.glob(".*.part*"))  # nothing half-written
    for name in done:
        assert read_json(out / "records" / f"{name}.json")["row"]["status"] == "done"
    assert read_json(out / "run.json")["end"] is None

    ballast.unlink()
    summary = score(read_manifest(some), model, out, execution=execution)
    assert (summary.exit_code, summary.reused) == (0, len(done))
    assert results(out) == uninterrupted


def test_a_full_disk_fails_slides_that_cannot_be_recorded(some, model, client, uninterrupted, small_disk):
    out, ballast = small_disk / "scores", small_disk / "ballast"
    card = read_card(model)
    task = ScoreTask(out, "identity", model, card.digest, card.target, SETTINGS, 0)
    with in_the_middle(out, 3, lambda: fill(ballast)):
        ended = complete(task, read_manifest(some), Execution(scheduler=client))
    assert 3 <= len(recorded(out)) < 24
    assert {row["slide_id"] for row in ended.rows if row["status"] == "done"} == recorded(out)
    assert len(ended.rows) == 24
    for name, error in ended.failed.items():
        assert f"{name}." in error
        assert "check the disk's free space and the folder's permissions" in error


@pytest.mark.slow
def test_the_model_changes_while_it_is_in_use(some, client, uninterrupted, model, tmp_path):
    folder, other, out = tmp_path / "model", tmp_path / "other", tmp_path / "scores"
    shutil.copytree(model, folder)
    torch.manual_seed(1)
    target = Target("classification", ("negative", "positive"))
    save_model(other, model_for(SETTINGS, target), SETTINGS, target)
    client.wait_for_workers(1, timeout=LIMIT)
    pids = client.run(os.getpid).values()

    def change() -> None:
        shutil.copytree(other, folder, dirs_exist_ok=True)
        for pid in pids:  # their replacements load the model again
            os.kill(pid, signal.SIGKILL)

    execution = Execution(scheduler=client)
    with in_the_middle(out, 2, change):
        summary = score(read_manifest(some), folder, out, execution=execution)
    assert summary.exit_code == 1
    assert summary.counts["done"] == len(recorded(out)) < 24
    for error in summary.failed.values():
        assert error == f"the model in {folder} changed while it was in use; score again"

    with pytest.raises(ArtifactError, match="holds the results of another run"):
        score(read_manifest(some), folder, out, execution=execution)
    shutil.copytree(model, folder, dirs_exist_ok=True)
    again = score(read_manifest(some), folder, out, execution=execution)
    assert (again.exit_code, again.reused) == (0, summary.counts["done"])
    assert results(out) == uninterrupted


@pytest.mark.parametrize(
    ("name", "said"),
    [("model.json", "model.json cannot be read"), ("model.safetensors", "was the training completed?")],
)
def test_a_model_that_lacks_a_file(some, model, run, tmp_path, name, said):
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    ran = run("score", some, "--model", tmp_path / "model", "--out", tmp_path / "scores", code=2)
    assert said in ran.stderr
    assert not (tmp_path / "scores").exists()


def test_two_commands_on_one_folder(some, model, address, uninterrupted, tmp_path):
    out = tmp_path / "scores"
    command = ("score", some, "--model", model, "--out", out, "--scheduler", address)
    processes = [start(*command) for _ in range(2)]
    said = [process.communicate(timeout=LIMIT)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2], said
    assert f"{out} is in use by process {processes[codes.index(0)].pid}" in said[codes.index(2)]
    assert results(out) == uninterrupted


def test_clock_changes_do_no_harm(slides, model, client, tmp_path):
    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    for path in folder.glob("*.tif"):
        os.utime(path, (time.time() + 1e8, time.time() + 1e8))
    times = iter(datetime(2026, 1, 1, tzinfo=UTC) - timedelta(days=i) for i in range(9))
    execution = Execution(scheduler=client, clock=lambda: next(times))
    refs = read_manifest(folder)
    first = score(refs, model, tmp_path / "scores", execution=execution)
    assert (first.exit_code, first.reused) == (0, 0)
    record = read_json(tmp_path / "scores" / "run.json")
    assert record["end"] < record["start"]
    before = results(tmp_path / "scores")
    again = score(refs, model, tmp_path / "scores", execution=execution)
    assert (again.exit_code, again.reused) == (0, len(refs))
    assert results(tmp_path / "scores") == before
    assert files(tmp_path / "scores" / "selections") == [f"{ref.id}.parquet" for ref in refs]
