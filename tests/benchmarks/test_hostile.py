"""Damaged slides: outcomes are counted as they are, and nothing bad is found in a few seconds."""

from __future__ import annotations

import csv
from collections import Counter
from types import SimpleNamespace

import pytest

from benchmarks import hostile
from benchmarks.hostile import BAD, FORMATS, Child, Ended, Subject, trials


@pytest.fixture(scope="module")
def child():
    child = Child()
    yield child
    child.close()


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_damages_of_each_format_end_well(tmp_path, name, child):
    whole = Subject.write(name, tmp_path)
    found = Counter()
    for number in range(25):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = child.ask(whole.damaged(number, folder))
        found[ended.outcome(whole.truth)] += 1
        assert not found.keys() & set(BAD), f"{number}: {ended}"
    assert found["SlideError"]


def test_the_same_number_is_the_same_damage(tmp_path):
    whole = Subject.write("TIFF, LZW", tmp_path)
    contents = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        contents.append(whole.damaged(7, tmp_path / folder).read_bytes())
    assert contents[0] == contents[1] != whole.path.read_bytes()


def test_too_much_time_or_memory_counts_however_it_ended():
    assert Ended("truth").outcome("truth") == "same"
    assert Ended("lie").outcome("truth") == "other"
    assert Ended("SlideError", seconds=11.0).outcome("truth") == "slow"
    assert Ended("truth", memory=600 << 20).outcome("truth") == "large"
    assert Ended("crash", seconds=99.0).outcome("truth") == "crash"


def test_a_process_that_dies_is_a_crash_and_the_next_slide_is_read(tmp_path):
    whole, child = Subject.write("TIFF, LZW", tmp_path), Child()
    assert child.ask(whole.path).result == whole.truth
    child.process.kill()
    child.process.join()
    assert child.ask(whole.path).result == "crash"
    assert child.ask(whole.path).result == whole.truth
    child.close()


def test_bad_ones_are_kept(tmp_path, monkeypatch, capsys):
    whole = Subject.write("TIFF, LZW", tmp_path)
    monkeypatch.setattr(Child, "ask", lambda self, path: Ended("foreign error", "KeyError(1)"))
    ends = iter([0.0, 10.0])
    # Only here: threads of other tests read the clock, too.
    monkeypatch.setattr(hostile, "time", SimpleNamespace(monotonic=lambda: next(ends)))
    assert list(trials(whole, 0, 1, 5.0, tmp_path / "kept")) == ["foreign error"]
    assert (tmp_path / "kept" / "TIFF_LZW_0_foreign_error" / "s.tif").stat().st_size
    assert "KeyError(1)" in capsys.readouterr().out


def test_the_command_writes_its_table(tmp_path, monkeypatch):
    options = ["--minutes", "0.02", "--processes", "1", "--formats", "TIFF, LZW"]
    monkeypatch.setattr("sys.argv", ["hostile", *options, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="False"):
        hostile.main()
    with (tmp_path / "hostile.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert int(row["damaged"]) == sum(int(row[name]) for name in hostile.OUTCOMES) > 0
