"""Slides that arrive: when they are complete."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines._watch import Arrivals, Watch
from wsi_ats.testing.dicom import write_dicom

SETTLE = 30.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


class Desk:
    """A folder, a clock, and the arrivals that a watch reports."""

    def __init__(self, *sources: object, **options: object) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.watch = Watch(
            Arrivals([str(each) for each in sources], settle=SETTLE, clock=self.clock, **options),
            self.said.append,
        )

    def check(self, after: float = 0.0) -> list[str]:
        self.clock.now += after
        return [ref.id for ref in self.watch.check()]


def put(path: Path, text: str = "slide", *, at: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if at is not None:
        os.utime(path, (at, at))
    return path


# --- complete slides -------------------------------------------------------------------------------------


def test_a_slide_is_complete_once_it_has_not_changed_for_a_while(tmp_path):
    desk = Desk(tmp_path)
    assert desk.check() == []  # an empty folder is a beginning
    put(tmp_path / "a.svs", "half", at=1000)
    assert desk.check() == []
    assert desk.check(29) == []
    put(tmp_path / "a.svs", "half and half", at=1010)
    assert desk.check(1) == []
    assert desk.check(29.9) == []
    assert desk.check(0.1) == ["a"]
    assert desk.check(100) == ["a"], "it is listed until it is taken"
    desk.watch.take(["a"])
    assert desk.check(100) == []
    assert desk.watch.waiting == []


@pytest.mark.parametrize("at", [0.0, 1e9, 4e9])  # at the dawn of time, long ago, in the future
def test_settling_does_not_depend_on_the_wall_clock(tmp_path, at):
    desk = Desk(tmp_path)
    put(tmp_path / "a.svs", at=at)
    assert desk.check() == []
    put(tmp_path / "a.svs", at=at + 1)  # of the same size, by a clock that was set
    assert desk.check(SETTLE) == []
    put(tmp_path / "a.svs", at=at)  # set back again
    assert desk.check(SETTLE) == []
    assert desk.check(SETTLE) == ["a"]


def test_without_a_settling_time_two_unchanged_scans_are_needed(tmp_path):
    clock = Clock()
    watch = Watch(Arrivals([str(tmp_path)], settle=0, clock=clock), print)
    put(tmp_path / "a.svs")
    assert watch.check() == []
    assert [ref.id for ref in watch.check()] == ["a"]


@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.sampled_from("abc"), st.integers(0, 3)),
            st.tuples(st.just("touch"), st.sampled_from("abc"), st.integers(0, 5)),
            st.tuples(st.just("remove"), st.sampled_from("abc"), st.just(0)),
            st.tuples(st.just("check"), st.just(""), st.integers(0, 40)),
        ),
        max_size=40,
    )
)
def test_a_slide_changed_within_the_settling_time_is_not_taken(tmp_path_factory, events):
    """Compared with a record of every change."""
    folder = tmp_path_factory.mktemp("slides")
    desk = Desk(folder)
    changed: dict[str, float] = {}  # first scan that saw it as it is
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
        elif what == "check":
            listed = desk.check(number)
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
    assert desk.check(1000) == []
    assert desk.check(1000) == []
    put(tmp_path / "c.svs.done.part", "")
    for name, marker in (
        *(("a", "a.svs"), ("b", "b.ome"), ("d", "d.zarr"), ("e", "e.dcm")),
        ("series", "series"),
    ):
        put(tmp_path / f"{marker}.done", "")
        assert desk.check() == [name]
        desk.watch.take([name])
    # Changed under the marker that is still there, it has to settle.
    put(tmp_path / "a.svs", "another")
    assert desk.check() == []
    assert desk.check(SETTLE) == ["a"]
    assert [ref.id for ref in desk.watch.waiting] == ["a", "c"]


@pytest.mark.parametrize(
    ("slide", "companion", "name"),
    [("a.mrxs", "a/Data0001.dat", "a"), ("a.zarr", "a.zarr/0/c/0/0", "a"), ("a.vms", "a-(1,0).jpg", "a")],
)
def test_all_files_of_a_slide_count(tmp_path, slide, companion, name):
    if slide.endswith(".zarr"):
        put(tmp_path / slide / "zarr.json")
    else:
        put(tmp_path / slide, "[Virtual Microscope Specimen]\nImageFile(1,0)=a-(1,0).jpg\nX=\0/\n")
    desk = Desk(tmp_path)
    assert desk.check() == []
    put(tmp_path / companion, "half")
    assert desk.check(SETTLE) == []
    put(tmp_path / companion, "half and half")
    assert desk.check(SETTLE) == []
    assert desk.check(SETTLE) == [name]
    desk.watch.take([name])
    put(tmp_path / companion, "once more")
    assert desk.check() == []
    [ref] = desk.watch.waiting
    assert desk.watch.changed(ref)
    assert desk.check(SETTLE) == [name]
    # Those of others do not.
    desk.watch.take([name])
    put(tmp_path / "a2.svs", at=7)
    put(tmp_path / "other" / "Data0001.dat")
    desk.check()
    assert [ref.id for ref in desk.watch.waiting] == ["a2"]


def test_dicom_files_of_other_series_do_not_belong_to_the_slide(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    write_dicom(tmp_path / "1.dcm", "1.2", pixels)
    desk = Desk(tmp_path)
    desk.check()
    assert desk.check(SETTLE) == ["1"]
    desk.watch.take(["1"])
    write_dicom(tmp_path / "2.dcm", "1.3", pixels)
    assert desk.check() == []
    assert [ref.id for ref in desk.watch.waiting] == ["2"]
    write_dicom(tmp_path / "3.dcm", "1.3", pixels)
    desk.check()
    assert desk.check(SETTLE) == ["1.3"]


def test_all_files_of_a_dicom_slide_count(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    for number in (1, 2):
        write_dicom(tmp_path / "series" / f"{number}.dcm", "1.2", pixels)
    desk = Desk(tmp_path)
    assert desk.check() == []
    for mpp in (1.0, 2.0):  # the second is being written
        write_dicom(tmp_path / "series" / "2.dcm", "1.2", pixels, mpp=mpp)
        assert desk.check(SETTLE) == []
    assert desk.check(SETTLE) == ["series"]
    desk.watch.take(["series"])
    write_dicom(tmp_path / "series" / "2.dcm", "1.2", pixels, mpp=4.0)
    assert desk.check() == []
    [ref] = desk.watch.waiting
    assert desk.watch.changed(ref)
    assert desk.check(SETTLE) == ["series"]


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
    assert desk.check(1000) == []
    put(inbox / "batch.done", "")
    assert desk.check() == ["case" if linked else "batch"]


def test_a_marker_of_a_folder_completes_one_slide_and_not_the_next(tmp_path):
    desk = Desk(tmp_path, marker=".done")
    pixels = np.zeros((64, 64, 3), np.uint8)
    for name, series in (("1.dcm", "1.2"), ("2.dcm", "1.2"), ("3.dcm", "1.3")):
        write_dicom(tmp_path / name, series, pixels)
    put(tmp_path.with_name(f"{tmp_path.name}.done"), "")
    assert desk.check(1000) == []
    assert desk.check(1000) == []
    put(tmp_path / "3.done", "")
    assert desk.check() == ["3"]
    desk.watch.take(["3"])
    put(tmp_path / "1.2.done", "")
    assert desk.check() == ["1.2"]


def test_temporary_files_of_copying_programs_are_not_slides(tmp_path):
    desk = Desk(tmp_path)
    for name in (
        *(".a.svs.Xu81Zq", "a.svs.part", "a.svs.filepart", "a.tmp", ".a.svs", "._a.svs", "a.svs.crdownload"),
        *(".~tmp~/a.svs", ".rsync-partial/a.svs", "below/.hidden.zarr/zarr.json"),
    ):
        put(tmp_path / name)
    assert desk.check() == []
    assert desk.watch.present == []


# --- slides that go, and come again ------------------------------------------------------------------------


def test_a_slide_that_disappears_is_not_an_error(tmp_path):
    desk = Desk(tmp_path)
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.svs", at=5)
    desk.check()
    assert desk.check(SETTLE) == ["a", "b", "c"]
    desk.watch.take(["a", "b"], failed=["b"])
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.svs").unlink()
    assert desk.check() == []
    assert (desk.watch.present, desk.said) == ([], [])
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.svs", at=5)
    assert desk.check(1000) == [], "what comes again has to settle again"
    assert desk.check(SETTLE) == ["b", "c"], (
        "one that was done is known again; that which failed is tried anew"
    )


def test_a_slide_that_failed_waits_for_a_change(tmp_path):
    desk = Desk(tmp_path)
    put(tmp_path / "a.svs")
    desk.check()
    assert desk.check(SETTLE) == ["a"]
    desk.watch.take(["a"], failed=["a"])
    for _ in range(5):
        assert desk.check(SETTLE) == []
    put(tmp_path / "a.svs", "mended")
    desk.check()
    assert desk.check(SETTLE) == ["a"]


def test_a_temporarily_lost_source_is_reported_once(tmp_path):
    folder = tmp_path / "share"
    put(folder / "a.svs")
    put(tmp_path / "here" / "b.svs")
    desk = Desk(folder, tmp_path / "here")
    desk.check()
    folder.rename(tmp_path / "elsewhere")
    for _ in range(3):
        assert desk.check(SETTLE) == ["b"]
    assert desk.said == [f"{folder}: no such file or folder; it is tried again at the next check"]
    (tmp_path / "elsewhere").rename(folder)
    assert desk.check() == ["a", "b"], "nobody saw it change"
    folder.rename(tmp_path / "elsewhere")
    desk.check()
    assert len(desk.said) == 2


def test_of_two_slides_with_one_name_the_first_is_kept(tmp_path):
    put(tmp_path / "b" / "x.svs")
    desk = Desk(tmp_path, tmp_path / "b")  # one source within another is no second slide
    desk.check()
    assert desk.said == []
    put(tmp_path / "a" / "x.svs")
    for _ in range(3):
        [ref] = desk.watch.check() if desk.check(SETTLE) else pytest.fail("it was complete")
        assert ref.path == str(tmp_path / "b" / "x.svs")
    [said] = desk.said
    assert said == (
        f"warning: two slides are called 'x'; {tmp_path / 'b' / 'x.svs'} is scored, "
        f"{tmp_path / 'a' / 'x.svs'} is not: rename it"
    )
    (tmp_path / "b" / "x.svs").unlink()
    desk.check()
    assert desk.check(SETTLE) == ["x"]


# --- sources -----------------------------------------------------------------------------------------------


def test_a_glob_may_match_nothing_yet(tmp_path):
    desk = Desk(tmp_path / "in" / "**" / "*.svs")
    assert desk.check() == []
    put(tmp_path / "in" / "today" / "a.svs")
    put(tmp_path / "in" / "today" / "b.ndpi")
    desk.check()
    assert desk.check(SETTLE) == ["a"]


def test_a_table_is_read_again_at_each_scan(tmp_path):
    worklist = put(tmp_path / "slides.csv", "slide_id,path,case_id,mpp\n")
    desk = Desk(worklist, mpp=0.25)
    assert desk.check() == []
    put(tmp_path / "one.svs")
    put(tmp_path / "two.svs")
    text = "slide_id,path,case_id,mpp\na,one.svs,patient,\nb,two.svs,patient,0.5\nc,yet to come.svs,other,\n"
    put(worklist, text[: text.index("one.svs") + 3])  # half a row
    assert desk.check(SETTLE) == []
    assert desk.check(SETTLE) == []
    assert (desk.watch.present, desk.said) == ([], [])
    put(worklist, "")
    assert desk.check(SETTLE) == []
    assert desk.check(SETTLE) == []
    assert len(desk.said) == 1
    assert str(worklist) in desk.said[0]
    put(worklist, text)
    desk.check()
    assert desk.check(SETTLE) == ["a", "b"]
    assert [(ref.case, ref.mpp) for ref in desk.watch.check()] == [("patient", 0.25), ("patient", 0.5)]
    desk.watch.take(["a", "b"])
    put(worklist, text.replace("0.5", "0.4"))  # other pixels are read of it
    desk.check()
    assert desk.check(SETTLE) == ["b"]
    put(worklist, text + "d,s3://bucket/d.svs,,\n")
    desk.check()
    assert desk.said[1:] == [f"{worklist}: 1 slides in stores are left out; score them without --watch"]


def test_a_table_that_names_slides_alone(tmp_path):
    worklist = put(tmp_path / "slides.csv", "slide_id\na\nb\n")
    put(tmp_path / "today" / "a.svs")
    desk = Desk(worklist)
    desk.check()
    assert desk.check(SETTLE) == ["a"]
    assert desk.said == []
