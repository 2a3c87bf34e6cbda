"""Output for the user during a run and at its end."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from pipelines._console import ConsoleReporter
from pipelines._reports import Finished, Several, duration
from pipelines._runs import Summary


class Timer:
    """A timer that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines_of(total, *, seconds, failing=(), count=None, reused=0):
    """Lines about slides that end one after the other."""
    timer, file = Timer(), io.StringIO()
    reporter = ConsoleReporter(Console(file=file, width=200), timer=timer)
    with reporter.slides("score", total, reused) as tell:
        for number in range(total if count is None else count):
            timer.now += seconds
            failed = number in failing
            tell(Finished(f"s{number}", "failed" if failed else "done", error="why" if failed else None))
    return file.getvalue().splitlines()


def test_rate_and_time_left_follow_finished_slides():
    lines = lines_of(10, seconds=60)
    assert lines[:2] == ["score 1/10, 1 slides/min, 9 min left", "score 2/10, 1 slides/min, 8 min left"]
    assert lines[-1] == "score 10/10, 1 slides/min"
    assert len(lines) == 10  # each is more than half a minute after the one before


def test_slides_that_end_together_do_not_inflate_the_rate():
    timer, file = Timer(), io.StringIO()
    with ConsoleReporter(Console(file=file), timer=timer, every=0).slides("score", 80, 0) as tell:
        timer.now += 60
        for number in range(8):  # of eight workers, all with their first
            timer.now += 0.1
            tell(Finished(str(number), "done"))
    assert file.getvalue().splitlines()[-1] == "score 8/80, 7.9 slides/min, 9 min left"


def test_a_log_of_many_slides_is_short():
    lines = lines_of(1000, seconds=1)
    assert lines[0] == "score 1/1000, 60 slides/min, 17 min left"
    assert lines[1] == "score 31/1000, 60 slides/min, 16 min left"
    assert lines[-1] == "score 1000/1000, 60 slides/min"
    assert len(lines) == 1 + 33 + 1


def test_every_failure_has_a_line_at_once():
    lines = lines_of(1000, seconds=1, failing=(3, 4, 500))
    failures = [line for line in lines if "why" in line]
    assert failures == ["s3 failed: why", "s4 failed: why", "s500 failed: why"]
    assert lines[1:3] == failures[:2]
    assert lines[3] == "score 31/1000, 2 failed, 60 slides/min, 16 min left"
    assert lines[-1] == "score 1000/1000, 3 failed, 60 slides/min"


def test_reused_slides_do_not_inflate_the_rate():
    assert lines_of(4, seconds=60, reused=96)[1] == "score 2/4, 1 slides/min, 2 min left"


def test_slides_that_take_an_hour_have_a_rate():
    assert lines_of(10, seconds=3600)[1] == "score 2/10, 0.017 slides/min, 8 h 0 min left"


def test_a_run_that_stops_early_reports_its_progress():
    assert lines_of(1000, seconds=1, count=40)[-1] == "score 40/1000, 60 slides/min, 16 min left"


def test_an_interrupted_run_reports_its_progress():
    timer, file = Timer(), io.StringIO()

    def score():
        with ConsoleReporter(Console(file=file), timer=timer).slides("score", 9, 0) as tell:
            tell(Finished("a", "done"))
            tell(Finished("b", "done"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score()
    assert file.getvalue().splitlines() == ["score 1/9", "score 2/9"]


def test_a_run_with_nothing_to_do_prints_nothing():
    assert lines_of(0, seconds=1) == []


def test_time_is_measured_by_a_monotonic_clock():
    assert ConsoleReporter(Console()).timer is time.monotonic


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_shows_a_bar_and_failures_above_it(width):
    timer, file = Timer(), io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=width, color_system=None)
    with ConsoleReporter(console, timer=timer).slides("score", 4, 0) as tell:
        for name, status in (("a", "done"), ("[red]b", "failed"), ("c" * 200, "done")):
            timer.now += 30
            tell(Finished(name, status, error="[bold]why" if status == "failed" else None))
    text = file.getvalue()
    assert "[red]b failed: [bold]why\n" in text
    last = [line for line in text.splitlines() if "━" in line][-1]
    for part in ("score", "━", "3/4", "1 failed", "2 slides/min", "0:00:30", "cc"):
        assert part in last


def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    with ConsoleReporter(Console(file=file, force_terminal=True), timer=Timer()).slides(
        "score", 1, 0
    ) as tell:
        tell(Finished("a", "done"))
    assert file.getvalue() == "score 1/1\n"


def test_several_reporters_receive_every_event_in_turn():
    files = [io.StringIO(), io.StringIO()]
    both = Several([ConsoleReporter(Console(file=file), verbose=True, timer=Timer()) for file in files])
    both.message("message")
    both.debug("trace")
    with both.progress("train", 1) as step:
        step("loss 0.5")
    with both.slides("score", 1, 0) as tell:
        tell(Finished("a", "done"))
    for file in files:
        assert file.getvalue().splitlines() == ["message", "trace", "train 1/1: loss 0.5", "score 1/1"]


def test_finished_slides_reveal_no_secrets():
    slide = Finished("a", "failed", error="https://me:1234@host/a.svs?X-Amz-Signature=ab: KeyError")
    assert slide.error == "https://***@host/a.svs?X-Amz-Signature=***: KeyError"
    assert slide.failed


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.42, "0.42 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (2e5, "2 d 7 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_table_at_the_end_shows_the_first_failures_and_where_all_are(tmp_path):
    failed = {f"s{number:03d}": "why" for number in range(57)}
    summary = Summary("score", tmp_path, {"done": 3, "failed": 57}, failed, table="predictions.csv")
    (_, failures) = summary.sections()[1]
    assert failures[:20] == list(failed.items())[:20]
    assert failures[20:] == [("and 37 more", f"all of them are in {tmp_path / 'predictions.csv'}")]
    assert summary.to_json()["failed"] == failed
    few = Summary("score", tmp_path, {}, dict(list(failed.items())[:20]), table="predictions.csv")
    assert len(few.sections()[1][1]) == 20


def test_the_table_at_the_end_has_units(tmp_path):
    notes = {"seconds": 1350.0, "slides_per_minute": 41.2, "tiles_read": 5000, "bytes_read": 123456789}
    ((_, lines),) = Summary("score", tmp_path, {}, notes=notes).sections()
    assert lines[:-1] == [
        ("wall time", "22 min"),
        ("slides per minute", "41.2"),
        ("tiles read", "5000"),
        ("bytes read", "123.46 MB"),
    ]
