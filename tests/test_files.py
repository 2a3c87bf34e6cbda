"""Files are whole or not there; folders have one owner; both however a process dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsi_ats.errors import ArtifactError, LockedError
from wsi_ats.files import atomic, digest_of, locked, read_json, write_json
from wsi_ats.geometry import Grid
from wsi_ats.overview.records import Overview, TissueMask, load_overview, save_overview
from wsi_ats.results.records import AttentionMap
from wsi_ats.results.selections import load_attention, save_attention
from wsi_ats.slides.fingerprint import slide_digest

GRID = Grid(1000, 600, cell=255.9, tile_size=256, stride=127.95)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def start():
    """The function ``start(code, *arguments)``: a process that has printed its first line."""
    children = []

    def run(code, *arguments):
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        children.append(child)
        assert child.stdout.readline()
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def kill(child) -> None:
    """As ``kill -9`` does: nothing of the process runs any more."""
    child.send_signal(signal.SIGKILL)
    child.wait()


# Atomic writes


def test_a_file_gets_its_final_name_only_when_complete(tmp_path):
    path = tmp_path / "deeper" / "table.csv"
    with atomic(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".csv"  # writers choose a format by it
        assert temporary.parent == path.parent  # else it could not be renamed on the same disk
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert files(path.parent) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_nothing_new_and_what_was_there_untouched(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(ArtifactError if error is OSError else error):
        write()
    assert path.read_text() == "old"
    assert files(tmp_path) == ["table.csv"]


def test_a_failed_write_names_the_path_and_the_reason(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.raises(ArtifactError, match=r"table\.csv cannot be written: .*permissions"),
        atomic(tmp_path / "file" / "table.csv"),
    ):
        pass


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(ArtifactError), atomic(tmp_path / "table.csv"):
        pass
    assert files(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_process_killed_while_writing_leaves_nothing_under_the_final_name(tmp_path, start):
    child = start(
        "import sys, time; from pathlib import Path; from wsi_ats.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as temporary, temporary.open('w') as file:\n"
        "    file.write('half'); file.flush(); print('writing', flush=True); time.sleep(60)",
        tmp_path / "table.csv",
    )
    kill(child)
    (left,) = files(tmp_path)
    assert left.endswith(".part.csv")
    assert (tmp_path / left).read_text() == "half"
    with atomic(tmp_path / "table.csv") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "table.csv").read_text() == "whole"


# Locks

HOLD = (
    "import sys, time; from pathlib import Path; from wsi_ats.files import locked\n"
    "with locked(Path(sys.argv[1]), 'wsi-ats train scans'):\n"
    "    print('held', flush=True); time.sleep(60)"
)


def test_a_locked_folder_is_refused_to_another_process_naming_its_owner(tmp_path, start):
    child = start(HOLD, tmp_path)
    with (
        pytest.raises(LockedError, match=rf"process {child.pid} on .*wsi-ats train scans"),
        locked(tmp_path, "second"),
    ):
        pass


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_folder_whose_owner_was_killed_is_taken_over(tmp_path, start):
    kill(start(HOLD, tmp_path))
    with locked(tmp_path, "second"):
        assert read_json(tmp_path / ".owner.json")["process"] == os.getpid()


def test_a_folder_is_free_again_after_use_and_after_an_error(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "new", "first"):
            pass
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / "new", "second"):
        raise ValueError("inside")
    with locked(tmp_path / "new", "third"):
        assert read_json(tmp_path / "new" / ".owner.json")["command"] == "third"


def test_a_folder_is_refused_to_the_same_process_too(tmp_path):
    refused = pytest.raises(LockedError, match=f"process {os.getpid()}")
    with locked(tmp_path, "first"), refused, locked(tmp_path, "second"):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written to"), locked(tmp_path / "file" / "out", "x"):
        pass


# JSON


def test_records_round_trip(tmp_path):
    record = {"text": "µm", "number": 0.1, "none": None, "list": [1, 2]}
    write_json(tmp_path / "record.json", record)
    assert read_json(tmp_path / "record.json") == record


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "record.json", {"loss": float("nan")})
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'"text"', b"\xff\xfe"], ids=str)
def test_a_file_that_is_not_a_json_object_is_an_error(tmp_path, content):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"record\.json"):
        read_json(path)


# Digests


def test_digests_depend_on_texts_and_their_boundaries():
    assert digest_of("ab", "c") != digest_of("a", "bc") != digest_of("abc")
    assert digest_of("a", "b") == digest_of("a", "b")


def test_the_digest_of_a_slide_changes_with_content_size_and_time(tmp_path):
    path = tmp_path / "slide.svs"
    path.write_bytes(b"x" * 100_000)
    os.utime(path, ns=(1, 10**18))
    first = slide_digest(str(path))
    assert slide_digest(str(path)) == first
    path.write_bytes(b"y" + b"x" * 99_999)  # same size and time, other header
    os.utime(path, ns=(1, 10**18))
    second = slide_digest(str(path))
    path.write_bytes(b"y" + b"x" * 100_000)
    os.utime(path, ns=(1, 10**18))
    third = slide_digest(str(path))
    os.utime(path, ns=(1, 10**18 + 1))
    fourth = slide_digest(str(path))
    folder = slide_digest(str(tmp_path))
    missing = slide_digest(str(tmp_path / "absent.svs"))
    assert len({first, second, third, fourth, folder, missing}) == 6


def test_the_digest_of_a_folder_of_zarr_is_that_of_its_metadata(tmp_path):
    for name in ("zarr.json", "0/zarr.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, ns=(1, 10**18))
    first = slide_digest(str(tmp_path))
    (tmp_path / "beside").write_text("")  # changes the folder's time and nothing else
    assert slide_digest(str(tmp_path)) == first
    for name in ("zarr.json", "0/zarr.json"):
        (tmp_path / name).write_text("[]")
        os.utime(tmp_path / name, ns=(1, 10**18))
        second = slide_digest(str(tmp_path))
        assert second != first
        first = second


# Arrays


def prepared() -> Overview:
    generator = np.random.default_rng(0)
    fraction = generator.random(GRID.shape, dtype=np.float32)
    thumbnail = generator.integers(0, 255, (GRID.shape[0] * 4, GRID.shape[1] * 4, 3), dtype=np.uint8)
    return Overview(thumbnail, TissueMask(GRID, fraction, fraction > 0.5))


def test_the_digest_of_a_remote_slide_covers_size_etag_and_first_bytes(web):
    web.files["/a.svs"] = b"one"
    digests = [slide_digest(f"{web.address}/a.svs")]
    assert slide_digest(f"{web.address}/a.svs") == digests[0]
    assert len(web.requests) == 2
    for content in (b"two", b"three"):
        web.files["/a.svs"] = content
        digests.append(slide_digest(f"{web.address}/a.svs"))
    digests.append(slide_digest(f"{web.address}/absent.svs"))
    web.files["/c.zarr/zarr.json"] = b"{}"
    digests.append(slide_digest(f"{web.address}/c.zarr/"))
    assert len(set(digests)) == 5


def test_prepared_slides_round_trip_to_the_last_bit(tmp_path):
    saved = prepared()
    save_overview(tmp_path / "a.npz", saved)
    loaded = load_overview(tmp_path / "a.npz")
    assert loaded.tissue.grid == GRID
    for one, other in (
        (loaded.thumbnail, saved.thumbnail),
        (loaded.tissue.mask, saved.tissue.mask),
        (loaded.tissue.fraction, saved.tissue.fraction),
    ):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_attention_round_trips_to_the_last_bit(tmp_path):
    attention = np.random.default_rng(0).random(GRID.shape)
    save_attention(tmp_path / "a.npz", AttentionMap(GRID, attention, attention > 0.5))
    loaded = load_attention(tmp_path / "a.npz")
    assert loaded.grid == GRID
    np.testing.assert_array_equal(loaded.attention, attention)
    np.testing.assert_array_equal(loaded.tissue, attention > 0.5)


def test_damage_anywhere_in_an_array_file_is_an_error(tmp_path):
    path = tmp_path / "a.npz"
    save_overview(path, prepared())
    whole = path.read_bytes()
    variants = {
        "missing": None,
        "empty": b"",
        "no archive": b"not a zip file",
        "cut": whole[: len(whole) // 2],
        "other arrays": None,
    }
    for place in range(0, len(whole), max(1, len(whole) // 200)):
        variants[f"byte {place}"] = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
    for name, content in variants.items():
        path.unlink(missing_ok=True)
        if name == "other arrays":
            save_attention(path, AttentionMap(GRID, np.zeros(GRID.shape), np.zeros(GRID.shape, bool)))
        elif content is not None:
            path.write_bytes(content)
        try:
            loaded = load_overview(path)
        except ArtifactError:
            continue
        # Bytes of a zip's own bookkeeping may differ without harm; then the arrays are right.
        assert name.startswith("byte"), name
        np.testing.assert_array_equal(loaded.thumbnail, prepared().thumbnail)
        np.testing.assert_array_equal(loaded.tissue.fraction, prepared().tissue.fraction)


def test_arrays_of_another_grid_or_with_code_in_them_are_an_error(tmp_path):
    path = tmp_path / "a.npz"
    for grid in ('{"width": 5}', "[]", "{", json.dumps({"width": 0, "height": 1, "cell": 1, "tile_size": 1})):
        np.savez(path, grid=grid, attention=np.zeros((1, 1)), tissue=np.zeros((1, 1), bool))
        with pytest.raises(ArtifactError, match="make it again"):
            load_attention(path)
    np.savez(path, grid=np.array(object(), dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="make it again"):
        load_attention(path)
