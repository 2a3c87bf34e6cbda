"""Each task from a table of labels to a table of scores, by the commands that a user gives."""

from __future__ import annotations

import json

import pytest
from conftest import table
from tasks.examples import EXAMPLES, OTHERS

HEAD = "slide_id,label,months,died,her2,er"
ROWS = [  # a validation split would leave too few of these; so that each is for training, splits are named
    "slide_000,1.5,10,1,1,0",
    "slide_001,2.5,10,1,0,1",
    "slide_002,9,20.5,0,1,1",
    "slide_003,-3,4,1,0,",
    "slide_004,0,31,0,0,0",
    "slide_005,4,2,0,1,0",
]


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.csv"
    columns = zip(ROWS, map(split, ROWS), *(each.labels for each in EXAMPLES.values()), strict=True)
    path.write_text("\n".join(map(",".join, [(HEAD, "split", *EXAMPLES), *columns, ""])))
    return path


def split(row: str) -> str:
    return "val" if row.startswith(("slide_001", "slide_004")) else "train"


@pytest.fixture
def command(run, slides, config, labels, tmp_path):
    """Train on the labels; words are further options."""

    def command(task, *words, changes=(), code=0):
        options = [word for change in (f"model.task={task}", *changes) for word in ("--set", change)]
        given = ("--labels", labels, "--out", tmp_path / "run", "--config", config, "--json")
        return run("train", slides, *given, *options, *words, code=code)

    return command


@pytest.fixture
def scores(command, run, slides, tmp_path):
    """Train, score, and read the rows of ``predictions.csv``."""

    def scores(task, *words, changes=()):
        ran = command(task, *words, changes=changes)
        notes = ran.json["notes"]
        assert (notes.pop("training_slides"), notes.pop("validation_slides")) == (4, 2)
        ran = run("score", slides, "--model", tmp_path / "run", "--out", tmp_path / "scores", "--draws", 2)
        rows = table(tmp_path / "scores" / "predictions.csv")
        assert [row["status"] for row in rows] == ["done"] * 6
        assert all(float(row["logit_se"]) >= 0 for row in rows)
        return notes, rows

    return scores


def after_status(rows) -> list[str]:
    """Columns of the scores, which come between ``status`` and ``logit_se``."""
    names = list(rows[0])
    return names[names.index("status") + 1 : names.index("logit_se")]


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target.task)
def test_a_column_of_labels_becomes_columns_of_scores(scores, run, tmp_path, target):
    task = target.task
    notes, rows = scores(task, "--label-column", task)
    assert [row["label"] for row in table(tmp_path / "run" / "splits.csv")] == list(EXAMPLES[task].labels)
    assert notes == target.definition.notes(EXAMPLES[task].labels)
    assert after_status(rows) == [*EXAMPLES[task].columns, "predicted"]
    found = [{name: float(row[name]) for name in target.columns} for row in rows]
    assert [row["predicted"] for row in rows] == [target.decide(each) or "" for each in found]
    assert len({*map(tuple, map(dict.values, found))}) == 6
    run("export", tmp_path / "scores", "--to", "qupath", "--out", tmp_path)
    tile = json.loads((tmp_path / "qupath" / "slide_000.geojson").read_text())["features"][0]
    measured = {name.removeprefix("probability ") for name in tile["properties"]["measurements"]}
    assert {name.removeprefix("prob_") for name in target.columns} <= measured


@pytest.mark.parametrize("kind", ["mil", "image"])
def test_values_are_in_their_own_units_with_every_kind(command, run, slides, tmp_path, kind):
    own = {"mil": "model.mil_tiles=32", "image": "model.scale=0.25"}[kind]
    ran = command("regression", changes=[f"model.kind={kind}", own])
    assert ran.json["notes"]["values"] == {"least": -3, "most": 9}
    target = json.loads((tmp_path / "run" / "model.json").read_text())["target"]
    assert target["centre"] == pytest.approx((1.5 + 9 - 3 + 4) / 4)  # of the slides to train on
    run("score", slides, "--model", tmp_path / "run", "--out", tmp_path / "scores")
    for row in table(tmp_path / "scores" / "predictions.csv"):
        assert -20 < float(row["value"]) < 20  # which two epochs do not leave far
        assert float(row["predicted"]) == float(row["value"])


def test_survival_of_two_columns_with_multiple_instance_learning(command):
    changes = ["model.kind=mil", "model.mil_tiles=32"]
    assert command("survival", "--label-column", "months,died", changes=changes).json["notes"]["events"] == 3


def test_a_tolerance_is_in_the_units_of_what_is_predicted(command, run, slides, tmp_path):
    command("regression")
    given = ("--model", tmp_path / "run", "--out", tmp_path / "scores", "--tolerance", 50)
    run("score", slides, *given)
    rows = table(tmp_path / "scores" / "predictions.csv")
    assert {(row["stopped_by"], row["draws"]) for row in rows} == {("tolerance", "8")}


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("regression", ["--label-column", "her2,er"], "regression has its label in one column"),
        ("survival", [], "slide 'slide_000': label is '1.5', expected time;event"),
        ("survival", ["--label-column", "months,label"], "row 1: label is '1.5', expected 1 or 0"),
        ("multilabel", ["--label-column", "months,died"], "row 1: months is '10', expected 1 or 0"),
        ("ranking", [], "model.task must be"),
    ],
)
def test_labels_of_a_wrong_type_are_refused_before_anything_is_done(command, tmp_path, task, words, said):
    ran = command(task, *words, code=2)
    assert said in ran.stderr
    assert not (tmp_path / "run").exists()


def test_a_label_that_no_slide_to_train_on_has_is_refused_before_anything_is_done(command, labels, tmp_path):
    text = labels.read_text().replace("slide_002,9,20.5,0,1,1,train", "slide_002,9,20.5,0,1,0,train")
    labels.write_text(text)
    ran = command("multilabel", "--label-column", "her2,er", code=2)
    assert "er" in ran.stderr
    assert "leave" in ran.stderr
    assert not (tmp_path / "run").exists()


def test_another_task_needs_another_model(command, run, slides, tmp_path):
    command("regression")
    given = ("--model", tmp_path / "run", "--out", tmp_path / "scores", "--set", "model.task=survival")
    ran = run("score", slides, *given, code=2)
    assert "model.task is survival, but the model was trained with regression" in ran.stderr
