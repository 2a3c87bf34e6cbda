"""Output folders: their owners, and protection against overwriting."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import pytest

from pipelines import _runs
from pipelines._runs import Execution, Identity, Summary, open_run, rooted
from wsi_ats.errors import ArtifactError, LockedError
from wsi_ats.files import locked, read_json
from wsi_ats.settings import Fixes, Settings

IDENTITY = Identity.of("score", Settings(), Fixes.SCORING, seed=3, model="abc")


def finish(out, identity=IDENTITY, **options):
    with open_run(out, identity, Execution(**options), results=("rows.csv",)) as run:
        run.begin()
        run.finish({"done": 1})


def test_the_run_record_explains_how_results_arose(tmp_path):
    times = iter([datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)])
    finish(tmp_path, command="wsi-ats score", clock=lambda: next(times))
    record = read_json(tmp_path / "run.json")
    assert record["stage"] == "score"
    assert record["command"] == "wsi-ats score"
    assert record["settings"]["sampling"]["tiles"] == 64
    assert record["digests"] == {"settings": Settings().digest(Fixes.SCORING), "model": "abc"}
    assert (record["seed"], record["counts"]) == (3, {"done": 1})
    assert {"python", "torch", "dask", "openslide-python"} <= record["versions"].keys()
    assert record["machine"].keys() == {"platform", "cpus"}
    assert record["start"].startswith("2026-01-01")
    assert record["end"].startswith("2026-01-02")


def test_an_unfinished_run_has_no_end(tmp_path):
    with open_run(tmp_path, IDENTITY, Execution(), results=()) as run:
        run.begin()
    assert read_json(tmp_path / "run.json")["end"] is None
    with open_run(tmp_path, IDENTITY, Execution(), results=()) as run:
        assert run.previous is not None


def test_an_empty_setting_is_named_as_empty():
    one, other = (
        Identity.of("prepare", Settings().with_values([f"thumbnail.exclude={value}"]), Fixes.THUMBNAILS)
        for value in ("", "pen")
    )
    assert other.differences(asdict(one)) == ["settings.thumbnail.exclude is empty there and pen now"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Identity.of("score", Settings(), Fixes.SCORING, seed=4, model="abc"), "seed is 3 there and 4 now"),
        (
            Identity.of("score", Settings(), Fixes.SCORING, seed=3, model="x"),
            "digests.model is abc there and x now",
        ),
        (
            Identity.of(
                "score", Settings().with_values(["sampling.tiles=9"]), Fixes.SCORING, seed=3, model="abc"
            ),
            "settings.sampling.tiles is 64 there and 9 now",
        ),
    ],
)
def test_a_folder_of_another_run_is_refused_and_the_difference_named(tmp_path, other, said):
    finish(tmp_path)
    with pytest.raises(ArtifactError, match=said) as error:
        finish(tmp_path, other)
    assert "--overwrite" in str(error.value)
    assert "digests.settings" not in str(error.value)
    finish(tmp_path, other, overwrite=True)


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"overwrite": True, "dry_run": True}])
def test_another_stage_s_results_are_never_overwritten(tmp_path, options):
    finish(tmp_path)
    (tmp_path / "rows.csv").write_text("results")
    other = Identity.of("prepare", Settings(), Fixes.SCORING, seed=3, model="abc")
    with pytest.raises(ArtifactError) as error:
        finish(tmp_path, other, **options)
    assert str(error.value) == f"{tmp_path} holds the results of `score`; choose another --out"
    assert (tmp_path / "rows.csv").read_text() == "results"
    assert read_json(tmp_path / "run.json")["stage"] == "score"


def test_overwrite_deletes_the_results_and_nothing_else(tmp_path):
    finish(tmp_path)
    for name in ("rows.csv", "mine.txt"):
        (tmp_path / name).write_text("")
    finish(tmp_path, overwrite=True)
    assert not (tmp_path / "rows.csv").exists()
    assert (tmp_path / "mine.txt").exists()


def test_overwrite_deletes_nothing_where_no_run_was(tmp_path):
    (tmp_path / "rows.csv").write_text("somebody else's")
    finish(tmp_path, overwrite=True)
    assert (tmp_path / "rows.csv").exists()


def test_a_dry_run_leaves_no_trace(tmp_path):
    with open_run(tmp_path / "out", IDENTITY, Execution(dry_run=True), results=()):
        pass
    assert not (tmp_path / "out").exists()


def test_a_locked_folder_is_refused_and_its_owner_named(tmp_path):
    with locked(tmp_path, "somebody's run"), pytest.raises(LockedError, match="somebody's run"):
        finish(tmp_path)


def test_a_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(_runs.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ArtifactError, match="full"):
        finish(tmp_path)


def test_one_file_has_one_name(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "slide.svs").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert rooted("../../other/slide.svs") == tmp_path / "other" / "slide.svs"
    assert rooted("../../none") == tmp_path / "none"
    assert rooted(tmp_path / "link") == tmp_path / "link"
    (tmp_path / "a" / "slide.svs").touch()
    behind = tmp_path / "link" / ".." / "slide.svs"  # in a, though the text says in tmp_path
    assert rooted(behind) == behind


def test_exit_codes():
    assert Summary("score", None, {"done": 1}).exit_code == 0
    assert Summary("score", None, {"done": 1}, failed={"a": "why"}).exit_code == 1
