"""Writing of OME-Zarr pyramids that was interrupted, is repeated, or is undone."""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
from zarr.storage import LocalStore

from slides.zarr_files import Failing, noise, tree, write_by_hand
from wsi_ats.errors import ArtifactError, SlideOpenError, SlideReadError
from wsi_ats.geometry import Region
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import is_complete, remove_pyramid, write_pyramid
from wsi_ats.slides.zarr import ZarrSlide


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupted_conversion_resumes_to_the_same_bytes(small_shards, tmp_path, threads):
    pixels = noise(300, 200)
    uninterrupted, target = tmp_path / "a" / "s.ome.zarr", tmp_path / "b" / "s.ome.zarr"
    assert write_pyramid(MemorySlide([pixels], mpp=0.5), str(uninterrupted)).reused == 0
    with pytest.raises(SlideReadError, match="gone"):
        write_pyramid(Failing(pixels, 7), str(target), threads=threads)
    assert not (target / "zarr.json").exists()
    assert not is_complete(str(target))
    with pytest.raises(SlideOpenError, match="is incomplete; run the same `wsi-ats convert` again"):
        ZarrSlide(str(target))
    # Possible remains: a file under a temporary name, shards that are truncated, garbage or empty.
    shards = sorted(target.rglob("c/*/*/*"))
    assert len(shards) == 7
    (shards[0].parent / "0.0123.partial").write_bytes(b"half")
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    shards[1].write_bytes(b"rubbish")
    shards[2].write_bytes(b"")
    written = write_pyramid(Failing(pixels, 5 * 4 - 4), str(target))
    assert written.reused == 4
    assert is_complete(str(target))
    assert tree(target) == tree(uninterrupted)


def test_complete_pyramids_are_verified_and_missing_shards_restored(small_shards, tmp_path):
    source, target = Failing(noise(200, 100), 100), tmp_path / "s.ome.zarr"
    write_pyramid(source, str(target))
    before = tree(target)
    source.reads = 0
    assert write_pyramid(source, str(target)).reused == sum("/c/" in f"/{name}" for name in before)
    lost = target / "1" / "c" / "0" / "0" / "0"
    lost.unlink()
    write_pyramid(source, str(target))
    assert tree(target) == before


@pytest.mark.parametrize("stopped", [False, True])
def test_another_source_or_codec_is_refused(small_shards, tmp_path, stopped):
    pixels, target = noise(300, 200), tmp_path / "s.ome.zarr"
    write_pyramid(MemorySlide([pixels], mpp=0.5), str(target), source="one")
    if stopped:
        (target / "zarr.json").unlink()
    before = tree(target)
    for options in (
        {"source": "two"},
        {"source": "one", "codec": "jpeg"},
        {"source": "one", "region": (0, 0, 9, 9)},
    ):
        options["region"] = Region(*options.get("region", (0, 0, 300, 200)))
        with pytest.raises(ArtifactError, match="made from another slide or with other settings"):
            write_pyramid(MemorySlide([pixels], mpp=0.5), str(target), **options)
    assert tree(target) == before


@pytest.mark.parametrize("what", ["0.5", "0.4", "a note"])
def test_pyramids_of_others_are_neither_written_over_nor_deleted(pattern, tmp_path, what):
    path = tmp_path / "s.zarr"
    if what == "a note":
        path.mkdir()
        (path / "read me.txt").write_text("kept for the audit")
    else:
        write_by_hand(path, [pattern(60, 50)], version=what)
    before = tree(path)
    with pytest.raises(ArtifactError, match="holds something other"):
        write_pyramid(MemorySlide([noise(60, 50)], mpp=0.5), str(path))
    with pytest.raises(ArtifactError, match="holds something other"):
        remove_pyramid(str(path))
    assert tree(path) == before


def test_a_pyramid_with_damaged_metadata_is_incomplete_and_repaired(converted):
    path, pixels, written = converted
    before = tree(path)
    for content in (b"", b"{", b"[]", b"{}", b'{"attributes": 3}'):
        (path / "zarr.json").write_bytes(content)
        assert not is_complete(str(path))
    again = write_pyramid(MemorySlide([pixels], mpp=0.4990), str(path), source="abc")
    assert again.reused == len(written.sizes)
    assert is_complete(str(path))
    assert tree(path) == before


def test_own_pyramids_are_deleted_whole_and_missing_ones_are_not_an_error(converted):
    path = converted[0]
    remove_pyramid(str(path))
    assert tree(path) == {}
    remove_pyramid(str(path))
    remove_pyramid(str(path / "never"))
    assert not is_complete(str(path))
    assert not is_complete(str(path / "not even a folder"))


def test_foreign_files_in_a_pyramid_are_not_deleted(converted):
    path, pixels, _ = converted
    (path / "labels").mkdir()
    (path / "labels" / "zarr.json").write_text("{}")
    before = tree(path)
    with pytest.raises(ArtifactError, match=r"do not belong to the pyramid, such as labels/zarr\.json"):
        remove_pyramid(str(path))
    assert tree(path) == before
    write_pyramid(MemorySlide([pixels], mpp=0.4990), str(path), source="abc")  # it may be gone on with
    assert tree(path) == before


@pytest.mark.parametrize("name", ["scan[1]", "scan*", "scan?", "memory::scan"])
def test_a_name_that_looks_like_a_glob_is_refused(name):
    slide = MemorySlide([noise(60, 50)], mpp=0.5)
    write_pyramid(slide, "memory://patterns/scan1.ome.zarr")
    for work in (partial(write_pyramid, slide), remove_pyramid):
        with pytest.raises(ArtifactError, match="give the slide another slide_id"):
            work(f"memory://patterns/{name}.ome.zarr")
    assert is_complete("memory://patterns/scan1.ome.zarr")


def test_a_pyramid_behind_a_link_is_not_deleted(converted, tmp_path):
    path = converted[0]
    link = tmp_path / "link.ome.zarr"
    link.symlink_to(path)
    before = tree(path)
    with pytest.raises(ArtifactError, match="is a link"):
        remove_pyramid(str(link))
    assert tree(path) == before


def test_a_shard_that_reads_back_differently_is_an_error(small_shards, tmp_path):
    class Forgetful(LocalStore):
        async def set(self, key, value):
            if key.endswith("/1") and "/c/" in key:
                value = type(value).from_bytes(value.to_bytes()[:-1] + b"?")
            await super().set(key, value)

    with (
        mock.patch("wsi_ats.slides.pyramid.open_store", lambda path, read_only: Forgetful(path)),
        pytest.raises(ArtifactError, match=r"0/c/0/0/1 differs from what was written"),
    ):
        write_pyramid(MemorySlide([noise(100, 60)], mpp=0.5), str(tmp_path / "s"))
