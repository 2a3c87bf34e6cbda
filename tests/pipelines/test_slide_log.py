"""The log for programs: a line of JSON a slide."""

from __future__ import annotations

import json
import resource
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from conftest import table, without_times

from pipelines._reports import Finished
from pipelines._slide_log import SlideLog
from wsi_ats.errors import SettingsError


def read(path):
    """Lines of a log, read as strictly as JSON has it: not-a-number is none."""
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def mixed(slides, tmp_path):
    """Two slides, and a file that is none."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("slide_000.tif", "slide_001.tif"):
        shutil.copy(slides / name, folder / name)
    (folder / "text.svs").write_text("no slide")
    return folder


def test_each_slide_leaves_a_line_between_start_and_end(run, mixed, model, tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "out"
    command = ("score", mixed, "--model", model, "--out", out, "--log-json", log)
    ran = run(*command, "--json", code=1)
    start, *slides, end = read(log)
    assert (start["event"], start["stage"], start["slides"], start["finished_earlier"]) == (
        *("start", "score"),
        *(3, 0),
    )
    assert start["command"].startswith("wsi-ats")
    rows = {row["slide_id"]: row for row in table(out / "predictions.csv")}
    assert {line["slide_id"] for line in slides} == rows.keys()
    for line in slides:
        row = rows[line["slide_id"]]
        assert (line["event"], line["stage"], line["status"]) == ("slide", "score", row["status"])
        assert line["tiles_read"] == int(row["tiles_read"])
        assert str(line.get("bytes_read", "")) == row["bytes_read"]
        assert line.get("error", "") == row["error"]
        host, process = line["worker"].split()
        assert host == "127.0.0.1"
        assert int(process) > 0
        assert line["seconds"] > 0
    assert (end["event"], end["counts"], end["complete"]) == ("end", {"done": 2, "failed": 1}, True)
    times = [datetime.fromisoformat(line["time"]) for line in (start, *slides, end)]
    assert times == sorted(times)
    assert {each.utcoffset() for each in times} == {timedelta(0)}
    # The summary of this run agrees.
    notes = ran.json["notes"]
    assert notes["tiles_read"] == sum(line["tiles_read"] for line in slides)
    assert notes["bytes_read"] == sum(line.get("bytes_read", 0) for line in slides)
    assert notes["slides_per_minute"] == pytest.approx(3 * 60 / notes["seconds"], rel=0.01)
    assert ran.json["table"] == "predictions.csv"

    # Again: what is there stays, and only the slide that failed is done, and counted.
    again = run(*command, "--json", code=1)
    lines = read(log)
    assert lines[:5] == [start, *slides, end]
    assert [line["event"] for line in lines[5:]] == ["start", "slide", "end"]
    assert (lines[5]["slides"], lines[5]["finished_earlier"]) == (1, 2)
    assert again.json["notes"]["tiles_read"] == 0


def test_a_stop_at_the_first_failure_is_no_complete_end(run, mixed, config, tmp_path):
    log = tmp_path / "log.jsonl"
    run(
        *("prepare", mixed / "text.svs", mixed / "slide_000.tif", mixed / "slide_001.tif", "--strict"),
        *("--out", tmp_path / "out", "--config", config, "--log-json", log),
        code=1,
    )
    *_, failed, end = read(log)
    assert failed["status"] == "failed"
    assert end["complete"] is (end["counts"].get("done") == 2)


def test_a_dry_run_writes_no_log_and_names_no_dashboard(run, mixed, config, tmp_path):
    log = tmp_path / "log.jsonl"
    ran = run(
        *("prepare", mixed, "--out", tmp_path / "out", "--config", config, "--dry-run"),
        *("--log-json", log, "--metrics", tmp_path / "x.prom"),
    )
    assert ran.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} == {"mixed"}


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("missing/log.jsonl", "No such file or directory"),
        ("folder", "Is a directory"),
        ("file/log.jsonl", "Not a directory"),
        ("/sys/log.jsonl", ""),  # not even root may create files there
        ("-", "needs a file"),
    ],
)
def test_a_log_that_cannot_be_opened_is_refused_before_any_work(
    run, slides, config, tmp_path, monkeypatch, where, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    ran = run("prepare", slides, "--out", tmp_path / "out", "--config", config, "--log-json", where, code=2)
    assert ran.stderr.startswith("error: --log-json ")
    assert where in ran.stderr
    assert reason in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def test_a_full_disk_is_reported_once_and_loses_no_slide(run, mixed, config, tmp_path):
    common = ("prepare", mixed, "--config", config, "--out")
    full = run(*common, tmp_path / "full", "--log-json", "/dev/full", "--json", code=1)
    assert full.stderr.count("--log-json /dev/full can no longer be written: No space left") == 1
    run(*common, tmp_path / "plain", code=1)
    one, other = (without_times(table(tmp_path / name / "slides.csv")) for name in ("full", "plain"))
    assert one == other
    assert full.json["counts"] == {"done": 2, "failed": 1, "no_tissue": 0}


def test_a_truncated_line_does_not_corrupt_others(tmp_path):
    path, complaints = tmp_path / "log.jsonl", []
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SlideLog(path, complain=complaints.append).slides("score", 5, 0) as tell:
        tell(Finished("whole", "done"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limit[1]))
        try:
            tell(Finished("torn", "done"))
            tell(Finished("lost", "done"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        tell(Finished("whole again", "done"))
    assert len(complaints) == 1
    lines = path.read_text().splitlines()
    assert len(lines) == 5
    torn = lines.pop(2)
    assert len(torn) == 20
    events = [json.loads(line) for line in lines]
    assert [each.get("slide_id") for each in events] == [None, "whole", "whole again", None]
    assert events[-1]["counts"] == {"done": 4}
    assert events[-1]["complete"] is False


def test_an_unterminated_last_line_is_terminated(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "sta')
    with SlideLog(path, complain=pytest.fail).slides("score", 0, 0):
        pass
    first, *others = path.read_text().splitlines()
    assert first == '{"event": "sta'
    assert [json.loads(line)["event"] for line in others] == ["start", "end"]


def test_lines_appear_as_slides_end_with_names_unchanged(tmp_path):
    path = tmp_path / "log.jsonl"
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    log = SlideLog(path, complain=pytest.fail, clock=lambda: moment)
    with log.slides("score", 2, 0) as tell:
        tell(Finished("Ärztin\udcff\n", "failed", error="s3://b/a?sig=abc: why"))
        *_, line = read(path)
    assert "Ärztin" in path.read_text("utf-8")
    assert line == {
        "time": "2026-01-02T03:04:05+00:00",
        "event": "slide",
        "stage": "score",
        "slide_id": "Ärztin\udcff\n",
        "status": "failed",
        "seconds": 0.0,
        "worker": None,
        "error": "s3://b/a?sig=***: why",
    }


def test_a_run_that_is_interrupted_has_an_end(tmp_path):
    path = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt), SlideLog(path, complain=pytest.fail).slides("score", 2, 0):
        raise KeyboardInterrupt
    assert [(line["event"], line.get("complete")) for line in read(path)] == [("start", None), ("end", False)]


def test_refusals_are_errors_of_this_library(tmp_path):
    with pytest.raises(SettingsError):
        SlideLog(tmp_path, complain=pytest.fail)
