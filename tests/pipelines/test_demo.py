"""The demo, small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines._console import show
from pipelines._demo_arms import ARMS
from pipelines._demo_slides import Scale, claim
from pipelines._runs import Execution
from pipelines.demo import demo
from wsi_ats.errors import ArtifactError
from wsi_ats.files import read_json
from wsi_ats.tables.files import read_parquet

SMALL = Scale(training=8, held_out=8, side=1024, gigapixel_side=2048, slides_per_bank=4, epochs=1)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def shown(out, client):
    return demo(out, seed=1, scale=SMALL, execution=Execution(scheduler=client))


def test_every_arm_has_a_row(shown):
    assert list(shown.arms) == [*ARMS, "thumbnail only"]
    (_, (head, *rows)), *_ = shown.sections()
    assert [row[0] for row in rows[:3]] == ["attention sampling", "uniform draws", "thumbnail only"]
    assert {len(row) for row in rows} == {len(head)}


def test_the_same_budget_is_spent_by_all_that_sample(shown, out):
    tiles = []
    for name in ARMS:
        rows, _ = read_parquet(out / "scores" / name.replace(" ", "_") / "predictions.parquet")
        tiles.append(rows["tiles_read"])
    assert tiles == [[16] * SMALL.held_out] * len(ARMS)


def test_bytes_and_tiles_are_fractions(shown):
    for name in ARMS:
        arm = shown.arms[name]
        assert 0 < arm.tiles < 1
        assert arm.bytes > 0  # above 1 on slides so small that the thumbnail takes all of them
        assert 0 <= arm.in_lesion <= 1


def test_ceiling_lies_between_chance_and_certainty(shown):
    assert all(0.5 < each < 1 for each in shown.ceiling)


def test_the_figure_is_not_blank(shown):
    import PIL.Image

    pixels = np.asarray(PIL.Image.open(shown.figure).convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels @ np.array([1, 256, 256**2]))) > 1000


def test_the_table_fits_a_terminal(shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    show(shown, as_json=False)
    lines = [line.strip("│ ").split("│")[0].strip() for line in capsys.readouterr().out.splitlines()]
    for name in ("attention sampling", "uniform draws", "ceiling, independent draws"):
        assert name in lines


def test_a_folder_with_other_demo_slides_is_refused(shown, out, client):
    before = sorted((out / "training").iterdir())
    for seed, scale, said in (
        (2, SMALL, "seed is 1 there and 2 now"),
        (1, replace(SMALL, side=2048), "side is 1024 there and 2048 now"),
    ):
        with pytest.raises(ArtifactError, match=said) as error:
            demo(out, seed=seed, scale=scale, execution=Execution(scheduler=client))
        assert "--overwrite" in str(error.value)
    assert sorted((out / "training").iterdir()) == before


def test_overwrite_makes_new_slides_and_keeps_foreign_files(tmp_path):
    made = {"seed": 1}
    claim(tmp_path, made, overwrite=False)
    for name in ("training", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.csv").touch()
    claim(tmp_path, {"seed": 2}, overwrite=True)
    assert not (tmp_path / "training").exists()
    assert (tmp_path / "mine" / "labels.csv").exists()
    assert read_json(tmp_path / "demo.json") == {"seed": 2}

    somebodys = tmp_path / "other" / "training"
    somebodys.mkdir(parents=True)
    with pytest.raises(ArtifactError, match="but no demo"):
        claim(tmp_path / "other", made, overwrite=True)
    assert somebodys.exists()


def test_a_second_demo_goes_on_with_the_first(shown, out, client):
    again = demo(out, seed=1, scale=SMALL, execution=Execution(scheduler=client))
    assert {n: (a.auc, a.tiles, a.bytes, a.in_lesion) for n, a in again.arms.items()} == {
        n: (a.auc, a.tiles, a.bytes, a.in_lesion) for n, a in shown.arms.items()
    }
