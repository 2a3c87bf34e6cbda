"""The same commands train, score and export every kind of model."""

from __future__ import annotations

import pytest
from conftest import files, table

from wsi_ats.results.selections import load_attention, read_selection

FOLDERS = ["predictions.csv", "predictions.parquet", "records", "run.json"]


@pytest.fixture
def train_and_score(run, slides, config, tmp_path):
    def train_and_score(*changes):
        options = [word for change in changes for word in ("--set", change)]
        out, scores = tmp_path / "run", tmp_path / "scores"
        labels = ("--labels", slides / "labels.csv")
        ran = run("train", slides, *labels, "--out", out, "--config", config, *options)
        ran = run("score", slides, "--model", out, "--out", scores, "--json")
        assert ran.json["counts"]["done"] == 6
        return out, scores

    return train_and_score


def test_uniform(train_and_score):
    _, scores = train_and_score("model.kind=uniform")
    attention = load_attention(scores / "attention" / "slide_000.npz")
    assert attention.attention[attention.tissue] == pytest.approx(1 / attention.tissue.sum())
    assert {row["tiles_read"] for row in table(scores / "predictions.csv")} == {"8"}


@pytest.mark.parametrize("frozen", [False, True])
def test_multiple_instance_learning(train_and_score, run, slides, tmp_path, frozen):
    fine_tuning = "frozen" if frozen else "full"
    out, scores = train_and_score("model.kind=mil", f"training.fine_tuning={fine_tuning}")
    assert (out / "features").exists() is frozen
    for row in table(scores / "predictions.csv"):
        assert row["tiles_read"] == row["tiles_total"]
        assert (row["draws"], row["logit_se"]) == ("1", "")
        attention = load_attention(scores / "attention" / f"{row['slide_id']}.npz")
        selection = read_selection(scores / "selections" / f"{row['slide_id']}.parquet")
        assert len(selection.cells) == int(row["tiles_total"]) == attention.tissue.sum()
        assert selection.weight.tolist() == attention.attention.flat[selection.cells].tolist()
    if frozen:
        assert len(files(out / "features")) == 6
    ran = run("export", scores, "--to", "csv", "--out", tmp_path / "csv", "--json")
    assert ran.json["counts"] == {"exported": 6, "without_tiles": 0}
    ran = run("score", slides, "--model", out, "--out", tmp_path / "more", "--draws", 2, code=2)
    assert "a model of kind mil draws no tiles" in ran.stderr
    ran = run("score", slides, "--model", out, "--out", tmp_path / "more", "--tiles", 2, code=2)
    assert "sampling.tiles is 2, but it has no effect on scoring" in ran.stderr


def test_image(train_and_score, run, tmp_path):
    _, scores = train_and_score("model.kind=image", "model.scale=0.25")
    assert files(scores) == FOLDERS
    for row in table(scores / "predictions.csv"):
        assert (row["status"], row["draws"], row["tiles_read"]) == ("done", "1", "0")
        assert float(row["prob_positive"]) + float(row["prob_negative"]) == pytest.approx(1)
        assert int(row["bytes_read"]) > 0
    for kind in ("csv", "qupath"):
        ran = run("export", scores, "--to", kind, "--out", tmp_path / kind, "--json")
        assert ran.json["counts"] == {"exported": 0, "without_tiles": 6}
    assert len(table(tmp_path / "csv" / "csv" / "predictions.csv")) == 6
    assert table(tmp_path / "csv" / "csv" / "selections.csv") == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("model.kind=image", "model.scale=0.3"), "model.scale=0.296875 for 19 pixels"),
        (("model.kind=mil", "training.epochs=0"), "there are no epochs to train; set training.epochs"),
        (("model.kind=cnn",), "model.kind must be sampling, uniform, mil or image"),
    ],
)
def test_impossible_combinations_are_refused_before_any_work(run, slides, config, tmp_path, changes, said):
    options = [word for change in changes for word in ("--set", change)]
    labels = ("--labels", slides / "labels.csv")
    ran = run("train", slides, *labels, "--out", tmp_path / "run", "--config", config, *options, code=2)
    assert said in ran.stderr
    assert not (tmp_path / "run").exists()
