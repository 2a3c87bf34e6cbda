"""Slides that arrive: when they are complete, and a watch from its beginning to its end."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import slide_jobs
from conftest import ROOT, files, start, table, without_times
from hypothesis import given
from hypothesis import strategies as st

from pipelines._reports import Finished
from pipelines._rounds import complete_arrivals
from pipelines._runs import Execution, Silent, Summary
from pipelines._watch import Arrivals, Watch, stop_on_signals
from pipelines.cli import app
from pipelines.score import ScoreTask, score
from wsi_ats.errors import MppError, SettingsError, WsiAtsError
from wsi_ats.files import read_json
from wsi_ats.results.exports.tables import read_selection
from wsi_ats.settings import Settings
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.testing.dicom import write_dicom

SETTLE = 30.0


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


class Desk:
    """A folder, a clock, and what a watch says of them."""

    def __init__(self, *sources: object, **options: object) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.watch = Watch(
            Arrivals([str(each) for each in sources], settle=SETTLE, clock=self.clock, **options),
            self.said.append,
        )

    def look(self, after: float = 0.0) -> list[str]:
        self.clock.now += after
        return [ref.id for ref in self.watch.look()]


def put(path: Path, text: str = "slide", *, at: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if at is not None:
        os.utime(path, (at, at))
    return path


# --- complete slides -------------------------------------------------------------------------------------


def test_a_slide_is_complete_once_it_has_not_changed_for_a_while(tmp_path):
    desk = Desk(tmp_path)
    assert desk.look() == []  # an empty folder is a beginning
    put(tmp_path / "a.svs", "half", at=1000)
    assert desk.look() == []
    assert desk.look(29) == []
    put(tmp_path / "a.svs", "half and half", at=1010)
    assert desk.look(1) == []
    assert desk.look(29.9) == []
    assert desk.look(0.1) == ["a"]
    assert desk.look(100) == ["a"], "it is listed until it is taken"
    desk.watch.take(["a"])
    assert desk.look(100) == []
    assert desk.watch.waiting == []


@pytest.mark.parametrize("at", [0.0, 1e9, 4e9])  # at the dawn of time, long ago, in the future
def test_what_the_time_of_day_is_does_not_matter(tmp_path, at):
    desk = Desk(tmp_path)
    put(tmp_path / "a.svs", at=at)
    assert desk.look() == []
    put(tmp_path / "a.svs", at=at + 1)  # of the same size, by a clock that was set
    assert desk.look(SETTLE) == []
    put(tmp_path / "a.svs", at=at)  # set back again
    assert desk.look(SETTLE) == []
    assert desk.look(SETTLE) == ["a"]


def test_without_a_time_to_settle_two_looks_are_needed(tmp_path):
    clock = Clock()
    watch = Watch(Arrivals([str(tmp_path)], settle=0, clock=clock), print)
    put(tmp_path / "a.svs")
    assert watch.look() == []
    assert [ref.id for ref in watch.look()] == ["a"]


@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.sampled_from("abc"), st.integers(0, 3)),
            st.tuples(st.just("touch"), st.sampled_from("abc"), st.integers(0, 5)),
            st.tuples(st.just("remove"), st.sampled_from("abc"), st.just(0)),
            st.tuples(st.just("look"), st.just(""), st.integers(0, 40)),
        ),
        max_size=40,
    )
)
def test_no_slide_is_taken_that_has_changed_within_the_time(tmp_path_factory, events):
    """Held against a memory of every change."""
    folder = tmp_path_factory.mktemp("slides")
    desk = Desk(folder)
    changed: dict[str, float] = {}  # first look that saw it as it is
    state: dict[str, object] = {}
    seen: dict[str, object] = {}
    taken: dict[str, object] = {}
    for what, name, number in events:
        path = folder / f"{name}.svs"
        if what == "write":
            put(path, "x" * number, at=100)
            state[name] = (number, 100)
        elif what == "touch" and name in state:
            os.utime(path, (number, number))
            state[name] = (state[name][0], number)
        elif what == "remove":
            path.unlink(missing_ok=True)
            state.pop(name, None)
        elif what == "look":
            listed = desk.look(number)
            now = desk.clock.now
            for each in "abc":
                if seen.get(each) != state.get(each):
                    changed[each] = now
            expected = [
                each
                for each in sorted(state)
                if state[each] == seen.get(each)
                and now - changed[each] >= SETTLE
                and taken.get(each) != state[each]
            ]
            seen = dict(state)
            assert listed == expected
            desk.watch.take(listed)
            taken |= {each: state[each] for each in listed}


def test_a_marker_completes_a_new_slide_at_once_and_nothing_else_does(tmp_path):
    desk = Desk(tmp_path, marker=".done")
    for name in ("a.svs", "b.ome.tif", "c.svs", "d.zarr/zarr.json"):
        put(tmp_path / name)
    for name, series in (("series/1.dcm", "1.2"), ("series/2.dcm", "1.2"), ("e.dcm", "1.3")):
        write_dicom(tmp_path / name, series, np.zeros((64, 64, 3), np.uint8))
    assert desk.look(1000) == []
    assert desk.look(1000) == []
    put(tmp_path / "c.svs.done.part", "")
    for name, marker in (
        *(("a", "a.svs"), ("b", "b.ome"), ("d", "d.zarr"), ("e", "e.dcm")),
        ("series", "series"),
    ):
        put(tmp_path / f"{marker}.done", "")
        assert desk.look() == [name]
        desk.watch.take([name])
    # Changed under the marker that is still there, it has to settle.
    put(tmp_path / "a.svs", "another")
    assert desk.look() == []
    assert desk.look(SETTLE) == ["a"]
    assert [ref.id for ref in desk.watch.waiting] == ["a", "c"]


@pytest.mark.parametrize(
    ("slide", "companion", "name"),
    [
        ("a.mrxs", "a/Data0001.dat", "a"),
        ("a.zarr", "a.zarr/0/c/0/0", "a"),
        ("a.vms", "a-(1,0).jpg", "a"),
    ],
)
def test_all_files_of_a_slide_count(tmp_path, slide, companion, name):
    if slide.endswith(".zarr"):
        put(tmp_path / slide / "zarr.json")
    else:
        put(tmp_path / slide, "[Virtual Microscope Specimen]\nImageFile(1,0)=a-(1,0).jpg\nX=\0/\n")
    desk = Desk(tmp_path)
    assert desk.look() == []
    put(tmp_path / companion, "half")
    assert desk.look(SETTLE) == []
    put(tmp_path / companion, "half and half")
    assert desk.look(SETTLE) == []
    assert desk.look(SETTLE) == [name]
    desk.watch.take([name])
    put(tmp_path / companion, "once more")
    assert desk.look() == []
    [ref] = desk.watch.waiting
    assert desk.watch.changed(ref)
    assert desk.look(SETTLE) == [name]
    # Those of others do not.
    desk.watch.take([name])
    put(tmp_path / "a2.svs", at=7)
    put(tmp_path / "other" / "Data0001.dat")
    desk.look()
    assert [ref.id for ref in desk.watch.waiting] == ["a2"]


def test_dicom_files_of_other_series_are_no_part_of_a_slide(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    write_dicom(tmp_path / "1.dcm", "1.2", pixels)
    desk = Desk(tmp_path)
    desk.look()
    assert desk.look(SETTLE) == ["1"]
    desk.watch.take(["1"])
    write_dicom(tmp_path / "2.dcm", "1.3", pixels)
    assert desk.look() == []
    assert [ref.id for ref in desk.watch.waiting] == ["2"]
    write_dicom(tmp_path / "3.dcm", "1.3", pixels)
    desk.look()
    assert desk.look(SETTLE) == ["1.3"]


def test_all_files_of_a_dicom_slide_count(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    for number in (1, 2):
        write_dicom(tmp_path / "series" / f"{number}.dcm", "1.2", pixels)
    desk = Desk(tmp_path)
    assert desk.look() == []
    for mpp in (1.0, 2.0):  # the second is being written
        write_dicom(tmp_path / "series" / "2.dcm", "1.2", pixels, mpp=mpp)
        assert desk.look(SETTLE) == []
    assert desk.look(SETTLE) == ["series"]
    desk.watch.take(["series"])
    write_dicom(tmp_path / "series" / "2.dcm", "1.2", pixels, mpp=4.0)
    assert desk.look() == []
    [ref] = desk.watch.waiting
    assert desk.watch.changed(ref)
    assert desk.look(SETTLE) == ["series"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_marker_stands_beside_a_folder_that_names_a_dicom_slide(tmp_path, linked):
    real = tmp_path / "real" / "case"
    for number in (1, 2):
        write_dicom(real / f"{number}.dcm", "1.2", np.zeros((64, 64, 3), np.uint8))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    folder = inbox / "batch"
    if linked:
        folder.symlink_to(real, target_is_directory=True)
    else:
        real.rename(folder)
    desk = Desk(inbox, marker=".done")
    assert desk.look(1000) == []
    put(inbox / "batch.done", "")
    assert desk.look() == ["case" if linked else "batch"]


def test_a_marker_of_a_folder_completes_one_slide_and_not_the_next(tmp_path):
    desk = Desk(tmp_path, marker=".done")
    pixels = np.zeros((64, 64, 3), np.uint8)
    for name, series in (("1.dcm", "1.2"), ("2.dcm", "1.2"), ("3.dcm", "1.3")):
        write_dicom(tmp_path / name, series, pixels)
    put(tmp_path.with_name(f"{tmp_path.name}.done"), "")
    assert desk.look(1000) == []
    assert desk.look(1000) == []
    put(tmp_path / "3.done", "")
    assert desk.look() == ["3"]
    desk.watch.take(["3"])
    put(tmp_path / "1.2.done", "")
    assert desk.look() == ["1.2"]


def test_files_of_programs_that_copy_are_no_slides(tmp_path):
    desk = Desk(tmp_path)
    for name in (
        *(".a.svs.Xu81Zq", "a.svs.part", "a.svs.filepart", "a.tmp", ".a.svs", "._a.svs", "a.svs.crdownload"),
        *(".~tmp~/a.svs", ".rsync-partial/a.svs", "below/.hidden.zarr/zarr.json"),
    ):
        put(tmp_path / name)
    assert desk.look() == []
    assert desk.watch.present == []


# --- slides that go, and come again ------------------------------------------------------------------------


def test_a_slide_that_goes_away_is_no_error(tmp_path):
    desk = Desk(tmp_path)
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.svs", at=5)
    desk.look()
    assert desk.look(SETTLE) == ["a", "b", "c"]
    desk.watch.take(["a", "b"], failed=["b"])
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.svs").unlink()
    assert desk.look() == []
    assert (desk.watch.present, desk.said) == ([], [])
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.svs", at=5)
    assert desk.look(1000) == [], "what comes again has to settle again"
    assert desk.look(SETTLE) == ["b", "c"], (
        "one that was done is known again; that which failed is tried anew"
    )


def test_a_slide_that_failed_waits_for_a_change(tmp_path):
    desk = Desk(tmp_path)
    put(tmp_path / "a.svs")
    desk.look()
    assert desk.look(SETTLE) == ["a"]
    desk.watch.take(["a"], failed=["a"])
    for _ in range(5):
        assert desk.look(SETTLE) == []
    put(tmp_path / "a.svs", "mended")
    desk.look()
    assert desk.look(SETTLE) == ["a"]


def test_a_source_that_is_lost_for_a_while_is_said_once(tmp_path):
    folder = tmp_path / "share"
    put(folder / "a.svs")
    put(tmp_path / "here" / "b.svs")
    desk = Desk(folder, tmp_path / "here")
    desk.look()
    folder.rename(tmp_path / "elsewhere")
    for _ in range(3):
        assert desk.look(SETTLE) == ["b"]
    assert desk.said == [f"{folder}: no such file or folder; the next look may find it mended"]
    (tmp_path / "elsewhere").rename(folder)
    assert desk.look() == ["a", "b"], "nobody saw it change"
    folder.rename(tmp_path / "elsewhere")
    desk.look()
    assert len(desk.said) == 2


def test_of_two_slides_with_one_name_the_first_to_come_is_kept(tmp_path):
    put(tmp_path / "b" / "x.svs")
    desk = Desk(tmp_path, tmp_path / "b")  # one source within another is no second slide
    desk.look()
    assert desk.said == []
    put(tmp_path / "a" / "x.svs")
    for _ in range(3):
        [ref] = desk.watch.look() if desk.look(SETTLE) else pytest.fail("it was complete")
        assert ref.path == str(tmp_path / "b" / "x.svs")
    [said] = desk.said
    assert said == (
        f"warning: two slides are called 'x'; {tmp_path / 'b' / 'x.svs'} is scored, "
        f"{tmp_path / 'a' / 'x.svs'} is not: rename it"
    )
    (tmp_path / "b" / "x.svs").unlink()
    desk.look()
    assert desk.look(SETTLE) == ["x"]


# --- sources -----------------------------------------------------------------------------------------------


def test_a_glob_may_match_nothing_yet(tmp_path):
    desk = Desk(tmp_path / "in" / "**" / "*.svs")
    assert desk.look() == []
    put(tmp_path / "in" / "today" / "a.svs")
    put(tmp_path / "in" / "today" / "b.ndpi")
    desk.look()
    assert desk.look(SETTLE) == ["a"]


def test_a_table_is_read_at_each_look(tmp_path):
    worklist = put(tmp_path / "slides.csv", "slide_id,path,case_id,mpp\n")
    desk = Desk(worklist, mpp=0.25)
    assert desk.look() == []
    put(tmp_path / "one.svs")
    put(tmp_path / "two.svs")
    text = "slide_id,path,case_id,mpp\na,one.svs,patient,\nb,two.svs,patient,0.5\nc,yet to come.svs,other,\n"
    put(worklist, text[: text.index("one.svs") + 3])  # half a row
    assert desk.look(SETTLE) == []
    assert desk.look(SETTLE) == []
    assert (desk.watch.present, desk.said) == ([], [])
    put(worklist, "")
    assert desk.look(SETTLE) == []
    assert desk.look(SETTLE) == []
    assert len(desk.said) == 1
    assert str(worklist) in desk.said[0]
    put(worklist, text)
    desk.look()
    assert desk.look(SETTLE) == ["a", "b"]
    assert [(ref.case, ref.mpp) for ref in desk.watch.look()] == [("patient", 0.25), ("patient", 0.5)]
    desk.watch.take(["a", "b"])
    put(worklist, text.replace("0.5", "0.4"))  # other pixels are read of it
    desk.look()
    assert desk.look(SETTLE) == ["b"]
    put(worklist, text + "d,s3://bucket/d.svs,,\n")
    desk.look()
    assert desk.said[1:] == [f"{worklist}: 1 slides in stores are left out; score them without --watch"]


def test_a_table_that_names_slides_alone(tmp_path):
    worklist = put(tmp_path / "slides.csv", "slide_id\na\nb\n")
    put(tmp_path / "today" / "a.svs")
    desk = Desk(worklist)
    desk.look()
    assert desk.look(SETTLE) == ["a"]
    assert desk.said == []


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"every": 0}, SettingsError, "--every must be a positive number of seconds, not 0"),
        ({"every": float("nan")}, SettingsError, "--every must be"),
        ({"every": 1e10}, SettingsError, "--every must be"),  # more than the system can wait
        ({"settle": -1}, SettingsError, "--settle must be seconds, 0 or more, not -1"),
        ({"settle": float("inf")}, SettingsError, "--settle must be"),
        ({"marker": ""}, SettingsError, "--marker is ''"),
        ({"marker": "/done"}, SettingsError, "--marker is '/done'"),
        ({"mpp": 1000.0}, MppError, "1000"),
        ({"reader": "mine"}, SettingsError, "reader is 'mine'"),
    ],
)
def test_what_cannot_be(tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        Arrivals([str(tmp_path)], **options)


def test_stores_are_not_watched():
    with pytest.raises(SettingsError, match="s3://bucket/scans: --watch looks at files of this machine"):
        Arrivals(["s3://bucket/scans"])


# --- requests to end ---------------------------------------------------------------------------------------


def test_the_first_signal_is_a_request_and_the_second_an_end():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    clock = Clock()
    with stop_on_signals(clock) as stop:
        assert not stop()
        assert not stop.wait(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.wait(1000)
        os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` says it twice
        clock.now += 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# --- a watch from its beginning to its end -----------------------------------------------------------------


class Heard(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.finished: list[Finished] = []
        self.reused: list[int] = []

    def slides(self, title, total, reused):
        self.reused.append(reused)
        return nullcontext(self.finished.append)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Story:
    """What happens while nothing else does: each time that the watch waits, the next step is taken."""

    def __init__(self, steps: Iterator[None]) -> None:
        self.steps = steps
        self.clock = Clock()
        self.ended = False
        self.heard = Heard()

    def pause(self, seconds: float) -> None:
        self.clock.now += seconds
        try:
            next(self.steps)
        except StopIteration:
            self.ended = True


def watched(
    story: Story, *sources: Path, model: Path, out: Path, client: object, **options: object
) -> Summary:
    strict = bool(options.pop("strict", False))
    arrivals = Arrivals([*map(str, sources)], clock=story.clock, pause=story.pause, **options)
    execution = Execution(
        scheduler=client, stop=lambda: story.ended, reporter=story.heard, strict=strict, command="a watch"
    )
    return score(arrivals, model, out, execution=execution)


def until(condition: Callable[[], object]) -> Iterator[None]:
    """Let the watch look until something is so."""
    for _ in range(50):
        if condition():
            return
        yield
    pytest.fail("it never came to be")


def assert_like_a_plain_run(out: Path, sources: Path, model: Path, client: object) -> None:
    plain = out.with_name(f"{out.name}_plain")
    score(read_manifest(sources), model, plain, execution=Execution(scheduler=client))
    mine, theirs = (without_times(table(each / "predictions.csv")) for each in (out, plain))
    assert mine == theirs
    for name in files(plain / "selections"):
        one, other = (read_selection(each / "selections" / name).columns() for each in (out, plain))
        assert one == other


def test_a_slide_is_not_scored_before_it_is_complete(slides, model, client, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    whole = (slides / "slide_000.tif").read_bytes()

    def steps() -> Iterator[None]:
        yield
        with (folder / "a.tif").open("wb") as file:
            for part in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
                assert not (out / "predictions.csv").exists()
                file.write(part)
                file.flush()
                yield
                yield
        yield from until((out / "predictions.csv").exists)
        assert [row["slide_id"] for row in table(out / "predictions.csv")] == ["a"]
        assert read_json(out / "run.json")["end"] is None
        shutil.copy(slides / "slide_001.tif", folder / "b.tif")
        yield from until(lambda: len(table(out / "predictions.csv")) == 2)
        (folder / "a.tif").rename(tmp_path / "a.tif")
        yield
        yield

    story = Story(steps())
    summary = watched(story, folder, model=model, out=out, client=client)
    assert (summary.exit_code, summary.counts["done"], summary.reused) == (0, 2, 0)
    assert "left_for_the_next_time" not in summary.notes
    assert summary.notes["tiles_read"] > 0
    (tmp_path / "a.tif").rename(folder / "a.tif")
    assert_like_a_plain_run(out, folder, model, client)
    record = read_json(out / "run.json")
    assert record["end"] is not None
    assert record["counts"] == {"done": 2, "no_tissue": 0, "failed": 0}
    waiting = "score: waiting for slides; Ctrl-C or SIGTERM ends it"
    arrived = "score: 1 slide arrived"
    assert story.heard.messages == [waiting, arrived, waiting, arrived, waiting, "score: stopping"]


def test_a_slide_that_changes_is_scored_anew_and_one_that_failed_only_then(slides, model, client, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    shutil.copy(slides / "slide_000.tif", folder / "a.tif")
    (folder / "b.tif").write_text("no slide")
    first: list[dict[str, str]] = []

    def steps() -> Iterator[None]:
        yield from until((out / "predictions.csv").exists)
        first.extend(table(out / "predictions.csv"))
        for _ in range(10):
            yield
        shutil.copy(slides / "slide_001.tif", folder / "a.tif")
        shutil.copy(slides / "slide_002.tif", folder / "b.tif")
        yield from until(lambda: table(out / "predictions.csv")[1]["status"] == "done")

    story = Story(steps())
    summary = watched(story, folder, model=model, out=out, client=client)
    assert [row["status"] for row in first] == ["done", "failed"]
    assert (summary.exit_code, summary.counts["done"], summary.failed) == (0, 2, {})
    assert [(each.slide_id, each.status) for each in story.heard.finished if each.slide_id == "b"] == [
        ("b", "failed"),
        ("b", "done"),
    ]
    assert without_times(table(out / "predictions.csv"))[0] != without_times(first)[0]
    assert_like_a_plain_run(out, folder, model, client)


def test_started_again_it_goes_on(slides, model, client, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    for name in ("gone", "kept", "other"):
        shutil.copy(slides / "slide_000.tif", folder / f"{name}.tif")

    def there(number: int) -> Iterator[None]:
        yield from until(
            lambda: (out / "predictions.csv").exists() and len(table(out / "predictions.csv")) == number
        )

    options = {"model": model, "out": out, "client": client}
    assert watched(Story(there(3)), folder, **options).counts["done"] == 3
    before = {path.name: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    old = table(out / "predictions.csv")
    (folder / "gone.tif").unlink()
    shutil.copy(slides / "slide_001.tif", folder / "other.tif")
    shutil.copy(slides / "slide_002.tif", folder / "new.tif")
    (out / "predictions.csv").unlink()

    def steps() -> Iterator[None]:
        rows = table(out / "predictions.csv")
        assert [row["slide_id"] for row in rows] == ["gone", "kept"], "what is known is written at once"
        yield from there(4)

    story = Story(steps())
    summary = watched(story, folder, **options)
    assert (summary.counts["done"], summary.reused) == (4, 2)
    assert set(story.heard.reused) == {2}
    assert story.heard.messages[:3] == [
        "score: 2 slides finished already",
        "score: waiting for slides; Ctrl-C or SIGTERM ends it",
        "score: 2 slides arrived",
    ]
    after = {path.name: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"new.json", "other.json"}
    rows = {row["slide_id"]: row for row in table(out / "predictions.csv")}
    assert [rows["gone"], rows["kept"]] == old[:2]


def test_strict_ends_a_watch_at_the_first_failure(slides, model, client, tmp_path):
    (tmp_path / "bad.tif").write_text("no slide")
    story = Story(until(lambda: False))
    summary = watched(story, tmp_path, model=model, out=tmp_path / "scores", client=client, strict=True)
    assert (summary.exit_code, set(summary.failed)) == (1, {"bad"})
    [row] = table(tmp_path / "scores" / "predictions.csv")
    assert (row["slide_id"], row["status"]) == ("bad", "failed")


def test_nothing_came(model, client, tmp_path):
    (tmp_path / "scans").mkdir()
    summary = watched(
        Story(iter(())), tmp_path / "scans", model=model, out=tmp_path / "scores", client=client
    )
    assert (summary.exit_code, sum(summary.counts.values())) == (0, 0)
    assert table(tmp_path / "scores" / "predictions.csv") == []
    assert read_json(tmp_path / "scores" / "run.json")["end"] is not None


def test_a_long_queue_is_done_in_rounds(slides, model, client, tmp_path, monkeypatch):
    """Tables, and slides that come in the meantime, do not wait for its end."""
    monkeypatch.setattr("pipelines._rounds._ROUND_SECONDS", 0.0)
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.tif").symlink_to(slides / f"slide_{i % 6:03}.tif")
    numbers: list[int] = []

    class Ticking(Clock):
        def __call__(self) -> float:
            self.now += 1e-3
            return self.now

    def steps() -> Iterator[None]:
        yield from until((out / "predictions.csv").exists)

    story = Story(steps())
    story.clock = Ticking()
    write = ScoreTask.write_tables

    def counted(task: object, rows: list[object]) -> None:
        numbers.append(len(rows))
        write(task, rows)

    monkeypatch.setattr("pipelines.score.ScoreTask.write_tables", counted)
    summary = watched(story, folder, model=model, out=out, client=client)
    assert summary.counts["done"] == 12
    assert numbers == sorted(numbers)
    assert len(set(numbers)) >= 2
    assert [text for text in story.heard.messages if "arrived" in text] == ["score: 12 slides arrived"]


def test_a_scheduler_that_is_lost_ends_the_watch(model, client, tmp_path):
    from distributed import Client

    (tmp_path / "scans").mkdir()
    own = Client(client.scheduler.address, set_as_default=False)

    def steps() -> Iterator[None]:
        yield
        own.close()
        yield

    with pytest.raises(WsiAtsError, match="the connection to the Dask scheduler was lost"):
        watched(Story(steps()), tmp_path / "scans", model=model, out=tmp_path / "scores", client=own)
    assert read_json(tmp_path / "scores" / "run.json")["end"] is None


def test_a_slide_is_done_again_when_files_change_that_its_record_does_not_know(client, tmp_path):
    folder = tmp_path / "scans"
    put(folder / "a.mrxs")
    put(folder / "a" / "Data0001.dat", "half")
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    record = tmp_path / "out" / "records" / "a.json"
    kept: list[int] = []

    def steps() -> Iterator[None]:
        yield from until(lambda: kept)
        first = record.stat().st_mtime_ns
        put(folder / "a" / "Data0001.dat", "half and half")
        yield from until(lambda: len(kept) == 2)
        assert record.stat().st_mtime_ns != first

    story = Story(steps())
    results = complete_arrivals(
        task,
        Arrivals([str(folder)], clock=story.clock, pause=story.pause),
        Settings(),
        Execution(scheduler=client, stop=lambda: story.ended, reporter=story.heard),
        title="test",
        keep=lambda rows: kept.append(len(rows)),
    )
    assert list(results.rows) == [{"slide_id": "a", "status": "done", "value": "A"}]
    assert "left_for_the_next_time" not in results.notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--every", 1), "--every has no effect without --watch"),
        (("--settle", 1), "--settle has no effect"),
        (("--marker", ".done"), "--marker has no effect"),
        (("--watch", "--every", 0), "--every must be a positive number"),
        (("--watch", "--dry-run"), "--watch waits for slides that --dry-run cannot know of"),
        (("--watch", "--mpp", 1000), "1000"),
        (("--watch", "--tiles", 0.5), "--tiles"),
    ],
)
def test_options_that_do_not_go_together(run, slides, model, tmp_path, change, said):
    ran = run("score", slides, "--model", model, "--out", tmp_path / "scores", *change)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert not (tmp_path / "scores").exists()


PAGE = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", re.findall(r"(?:^    |^ExecStart=\S*)(wsi-ats .*)", PAGE, re.M))
def test_commands_of_the_page_are_understood(line):
    from typer.main import get_command

    name, *words = shlex.split(line)[1:]
    stage = get_command(app).get_command(None, name)
    given = stage.make_context(name, words).params
    assert given["watch"]
    Arrivals(given["slides"], **{each: given[each] for each in ("every", "settle", "marker") if given[each]})


def test_the_service_of_the_page():
    [unit] = re.findall(r"^```ini\n(.*?)^```", PAGE, re.M | re.S)
    parser = configparser.ConfigParser()
    parser.optionxform = str
    parser.read_string(unit)
    service = parser["Service"]
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert "wsi-ats score " in service["ExecStart"]


def test_a_folder_that_is_not_there_is_an_error_at_once(run, model, tmp_path):
    ran = run("score", tmp_path / "scans", "--model", model, "--out", tmp_path / "scores", "--watch")
    assert ran.exit_code == 2
    assert f"{tmp_path / 'scans'}: no such file or folder" in ran.stderr
    assert not (tmp_path / "scores").exists()


# --- real signals to real processes ------------------------------------------------------------------------


@pytest.fixture
def watching() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a watch; it does not outlive a test that failed."""
    started = []

    def watching(*arguments: object) -> subprocess.Popen[str]:
        started.append(start(*arguments))
        return started[-1]

    yield watching
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watch_that_waits_ends_when_it_is_told(watching, run, model, address, tmp_path, number):
    (tmp_path / "scans").mkdir()
    command = ("score", tmp_path / "scans", "--model", model, "--out", tmp_path / "scores", "--watch")
    process = watching(*command, "--every", 600, "--scheduler", address)
    lines = []
    while "waiting for slides" not in "".join(lines):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    refused = run(*command)
    assert refused.exit_code == 2
    assert f"is in use by process {process.pid}" in refused.stderr
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)  # a tenth of the time to the next look
    assert (process.returncode, complaints) == (0, "score: stopping\n")
    assert read_json(tmp_path / "scores" / "run.json")["end"] is not None


