"""Converting slides through the command line: output, and resuming after every kind of interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import fsspec
import numpy as np
import pytest
import tifffile
from conftest import LIMIT, files, start, table, without_times

from wsi_ats.files import read_json
from wsi_ats.slides import open_slide
from wsi_ats.slides.zarr import ZarrSlide
from wsi_ats.tables.files import read_parquet

COLUMNS = [
    *("slide_id", "path", "status", "pyramid", "x", "y", "width", "height", "levels", "mpp", "mpp_source"),
    *("bytes", "seconds", "error"),
]


@pytest.fixture(scope="session")
def two(slides, tmp_path_factory):
    """A folder of two slides."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("slide_000.tif", "slide_001.tif"):
        shutil.copy2(slides / name, folder / name)
    return folder


@pytest.fixture
def out(run, two, tmp_path):
    run("convert", two, "--out", tmp_path / "out", "--json")
    return tmp_path / "out"


def whole(slide):
    size = slide.levels[0]
    return slide.read_regions(0, np.zeros((1, 2), dtype=np.int64), size.width, size.height)[0]


def tree(folder):
    """Every file of a folder and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_output_files(out, two):
    names = [f"slide_{i:03d}.ome.zarr" for i in range(2)]
    assert files(out) == ["conversions.csv", "conversions.parquet", "records", "run.json", *names]
    rows = table(out / "conversions.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["status"] for row in rows] == ["done", "done"]
    assert list(read_parquet(out / "conversions.parquet")[0]) == COLUMNS
    for row, name in zip(rows, names, strict=True):
        assert row["pyramid"] == str(out / name)
        with open_slide(row["path"]) as source, ZarrSlide(row["pyramid"]) as slide:
            np.testing.assert_array_equal(whole(slide), whole(source))
            assert slide.mpp.value == source.mpp.value == float(row["mpp"])
            assert (slide.levels[0].width, slide.levels[0].height) == (int(row["width"]), int(row["height"]))
            assert len(slide.levels) == int(row["levels"])
        assert int(row["bytes"]) == sum(path.stat().st_size for path in (out / name).rglob("c/*/*/*"))
    assert read_json(out / "run.json")["counts"]["done"] == 2


def test_a_second_run_makes_only_deleted_pyramids(out, run, two):
    before = tree(out / "slide_000.ome.zarr")
    ran = run("convert", two, "--out", out, "--json")
    assert ran.json["reused"] == 2
    shutil.rmtree(out / "slide_000.ome.zarr")
    ran = run("convert", two, "--out", out, "--json")
    assert ran.json["reused"] == 1
    assert tree(out / "slide_000.ome.zarr") == before


def test_other_settings_into_the_same_folder_are_refused(out, run, two):
    other = ("convert", two, "--out", out, "--codec", "jpeg", "--quality", 70)
    ran = run(*other, code=2)
    assert "settings.pyramid.codec is zstd there and jpeg now" in ran.stderr
    run(*other, "--overwrite")
    record = json.loads((out / "slide_000.ome.zarr" / "zarr.json").read_text())["attributes"]["wsi_ats"]
    assert (record["codec"], record["quality"]) == ("jpeg", 70)


def test_another_slide_of_the_same_name_is_refused_and_the_pyramid_stays(out, run, two, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(two / "slide_001.tif", other / "slide_000.tif")
    before = tree(out / "slide_000.ome.zarr")
    ran = run("convert", other, "--out", out, "--json", code=1)
    assert "made from another slide or with other settings" in ran.json["failed"]["slide_000"]
    assert "--overwrite" in ran.json["failed"]["slide_000"]
    assert tree(out / "slide_000.ome.zarr") == before
    run("convert", other, "--out", out, "--overwrite")
    assert tree(out / "slide_000.ome.zarr") != before


def test_a_pyramid_never_overwrites_its_source(run, out):
    ran = run("convert", out / "slide_000.ome.zarr", "--out", out, "--overwrite", code=2)
    assert "would overwrite itself" in ran.stderr
    assert (out / "slide_000.ome.zarr" / "zarr.json").exists()


def test_a_pyramid_never_overwrites_its_source_through_a_link(run, out, tmp_path):
    (tmp_path / "link").symlink_to(out)
    ran = run("convert", tmp_path / "link" / "slide_000.ome.zarr", "--out", out, "--overwrite", code=2)
    assert "would overwrite itself" in ran.stderr
    assert (out / "slide_000.ome.zarr" / "zarr.json").exists()


@pytest.mark.parametrize("where", [["--out", "."], ["--out", "below"], ["--out", "../out", "--to", "below"]])
def test_output_in_the_source_folder_is_refused(run, two, monkeypatch, where):
    monkeypatch.chdir(two)
    before = tree(two)
    ran = run("convert", ".", *where, code=2)
    assert "is searched for slides" in ran.stderr
    assert "'./*.svs'" in ran.stderr
    assert tree(two) == before


def test_output_below_a_source_url_is_refused(run, tmp_path):
    ran = run("convert", "memory://scans/", "--out", tmp_path / "out", "--to", "memory://scans/zarr", code=2)
    assert "is searched for slides" in ran.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--codec", "png"), "codec is 'png', expected one of zstd, jpeg"),
        (("--quality", 80), "zstd is lossless"),
    ],
)
def test_an_invalid_codec_or_quality_is_refused(run, two, tmp_path, words, message):
    ran = run("convert", two, "--out", tmp_path / "out", *words, code=2)
    assert message in ran.stderr
    assert not (tmp_path / "out").exists()


def test_bad_slides_fail_alone_and_a_given_mpp_helps(run, two, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(two, folder)
    (folder / "text.svs").write_text("this is no slide")
    pixels = np.full((300, 400, 3), 200, np.uint8)
    tifffile.imwrite(folder / "no_mpp.tif", pixels, tile=(64, 64), photometric="rgb")
    ran = run("convert", folder, "--out", tmp_path / "out", "--json", code=1)
    assert ran.json["counts"] == {"done": 2, "failed": 2, "no_tissue": 0}
    assert "--mpp" in ran.json["failed"]["no_mpp"]
    assert not (tmp_path / "out" / "no_mpp.ome.zarr").exists()
    ran = run("convert", folder / "no_mpp.tif", "--out", tmp_path / "given", "--mpp", 0.5, "--json")
    with ZarrSlide(str(tmp_path / "given" / "no_mpp.ome.zarr")) as slide:
        assert slide.mpp.value == 0.5


def test_pyramids_may_go_elsewhere(run, two, tmp_path):
    command = ("convert", two, "--out", tmp_path / "out", "--to", tmp_path / "there", "--json")
    run(*command)
    assert files(tmp_path / "there") == ["slide_000.ome.zarr", "slide_001.ome.zarr"]
    assert files(tmp_path / "out") == ["conversions.csv", "conversions.parquet", "records", "run.json"]
    assert run(*command).json["reused"] == 2


@pytest.mark.slow
def test_pyramids_may_go_to_an_object_store(two, s3, tmp_path):
    where = ("--out", tmp_path / "out", "--to", f"{s3}/converted/")
    process = start("convert", two / "slide_000.tif", *where, "--workers", 1, "--json")
    ended, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, complaints
    assert json.loads(ended)["notes"]["pyramids"] == f"{s3}/converted"
    store = fsspec.filesystem("s3", skip_instance_cache=True)  # which has listed nothing yet
    store.get(f"{s3}/converted/slide_000.ome.zarr", str(tmp_path / "fetched.ome.zarr"), recursive=True)
    with open_slide(two / "slide_000.tif") as source, ZarrSlide(str(tmp_path / "fetched.ome.zarr")) as slide:
        np.testing.assert_array_equal(whole(slide), whole(source))


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A slide of nine shards."""
    path = tmp_path_factory.mktemp("large") / "large.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (4300, 4500, 3), dtype=np.uint8)
    tifffile.imwrite(
        path, pixels, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3
    )
    return path


