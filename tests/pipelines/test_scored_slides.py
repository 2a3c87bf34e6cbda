"""Scores read back: each slide with its files, at the place where it is now."""

from __future__ import annotations

import shutil
from dataclasses import asdict

import pytest

from pipelines._runs import Execution
from pipelines.score import score
from wsi_ats.errors import ArtifactError, ManifestError
from wsi_ats.files import read_json, write_json
from wsi_ats.results.records import Status
from wsi_ats.results.scores import read_scores
from wsi_ats.slides import open_slide
from wsi_ats.tables.files import read_parquet, write_parquet


@pytest.fixture(scope="module")
def moved(client, refs, model, tmp_path_factory):
    """Scores of copies of two slides, which were then moved to another folder."""
    root = tmp_path_factory.mktemp("moved")
    (root / "before").mkdir()
    (root / "after").mkdir()
    copies = [type(ref).from_path(shutil.copy(ref.path, root / "before"), mpp=0.51) for ref in refs[:2]]
    score(copies, model, root / "scores", execution=Execution(scheduler=client))
    for ref in copies:
        shutil.copy(ref.path, root / "after")  # not with its time
    return root


def test_a_slide_is_opened_as_it_was_scored(moved):
    slide = read_scores(moved / "scores").slides[0]
    ref = slide.ref()
    assert (ref.id, ref.mpp, ref.path) == (slide.id, 0.51, str(moved / "before" / f"{slide.id}.tif"))
    with open_slide(ref) as opened:
        assert opened.mpp.value == 0.51
        assert (opened.levels[0].width, opened.levels[0].height) == (
            slide.selection().grid.width,
            slide.selection().grid.height,
        )
    assert slide.status is Status.DONE
    assert slide.attention().grid == slide.selection().grid


def test_a_copy_of_the_slide_elsewhere_serves_as_well_and_another_slide_does_not(moved, tmp_path):
    scores = read_scores(moved / "scores")
    there = scores.moved_to(moved / "after")
    assert [each.ref().path for each in there.slides] == [
        str(moved / "after" / f"{each.id}.tif") for each in scores.slides
    ]
    one, other = scores.slides
    shutil.copy(moved / "before" / f"{other.id}.tif", tmp_path / f"{one.id}.tif")
    mistaken = scores.moved_to(tmp_path)
    with pytest.raises(ArtifactError, match=f"{one.id}: .* has changed since it was scored"):
        mistaken.by_id[one.id].ref()
    assert mistaken.by_id[other.id].ref().path == str(moved / "before" / f"{other.id}.tif")


def test_a_slide_that_is_gone_is_named_with_the_option_that_helps(moved, tmp_path):
    shutil.copytree(moved / "scores", tmp_path / "scores")
    slide = read_scores(tmp_path / "scores").slides[0]
    record = read_json(tmp_path / "scores" / "records" / f"{slide.id}.json")
    gone = record | {"slide": record["slide"] | {"path": "/nowhere/a.tif"}}
    write_json(tmp_path / "scores" / "records" / f"{slide.id}.json", gone)
    with pytest.raises(ArtifactError, match=r"/nowhere/a.tif is not there; .* --slides FOLDER"):
        slide.ref()
    del gone["slide"]
    write_json(tmp_path / "scores" / "records" / f"{slide.id}.json", gone)
    with pytest.raises(ArtifactError, match=r"does not record how .* was opened .*; score it again"):
        slide.ref()


def test_the_record_of_a_run_is_there_for_reports(moved):
    scores = read_scores(moved / "scores")
    assert scores.record["counts"]["done"] == 2
    assert asdict(scores.target)["task"] == "classification"
    assert scores.by_id.keys() == {each.id for each in scores.refs}


def test_a_folder_without_any_of_the_slides_is_refused(moved, tmp_path):
    shutil.copy(moved / "before" / "slide_000.tif", tmp_path / "other.tif")
    with pytest.raises(ManifestError, match="has 1 slides, but none of those that were scored"):
        read_scores(moved / "scores").moved_to(tmp_path)


@pytest.mark.parametrize("damage", ["target", "settings", "names", "more", "column"])
def test_damaged_scores_are_an_error_with_advice(moved, tmp_path, damage):
    shutil.copytree(moved / "scores", tmp_path / "scores")
    path = tmp_path / "scores" / "run.json"
    record = read_json(path)
    if damage in record:
        del record[damage]
    elif damage == "names":
        del record["target"]["names"]
    elif damage == "more":
        record["target"]["unit"] = "mm"
    else:
        columns, _ = read_parquet(tmp_path / "scores" / "predictions.parquet")
        del columns["logit_se"]
        write_parquet(tmp_path / "scores" / "predictions.parquet", columns)
    write_json(path, record)
    with pytest.raises(ArtifactError, match="score again with this version"):
        read_scores(tmp_path / "scores")
