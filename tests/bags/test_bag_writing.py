"""What is written is read by us, by h5py as CLAM and TRIDENT do, and by torchmil."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from bag_files import MPP, SLIDE, numbers, plain, stamp, tiles
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.bags.opening import open_bag
from wsi_ats.bags.record import PlainRows
from wsi_ats.bags.writing import BagWriter, copy_bag
from wsi_ats.errors import ArtifactError, FeatureError, SettingsError

CORNERS = tiles(step=128)
VALUES = numbers(len(CORNERS))


def writer(path: Path, **others) -> BagWriter:
    known = {"name": path.stem, "size": SLIDE, "mpp": MPP, "side": 512, "width": 6}
    return BagWriter(path, **(known | others))


def write(path: Path, batch: int = 50, **others) -> Path:
    with writer(path, **others) as file:
        for start in range(0, len(CORNERS), batch):
            file.append(CORNERS[start : start + batch], VALUES[start : start + batch])
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 50, 10_000])
def test_round_trip(tmp_path, dtype, batch):
    bag = open_bag(write(tmp_path / "a.h5", batch, dtype=dtype, side=511.7, encoder="uni_v1"), mpp=9.0)
    np.testing.assert_array_equal(bag.corners, CORNERS)
    np.testing.assert_array_equal(bag.read(np.arange(len(CORNERS))), VALUES)
    assert (bag.side, bag.width, bag.encoder) == (511.7, 6, "uni")
    assert isinstance(bag.stored, PlainRows)


@given(st.lists(st.integers(0, 120), max_size=6), st.sampled_from([1, 3000]))
def test_batches_of_any_size(tmp_path_factory, sizes, width):
    path = tmp_path_factory.mktemp("batches") / "a.h5"
    values = np.random.default_rng(0).normal(size=(sum(sizes), width)).astype(np.float32)
    corners = np.arange(2 * sum(sizes)).reshape(-1, 2)
    with writer(path, width=width) as file:
        for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            file.append(corners[start : start + size], values[start : start + size])
    bag = open_bag(path, mpp=MPP)
    np.testing.assert_array_equal(bag.corners, corners)
    np.testing.assert_array_equal(bag.read(np.arange(len(corners))), values)


def test_a_slide_without_tiles_is_a_whole_file(tmp_path):
    with writer(tmp_path / "a.h5"):
        pass
    bag = open_bag(tmp_path / "a.h5", mpp=MPP)
    assert bag.corners.shape == (0, 2)
    assert bag.read(np.empty(0, np.int64)).shape == (0, 6)
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["coords"].shape, file["features"].shape) == ((0, 2), (0, 6))


def test_clam_and_trident_find_the_same_tiles_in_the_attributes(tmp_path):
    with h5py.File(
        write(tmp_path / "a.h5", overlap=384, encoder="uni", digest="1a2b", tile_size=224)
    ) as file:
        coords, features = dict(file["coords"].attrs), dict(file["features"].attrs)
        assert file["coords"].dtype == np.int64
        assert file["features"].dtype == np.float32
    # CLAM reads squares of patch_size pixels of patch_level, at level-0 coordinates.
    assert coords["patch_size"] * coords["downsample"][coords["patch_level"]] == 512
    assert tuple(coords["level_dim"]) == SLIDE
    # TRIDENT: patch_size is at the target magnification.
    level0 = coords["patch_size"] * coords["level0_magnification"] // coords["target_magnification"]
    assert coords["patch_size_level0"] == level0 == 512
    assert coords["level0_magnification"] == 40
    assert (coords["overlap"], coords["name"]) == (384, "a")
    assert (coords["level0_width"], coords["level0_height"]) == SLIDE
    assert (coords["side"], coords["mpp"], coords["tile_size"]) == (512, MPP, 224)
    assert (features["encoder"], features["encoder_digest"], features["name"]) == ("uni", "1a2b", "a")
    assert features["wsi_ats_version"]


@pytest.mark.parametrize("removed", [["side"], ["side", "patch_size_level0"]])
def test_without_our_attributes_it_reads_as_a_file_of_trident_and_of_clam(tmp_path, removed):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        for name in removed:
            del file["coords"].attrs[name]
    bag = open_bag(path, mpp=MPP)
    assert (bag.side, bag.corners.tolist()) == (512, CORNERS.tolist())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_a_compressed_file_is_copied_to_one_of_the_same_type_that_is_read_directly(tmp_path, count, dtype):
    corners, values = np.arange(2 * count).reshape(-1, 2), numbers(count).astype(dtype)
    source = plain(
        tmp_path / "source.h5", corners, values, chunks=(512, 6), maxshape=(None, 6), compression="gzip"
    )
    copy_bag(open_bag(source, mpp=MPP), tmp_path / "a.h5", name="a", size=SLIDE, mpp=MPP)
    bag = open_bag(tmp_path / "a.h5", mpp=MPP)
    assert isinstance(bag.stored, PlainRows)
    assert np.dtype(bag.stored.dtype) == dtype
    np.testing.assert_array_equal(bag.corners, corners)
    np.testing.assert_array_equal(bag.read(np.arange(count)), values)


def test_a_copy_keeps_the_encoder_and_the_exact_side(tmp_path):
    source = open_bag(stamp(tmp_path / "source.h5", CORNERS, VALUES), mpp=0.2527)
    copy_bag(source, tmp_path / "a.h5", name="a", size=SLIDE, mpp=0.2527)
    copy = open_bag(tmp_path / "a.h5", mpp=0.2527)
    assert source.encoder
    assert (copy.encoder, copy.side) == (source.encoder, source.side)
    assert copy.side == 128 / 0.2527
    assert copy.corners.tolist() == source.corners.tolist()


def test_torchmil_reads_it(tmp_path):
    from torchmil import datasets

    write(tmp_path / "a.h5")
    bags = datasets.ProcessedMILDataset(
        features_path=str(tmp_path),
        coords_path=str(tmp_path),
        bag_keys=["X", "coords"],
        file_ext=".h5",
        verbose=False,
    )
    np.testing.assert_array_equal(bags[0]["X"].numpy(), VALUES)
    np.testing.assert_array_equal(np.asarray(bags[0]["coords"]), CORNERS)


def test_torchmil_reads_it_in_the_tree_of_trident(tmp_path):
    from torchmil import datasets

    write(tmp_path / "features_uni" / "a.h5")
    write(tmp_path / "patches" / "a_patches.h5")
    (tmp_path / "labels.csv").write_text("slide,label\na.svs,1\n")
    bags = datasets.TridentWSIDataset(
        base_path=f"{tmp_path}/",
        labels_path=str(tmp_path / "labels.csv"),
        feature_extractor="uni",
        wsi_name_col="slide",
        wsi_label_col="label",
        bag_keys=["X", "Y", "coords"],
        patch_size=128,
        load_at_init=False,
    )
    np.testing.assert_array_equal(bags[0]["X"].numpy(), VALUES)
    np.testing.assert_array_equal(np.asarray(bags[0]["coords"]), CORNERS // 128)


def test_an_error_leaves_no_file_and_an_older_one_unchanged(tmp_path):
    older = write(tmp_path / "b.h5").read_bytes()

    def write_two_batches(path: Path) -> None:
        with writer(path) as file:
            file.append(CORNERS[:5], VALUES[:5])
            file.append(CORNERS[:5], VALUES[:6])

    for name in ("a", "b"):
        with pytest.raises(SettingsError):
            write_two_batches(tmp_path / f"{name}.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["b.h5"]
    assert (tmp_path / "b.h5").read_bytes() == older


def test_a_killed_writer_leaves_no_file(tmp_path):
    code = f"""
