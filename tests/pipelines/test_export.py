"""Exports, and their errors when there is nothing to export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import files, table

from pipelines import export
from pipelines._runs import Execution
from pipelines.score import score
from wsi_ats.tables.files import read_parquet


@pytest.fixture(scope="module")
def scores(client, refs, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    score(refs, model, out, execution=Execution(scheduler=client))
    return out


def test_every_format_is_in_the_help_and_the_readme_and_has_an_ending_of_its_own(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert "|".join(export.FORMATS) in run("export", "--help").stdout
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in export.FORMATS) in readme
    endings = [ending for ending, _ in export._SLIDE_FORMATS.values()]
    assert len(set(endings)) == len(endings), "two formats would overwrite each other's files"


def test_tables(run, scores, tmp_path):
    for kind in ("csv", "parquet"):
        ran = run("export", scores, "--to", kind, "--out", tmp_path, "--json")
        assert ran.json["counts"] == {"exported": 6, "without_tiles": 0}
    assert files(tmp_path) == [
        *("predictions.csv", "predictions.parquet", "run.json", "selections.csv", "selections.parquet")
    ]
    columns, _ = read_parquet(tmp_path / "selections.parquet")
    rows = table(tmp_path / "selections.csv")
    assert list(columns) == list(rows[0])
    assert [str(x) for x in columns["x"]] == [row["x"] for row in rows]
    assert sorted(set(columns["slide_id"])) == [f"slide_{i:03d}" for i in range(6)]
    assert (tmp_path / "predictions.csv").read_bytes() == (scores / "predictions.csv").read_bytes()


def test_qupath(run, scores, tmp_path):
    run("export", scores, "--to", "qupath", "--out", tmp_path / "q")
    assert files(tmp_path / "q") == ["run.json", *(f"slide_{i:03d}.geojson" for i in range(6))]
    features = json.loads((tmp_path / "q" / "slide_000.geojson").read_text())["features"]
    assert len(features) == len(read_parquet(scores / "selections" / "slide_000.parquet")[0]["x"])


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
    assert "slide_002.geojson" not in files(tmp_path / "q")
    assert len(files(tmp_path / "q")) == 6
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
