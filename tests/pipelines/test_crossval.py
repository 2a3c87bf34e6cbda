"""Cross-validation through the command line; stopped and taken up again, and with splits of others."""

from __future__ import annotations

import shutil

import pytest
from conftest import SETTINGS, files, table

from pipelines._console import ConsoleReporter
from pipelines._runs import Execution
from pipelines.crossval import crossval as run_crossval
from wsi_ats.files import read_json
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.tables.splits import read_folds

QUICK = ("training.epochs=1", "training.validation=0.5")


@pytest.fixture
def crossval(run, slides, config, address, tmp_path):
    def crossval(*options, source=slides, labels=slides / "labels.csv", out=tmp_path / "cv", code=0):
        quick = [word for change in QUICK for word in ("--set", change)]
        rest = ("--config", config, *quick, "--resamples", 20, "--json", *options)
        return run("crossval", source, "--labels", labels, "--out", out, *rest, scheduler=address, code=code)

    return crossval


@pytest.fixture(scope="module")
def done(slides, client, tmp_path_factory):
    """Three folds of six slides, from Python."""
    out = tmp_path_factory.mktemp("crossval")
    refs = read_manifest(slides, labels=slides / "labels.csv")
    settings, execution = SETTINGS.with_values(QUICK), Execution(scheduler=client)
    summary = run_crossval(refs, out, folds=3, resamples=20, settings=settings, execution=execution)
    assert summary.exit_code == 0
    return out


def test_output_files(done, slides):
    assert files(done) == [
        *("confusion.csv", "evaluated.csv", "evaluation.png", "fold_0", "fold_1", "fold_2", "left_out.csv"),
        *("metrics.csv", "precision_recall.csv", "prepared", "records", "reliability.csv", "roc.csv"),
        *("run.json", "slides.csv", "slides.parquet", "splits", "thumbnails"),
    ]
    folds = read_folds(done / "splits")
    assert list(folds) == ["splits_0.csv", "splits_1.csv", "splits_2.csv"]
    tested = [slide for fold in folds.values() for slide, split in fold.items() if split == "test"]
    assert sorted(tested) == [f"slide_{i:03d}" for i in range(6)]
    evaluated = {row["name"]: row for row in table(done / "evaluated.csv")}
    for number, fold in enumerate(folds.values()):
        assert sorted(fold.values()) == ["test", "test", "train", "train", "val", "val"]
        model = table(done / f"fold_{number}" / "model" / "splits.csv")
        assert {row["slide_id"]: row["split"] for row in model} == {
            slide: split for slide, split in fold.items() if split != "test"
        }
        scores = table(done / f"fold_{number}" / "scores" / "predictions.csv")
        assert {row["slide_id"] for row in scores} == {s for s, split in fold.items() if split == "test"}
        for row in scores:
            assert row["prob_positive"] == evaluated[row["slide_id"]]["prob_positive"]
            assert evaluated[row["slide_id"]]["fold"] == f"fold_{number}"
    labels = {row["slide_id"]: row["label"] for row in table(slides / "labels.csv")}
    assert {name: row["label"] for name, row in evaluated.items()} == labels


def test_folds_share_the_slides_which_are_prepared_once(done):
    assert [row["slide_id"] for row in table(done / "slides.csv")] == [f"slide_{i:03d}" for i in range(6)]
    for number in range(3):
        model = done / f"fold_{number}" / "model"
        assert not {"prepared", "thumbnails", "records"} & set(files(model))
        assert len(table(model / "slides.csv")) == 4


def test_metrics_of_each_fold_and_of_all(done):
    rows = [row for row in table(done / "metrics.csv") if row["metric"] == "auc"]
    assert [row["fold"] for row in rows] == ["fold_0", "fold_1", "fold_2", "pooled", "mean"]
    assert [row["n"] for row in rows] == ["2", "2", "2", "6", "6"]
    each = [float(row["value"]) for row in rows]
    assert each[4] == pytest.approx(sum(each[:3]) / 3)
    assert "of 3 folds, standard deviation" in rows[4]["note"]
    assert float(rows[3]["low"]) <= each[3] <= float(rows[3]["high"])


