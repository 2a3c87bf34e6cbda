"""Features come back as they were, and only those that were asked for."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from threading import Event

import numpy as np
import pytest

from wsi_ats.errors import ArtifactError
from wsi_ats.geometry import Grid
from wsi_ats.models.features import FeatureFile, FeatureFolder
from wsi_ats.slides.base import SlideRef

GRID = Grid(64, 48, cell=16, tile_size=16)
REF = SlideRef("case7", "nowhere.svs", "patient")
CELLS = np.array([7, 0, 11, 3])
FEATURES = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def known(file: FeatureFile) -> list[int]:
    """Cells of which there are features."""
    return np.flatnonzero(file.load(np.arange(file.cells))[1]).tolist()


def test_a_feature_file_grows_by_cell_and_is_read_in_any_order(tmp_path):
    file = FeatureFolder(tmp_path / "features", "one", 5).file(REF, GRID)
    assert known(file) == []
    assert not (tmp_path / "features").exists()  # a lookup creates no file
    file.save(CELLS[:2], FEATURES[:2])
    assert known(file) == [0, 7]
    file.save(CELLS[2:], FEATURES[2:])
    found, there = file.load(np.array([3, 5, 7, 7, 11]))
    assert there.tolist() == [True, False, True, True, True]
    np.testing.assert_array_equal(found[there], FEATURES[[3, 0, 0, 2]])
    assert found.dtype == np.float32
    assert file.load(CELLS[:0])[0].shape == (0, 5)


def test_cells_without_features_take_no_disk_space(tmp_path):
    file = FeatureFile(tmp_path / "slide.f32", cells=1_000_000, width=63)
    file.save(np.array([999_999]), np.ones((1, 63), np.float32))
    found = file.path.stat()
    assert found.st_size == 256_000_000
    assert found.st_blocks * 512 < 1_000_000
    assert file.load(np.array([999_999, 0]))[1].tolist() == [True, False]


def test_features_of_any_dtype_round_trip(tmp_path):
    file = FeatureFile(tmp_path / "slide.f32", cells=3, width=4)
    odd = np.array([[0, -0.0, np.nan, np.inf], [1, 1, 1, 1e-45]], np.float32)
    file.save(np.array([2, 0]), odd)
    found, there = file.load(np.array([2, 0, 1]))
    assert there.tolist() == [True, True, False]
    assert found[:2].tobytes() == odd.tobytes()


def test_features_are_found_by_slide_grid_and_encoder(tmp_path):
    file = FeatureFolder(tmp_path, "one", 5).file(REF, GRID)
    file.save(CELLS, FEATURES)
    assert known(FeatureFolder(tmp_path, "one", 5).file(REF, GRID)) == [0, 3, 7, 11]
    for other in (
        FeatureFolder(tmp_path, "other", 5).file(REF, GRID),
        FeatureFolder(tmp_path, "one", 6).file(REF, GRID),
        FeatureFolder(tmp_path, "one", 5).file(SlideRef("case8", "nowhere.svs", "patient"), GRID),
        FeatureFolder(tmp_path, "one", 5).file(REF, Grid(64, 48, cell=16, tile_size=8)),
        FeatureFolder(tmp_path, "one", 5).file(replace(REF, colour="srgb"), GRID),
        FeatureFolder(tmp_path, "one", 5).file(replace(REF, channel="DAPI"), GRID),
    ):
        assert known(other) == []


def test_a_slide_that_was_replaced_has_no_features(tmp_path):
    path = tmp_path / "slide.svs"
    ref, folder = SlideRef("a", str(path), "a"), FeatureFolder(tmp_path / "features", "one", 5)
    path.write_bytes(b"first")
    folder.file(ref, GRID).save(CELLS, FEATURES)
    path.write_bytes(b"second")
    assert known(folder.file(ref, GRID)) == []


@pytest.mark.parametrize("left", range(0, 24, 4))
def test_a_row_half_written_by_a_killed_process_is_ignored(tmp_path, monkeypatch, left):
    file, real = FeatureFile(tmp_path / "slide.f32", GRID.size, 5), os.pwrite
    written: list[int] = []

    def killed(number, row, place):
        written.append(place)
        if len(written) == 3:
            real(number, row[:left], place)
            raise KeyboardInterrupt
        return real(number, row, place)

    monkeypatch.setattr(os, "pwrite", killed)
    with pytest.raises(KeyboardInterrupt):
        file.save(CELLS, FEATURES)
    monkeypatch.undo()
    assert known(file) == [0, 7]
    file.save(CELLS, FEATURES)
    assert known(file) == [0, 3, 7, 11]
    np.testing.assert_array_equal(file.load(CELLS)[0], FEATURES)


def test_a_file_barely_begun_by_a_killed_process_is_ignored(tmp_path, monkeypatch):
    file = FeatureFile(tmp_path / "slide.f32", GRID.size, 5)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "ftruncate", killed)
    with pytest.raises(KeyboardInterrupt):
        file.save(CELLS, FEATURES)
    monkeypatch.undo()
    assert file.path.exists()
    assert known(file) == []
    file.save(CELLS, FEATURES)
    assert known(file) == [0, 3, 7, 11]


def test_a_short_write_of_a_row_is_completed(tmp_path, monkeypatch):
    file, real = FeatureFile(tmp_path / "slide.f32", GRID.size, 5), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, row, place: real(number, row[:7], place))
    file.save(CELLS, FEATURES)
    assert known(file) == [0, 3, 7, 11]
    np.testing.assert_array_equal(file.load(CELLS)[0], FEATURES)


def test_a_disk_that_fills_up_within_a_row_is_an_error(tmp_path, monkeypatch):
    file, real = FeatureFile(tmp_path / "slide.f32", GRID.size, 5), os.pwrite
    room = [50]

    def filling(number, row, place):
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = real(number, row[: room[0]], place)
        room[0] -= count
        return count

    monkeypatch.setattr(os, "pwrite", filling)
    with pytest.raises(ArtifactError, match=r"slide\.f32 cannot be written: No space left on device"):
        file.save(CELLS, FEATURES)
    assert known(file) == [0, 7]


def test_readers_wait_for_a_concurrent_write_to_complete(tmp_path, monkeypatch):
    file, real = FeatureFile(tmp_path / "slide.f32", GRID.size, 5), os.pwrite
    file.save(CELLS[:1], FEATURES[:1])
    half, go_on = Event(), Event()

    def slowly(number, row, place):
        count = real(number, row[:8], place)
        half.set()
        assert go_on.wait(60)
        return count

    monkeypatch.setattr(os, "pwrite", slowly)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(file.save, CELLS[1:], FEATURES[1:])
        assert half.wait(60)
        reading = pool.submit(file.load, CELLS)
        assert not wait([reading], timeout=0.2).done
        go_on.set()
        writing.result(60)
        features, there = reading.result(60)
    assert there.all()
    np.testing.assert_array_equal(features, FEATURES)


def test_a_file_system_without_locks_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    file = FeatureFile(tmp_path / "slide.f32", GRID.size, 5)
    file.save(CELLS, FEATURES)

    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for use in (partial(file.save, CELLS, FEATURES), partial(file.load, CELLS)):
        with pytest.raises(
            ArtifactError, match=r"slide\.f32 cannot be locked: No locks available; choose an --out"
        ):
            use()


def test_damage_is_an_error_that_says_what_to_do(tmp_path):
    file = FeatureFolder(tmp_path, "one", 5).file(REF, GRID)
    file.save(CELLS, FEATURES)
    file.path.write_bytes(file.path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=rf"{file.path.name} is damaged: .*delete it"):
        file.load(CELLS)


def test_a_full_disk_is_an_error_that_names_the_file_and_says_what_to_do(tmp_path, monkeypatch):
    file = FeatureFile(tmp_path / "slide.f32", GRID.size, 5)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        ArtifactError, match=r"slide\.f32 cannot be written: No space left on device; make room"
    ):
        file.save(CELLS, FEATURES)
