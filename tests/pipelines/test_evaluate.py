"""Evaluation through the command line, of scores that were made up and of some that were not."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from conftest import files, table
from PIL import Image
from sklearn.metrics import roc_auc_score

from pipelines._runs import Execution
from pipelines.score import score
from wsi_ats.results.records import Prediction
from wsi_ats.tables.files import write_csv, write_parquet
from wsi_ats.tasks.targets import Target

CLASSES = Target("classification", ("negative", "positive"))
ALWAYS = ["evaluated.csv", "evaluation.png", "left_out.csv", "metrics.csv"]
OF_CLASSES = [*ALWAYS, "precision_recall.csv", "reliability.csv", "roc.csv", "run.json"]


def write_scores(folder, target, rows):
    """Write a table as the stage does: rows of slide, case, status and scores."""
    folder.mkdir()
    unused = {each.name for each in fields(Prediction)} - {"scores"}
    table = {
        **{name: [None] * len(rows) for name in unused},
        "slide_id": [slide for slide, *_ in rows],
        "case_id": [case for _, case, *_ in rows],
        "path": [f"/slides/{slide}.svs" for slide, *_ in rows],
        "status": [status for _, _, status, _ in rows],
        **{name: [each[3][k] if each[3] else None for each in rows] for k, name in enumerate(target.columns)},
        "error": ["damaged" if status == "failed" else None for _, _, status, _ in rows],
    }
    write_parquet(folder / "predictions.parquet", table, types={"error": "string"})
    record = {
        "stage": "score",
        "end": "now",
        "digests": {"model": "m"},
        "seed": 0,
        "settings": {"tile": {}, "thumbnail": {}},
        "target": {"task": target.task, "names": target.names, "centre": 0.0, "scale": 1.0},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def probabilities(n, seed=0):
    """Slides s0, s1 ... of which every other one is positive, two a case."""
    generator = np.random.default_rng(seed)
    positive = np.clip(generator.normal(0.35 + 0.3 * (np.arange(n) // 2 % 2), 0.2), 0.01, 0.99)
    return [(f"s{i}", f"c{i // 2}", "done", [1 - p, p]) for i, p in enumerate(positive.tolist())]


def write_labels(path, rows, label=lambda i: ["negative", "positive"][i // 2 % 2], **more):
    columns = {"slide_id": [r[0] for r in rows], "case_id": [r[1] for r in rows]}
    columns["label"] = [label(i) for i in range(len(rows))]
    write_csv(path, columns | more)
    return path


@pytest.fixture
def evaluate(run, tmp_path):
    def evaluate(*options, scores=tmp_path / "scores", labels=tmp_path / "labels.csv", code=0):
        command = ("evaluate", scores, "--labels", labels, "--out", tmp_path / "out", "--json")
        return run(*command, "--resamples", 20, *options, scheduler=None, code=code)

    return evaluate


@pytest.fixture
def forty(tmp_path):
    rows = probabilities(40)
    write_scores(tmp_path / "scores", CLASSES, rows)
    write_labels(tmp_path / "labels.csv", rows)
    return rows


def metrics(tmp_path):
    return {row["metric"]: row for row in table(tmp_path / "out" / "metrics.csv")}


def test_output_files(evaluate, forty, tmp_path):
    ran = evaluate()
    out = tmp_path / "out"
    assert files(out) == sorted([*OF_CLASSES, "confusion.csv"])
    true, positive = [i // 2 % 2 for i in range(40)], [row[3][1] for row in forty]
    found = metrics(tmp_path)
    assert next(iter(found)) == "auc"
    assert float(found["auc"]["value"]) == pytest.approx(roc_auc_score(true, positive), rel=1e-12)
    assert float(found["auc"]["low"]) <= float(found["auc"]["value"]) <= float(found["auc"]["high"])
    assert (found["auc"]["n"], found["auc"]["cases"]) == ("40", "20")
    assert ran.json["metrics"][0]["value"] == pytest.approx(roc_auc_score(true, positive), rel=1e-12)
    assert ran.json["counts"] == {"evaluated": 40, "left_out": 0}
    confusion = table(out / "confusion.csv")
    assert [row["true"] for row in confusion] == ["negative", "positive"]
    right = int(confusion[0]["predicted_negative"]) + int(confusion[1]["predicted_positive"])
    assert right / 40 == float(found["accuracy"]["value"])
    assert {row["class"] for row in table(out / "roc.csv")} == {"positive"}
    assert sum(int(row["n"]) for row in table(out / "reliability.csv")) == 40
    assert [row["name"] for row in table(out / "evaluated.csv")] == [row[0] for row in forty]
    with Image.open(out / "evaluation.png") as picture:
        assert min(picture.size) > 300
    assert "auc" in evaluate().stdout


def test_the_same_command_repeats_its_results_and_another_is_refused(evaluate, forty, tmp_path):
    evaluate()
    before = (tmp_path / "out" / "metrics.csv").read_bytes()
    evaluate()
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == before
    other = evaluate("--by", "case", code=2)
    assert "settings.evaluate.by is slide there and case now" in other.stderr
    evaluate("--by", "case", "--overwrite")
    evaluate("--seed", 1, "--by", "case", code=2)


def test_by_case_is_the_mean_of_its_slides(evaluate, forty, tmp_path):
    evaluate("--by", "case")
    rows = table(tmp_path / "out" / "evaluated.csv")
    assert len(rows) == 20
    assert float(rows[3]["prob_positive"]) == pytest.approx((forty[6][3][1] + forty[7][3][1]) / 2)
    assert metrics(tmp_path)["auc"]["n"] == "20"


def test_by_case_takes_the_scores_that_the_stage_gave_to_cases(evaluate, forty, tmp_path):
    cases = {"case_id": [f"c{i}" for i in range(20)]}
    positive = [0.9 if i % 2 else 0.2 for i in range(20)]
    values = {"prob_negative": [1 - p for p in positive], "prob_positive": positive}
    write_csv(tmp_path / "scores" / "cases.csv", cases | values)
    evaluate("--by", "case")
    assert metrics(tmp_path)["auc"]["value"] == "1.0"
    evaluate("--by", "slide", "--overwrite")
    assert metrics(tmp_path)["auc"]["value"] != "1.0"
    write_csv(
        tmp_path / "scores" / "cases.csv", {"case_id": ["c0"], "prob_negative": [1], "prob_positive": [0]}
    )
    missing = evaluate("--by", "case", "--overwrite", code=2)
    assert "has no scores of case 'c1'" in missing.stderr


def test_slides_that_cannot_be_evaluated_are_counted_and_named(evaluate, tmp_path):
    rows = probabilities(12)
    rows[0] = ("s0", "c0", "failed", None)
    rows[5] = ("s5", "c2", "no_tissue", None)
    write_scores(tmp_path / "scores", CLASSES, rows)
    write_labels(
        tmp_path / "labels.csv", rows, lambda i: "nan" if i == 7 else ["negative", "positive"][i // 2 % 2]
    )
    ran = evaluate()
    assert ran.json["counts"] == {"evaluated": 9, "left_out": 3}
    assert {name: ran.json["notes"][name] for name in ("failed", "no_tissue", "no label")} == {
        "failed": "1 (s0)",
        "no_tissue": "1 (s5)",
        "no label": "1 (s7)",
    }
    left = {row["slide_id"]: row["reason"] for row in table(tmp_path / "out" / "left_out.csv")}
    assert left == {"s0": "failed: damaged", "s5": "no_tissue", "s7": "no label"}


def test_an_absent_class_leaves_metrics_undefined_with_the_reason(evaluate, tmp_path):
    rows = probabilities(8)
    write_scores(tmp_path / "scores", CLASSES, rows)
    write_labels(tmp_path / "labels.csv", rows, lambda i: "positive")
    evaluate()
    found = metrics(tmp_path)
    assert found["auc"]["value"] == ""
    assert found["auc"]["note"] == "not defined: there are no slides of class 'negative'"
    assert 0 <= float(found["accuracy"]["value"]) <= 1
    assert table(tmp_path / "out" / "roc.csv") == []
    assert (tmp_path / "out" / "evaluation.png").exists()


def test_a_split_alone_is_evaluated(evaluate, forty, tmp_path):
    splits = [["train", "val", "test"][i // 2 % 3] for i in range(40)]
    named = write_labels(tmp_path / "split.csv", forty, split=splits)
    ran = evaluate("--split", "test", labels=named)
    assert ran.json["counts"] == {"evaluated": splits.count("test"), "left_out": 40 - splits.count("test")}
    assert ran.json["notes"]["split is train"] == str(splits.count("train"))

    columns = {s: [r[0] for r, t in zip(forty, splits, strict=True) if t == s] for s in ("train", "test")}
    longest = max(map(len, columns.values()))
    columns = {name: [*ids, *[""] * (longest - len(ids))] for name, ids in columns.items()}
    write_csv(tmp_path / "splits_0.csv", columns)
    ran = evaluate("--splits", tmp_path / "splits_0.csv", "--overwrite")
    assert ran.json["counts"]["evaluated"] == splits.count("test")
    assert ran.json["notes"]["split is not known"] == str(splits.count("val"))
    ran = evaluate("--splits", tmp_path / "splits_0.csv", "--split", "train", "--overwrite")
    assert ran.json["counts"]["evaluated"] == splits.count("train")


def test_three_classes(evaluate, tmp_path):
    target = Target("classification", ("a", "b", "c"))
    scores = np.random.default_rng(0).dirichlet((1, 1, 1), 12).tolist()
    rows = [(f"s{i}", f"c{i}", "done", values) for i, values in enumerate(scores)]
    write_scores(tmp_path / "scores", target, rows)
    write_labels(tmp_path / "labels.csv", rows, lambda i: "abc"[i % 3])
    evaluate()
    assert {"auc", "auc_a", "auc_b", "auc_c"} < metrics(tmp_path).keys()
    assert {row["class"] for row in table(tmp_path / "out" / "roc.csv")} == set("abc")
    assert len(table(tmp_path / "out" / "confusion.csv")) == 3


def test_several_labels(evaluate, tmp_path):
    target = Target("multilabel", ("er", "her2"))
    scores = np.random.default_rng(0).random((12, 2)).tolist()
    rows = [(f"s{i}", f"c{i}", "done", values) for i, values in enumerate(scores)]
    write_scores(tmp_path / "scores", target, rows)
    write_labels(tmp_path / "labels.csv", rows, lambda i: ["er;her2", "-", "?er;her2", "er"][i % 4])
    evaluate()
    assert files(tmp_path / "out") == OF_CLASSES
    assert {"auc", "auc_er", "auc_her2"} < metrics(tmp_path).keys()
    assert sum(int(row["n"]) for row in table(tmp_path / "out" / "reliability.csv")) == 21


def test_values(evaluate, tmp_path):
    target = Target("regression", ("value",))
    rows = [(f"s{i}", f"c{i}", "done", [i + 0.5]) for i in range(10)]
    write_scores(tmp_path / "scores", target, rows)
    write_labels(tmp_path / "labels.csv", rows, lambda i: str(float(i)))
    ran = evaluate()
    assert files(tmp_path / "out") == [*ALWAYS, "run.json"]
    assert float(metrics(tmp_path)["mae"]["value"]) == 0.5
    wrong = write_labels(tmp_path / "wrong.csv", rows, lambda i: "high")
    ran = evaluate("--overwrite", labels=wrong, code=2)
    assert "'high', expected a number" in ran.stderr


def test_survival(evaluate, tmp_path):
    target = Target("survival", ("risk",))
    rows = [(f"s{i}", f"c{i}", "done", [10.0 - i]) for i in range(10)]
    write_scores(tmp_path / "scores", target, rows)
    write_csv(
        tmp_path / "labels.csv",
        {
            "slide_id": [row[0] for row in rows],
            "months": [i + 1.5 for i in range(10)],
            "died": [int(i % 3 > 0) for i in range(10)],
        },
    )
    evaluate("--label-column", "months,died")
    assert files(tmp_path / "out") == sorted([*ALWAYS, "kaplan_meier.csv", "run.json"])
    assert metrics(tmp_path)["concordance"]["value"] == "1.0"
    curve = table(tmp_path / "out" / "kaplan_meier.csv")
    assert {row["group"] for row in curve} == {
        "risk up to the median (n = 5)",
        "risk above the median (n = 5)",
    }


def test_scores_that_the_stage_made(run, evaluate, slides, refs, model, client, tmp_path):
    score(refs, model, tmp_path / "scores", execution=Execution(scheduler=client))
    ran = evaluate(labels=slides / "labels.csv")
    assert ran.json["counts"] == {"evaluated": 6, "left_out": 0}
    assert ran.json["notes"]["task"] == "classification"


def test_a_dry_run_writes_nothing(evaluate, forty, tmp_path):
    ran = evaluate("--dry-run")
    assert ran.json["counts"] == {"to_do": 40, "finished": 0}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ("slide_id,label\nother,negative\n", (), "no label belongs to any slide"),
        ("slide_id,label\ns0,benign\ns2,positive\n", (), "'benign' is not one of negative, positive"),
        ("slide_id,label\ns0,nan\n", (), "none of 40 slides can be evaluated: no label: 40 (s0, s1"),
        ("slide_id,label\ns0,negative\n", ("--by", "patient"), "cannot evaluate by 'patient'"),
        ("slide_id,label\ns0,negative\n", ("--split", "test"), "there are no splits"),
        (
            "slide_id,case_id,label\ns0,c0,negative\ns1,c0,positive\n",
            ("--by", "case"),
            "slides of case 'c0' have labels 'negative', 'positive'",
        ),
        (
            "slide_id,case_id,label,split\ns0,c0,negative,train\ns1,c0,negative,test\n",
            ("--split", "test"),
            "case 'c0' is in splits test, train",
        ),
        ("", (), "is empty"),
    ],
)
def test_labels_that_cannot_be_used(evaluate, forty, tmp_path, labels, options, said):
    (tmp_path / "labels.csv").write_text(labels)
    ran = evaluate(*options, code=2)
    assert said in ran.stderr
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_scores(evaluate, forty, tmp_path):
    record = json.loads((tmp_path / "scores" / "run.json").read_text())
    for change, said in (
        ({"end": None}, "holds no finished scores (stage score, end None)"),
        ({"stage": "train"}, "holds no finished scores (stage train"),
        ({"target": None}, "score again with this version"),
    ):
        (tmp_path / "scores" / "run.json").write_text(json.dumps(record | change))
        ran = evaluate(code=2)
        assert said in ran.stderr
    evaluate(scores=tmp_path / "none", code=2)
