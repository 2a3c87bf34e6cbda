"""Tiles read ahead of their step, and slides of one case."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest

from training.choices import FEW, RARE
from training.runs import TRAINING, assert_same_weights, example, run, slide_of
from wsi_ats.errors import ManifestError, SlideReadError
from wsi_ats.models import batches
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide

# Reading ahead


@pytest.mark.parametrize(
    ("ahead", "every", "staleness"),
    [
        *((0, 200, 0), (1, 200, 0.75), (3, 200, 1.5), (9, 200, 1.5)),  # 0 1 1 1; 0 1 2 3
        *((0, 2, 0), (1, 2, 0.5), (3, 2, 0.5), (3, 1, 0)),  # nothing is read across a stored state
    ],
)
def test_staleness_is_the_mean_age_in_steps_of_the_attention_that_drew(tmp_path, ahead, every, staleness):
    rows = []
    changes = [f"training.read_ahead={ahead}", f"training.checkpoint_steps={every}", *FEW]
    run(tmp_path, *changes, "training.attention_learning_rate=1e-30", validation=[], on_epoch=rows.append)
    assert [row["staleness"] for row in rows] == [staleness] * 2  # four steps in each epoch
    assert [row["effective"] for row in rows] == pytest.approx([3, 3])  # attention that never changes


def test_tiles_of_an_older_attention_are_less_effective(tmp_path):
    def effective(ahead):
        rows = []
        run(
            tmp_path / str(ahead),
            *(
                "training.slides_per_step=1",
                "training.joint_epochs=3",
                "training.attention_learning_rate=0.3",
            ),
            f"training.read_ahead={ahead}",
            validation=[],
            on_epoch=rows.append,
        )
        assert all(1 <= row["effective"] <= 3 + 1e-6 for row in rows)
        return rows[-1]["effective"]

    assert effective(3) != effective(0)


def test_kinds_that_draw_no_tiles_have_no_draw_metrics(tmp_path):
    rows = []
    changes = ["model.kind=mil", "training.epochs=2", "training.joint_epochs=0"]
    run(tmp_path, *changes, on_epoch=rows.append, validation=[])
    assert {
        row[name] for row in rows for name in ("effective", "staleness", "effective_cells", "top_share")
    } == {None}


def test_far_ahead_threads_and_slow_reads_change_nothing_even_of_one_slide_in_several_steps(tmp_path, begun):
    changes = ["training.read_ahead=3", "training.balance=sampling", *FEW]
    slow = threading.local()

    class Slow(MemorySlide):
        def read_regions(self, *args):
            slow.times = getattr(slow, "times", 0) + 1
            time.sleep(0.004 * ((slow.times * 7 + len(self.path)) % 3))
            return super().read_regions(*args)

    def opener(ref):
        return Slow(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id)

    model = run(tmp_path / "quick", *changes, examples=RARE, threads=1)
    whole = list(begun)
    for threads in (1, 5):
        begun.clear()
        other = run(tmp_path / str(threads), *changes, examples=RARE, threads=threads, opener=opener)
        assert_same_weights(other, model)
        assert begun == whole
    shown = [slide for each in whole for slide, _ in each]
    assert any(first == second for first, second in itertools.pairwise(shown)) or any(
        len({slide for slide, _ in each}) < len(each) for each in whole
    )
    draws = {cells for each in whole for slide, cells in each if slide == "s1v"}
    assert len(draws) > 1  # each time it is shown, by a draw of its own


def test_every_slide_that_was_opened_is_closed_however_many_read_at_once(monkeypatch):
    monkeypatch.setattr(batches, "_OPEN_SLIDES", 3)
    guard, opened, most_idle = threading.Lock(), [], []

    class Watched(MemorySlide):
        closed = False

        def close(self):
            assert not self.closed
            self.closed = True

        def read_regions(self, *args):
            assert not self.closed
            time.sleep(0.001)
            if int(self.path[1:-1]) == 5:
                raise SlideReadError(self.path, "is damaged")
            return super().read_regions(*args)

    def opener(ref):
        slide = Watched(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id)
        with guard:
            opened.append(slide)
        return slide

    examples = [example(f"s{i}p") for i in range(8)]
    with TileReader(6, opener) as reader:
        futures = [
            future
            for _ in range(5)
            for future in reader.read(
                [(each.ref, each.overview.tissue.grid, np.array([0, 7])) for each in examples + examples[:2]]
            )
        ]
        failed = [future for future in futures if future.exception() is not None]
        assert len(failed) == 5
        most_idle.append(sum(not slide.closed for slide in opened))
    assert most_idle[0] <= 3 + 6
    assert len(opened) > 8
    assert all(slide.closed for slide in opened)


# Several slides of a case


def cased(names: dict[str, str]) -> list[Example]:
    made = [(example(name), case) for name, case in names.items()]
    return [Example(SlideRef(e.ref.id, e.ref.path, case), e.overview, e.target) for e, case in made]


CASES = {"s0p": "a", "s1v": "b", "s2p": "a", "s3v": "c", "s4p": "a", "s5v": "b", "s6p": "d", "s8p": "e"}


@pytest.mark.parametrize("cases", ["mean", "union"])
@pytest.mark.parametrize("tiles", [0, 1])
def test_batches_and_passes_never_split_a_case(tmp_path, begun, cases, tiles):
    rows = []
    changes = [f"model.cases={cases}", f"training.tiles_per_pass={tiles}", *FEW]
    run(tmp_path, *changes, examples=cased(CASES), validation=cased({"s20p": "x", "s21v": "y", "s22p": "x"}),
        on_epoch=rows.append)  # fmt: skip
    members = {case: {s for s, its in CASES.items() if its == case} for case in CASES.values()}
    for each in begun:
        slides = {slide for slide, _ in each}
        for case in {CASES[slide] for slide in slides}:
            assert members[case] <= slides
    shown = Counter(slide for each in begun for slide, _ in each)
    assert shown == dict.fromkeys(CASES, 2)
    assert [row["tiles"] for row in rows] == [8 * 3] * 2
    if tiles:
        assert all(len({CASES[slide] for slide, _ in each}) == 1 for each in begun)


def test_labels_that_differ_within_a_case_are_refused(tmp_path):
    mixed = cased(CASES | {"s3v": "a"})
    with pytest.raises(ManifestError, match=r"case 'a' have different labels \(s0p .*s3v"):
        run(tmp_path, "model.cases=mean", examples=mixed)
    run(tmp_path, "training.joint_epochs=1", examples=mixed, validation=[])  # each for itself


def test_labels_with_the_same_unknowns_are_equal():
    two = [
        Example(SlideRef(name, name, "case"), each.overview, (float("nan"), 1.0))
        for name, each in zip("ab", TRAINING, strict=False)
    ]
    assert batches.units(two, by_case=True) == [[0, 1]]
