"""Exports, and their errors when there is nothing to export."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import h5py
import highdicom as hd
import numpy as np
import pydicom
import pytest
from conftest import all_files, files, table

from pipelines._runs import Execution
from pipelines.score import score
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.exports.registry import FORMATS
from wsi_ats.results.scores import read_scores
from wsi_ats.slides import open_slide
from wsi_ats.slides.resample import read_image
from wsi_ats.tables.files import read_parquet, write_parquet
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.testing.dicom import write_dicom


@pytest.fixture(scope="module")
def scores(client, refs, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    score(refs, model, out, execution=Execution(scheduler=client))
    return out


def exported_tiles(scores, name):
    """The distinct tiles of a scored slide, with the pixels of each."""
    slide = read_scores(scores).by_id[name]
    selection = slide.selection()
    tiles = selection.distinct()
    with open_slide(slide.ref()) as opened:
        return selection, tiles, read_tiles(opened, selection.grid, tiles.cells)


def test_the_list_and_the_page_of_commands_name_every_format(run):
    listed = run("export", "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["format", *FORMATS]
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in FORMATS) in page


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


def test_png_has_the_pixels_that_the_network_saw(run, scores, tmp_path):
    run("export", scores, "--to", "png", "--out", tmp_path)
    selection, tiles, pixels = exported_tiles(scores, "slide_000")
    names = [
        f"{order}_{x}_{y}.png"
        for order, (x, y, *_) in zip(
            selection.order[tiles.row], selection.grid.boxes(tiles.cells).tolist(), strict=True
        )
    ]
    folder = tmp_path / "png" / "slide_000"
    assert files(folder) == sorted(names)
    for name, expected in zip(names, pixels, strict=True):
        np.testing.assert_array_equal(read_image(folder / name), expected)
    assert len(all_files(tmp_path / "png")) == sum(
        len(set(zip(rows["x"], rows["y"], strict=True)))
        for i in range(6)
        for rows in [read_parquet(scores / "selections" / f"slide_{i:03d}.parquet")[0]]
    )


def test_slides_that_are_gone_or_have_changed_fail_alone(run, scores, slides, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(slides, moved)
    with (moved / "slide_001.tif").open("ab") as file:
        file.write(b"more")
    ran = run("export", scores, "--to", "png", "--slides", moved, "--out", tmp_path / "out", "--json", code=1)
    assert list(ran.json["failed"]) == ["slide_001"]
    assert "has changed since it was scored; score it again, or name" in ran.json["failed"]["slide_001"]
    assert len(files(tmp_path / "out" / "png")) == 5
    gone = tmp_path / "gone"
    shutil.copytree(scores, gone)
    record = gone / "records" / "slide_002.json"
    record.write_text(record.read_text().replace("slide_002.tif", "nowhere.tif"))
    ran = run("export", gone, "--to", "png", "--out", tmp_path / "out", "--json", code=1)
    assert list(ran.json["failed"]) == ["slide_002"]
    assert "is not there; score it again, or name the folder" in ran.json["failed"]["slide_002"]
    assert "slide_002" not in {path.parent.name for path in (tmp_path / "out" / "png").rglob("*.png")}


@pytest.fixture(scope="module")
def dicom_scores(client, slides, model, tmp_path_factory):
    """Scores of a slide in DICOM, of the same without the patient's attributes, and of a TIFF."""
    folder = tmp_path_factory.mktemp("dicom")
    with open_slide(slides / "slide_000.tif") as slide:
        level = slide.levels[0]
        pixels = slide.read_regions(0, np.array([[0, 0]]), level.width, level.height)[0]
    for number, name in enumerate(("case/fine", "case/coarse", "bare")):
        step = 2 if name == "case/coarse" else 1
        series = f"1.2.3.{number // 2 + 1}"
        write_dicom(folder / f"{name}.dcm", series, pixels[::step, ::step], mpp=0.5 * step)
    data = pydicom.dcmread(folder / "bare.dcm")
    del data.PatientID
    data.save_as(folder / "bare.dcm")
    shutil.copy(slides / "slide_001.tif", folder)
    out = tmp_path_factory.mktemp("dicom_scores")
    score(read_manifest(folder), model, out, execution=Execution(scheduler=client))
    return out, folder


def test_dicom_annotations_are_rectangles_on_the_finest_level(run, dicom_scores, tmp_path):
    scores, folder = dicom_scores
    ran = run("export", scores, "--to", "dicom", "--out", tmp_path, "--json", code=1)
    assert files(tmp_path / "dicom") == ["case.dcm"]
    assert "not DICOM: an annotation refers to" in ran.json["failed"]["slide_001"]
    assert "lacks what an annotation must repeat: " in ran.json["failed"]["bare"]
    assert "PatientID" in ran.json["failed"]["bare"]
    found = hd.ann.annread(tmp_path / "dicom" / "case.dcm")
    fine = pydicom.dcmread(folder / "case" / "fine.dcm", stop_before_pixels=True)
    (named,) = found.ReferencedImageSequence
    assert named.ReferencedSOPInstanceUID == fine.SOPInstanceUID
    assert found.StudyInstanceUID == fine.StudyInstanceUID
    selection, tiles, _ = exported_tiles(scores, "case")
    (group,) = found.get_annotation_groups()
    assert group.graphic_type == hd.ann.GraphicTypeValues.RECTANGLE
    corners = group.get_graphic_data(coordinate_type="2D")
    boxes = selection.grid.boxes(tiles.cells)
    assert [(*each.min(axis=0), *np.ptp(each, axis=0)) for each in corners] == [*map(tuple, boxes.tolist())]
    names, values, _ = group.get_measurements()
    measured = dict(zip((name.meaning for name in names), values.T, strict=True))
    assert list(measured)[:3] == ["attention", "weight", "draws"]
    np.testing.assert_allclose(measured["attention"], selection.attention[tiles.row], rtol=1e-6)
    np.testing.assert_array_equal(measured["draws"], tiles.draws)


def test_a_format_whose_package_is_missing_is_refused_before_any_work(run, scores, tmp_path, monkeypatch):
    for name in ("anndata", "dicom", "spatialdata"):
        (package,) = FORMATS[name].packages
        monkeypatch.setitem(sys.modules, package, None)
        ran = run("export", scores, "--to", "csv", "--to", name, "--out", tmp_path / "out", code=2)
        assert ran.stderr == (
            f"error: export --to {name} needs {package}, which is not installed; pip install "
            f'"wsi-ats[{FORMATS[name].extra}]"\n'
        )
        assert not (tmp_path / "out").exists()


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
