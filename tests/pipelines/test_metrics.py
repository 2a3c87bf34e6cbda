"""Metrics for Prometheus, read by its own parser."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest
from conftest import table
from prometheus_client import parser
from test_console import Timer

from pipelines._metrics import MetricsFile
from pipelines._reports import Finished


def read(path, stage):
    """Values of a stage by name, and by status where there is one."""
    families = parser.text_string_to_metric_families(path.read_text("utf-8"))
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = {**sample.labels}
        if labels.pop("stage") == stage and not sample.name.endswith("_created"):
            found[(sample.name.removeprefix("wsi_ats_"), *labels.values())] = sample.value
    return found


def test_metrics_of_a_run_match_its_table(run, slides, model, tmp_path):
    (tmp_path / "text.svs").write_text("no slide")
    path, out = tmp_path / "ats.prom", tmp_path / "out"
    run(
        "score",
        slides,
        tmp_path / "text.svs",
        "--model",
        model,
        "--out",
        out,
        "--metrics",
        path,
        "--json",
        code=1,
    )
    rows, found = table(out / "predictions.csv"), read(path, "score")
    assert found["slides_total", "done"] == 6
    assert found["slides_total", "failed"] == 1
    assert found["slides_total", "no_tissue"] == 0
    assert (found["slides_expected",], found["slides_reused",], found["running",]) == (7, 0, 0)
    assert found["tiles_read_total",] == sum(int(row["tiles_read"]) for row in rows) > 0
    assert found["bytes_read_total",] == sum(int(row["bytes_read"] or 0) for row in rows) > 0
    assert found["slide_seconds_count",] == found["slide_seconds_bucket", "+Inf"] == 7
    assert found["slide_seconds_sum",] > 0
    age = datetime.now(UTC).timestamp() - found["last_slide_timestamp_seconds",]
    assert 0 <= age < 600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ats.prom", "out", "text.svs"]


def test_the_metrics_file_is_written_at_start_end_and_intervals(tmp_path):
    path, timer = tmp_path / "ats.prom", Timer()
    figures = MetricsFile(path, complain=pytest.fail, every=5, timer=timer)
    assert not path.exists()
    seen = []
    with figures.slides("score", 100, 3) as tell:
        assert read(path, "score")["running",] == 1
        assert read(path, "score")["slides_reused",] == 3
        for number in range(12):
            timer.now += 1
            tell(Finished(str(number), "done", seconds=2, tiles_read=8))
            seen.append(read(path, "score")["slides_total", "done"])
    assert seen == [0, 0, 0, 0, 5, 5, 5, 5, 5, 10, 10, 10]
    end = read(path, "score")
    assert (end["slides_total", "done"], end["tiles_read_total",], end["running",]) == (12, 96, 0)
    assert (end["slide_seconds_bucket", "1.0"], end["slide_seconds_bucket", "3.0"]) == (0, 12)


def test_stages_of_one_command_are_told_apart(tmp_path):
    figures = MetricsFile(tmp_path / "ats.prom", complain=pytest.fail)
    for stage, slides in (("prepare", 2), ("score", 1)):
        with figures.slides(stage, slides, 0) as tell:
            for number in range(slides):
                tell(Finished(str(number), "done"))
    for stage, slides in (("prepare", 2), ("score", 1)):
        assert read(tmp_path / "ats.prom", stage)["slides_total", "done"] == slides


def test_an_interrupted_stage_does_not_run(tmp_path):
    figures = MetricsFile(tmp_path / "ats.prom", complain=pytest.fail)
    with pytest.raises(KeyboardInterrupt), figures.slides("score", 1, 0):
        raise KeyboardInterrupt
    assert read(tmp_path / "ats.prom", "score")["running",] == 0


def test_a_lost_metrics_folder_is_reported_once_and_fails_no_slide(tmp_path):
    folder, complaints = tmp_path / "metrics", []
    folder.mkdir()
    figures = MetricsFile(folder / "ats.prom", complain=complaints.append, every=0)
    with figures.slides("score", 2, 0) as tell:
        (folder / "ats.prom").unlink()
        folder.rmdir()
        tell(Finished("a", "done"))
        tell(Finished("b", "done"))
    (complaint,) = complaints
    assert "--metrics" in complaint
    assert "No such file or directory" in complaint


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("missing/x.prom", "No such file or directory"),
        ("folder", "Is a directory"),
        ("file/x.prom", "Not a directory"),
        ("/sys/x.prom", ""),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    run, slides, config, tmp_path, monkeypatch, where, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    ran = run(
        *("prepare", slides, "--out", tmp_path / "out", "--config", config, "--metrics", where),
        *("--log-json", tmp_path / "log.jsonl"),
        code=2,
    )
    assert f"error: --metrics {where} cannot be written: {reason}" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def test_the_metrics_file_is_world_readable(tmp_path):
    figures = MetricsFile(tmp_path / "ats.prom", complain=pytest.fail)
    before = os.umask(0o022)
    try:
        with figures.slides("score", 0, 0):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "ats.prom").stat().st_mode & 0o777 == 0o644