def test_a_stopped_run_resumes_with_the_splits_it_wrote(crossval, done, tmp_path, monkeypatch):
    def interrupt(self, text):
        if text.startswith("fold_1 "):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleReporter, "message", interrupt)
        crossval("--splits", done / "splits", code=130)
    assert read_json(tmp_path / "cv" / "run.json")["end"] is None
    dry = crossval("--splits", done / "splits", "--dry-run").json
    assert dry["counts"] == {"to_do": 2, "finished": 1}
    assert dry["notes"]["fold_1"] == "2 train, 2 val, 2 test"

    again = crossval("--splits", done / "splits")
    assert again.stderr.count("nothing to do") == 1
    assert "fold_2 (3 of 3): 2 train, 2 val, 2 test" in again.stderr
    assert again.json["counts"] == {"folds": 3, "evaluated": 6, "left_out": 0}
    metrics = {row["metric"]: row["value"] for row in again.json["metrics"]}
    assert {"auc (fold_0)", "auc (pooled)", "accuracy (mean)"} < metrics.keys()
    for name in ("metrics.csv", "evaluated.csv", "roc.csv", "splits/splits_2.csv"):
        assert (tmp_path / "cv" / name).read_bytes() == (done / name).read_bytes()

    other = crossval("--splits", done / "splits", "--set", "training.epochs=2", code=2)
    assert "settings.training.epochs is 1 there and 2 now" in other.stderr
    other = crossval("--splits", done / "splits", "--set", "scoring.precision=float32", code=2)
    assert "settings.scoring.precision is auto there and float32 now" in other.stderr


def test_folds_with_a_frozen_backbone_share_its_features(crossval, published, tmp_path):
    options = ("--folds", 3, *published)
    crossval(*options)
    assert len(files(tmp_path / "cv" / "features")) == 6  # one for each slide
    for fold in ("fold_0", "fold_1", "fold_2"):
        assert "features" not in files(tmp_path / "cv" / fold / "model")


def write_folds(folder, *folds):
    """Each fold is a mapping of a split's name to the numbers of slides."""
    folder.mkdir()
    for number, fold in enumerate(folds):
        ids = {split: [f"slide_{i:03d}" for i in fold.get(split, [])] for split in ("train", "val", "test")}
        rows = [
            ",".join(column[i] if i < len(column) else "" for column in ids.values())
            for i in range(max(map(len, ids.values())))
        ]
        (folder / f"splits_{number}.csv").write_text("\n".join(["train,val,test", *rows, ""]))
    return folder


@pytest.fixture
def by_class(slides):
    """Numbers of the slides of each class."""
    rows = table(slides / "labels.csv")
    names = ("negative", "positive")
    return tuple([i for i, row in enumerate(rows) if row["label"] == name] for name in names)


def test_a_class_absent_from_a_fold_and_a_slide_that_cannot_be_read(crossval, slides, by_class, tmp_path):
    negative, positive = by_class
    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    with (folder / "labels.csv").open("a") as file:
        file.write("slide_006,case_6,slide_006.svs,positive\n")
    (folder / "slide_006.svs").write_text("this is no slide")
    splits = write_folds(
        tmp_path / "splits",
        {"train": negative[1:] + positive, "test": negative[:1]},
        {"train": negative + positive[1:], "test": [positive[0], 6]},
    )
    options = ("--splits", splits, "--set", "training.validation=0", "--by", "case")
    strict = crossval(*options, "--strict", source=folder, labels=folder / "labels.csv", code=1)
    assert (strict.exit_code, strict.json["counts"]) == (1, {"folds": 0})
    assert not (tmp_path / "cv" / "metrics.csv").exists()
    ran = crossval(*options, source=folder, labels=folder / "labels.csv", code=1)
    assert ran.json["failed"].keys() == {"slide_006"}
    assert ran.json["counts"] == {"folds": 2, "evaluated": 2, "left_out": 1}
    assert ran.json["notes"]["failed"] == "1 (slide_006)"
    assert "splits_0.csv: 0 of its slides have no label, and 1 with labels are not in it" in ran.stderr
    rows = {(row["fold"], row["metric"]): row for row in table(tmp_path / "cv" / "metrics.csv")}
    assert rows["fold_0", "auc"]["note"] == "not defined: there are no slides of class 'positive'"
    assert rows["fold_1", "auc"]["value"] == rows["mean", "auc"]["value"] == ""
    assert rows["mean", "auc"]["note"] == "not defined in any fold"
    assert rows["pooled", "auc"]["value"] in {"0.0", "0.5", "1.0"}
    assert rows["mean", "accuracy"]["value"] != ""


