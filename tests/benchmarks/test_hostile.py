"""Damaged slides: that what counts is counted, and nothing bad is found in a few seconds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks import hostile
from benchmarks.hostile import FORMATS, Child, Subject, outcome, read_all, trials


def subject(tmp_path, name):
    ending, write = FORMATS[name]
    path = tmp_path / ending
    write(path)
    return Subject(name, path, read_all(path if path.suffix else path / "0.dcm"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_damages_of_each_format_end_well(tmp_path, name):
    whole = subject(tmp_path, name)
    child = Child()
    try:
        found = Counter()
        for number in range(25):
            folder = tmp_path / str(number)
            folder.mkdir()
            said, what, seconds, memory = child.ask(whole.damaged(number, folder))
            found[outcome(whole, said, seconds, memory)] += 1
            assert not found.keys() & set(hostile.BAD), f"{number}: {what}"
    finally:
        child.close()
    assert found["SlideError"]


def test_the_same_number_is_the_same_damage(tmp_path):
    whole = subject(tmp_path, "TIFF, LZW")
    contents = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        contents.append(whole.damaged(7, tmp_path / folder).read_bytes())
    assert contents[0] == contents[1] != whole.path.read_bytes()


def test_what_takes_too_much_counts_however_it_ended():
    whole = Subject("any", FORMATS, "truth")
    assert outcome(whole, "truth", 0.1, 0) == "same"
    assert outcome(whole, "lie", 0.1, 0) == "other"
    assert outcome(whole, "SlideError", 11.0, 0) == "slow"
    assert outcome(whole, "truth", 0.1, 600 << 20) == "large"
    assert outcome(whole, "crash", 99.0, 0) == "crash"


def test_a_process_that_dies_is_a_crash_and_the_next_slide_is_read(tmp_path, monkeypatch):
    whole = subject(tmp_path, "TIFF, LZW")
    child = Child()
    try:
        assert child.ask(whole.path)[0] == whole.truth
        child._process.kill()
        child._process.wait()
        assert child.ask(whole.path)[0] == "crash"
        assert child.ask(whole.path)[0] == whole.truth
    finally:
        child.close()


def test_what_is_bad_is_kept(tmp_path, monkeypatch, capsys):
    whole = subject(tmp_path, "TIFF, LZW")
    monkeypatch.setattr(Child, "ask", lambda self, path: ("foreign error", "KeyError(1)", 0.0, 0))
    ends = iter([0.0, 10.0])
    monkeypatch.setattr(hostile.time, "monotonic", lambda: next(ends))
    assert list(trials(whole, 0, 1, 5.0, tmp_path / "kept")) == ["foreign error"]
    [kept] = (tmp_path / "kept").iterdir()
    assert kept.name == "TIFF_LZW_0_foreign_error"
    assert "KeyError(1)" in capsys.readouterr().out
    assert np.fromfile(kept / "s.tif", np.uint8).size
