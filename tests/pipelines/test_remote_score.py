"""The stages on slides in an object store: the same results as on this machine, for the bytes reported."""

from __future__ import annotations

import os
import shutil

import fsspec
import pytest
from conftest import files, table, without_times

from wsi_ats.overview.records import load_overview
from wsi_ats.results.selections import read_selection

BLOCK = 64 << 10


@pytest.fixture(scope="module")
def stored(s3, slides, client):
    """A folder of three slides, in a store that workers know of."""
    store = fsspec.filesystem("s3")
    for path in sorted(slides.glob("slide_00[0-2].tif")):
        store.pipe_file(f"{s3}/collection/{path.name}", path.read_bytes())

    def know(names):  # not os.environ.update itself: a copy of our environment would be sent
        os.environ.update(names)
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    client.run(know, {name: os.environ[name] for name in os.environ if name.startswith("AWS_")})
    return f"{s3}/collection/"


@pytest.fixture(scope="module")
def some(slides, tmp_path_factory):
    """The same on this machine."""
    folder = tmp_path_factory.mktemp("some")
    for path in slides.glob("slide_00[0-2].tif"):
        shutil.copy(path, folder / path.name)
    return folder


def without_places(rows):
    return [
        {name: value for name, value in row.items() if name not in {"path", "bytes_read"}}
        for row in without_times(rows)
    ]


def test_scores_are_those_of_the_files(run, s3, stored, some, model, tmp_path):
    command = ("--model", model, "--draws", 2, "--json")
    there = ("score", stored, *command, "--out", tmp_path / "there")
    ran = run(*there)
    assert ran.json["counts"] == {"done": 3, "failed": 0, "no_tissue": 0}
    run("score", some, *command, "--out", tmp_path / "here")
    rows, here = (table(tmp_path / name / "predictions.csv") for name in ("there", "here"))
    assert without_places(rows) == without_places(here)
    for row, local in zip(rows, here, strict=True):
        assert row["path"] == f"{s3}/collection/{row['slide_id']}.tif"
        # The index too, and what lies between tiles: of a slide as small as these that is most of it.
        assert int(local["bytes_read"]) + BLOCK <= int(row["bytes_read"]) <= 2_000_000
    assert files(tmp_path / "there" / "attention") == files(tmp_path / "here" / "attention")
    one, other = (
        read_selection(tmp_path / each / "selections" / "slide_000.parquet").columns()
        for each in ("there", "here")
    )
    assert one == other

    assert run(*there).json["reused"] == 3
    store = fsspec.filesystem("s3")
    store.pipe_file(f"{stored}slide_000.tif", b"")
    try:
        ran = run(*there, code=1)
    finally:
        store.pipe_file(f"{stored}slide_000.tif", (some / "slide_000.tif").read_bytes())
    assert (ran.exit_code, ran.json["reused"], [*ran.json["failed"]]) == (1, 2, ["slide_000"])
    assert "are beyond its end" in ran.json["failed"]["slide_000"]


def test_prepared_slides_are_those_of_the_files(run, stored, some, config, tmp_path):
    command = ("--config", config, "--json")
    run("prepare", stored, *command, "--out", tmp_path / "there")
    run("prepare", some, *command, "--out", tmp_path / "here")
    there, here = (table(tmp_path / name / "slides.csv") for name in ("there", "here"))
    assert without_places(there) == without_places(here)
    assert all(int(row["bytes_read"]) > BLOCK for row in there)
    one, other = (load_overview(tmp_path / name / "prepared" / "slide_000.npz") for name in ("there", "here"))
    assert (one.thumbnail == other.thumbnail).all()


def test_info_estimates_the_cost_of_scoring_urls(run, s3, stored, some, config):
    there = run("info", f"{stored}slide_000.tif", "--config", config, "--json").json["slides"]
    here = run("info", some / "slide_000.tif", "--config", config, "--json").json["slides"]
    assert there[0].pop("path") == f"{s3}/collection/slide_000.tif"
    assert here[0].pop("path") == str(some / "slide_000.tif")
    assert there == here
    ran = run("info", f"{s3}/collection/", f"{s3}/nothing.tif", "--config", config, code=2)
    assert f"{s3}/nothing.tif: no such file or folder" in ran.stderr


def test_a_web_server(run, web, some, config):
    web.files["/slide_000.tif"] = some / "slide_000.tif"
    url = f"{web.address}/slide_000.tif?key=1"
    ran = run("info", url, f"{web.address}/missing.tif", "--config", config, "--json", code=1)
    assert [each["slide_id"] for each in ran.json["slides"]] == ["slide_000"]
    assert ran.json["slides"][0]["bytes_file"] == (some / "slide_000.tif").stat().st_size
    assert "no such file (404 Not Found)" in ran.json["failed"]["missing"]
