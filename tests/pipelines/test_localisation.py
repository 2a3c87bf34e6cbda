"""Evaluation beside annotations through the command line, with numbers computed by hand."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import shapely
from annotation_files import asap, feature, rectangle, write_qupath
from conftest import files, table
from results.scored_folder import BOUNDS, write_scores

from wsi_ats.files import read_json
from wsi_ats.results.scores import read_scores
from wsi_ats.tables.files import write_csv


@pytest.fixture
def evaluate(run, tmp_path):
    def evaluate(*options, code=0):
        command = ("evaluate", tmp_path / "scores", "--labels", tmp_path / "labels.csv")
        given = ("--out", tmp_path / "out", "--resamples", 20, "--json", "--overwrite")
        return run(*command, *given, *options, scheduler=None, code=code)

    return evaluate


@pytest.fixture
def three(tmp_path):
    """Scores of three slides, of which only a part was scanned, and a folder for annotations."""
    write_scores(tmp_path / "scores", "a", "b", "c")
    labels = {
        "slide_id": ["a", "b", "c"],
        "case_id": ["1", "2", "3"],
        "label": ["tumour", "tumour", "normal"],
    }
    write_csv(tmp_path / "labels.csv", labels)
    folder = tmp_path / "annotations"
    folder.mkdir()
    return folder


CELL = rectangle(256, 256, 256, 256)  # cell 5 of the grid, level-0 pixels of the whole slide
FROM_BOUNDS = [(x - BOUNDS.x, y - BOUNDS.y) for x, y in CELL]


def number(row, name):
    return float(row[name])


def test_numbers_by_hand_on_slides_with_scanned_bounds(evaluate, three, tmp_path):
    write_qupath(three / "a.geojson", [feature(FROM_BOUNDS)])
    (three / "b.xml").write_text(asap([("Polygon", "Tumor", CELL)]))
    write_qupath(three / "c.geojson", [])
    ran = evaluate("--annotations", three)
    first, second, third = table(tmp_path / "out" / "localisation.csv")
    assert (first["slide_id"], first["case_id"], first["annotations"]) == ("a", "1", "a.geojson")
    for row in (first, second):
        assert (row["tissue_cells"], row["annotated_cells"], row["areas"]) == ("10", "1", "1")
        assert (row["tiles"], row["hits"]) == ("4", "2")  # cells 5, 0 and 5, 7 in two draws
        assert number(row, "hit_rate") == 0.5
        assert number(row, "annotated_tissue") == 0.1
        assert number(row, "attention_auc") == 1
        assert number(row, "attention_mass") == pytest.approx(4 / 13)
    assert (third["annotated_cells"], third["areas"]) == ("0", "0")
    assert (third["hit_rate"], third["attention_auc"], third["attention_mass"]) == ("", "", "")
    metrics = {row["metric"]: row for row in table(tmp_path / "out" / "metrics.csv")}
    assert list(metrics)[-5:] == ["hit_rate", "annotated_tissue", "attention_auc", "attention_mass", "froc"]
    assert number(metrics["hit_rate"], "value") == 0.5
    assert (metrics["hit_rate"]["n"], metrics["hit_rate"]["cases"]) == ("3", "3")
    assert number(metrics["hit_rate"], "low") == number(metrics["hit_rate"], "high") == 0.5
    # One tile of each slide: two areas are found, and the third slide's is a false positive.
    froc = table(tmp_path / "out" / "froc.csv")
    assert [float(each) for each in froc[0].values()] == [1, pytest.approx(1 / 3), 1]
    assert [float(each) for each in froc[-1].values()] == [10, pytest.approx(28 / 3), 1]
    # At 1/4 false positives a slide no tile is taken of any; from 1/2 on, one.
    assert number(metrics["froc"], "value") == pytest.approx(5 / 6)
    assert ran.json["notes"]["compared with annotations"] == "3"
    assert {"froc.csv", "localisation.csv", "evaluation.png"} <= set(files(tmp_path / "out"))
    with_panel = (tmp_path / "out" / "evaluation.png").stat().st_size
    evaluate()
    assert not {"froc.csv", "localisation.csv"} & set(files(tmp_path / "out"))
    assert "hit_rate" not in {row["metric"] for row in table(tmp_path / "out" / "metrics.csv")}
    assert (tmp_path / "out" / "evaluation.png").stat().st_size != with_panel


def test_slides_without_annotations_are_left_out_and_damaged_ones_fail(evaluate, three, tmp_path):
    write_qupath(three / "a.geojson", [feature(FROM_BOUNDS)])
    write_qupath(three / "b.geojson", [feature(rectangle(5000, 5000, 10, 10))])
    write_qupath(three / "elsewhere.geojson", [])
    ran = evaluate("--annotations", three, code=1)
    rows = table(tmp_path / "out" / "localisation.csv")
    assert [row["note"].split(": ")[-1][:22] for row in rows] == [
        "",
        "they seem to be of ano",
        "no annotations",
    ]
    assert "another slide" in ran.json["failed"]["b"]
    assert ran.json["notes"]["without annotations"] == "1 (c)"
    assert "annotations of 1 slides that are not among these 3: elsewhere" in " ".join(ran.stderr.split())
    metrics = {row["metric"]: row for row in table(tmp_path / "out" / "metrics.csv")}
    assert (metrics["hit_rate"]["n"], metrics["accuracy"]["n"]) == ("1", "3")


def test_classes_of_annotations(evaluate, three, tmp_path):
    beside = [(x + 256, y) for x, y in FROM_BOUNDS]
    write_qupath(three / "a.geojson", [feature(FROM_BOUNDS), feature(beside, "Stroma")])
    evaluate("--annotations", three)
    assert table(tmp_path / "out" / "localisation.csv")[0]["areas"] == "1"  # they touch
    evaluate("--annotations", three, "--annotation-class", "Tumor")
    assert table(tmp_path / "out" / "localisation.csv")[0]["annotated_cells"] == "1"
    ran = evaluate("--annotations", three, "--annotation-class", "Tumour", code=2)
    assert "is of class Tumour; there are Stroma, Tumor" in " ".join(ran.stderr.split())
    # The earlier evaluation is still there, and a dry run finds the mistake, too.
    assert table(tmp_path / "out" / "localisation.csv")
    evaluate("--annotations", three, "--annotation-class", "Tumour", "--dry-run", code=2)


def test_what_cannot_be_compared_is_refused(evaluate, three, tmp_path):
    assert "--annotation-class is 'A', which has no effect" in " ".join(
        evaluate("--annotation-class", "A", code=2).stderr.split()
    )
    assert "no annotations found" in evaluate("--annotations", three, code=2).stderr
    write_qupath(three / "x.geojson", [])
    said = " ".join(evaluate("--annotations", three, code=2).stderr.split())
    assert "has annotations of x, but none of the 3 slides a, b, c" in said
    write_qupath(three / "a.geojson", [feature(FROM_BOUNDS)])
    shutil.rmtree(tmp_path / "scores" / "attention")
    said = " ".join(evaluate("--annotations", three, code=2).stderr.split())
    assert "scores must be those of a model with attention" in said


def test_scores_of_slides_beside_their_truth(run, slides, model, tmp_path):
    """Outlines of lesions against every cell by itself."""
    run("score", slides, "--model", model, "--out", tmp_path / "scores", "--draws", 2)
    command = ("evaluate", tmp_path / "scores", "--labels", slides / "labels.csv", "--out", tmp_path / "out")
    run(*command, "--annotations", slides / "truth", "--annotation-class", "Lesion", scheduler=None)
    rows = {row["slide_id"]: row for row in table(tmp_path / "out" / "localisation.csv")}
    compared = 0
    for scored in read_scores(tmp_path / "scores").slides:
        row, selection, attention = rows[scored.id], scored.selection(), scored.attention()
        kinds = np.load(slides / "truth" / f"{scored.id}.npz")["kinds"]
        if not (kinds == 3).any():
            assert row["annotated_cells"] == "0"
            continue
        boxes = selection.grid.boxes(np.arange(selection.grid.size))
        cells = shapely.box(boxes[:, 0], boxes[:, 1], boxes[:, 0] + 64, boxes[:, 1] + 64)
        lesions = shapely.union_all(
            [
                shapely.geometry.shape(each["geometry"])
                for each in read_json(slides / "truth" / f"{scored.id}.geojson")["features"]
                if each["properties"]["classification"]["name"] == "Lesion"
            ]
        )
        annotated = shapely.area(shapely.intersection(cells, lesions)) >= 64**2 / 2
        tissue = attention.tissue.ravel()
        assert int(row["annotated_cells"]) == (annotated & tissue).sum() > 0
        assert int(row["hits"]) == annotated[selection.cells].sum()
        assert number(row, "attention_mass") == pytest.approx(attention.attention.ravel()[annotated].sum())
        compared += 1
    assert compared == 3