def kill(process, pyramid, shards):
    """Kill a conversion when more than so many shards are there; whether it came in time."""
    while process.poll() is None and len(list(pyramid.rglob("c/*/*/?"))) <= shards:
        time.sleep(0.002)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT)
    return process.returncode == -signal.SIGKILL and not (pyramid / "zarr.json").exists()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_conversion_killed_within_a_slide_resumes_to_the_same_bytes(large, run, tmp_path):
    for attempt in range(8):
        out = tmp_path / f"out{attempt}"
        pyramid = out / "large.ome.zarr"
        command = ("convert", large, "--out", out, "--workers", 1)
        # In the finest level, and again in the one after it.
        if all(kill(start(*command), pyramid, shards) for shards in (2, 10)):
            break
    else:
        pytest.fail("all was done before the signals came")
    there = {path: path.stat().st_mtime_ns for path in pyramid.rglob("c/*/*/?")}
    assert len(there) > 10
    run("convert", large, "--out", out)
    assert {path: path.stat().st_mtime_ns for path in there} == there  # they were not made again
    run("convert", large, "--out", tmp_path / "whole")
    assert tree(pyramid) == tree(tmp_path / "whole" / "large.ome.zarr")
    assert without_places(out) == without_places(tmp_path / "whole")


def without_places(out):
    """The table but for places and times."""
    rows = without_times(table(out / "conversions.csv"))
    return [{name: value for name, value in row.items() if name != "pyramid"} for row in rows]
