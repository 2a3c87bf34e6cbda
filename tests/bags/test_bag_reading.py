"""Any rows, in any order, from any storage; and damage is noticed."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from bag_files import MPP, clam_patches, clam_tensor, numbers, plain, tiles

from wsi_ats.bags.opening import open_bag
from wsi_ats.bags.record import Bag, PlainRows
from wsi_ats.errors import FeatureError

CORNERS = tiles(step=128)
COUNT = len(CORNERS)
STORAGE = {
    "contiguous": {},
    "a row in a chunk": {"chunks": (1, 6), "maxshape": (None, 6)},
    "chunks that do not divide": {"chunks": (100, 6)},
    "one chunk, larger than all": {"chunks": (2 * COUNT, 6), "maxshape": (None, 6)},
    "chunks of columns": {"chunks": (64, 4)},
    "gzip": {"chunks": (100, 6), "compression": "gzip"},
    "gzip of a row": {"chunks": (1, 6), "compression": "gzip"},
    "lzf with shuffle": {"chunks": (64, 4), "compression": "lzf", "shuffle": True},
    "checksums": {"chunks": (64, 6), "fletcher32": True},
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("storage", STORAGE)
def test_rows_come_in_the_order_asked_from_any_storage(tmp_path, storage, dtype):
    values = numbers(COUNT, dtype=dtype)
    bag = open_bag(plain(tmp_path / "a.h5", CORNERS, values, **STORAGE[storage]), mpp=MPP)
    assert isinstance(bag.stored, PlainRows) == storage.startswith(
        ("contiguous", "a row", "chunks that", "one")
    )
    for rows in ([5, 3, 3, COUNT - 1, 0], np.random.default_rng(0).integers(0, COUNT, 200), [], range(COUNT)):
        rows = np.array(rows, dtype=np.int64)
        read = bag.read(rows)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, values[rows].astype(np.float32))


@pytest.mark.parametrize(
    "leading", [{}, {"chunks": (1, 100, 6)}, {"chunks": (1, 100, 6), "compression": "gzip"}]
)
def test_a_leading_axis_is_left_out(tmp_path, leading):
    values = numbers(COUNT)
    bag = open_bag(plain(tmp_path / "a.h5", CORNERS, values[None], **leading), mpp=MPP)
    rows = np.array([150, 3, 99, 100])
    np.testing.assert_array_equal(bag.read(rows), values[rows])


@pytest.mark.parametrize("legacy", [False, True])
def test_rows_of_tensors(tmp_path, legacy):
    import torch

    values = numbers(COUNT)
    path = clam_tensor(tmp_path, "a", values)
    if legacy:  # as torch wrote before version 1.6, which cannot be mapped into memory
        torch.save(torch.from_numpy(values), path, _use_new_zipfile_serialization=False)
    bag = open_bag(path, mpp=MPP, coords=clam_patches(tmp_path, "a", CORNERS))
    rows = np.array([9, 0, 9, COUNT - 1])
    np.testing.assert_array_equal(bag.read(rows), values[rows])


def test_bfloat16_tensors_are_read(tmp_path):
    import torch

    path = clam_tensor(tmp_path, "a", numbers(COUNT))
    torch.save(torch.ones(COUNT, 6, dtype=torch.bfloat16), path)
    bag = open_bag(path, mpp=MPP, coords=clam_patches(tmp_path, "a", CORNERS))
    assert bag.read(np.array([0, 1])).tolist() == np.ones((2, 6)).tolist()


@pytest.mark.parametrize("storage", ["contiguous", "a row in a chunk", "gzip"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_only_in_the_rows_read(tmp_path, storage, bad):
    values = numbers(COUNT)
    values[7, 2] = values[9, 0] = bad
    bag = open_bag(plain(tmp_path / "a.h5", CORNERS, values, **STORAGE[storage]), mpp=MPP)
    assert bag.read(np.array([6, 8])).shape == (2, 6)
    x, y = CORNERS[7]
    with pytest.raises(FeatureError, match=rf"tile 7 at level-0 pixel \({x}, {y}\) .*and so have 1 others"):
        bag.read(np.array([9, 7, 6]))


def test_a_value_beyond_float32_is_refused(tmp_path):
    values = numbers(COUNT, dtype="float64")
    values[0, 0] = 1e300
    bag = open_bag(plain(tmp_path / "a.h5", CORNERS, values), mpp=MPP)
    with pytest.raises(FeatureError, match="NaN or infinite"):
        bag.read(np.array([0]))


@pytest.mark.parametrize("row", [-1, COUNT])
def test_rows_that_do_not_exist_are_refused(tmp_path, row):
    bag = open_bag(plain(tmp_path / "a.h5", CORNERS, numbers(COUNT)), mpp=MPP)
    with pytest.raises(FeatureError, match=f"has {COUNT} tiles, but tile"):
        bag.read(np.array([0, row]))


@pytest.mark.parametrize("storage", ["contiguous", "gzip", "tensor"])
def test_a_file_that_changes_while_in_use_is_refused(tmp_path, storage):
    path = tmp_path / "a.h5"
    if storage == "tensor":
        path = clam_tensor(tmp_path, "a", numbers(COUNT))
        bag = open_bag(path, mpp=MPP, coords=clam_patches(tmp_path, "a", CORNERS))
    else:
        bag = open_bag(plain(path, CORNERS, numbers(COUNT), **STORAGE[storage]), mpp=MPP)
    os.utime(path, ns=(0, 0))
    with pytest.raises(FeatureError, match="changed while it was in use"):
        bag.read(np.array([0]))
    path.unlink()
    with pytest.raises(FeatureError, match="cannot be read"):
        bag.read(np.array([0]))


def test_a_damaged_chunk_is_refused_and_the_others_are_read(tmp_path):
    path = plain(tmp_path / "a.h5", CORNERS, numbers(COUNT), **STORAGE["gzip"])
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(1)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    bag = open_bag(path, mpp=MPP)
    assert bag.read(np.array([0, 99])).shape == (2, 6)
    with pytest.raises(FeatureError, match="cannot be read as HDF5"):
        bag.read(np.array([0, 100]))


@pytest.mark.parametrize("storage", ["contiguous", "gzip", "tensor"])
def test_a_bag_is_sent_to_other_processes_by_its_path(tmp_path, storage):
    values = numbers(COUNT)
    if storage == "tensor":
        path = clam_tensor(tmp_path, "a", values)
        bag = open_bag(path, mpp=MPP, coords=clam_patches(tmp_path, "a", CORNERS))
    else:
        bag = open_bag(plain(tmp_path / "a.h5", CORNERS, values, **STORAGE[storage]), mpp=MPP)
    copy = pickle.loads(pickle.dumps(bag))
    np.testing.assert_array_equal(copy.corners, bag.corners)
    np.testing.assert_array_equal(copy.read(np.array([4, 2])), values[[4, 2]])


@pytest.mark.parametrize("storage", ["contiguous", "a row in a chunk", "gzip"])
def test_threads_read_at_once(tmp_path, storage):
    values = numbers(COUNT)
    bag = open_bag(plain(tmp_path / "a.h5", CORNERS, values, **STORAGE[storage]), mpp=MPP)

    def read(seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, COUNT, 50)
        np.testing.assert_array_equal(bag.read(rows), values[rows])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(64)))


@pytest.mark.parametrize(
    ("corners", "side", "message"),
    [
        (CORNERS.astype(np.int32), 512.0, "int64"),
        (CORNERS[:, 0], 512.0, r"\(N, 2\)"),
        (CORNERS, 0.0, "side > 0"),
        (CORNERS, float("nan"), "side > 0"),
    ],
)
def test_a_bag_that_cannot_be_is_not_made(tmp_path, corners, side, message):
    bag = open_bag(plain(tmp_path / "a.h5", CORNERS, numbers(COUNT)), mpp=MPP)
    with pytest.raises(FeatureError, match=message):
        Bag(bag.path, corners, side, bag.stored)
