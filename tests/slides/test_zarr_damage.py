"""Damaged OME-Zarr: an error, or the pixels that were written."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from slides.zarr_files import reads, whole, write_by_hand
from wsi_ats.errors import SlideError, SlideOpenError, SlideReadError
from wsi_ats.slides.zarr import ZarrSlide


def test_a_missing_own_shard_is_an_error_and_never_pixels(damaged):
    path, shard, pixels = damaged
    shard.unlink()
    with pytest.raises(SlideReadError) as caught:
        reads(path)
    assert str(path) in str(caught.value)
    assert "level 0, 40 x 40 pixels at (0, 0) of that level cannot be read: 0/c/0/0/0 is missing" in str(
        caught.value
    )
    np.testing.assert_array_equal(reads(path, 64, 0), pixels[:40, 64:104])  # the others stay readable
    with ZarrSlide(str(path)) as slide, pytest.raises(SlideReadError, match="is missing"):
        slide.stored_bytes(0, np.zeros((1, 2), dtype=np.int64), 9, 9)


@pytest.mark.parametrize("size", [0, 1, 100, 0.3, 0.9, -1, -4, -200])
@pytest.mark.parametrize("side", [9, 64])
def test_a_shard_that_is_cut_off_is_an_error(damaged, size, side):
    path, shard, _ = damaged
    content = shard.read_bytes()
    shard.write_bytes(content[: int(size * len(content)) if isinstance(size, float) else size])
    with pytest.raises(SlideReadError, match="cannot be read"):
        reads(path, 0, 0, side, side)  # one chunk, or all of the shard


def test_a_changed_index_is_an_error(damaged):
    path, shard, _ = damaged
    content = bytearray(shard.read_bytes())
    for place in (-1, -4, -5, -16 * 16 - 4):
        changed = content.copy()
        changed[place] ^= 1
        shard.write_bytes(changed)
        for side in (9, 64):
            with pytest.raises(SlideReadError, match="cannot be read"):
                reads(path, 0, 0, side, side)


def test_any_changed_byte_is_an_error_or_changes_nothing(whole_pyramid, tmp_path_factory):
    path = tmp_path_factory.mktemp("changed") / "s.ome.zarr"
    shutil.copytree(whole_pyramid[0], path)
    shard, pixels = path / "0" / "c" / "0" / "0" / "0", whole_pyramid[1]
    content = shard.read_bytes()
    errors = []

    @profile(max_examples=80)
    @given(st.integers(0, len(content) - 1), st.integers(1, 255))
    def change(place, difference):
        changed = bytearray(content)
        changed[place] ^= difference
        shard.write_bytes(changed)
        try:
            np.testing.assert_array_equal(reads(path, 0, 0, 64, 64), pixels[:64, :64])
        except SlideReadError:
            errors.append(place)

    change()
    assert len(errors) > 60


def test_missing_chunks_of_other_writers_have_the_fill_value(pattern, tmp_path):
    pixels = pattern(100, 90)
    path = tmp_path / "s.zarr"
    write_by_hand(path, [pixels])
    (path / "0" / "c" / "0" / "0" / "0").unlink()
    expected = pixels.copy()
    expected[:64, :48] = 7
    with ZarrSlide(str(path)) as slide:
        np.testing.assert_array_equal(whole(slide), expected)


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json", "1/zarr.json"])
def test_metadata_cut_off_anywhere_is_an_error_of_opening(whole_pyramid, tmp_path_factory, name):
    path = tmp_path_factory.mktemp("cut") / "s.ome.zarr"
    shutil.copytree(whole_pyramid[0], path)
    content = (path / name).read_bytes().rstrip()

    @profile(max_examples=40)
    @given(st.integers(0, len(content) - 1))
    def cut(size):
        (path / name).write_bytes(content[:size])
        with pytest.raises(SlideOpenError) as caught:
            ZarrSlide(str(path))
        assert str(path) in str(caught.value)

    cut()


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=3),
                   st.just([]), st.just({}), st.just([1]), st.just([None]), st.just({"a": 1}))  # fmt: skip


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_altered_metadata_never_raise_foreign_errors(whole_pyramid, tmp_path_factory, name):
    path = tmp_path_factory.mktemp("else") / "s.ome.zarr"
    shutil.copytree(whole_pyramid[0], path)
    record = json.loads((path / name).read_text())
    places = list(_places(record))

    @profile(max_examples=150)
    @given(st.sampled_from(places), VALUES)
    def change(place, value):
        changed = json.loads(json.dumps(record))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (path / name).write_text(json.dumps(changed))
        with suppress(SlideError), ZarrSlide(str(path)) as slide:
            slide.read_regions(0, np.zeros((1, 2), dtype=np.int64), 20, 20)
            assert slide.mpp.value > 0

    change()


def _places(value, before=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from _places(inner, (*before, key))


def test_a_damaged_slide_elsewhere_does_not_close_this_one(damaged):
    path, shard, pixels = damaged
    shard.write_bytes(b"")
    with ZarrSlide(str(path)) as slide:
        for _ in range(3):
            with pytest.raises(SlideReadError):
                slide.read_regions(0, np.array([[0, 0], [64, 0]]), 10, 10)
            read = slide.read_regions(0, np.array([[64, 0]]), 10, 10)[0]
            np.testing.assert_array_equal(read, pixels[:10, 64:74])