def test_a_watch_that_is_told_to_end_in_the_middle(watching, slides, model, client, address, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    for i in range(36):
        (folder / f"case_{i:02}.tif").symlink_to(slides / f"slide_{i % 6:03}.tif")
    command = ("score", folder, "--model", model, "--out", out, "--watch", "--json")
    command += ("--every", 0.05, "--settle", 0, "--scheduler", address)
    process = watching(*command)
    wait_for(process, lambda: len(list((out / "records").glob("*.json"))) >= 3)
    process.send_signal(signal.SIGTERM)
    result, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    summary = json.loads(result)
    done = summary["counts"]["done"]
    assert 3 <= done < 36
    assert summary["notes"]["left_for_the_next_time"] == 36 - done
    [stopping] = [line for line in complaints.splitlines() if "stopping" in line]
    under_way = int(re.search(r"(\d+) slides? to finish first", stopping).group(1))
    assert 0 < under_way <= done
    rows = table(out / "predictions.csv")
    assert {f"{row['slide_id']}.json" for row in rows} == {*files(out / "records")}
    assert read_json(out / "run.json")["end"] is not None

    again = watching(*command)
    wait_for(again, lambda: len(table(out / "predictions.csv")) == 36)
    again.send_signal(signal.SIGTERM)
    result, _ = again.communicate(timeout=60)
    assert (again.returncode, json.loads(result)["reused"]) == (0, done)
    assert_like_a_plain_run(out, folder, model, client)


@pytest.mark.slow
def test_workers_that_are_told_to_end_as_well(watching, slides, model, client, tmp_path):
    """As by a manager of services that tells every process: slides are lost and none is broken."""
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    for i in range(36):
        (folder / f"case_{i:02}.tif").symlink_to(slides / f"slide_{i % 6:03}.tif")
    command = ("score", folder, "--model", model, "--out", out, "--watch", "--every", 0.05, "--settle", 0)
    process = watching(*command, "--workers", 2)
    wait_for(process, lambda: len(list((out / "records").glob("*.json"))) >= 3)
    os.killpg(process.pid, signal.SIGTERM)
    _, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    rows = table(out / "predictions.csv")
    assert {f"{row['slide_id']}.json" for row in rows} == {*files(out / "records")}
    score(read_manifest(folder), model, out, execution=Execution(scheduler=client))
    assert_like_a_plain_run(out, folder, model, client)
