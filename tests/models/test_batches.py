"""Examples of a training step, and reading of their tiles."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.errors import SettingsError, SlideOpenError, SlideReadError
from wsi_ats.geometry import Grid
from wsi_ats.models import batches
from wsi_ats.models.batches import Example, TileReader, epoch_batches, outcomes
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide

GRID = Grid(64, 48, cell=16, tile_size=16)


def slide_of(name: str) -> MemorySlide:
    pixels = np.random.default_rng(len(name)).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    pixels[0, 0] = sum(map(ord, name)) % 256
    return MemorySlide([pixels], mpp=0.5, path=name)


def example(name: str, mask=None) -> Example:
    mask = np.ones(GRID.shape, dtype=bool) if mask is None else mask
    thumbnail = np.zeros((GRID.shape[0] * 4, GRID.shape[1] * 4, 3), np.uint8)
    overview = Overview(thumbnail, TissueMask(GRID, mask.astype(np.float32), mask))
    return Example(SlideRef(name, name, name), overview, (0.0,))


def wanted(name: str, cells) -> batches.Wanted:
    return SlideRef(name, name, name), GRID, np.asarray(cells)


class Watched(MemorySlide):
    def __init__(self, inner: MemorySlide) -> None:
        super().__init__(inner._pyramid, mpp=0.5, path=inner.path)
        self.closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


def test_a_slide_without_tissue_is_no_example():
    with pytest.raises(SettingsError, match="empty has no tissue"):
        example("empty", np.zeros(GRID.shape, dtype=bool))


@pytest.mark.parametrize("threads", [1, 4])
def test_tiles_come_in_the_order_asked_for_whichever_thread_is_first(threads):
    names = ["a", "b", "c", "d", "e"]
    cells = [np.array([i, 11 - i, 2]) for i in range(5)]

    def opener(ref):
        time.sleep(0.01 * (5 - names.index(ref.id)))  # the first takes longest
        return slide_of(ref.id)

    with TileReader(threads, opener) as reader:
        futures = reader.read([wanted(n, c) for n, c in zip(names, cells, strict=True)])
        for name, its, future in zip(names, cells, futures, strict=True):
            np.testing.assert_array_equal(future.result(), read_tiles(slide_of(name), GRID, its))


def test_a_slide_is_opened_once_and_closed_in_the_end():
    opened: list[Watched] = []

    def opener(ref):
        opened.append(Watched(slide_of(ref.id)))
        return opened[-1]

    with TileReader(2, opener) as reader:
        for _ in range(3):
            for future in reader.read([wanted(n, [0]) for n in "abc"]):
                future.result()
        assert sorted(slide.path for slide in opened) == ["a", "b", "c"]
        assert not any(slide.closed for slide in opened)
    assert all(slide.closed for slide in opened)


def test_the_least_recently_used_slides_are_closed_and_can_be_read_again(monkeypatch):
    monkeypatch.setattr(batches, "_OPEN_SLIDES", 2)
    opened: list[Watched] = []

    def opener(ref):
        opened.append(Watched(slide_of(ref.id)))
        return opened[-1]

    with TileReader(1, opener) as reader:
        for name in ["a", "b", "a", "c", "d", "b", "a"]:
            (future,) = reader.read([wanted(name, [5])])
            np.testing.assert_array_equal(future.result(), read_tiles(slide_of(name), GRID, [5]))
            assert sum(not slide.closed for slide in opened) <= 3
    assert [slide.path for slide in opened] == ["a", "b", "c", "d", "b", "a"]  # b had to go first, then a
    assert all(slide.closed for slide in opened)


def test_a_failed_read_is_a_message_and_leaves_the_others_and_the_slide_usable():
    class Flaky(MemorySlide):
        broken = True

        def read_regions(self, *args):
            if self.broken:
                raise SlideReadError(self.path, "tile 3 is damaged")
            return super().read_regions(*args)

    flaky = Flaky(slide_of("flaky")._pyramid, mpp=0.5, path="flaky")
    examples = [example("good"), example("flaky"), example("absent"), example("fine")]

    def opener(ref):
        if ref.id == "absent":
            raise SlideOpenError(ref.path, "no such file")
        return flaky if ref.id == "flaky" else slide_of(ref.id)

    with TileReader(2, opener) as reader:
        tiles, failed = outcomes(reader.read([wanted(e.ref.id, [1]) for e in examples]), examples)
        assert [each is None for each in tiles] == [False, True, True, False]
        assert failed == {"flaky": "flaky: tile 3 is damaged", "absent": "absent: no such file"}
        flaky.broken = False
        tiles, failed = outcomes(reader.read([wanted("flaky", [1])]), examples[1:2])
        assert not failed
        assert tiles[0].shape == (1, 16, 16, 3)


def test_an_error_that_is_not_of_a_slide_is_not_swallowed():
    def opener(ref):
        raise ZeroDivisionError

    with TileReader(1, opener) as reader, pytest.raises(ZeroDivisionError):
        outcomes(reader.read([wanted("a", [0])]), [example("a")])


def test_leaving_does_not_wait_for_reads_that_have_not_begun():
    begun, go_on, opened = threading.Event(), threading.Event(), []

    def opener(ref):
        opened.append(ref.id)
        begun.set()
        go_on.wait(10)
        return slide_of(ref.id)

    with TileReader(1, opener) as reader:
        futures = reader.read([wanted(n, [0]) for n in "abcdef"])
        begun.wait(10)
        threading.Timer(0.05, go_on.set).start()
    assert opened == ["a"]
    assert [future.cancelled() for future in futures] == [False, *[True] * 5]


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 100))
def test_an_epoch_visits_every_slide_once_in_even_batches(size, slides_per_step, seed):
    order = epoch_batches(size, slides_per_step, seed)
    assert sorted(np.concatenate(order).tolist()) == list(range(size))
    sizes = [len(batch) for batch in order]
    assert max(sizes) <= slides_per_step
    assert max(sizes) - min(sizes) <= 1
    assert len(order) == -(-size // slides_per_step)


def test_the_order_follows_the_seed():
    first, again, other = (np.concatenate(epoch_batches(30, 4, seed)).tolist() for seed in (1, 1, 2))
    assert first == again != other
