"""Plans of the number of tiles, through the command line, and their words."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines._verdict import verdict
from pipelines._ways import ALL, ATTENTION, UNIFORM, FoldScores, Way
from pipelines.cli import app
from wsi_ats.bags.writing import BagWriter
from wsi_ats.tables.files import read_csv
from wsi_ats.tasks.registry import task_named

CELLS = 12  # a side of a slide
WIDTH = 6
TASK = task_named("classification")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Thumbnails and features of slides whose dark cells tell the class by their first feature."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "features").mkdir()
    lines = ["slide_id,path,mpp,downsample,label"]
    for number in range(30):
        rng, positive = np.random.default_rng(number), number % 2
        dark = rng.random((CELLS, CELLS)) < 0.3
        colour = np.where(dark[..., None], [120, 60, 130], [205, 150, 190]).repeat(8, 0).repeat(8, 1)
        image = (colour + rng.normal(0, 4, colour.shape)).clip(0, 255).astype(np.uint8)
        name = f"s{number:02d}"
        Image.fromarray(image).save(folder / f"{name}.png")
        rows = rng.normal(size=(CELLS**2, WIDTH)).astype(np.float32)
        rows[dark.ravel(), 0] += 6 if positive else -6
        places = np.stack(np.divmod(np.arange(CELLS**2), CELLS)[::-1], axis=1) * 256
        side = CELLS * 256
        with BagWriter(
            folder / "features" / f"{name}.h5", name=name, size=(side, side), mpp=0.5, side=256, width=WIDTH
        ) as writer:
            writer.append(places, rows)
        lines.append(f"{name},{name}.png,0.5,32,{'tumour' if positive else 'normal'}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return folder


def plan(collection, out, *options, address):
    """Run the command with few epochs; all is tissue, because the slides have no glass."""
    quick = (
        "training.epochs=8",
        "training.attention_epochs=2",
        "training.attention_tiles=32",
        "training.slides_per_step=2",
    )
    fixed = ("thumbnail.tissue=none", "training.tiles=16", *quick)
    words = [
        *("plan", collection / "slides.csv", "--labels", collection / "slides.csv"),
        *("--features", collection / "features", "--out", out, "--folds", 3, "--tiles", 16, "--tiles", 4),
        *("--resamples", 50, "--scheduler", address),
        *(word for each in fixed for word in ("--set", each)),
        *options,
    ]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def done(collection, address, tmp_path_factory):
    out = tmp_path_factory.mktemp("planned") / "plan"
    return out, *plan(collection, out, address=address)


def test_the_table_has_a_row_for_each_method_and_number_of_tiles(done):
    out, code, stdout, stderr = done
    assert code == 0, stderr
    with (out / "plan.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["tiles"]) for row in rows] == [
        *((ATTENTION, "4"), (ATTENTION, "16"), (UNIFORM, "4"), (UNIFORM, "16"), (ALL, "0"))
    ]
    for row in rows:
        assert (row["metric"], row["n"], row["cases"]) == ("auc", "30", "30")
        assert 0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1
    # Some uniform draws of four tiles miss all dark ones, a quarter of them.
    assert float(rows[-1]["value"]) > 0.9
    assert float(rows[2]["value"]) < float(rows[3]["value"]) <= float(rows[-1]["value"])
    with Image.open(out / "plan.png") as picture:
        assert picture.size[0] > 300
    assert "verdict" in stdout


def test_mil_which_reads_all_tiles_is_validated_after_its_last_epoch_alone(done):
    for fold in ("fold_0", "fold_1", "fold_2"):
        losses = read_csv(done[0] / "folds" / fold / "mil" / "metrics.csv")["validation_loss"]
        assert set(losses[:-1]) == {""}
        assert float(losses[-1]) > 0


def test_a_finished_plan_is_taken_up_without_training(done, collection, address):
    out, _, stdout, _ = done
    before = {path: path.stat().st_mtime_ns for path in (out / "folds").rglob("*")}
    assert len(before) > 3
    code, again, _ = plan(collection, out, address=address)
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "folds").rglob("*")} == before
    assert again.partition("verdict")[2] == stdout.partition("verdict")[2]


def test_a_dry_run_counts_folds_and_writes_nothing(collection, address, tmp_path):
    code, stdout, _ = plan(collection, tmp_path / "out", "--dry-run", "--json", address=address)
    assert code == 0
    assert '"to_do": 3' in stdout
    assert not (tmp_path / "out").exists()


def test_plans_of_other_kinds_or_without_features_are_refused(collection, address, tmp_path):
    code, _, stderr = plan(collection, tmp_path / "out", "--set", "model.kind=mil", address=address)
    assert (code, "model.kind is mil, but a plan is for sampling" in stderr) == (2, True)
    result = CliRunner().invoke(
        app,
        [
            *("plan", str(collection / "slides.csv"), "--labels", str(collection / "slides.csv")),
            *("--out", str(tmp_path / "out")),
        ],
    )
    assert result.exit_code == 2
    assert "takes features; give their folder with --features" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_scores_of_a_fold_are_stored_and_read_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    scores = {Way(ATTENTION, 4): rng.random((3, 2, 2)), Way(ALL): rng.random((1, 2, 2))}
    FoldScores(["a", "b"], scores, {"c": "damaged"}).save(tmp_path / "fold.json")
    found = FoldScores.load(tmp_path / "fold.json")
    assert (found.ids, found.failed) == (["a", "b"], {"c": "damaged"})
    assert found.scores.keys() == scores.keys()
    assert all((found.scores[way] == each).all() for way, each in scores.items())


def rows_of(**values):
    """Rows of a plan with 60 slides: value, loss and their intervals by method."""
    rows = []
    for name, (value, loss) in values.items():
        method, _, tiles = name.partition("_")
        rows.append(
            {
                "method": {"attention": ATTENTION, "uniform": UNIFORM, "all": ALL}[method],
                "tiles": int(tiles or 0),
                "value": value,
                "low": value - 0.05,
                "high": value + 0.04,
                "loss": loss,
                "loss_low": loss - 0.02,
                "loss_high": loss + 0.03,
                "n": 60,
            }
        )
    return rows


ATTENTION_64 = {"uniform_64": (0.7, 0.25), "all": (0.95, 0)}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            rows_of(attention_16=(0.9, 0.05), attention_64=(0.94, 0.01), **ATTENTION_64),
            "yes: 64 of 12800 tiles: auc 0.940 (0.890 to 0.980) against 0.950 (0.900 to 0.990) with all; "
            "200 times fewer tiles",
        ),
        (
            rows_of(attention_64=(0.93, 0.02), uniform_64=(0.925, 0.025), all=(0.95, 0)),
            "yes: 64 of 12800 tiles: auc 0.930 (0.880 to 0.970) against 0.950 (0.900 to 0.990) with all; "
            "200 times fewer tiles; uniform draws do as well (0.925): attention does not help here",
        ),
        (
            rows_of(attention_64=(0.80, 0.15), **ATTENTION_64),
            "no: with 64 of 12800 tiles, auc is 0.800 (0.750 to 0.840), lower by 0.150 (0.130 to 0.180) than "
            "with all; draw more, or use all tiles (model.kind=mil)",
        ),
        (
            rows_of(attention_64=(0.53, -0.01), uniform_64=(0.5, 0.02), all=(0.52, 0)),
            "no: not even all tiles predict the labels better than chance (auc 0.520 (0.470 to 0.560)); give "
            "more slides, or features of another encoder",
        ),
        (
            rows_of(attention_64=(0.75, -0.23), uniform_64=(0.5, 0.02), all=(0.52, 0)),
            "undecided: attention MIL learned nothing from all tiles (auc 0.520 (0.470 to 0.560)), so it is "
            "no reference for 64 tiles (0.750 (0.700 to 0.790)); give more slides",
        ),
        (
            rows_of(attention_12800=(0.95, 0.0), uniform_12800=(0.95, 0.0), all=(0.95, 0)),
            "undecided: slides have 12800 tiles, no more than were drawn; give --tiles fewer",
        ),
    ],
)
def test_the_verdict_says_whether_few_tiles_do(rows, words):
    assert verdict(rows, TASK, tiles=12800) == words


def test_a_loss_that_few_slides_cannot_exclude_is_undecided():
    rows = rows_of(attention_64=(0.94, 0.01), **ATTENTION_64)
    rows[0]["loss_high"] = 0.2
    assert verdict(rows, TASK, tiles=640) == (
        "undecided: 64 of 640 tiles: auc 0.940 (0.890 to 0.980) against 0.950 (0.900 to 0.990) with all; "
        "10 times fewer tiles, but with 60 slides a loss of up to 0.200 cannot be excluded"
    )


def test_the_verdict_without_metrics_or_intervals_is_undecided():
    for missing in (("value", "low", "high"), ("low", "high", "loss_low", "loss_high")):
        rows = rows_of(attention_64=(0.9, 0.0), uniform_64=(0.9, 0.0), all=(0.9, 0))
        rows[-1] |= dict.fromkeys(missing)
        assert verdict(rows, TASK, tiles=100).startswith("undecided: auc or its interval is not defined")


def test_a_fold_without_a_test_slide_that_can_be_read_has_no_scores(collection, address, tmp_path):
    """The others are compared, and its slides are listed."""
    import shutil

    folder = shutil.copytree(collection, tmp_path / "copy")
    code, _, stderr = plan(folder, tmp_path / "out", "--dry-run", address=address)
    assert code == 0, stderr
    with (folder / "slides.csv").open(newline="") as file:
        names = [row["slide_id"] for row in csv.DictReader(file)]
    (folder / "splits").mkdir()
    for number in range(2):
        lines = ["train,val,test", *(f"{a},{b}," for a, b in zip(names[4:12], names[12:20], strict=True))]
        lines += [f",,{name}" for name in (names[:2] if number == 0 else names[2:4])]
        (folder / "splits" / f"splits_{number}.csv").write_text("\n".join(lines) + "\n")
    for name in names[:2]:
        (folder / "features" / f"{name}.h5").write_bytes(b"junk")
    words = [
        "plan",
        folder / "slides.csv",
        "--labels",
        folder / "slides.csv",
        "--features",
        folder / "features",
    ]
    words += ["--splits", folder / "splits", "--out", tmp_path / "out", "--tiles", 4, "--resamples", 20]
    words += [
        "--scheduler",
        address,
        "--json",
        "--set",
        "thumbnail.tissue=none",
        "--set",
        "training.epochs=1",
    ]
    words += ["--set", "training.attention_epochs=1", "--set", "training.attention_tiles=8"]
    ran = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert ran.exit_code == 1, ran.stderr
    import json

    found = json.loads(ran.stdout)
    assert found["failed"].keys() == set(names[:2])
    assert found["counts"]["evaluated"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.cases=union", "model.cases is union, but a plan scores single slides"),
        ("sampling.draws=3", "sampling.draws, sampling.tolerance, sampling.max_tiles"),
        ("scoring.encoder_checkpoint=a.pth", "have no effect on a plan"),
        ("model.backbone=features:7", "a file has 6 features of each tile, but model.backbone is features:7"),
    ],
)
def test_settings_without_effect_on_a_plan_are_refused(collection, address, tmp_path, change, message):
    code, _, stderr = plan(collection, tmp_path / "out", "--set", change, address=address)
    assert (code, message in stderr) == (2, True), stderr