import numpy as np
from pathlib import Path
from wsi_ats.bags.writing import BagWriter, copy_bag
with BagWriter(Path({str(tmp_path / "a.h5")!r}), name="a", size=(9, 9), mpp=1, side=1, width=1024) as file:
    for _ in range(20):
        file.append(np.zeros((500, 2), int), np.zeros((500, 1024)))
    print("written", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "a.h5").exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())


@pytest.mark.parametrize(("bad", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (1e6, "float16")])
def test_values_that_no_reader_could_use_are_refused(tmp_path, bad, dtype):
    values = VALUES.copy()
    values[3, 1] = bad
    x, y = CORNERS[3]
    with (
        pytest.raises(FeatureError, match=rf"level-0 pixel \({x}, {y}\) .*NaN, infinite or too large"),
        writer(tmp_path / "a.h5", dtype=dtype) as file,
    ):
        file.append(CORNERS, values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("corners", "values"),
    [
        (CORNERS[:3], VALUES[:2]),
        (CORNERS[:3, :1], VALUES[:3]),
        (CORNERS[:3], VALUES[:3, :5]),
        (CORNERS[:3] + 0.5, VALUES[:3]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, corners, values):
    with (
        pytest.raises(SettingsError, match="expected whole-numbered corners"),
        writer(tmp_path / "a.h5") as file,
    ):
        file.append(corners, values)


@pytest.mark.parametrize(
    "wrong", [{"size": (0, 5)}, {"mpp": 0}, {"side": 0.5}, {"width": 0}, {"overlap": 512}, {"overlap": -1}]
)
def test_a_bag_that_cannot_be_is_refused(tmp_path, wrong):
    with pytest.raises(SettingsError, match="a bag needs"):
        writer(tmp_path / "a.h5", **wrong)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"), writer(tmp_path / "file" / "a.h5"):
        pass


@pytest.mark.parametrize("size", [1, 100, 5_000, 20_000, 1_100_000, 2_500_000, 6_000_000])
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path, size):
    """HDF5 crashes when it closes a file that it could not write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_too_much() -> None:
        with writer(tmp_path / "a.h5", width=1024) as file:
            for _ in range(4):
                file.append(np.zeros((500, 2), int), np.ones((500, 1024)))

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(ArtifactError, match=r"a.h5 cannot be written: File too large; check the disk's"):
            write_too_much()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