def test_regression_is_cross_validated_and_overwrites_earlier_results(crossval, done, slides, tmp_path):
    shutil.copytree(done, tmp_path / "cv")
    rows = [f"{row['slide_id']},{i * 0.7}" for i, row in enumerate(table(slides / "labels.csv"))]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,value", *rows, ""]))
    changes = ("--set", "model.task=regression", "--set", "training.validation=0")
    options = ("--folds", 2, *changes)
    crossval(*options, labels=tmp_path / "labels.csv", code=2)
    dry = crossval(*options, "--overwrite", "--dry-run", labels=tmp_path / "labels.csv")
    assert dry.json["counts"] == {"to_do": 2, "finished": 0}
    assert (tmp_path / "cv" / "fold_2").exists()
    crossval(*options, "--overwrite", labels=tmp_path / "labels.csv")
    assert files(tmp_path / "cv") == [
        *("evaluated.csv", "evaluation.png", "fold_0", "fold_1", "left_out.csv", "metrics.csv", "prepared"),
        *("records", "run.json", "slides.csv", "slides.parquet", "splits", "thumbnails"),
    ]
    assert files(tmp_path / "cv" / "splits") == ["splits_0.csv", "splits_1.csv"]
    assert {row["metric"] for row in table(tmp_path / "cv" / "metrics.csv")} == {"r2", "mae", "rmse"}


def test_survival_is_evaluated_within_each_fold(crossval, slides, tmp_path):
    rows = [f"{row['slide_id']},{i + 1};1" for i, row in enumerate(table(slides / "labels.csv"))]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,label", *rows, ""]))
    changes = ("--set", "model.task=survival", "--set", "training.validation=0")
    crossval("--folds", 2, *changes, labels=tmp_path / "labels.csv")
    values = {row["fold"]: row for row in table(tmp_path / "cv" / "metrics.csv")}
    assert values["pooled"]["value"] == ""
    assert "its own scale of scores" in values["pooled"]["note"]
    each = [float(values[f"fold_{number}"]["value"]) for number in (0, 1)]
    assert float(values["mean"]["value"]) == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        (
            lambda n, p: [{"train": [*n, *p[1:]], "test": p[:1]}, {"train": [*n, *p[1:]], "test": p[:1]}],
            "is in the test sets of fold_0 and of fold_1",
        ),
        (
            lambda n, p: [{"train": [*n, *p], "test": p[:1]}, {"train": n, "test": p}],
            "is in train and in test",
        ),
        (
            lambda n, p: [{"train": [*n, p[0], p[1]], "test": p[2:]}, {"train": n, "test": p[:2]}],
            "splits_1.csv: there is no training slide of 'positive'",
        ),
        (
            lambda n, p: [{"train": [*n, *p]}, {"train": [*n, *p[1:]], "test": p[:1]}],
            "none of these is for test",
        ),
        (lambda n, p: [{"train": [*n, *p[1:]], "test": p[:1]}], "holds 1 files splits_k.csv"),
    ],
)
def test_splits_that_cannot_be_used_are_refused_before_any_work(crossval, by_class, tmp_path, folds, said):
    splits = write_folds(tmp_path / "splits", *folds(*by_class))
    ran = crossval("--splits", splits, "--set", "training.validation=0", code=2)
    assert said in ran.stderr
    assert not (tmp_path / "cv").exists()


def test_a_case_in_two_splits_is_refused(crossval, slides, by_class, tmp_path):
    n, p = by_class
    case = {n[0]: "shared", n[1]: "shared"}
    rows = [
        f"{row['slide_id']},{case.get(i, i)},{row['label']}"
        for i, row in enumerate(table(slides / "labels.csv"))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,case_id,label", *rows, ""]))
    splits = write_folds(
        tmp_path / "splits", {"train": [*n[1:], *p], "test": n[:1]}, {"train": [*n, *p[1:]], "test": p[:1]}
    )
    ran = crossval("--splits", splits, labels=tmp_path / "labels.csv", code=2)
    assert "splits_0.csv: case 'shared' is in splits test, train" in ran.stderr
    assert not (tmp_path / "cv").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--folds", 7), "7 folds were requested"),
        (("--folds", 3, "--splits", "none"), "none: is not a folder"),
        (("--by", "patient"), "cannot evaluate by 'patient'"),
        (("--set", "training.validation=0.2", "--folds", 3), "fold_0: a class has only 2 cases"),
        (("--set", "sampling.design=top"), "biased"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_work(crossval, tmp_path, options, said):
    ran = crossval(*options, code=2)
    assert said in ran.stderr
    assert not (tmp_path / "cv").exists()


def test_several_processes_are_refused(crossval, tmp_path, monkeypatch):
    given = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    ran = crossval(code=2)
    assert "start it without torchrun" in ran.stderr
    assert not (tmp_path / "cv").exists()
