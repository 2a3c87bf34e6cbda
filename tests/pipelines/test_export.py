"""Exports, and their errors when there is nothing to export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import files, table

from pipelines._runs import Execution
from pipelines.score import score
from wsi_ats.results.exports.registry import FORMATS
from wsi_ats.tables.files import read_parquet, write_parquet


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file())


@pytest.fixture(scope="module")
def scores(client, refs, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    score(refs, model, out, execution=Execution(scheduler=client))
    return out


def test_the_list_and_the_readme_name_every_format(run):
    listed = run("export", "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["format", *FORMATS]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in FORMATS) in readme


def test_several_formats_at_once_each_have_a_folder(run, scores, tmp_path):
    ran = run("export", scores, "--to", "csv", "--to", "parquet", "--out", tmp_path, "--json")
    assert ran.json["counts"] == {"exported": 6, "without_tiles": 0}
    assert all_files(tmp_path) == [
        *("csv/predictions.csv", "csv/selections.csv"),
        *("parquet/predictions.parquet", "parquet/selections.parquet", "run.json"),
    ]
    columns, _ = read_parquet(tmp_path / "parquet" / "selections.parquet")
    rows = table(tmp_path / "csv" / "selections.csv")
    assert list(columns) == list(rows[0])
    assert [str(x) for x in columns["x"]] == [row["x"] for row in rows]
    assert sorted(set(columns["slide_id"])) == [f"slide_{i:03d}" for i in range(6)]
    assert (tmp_path / "csv" / "predictions.csv").read_bytes() == (scores / "predictions.csv").read_bytes()


def test_qupath(run, scores, tmp_path):
    run("export", scores, "--to", "qupath", "--out", tmp_path)
    kinds = ("", ".attention", ".tissue")
    slides = [f"qupath/slide_{i:03d}{kind}.geojson" for i in range(6) for kind in kinds]
    assert all_files(tmp_path) == sorted(
        [*slides, "qupath/open_in_qupath.groovy", "qupath/slides.json", "run.json"]
    )
    features = json.loads((tmp_path / "qupath" / "slide_000.geojson").read_text())["features"]
    assert len(features) == len(read_parquet(scores / "selections" / "slide_000.parquet")[0]["x"])


def test_files_of_slides_that_have_left_the_scores_go_and_those_of_the_user_stay(run, scores, tmp_path):
    less = tmp_path / "scores"
    shutil.copytree(scores, less)
    run("export", less, "--to", "geojson", "--out", tmp_path / "out")
    run("export", less, "--to", "csv", "--out", tmp_path / "out")
    (tmp_path / "out" / "geojson" / "notes.geojson").write_text("mine")
    columns, _ = read_parquet(less / "predictions.parquet")
    write_parquet(less / "predictions.parquet", {name: values[1:] for name, values in columns.items()})
    run("export", less, "--to", "geojson", "--out", tmp_path / "out")
    left = all_files(tmp_path / "out")
    assert "geojson/slide_000.geojson" not in left
    assert {"geojson/notes.geojson", "geojson/slide_001.geojson", "csv/selections.csv"} <= set(left)
    run("export", less, "--to", "csv", "--out", tmp_path / "out", "--overwrite")
    assert all_files(tmp_path / "out") == [
        *("csv/predictions.csv", "csv/selections.csv", "geojson/notes.geojson", "run.json")
    ]


def test_kept_features_reach_the_programs_that_use_them(run, slides, model, tmp_path):
    kept = tmp_path / "scores"
    run("score", slides, "--model", model, "--out", kept, "--keep-features")
    run("export", kept, "--to", "clam", "--to", "torchmil", "--out", tmp_path / "out")
    columns, _ = read_parquet(kept / "selections" / "slide_000.parquet")
    with h5py.File(tmp_path / "out" / "clam" / "h5_files" / "slide_000.h5", "r") as file:
        assert {tuple(each) for each in file["coords"][:]} == set(
            zip(columns["x"], columns["y"], strict=True)
        )
        np.testing.assert_array_equal(
            file["features"][:], np.load(tmp_path / "out" / "torchmil" / "features" / "slide_000.npy")
        )
    refused = run("score", slides, "--model", model, "--out", kept, code=2)
    assert "kept" in refused.stderr


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_an_export_into_the_scores_is_refused(run, scores, options):
    before = files(scores)
    ran = run(
        "export", scores, "--to", "csv", "--out", scores.parent / "x" / ".." / scores.name, *options, code=2
    )
    assert ran.stderr == f"error: {scores} holds the results of `score`; choose another --out\n"
    assert files(scores) == before


def test_a_damaged_selection_fails_alone(run, scores, tmp_path):
    damaged = scores / "selections" / "slide_002.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    ran = run("export", scores, "--to", "qupath", "--out", tmp_path / "q", "--json", code=1)
    run("export", scores, "--to", "csv", "--out", tmp_path / "c", "--strict", code=1)
    damaged.write_bytes(whole)
    assert ran.json["failed"].keys() == {"slide_002"}
    left = all_files(tmp_path / "q")
    assert "qupath/slide_001.geojson" in left
    assert "qupath/slide_002.geojson" not in left
    assert ran.json["counts"]["exported"] == 5
    assert files(tmp_path / "c") == ["run.json"]


@pytest.mark.parametrize("kind", ["missing", "not scores", "unknown format"])
def test_scores_that_cannot_be_exported(run, scores, tmp_path, kind):
    (tmp_path / "run.json").write_text('{"stage": "prepare"}')
    source = {"missing": tmp_path / "none", "not scores": tmp_path}.get(kind, scores)
    to = "excel" if kind == "unknown format" else "csv"
    ran = run("export", source, "--to", to, "--out", tmp_path / "out", code=2)
    assert ran.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(run, scores, tmp_path):
    ran = run("export", scores, "--to", "csv", "--out", tmp_path / "out", "--dry-run", "--json")
    assert ran.json["counts"] == {"to_do": 6, "finished": 0}
    assert not (tmp_path / "out").exists()
