"""One task for each slide, and whatever may happen to it."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import slide_jobs

from pipelines import _cluster, _workers
from pipelines._carry_out import complete, workers_for
from pipelines._reports import Silent
from pipelines._runs import Execution
from pipelines._tasks import Limits, for_each_slide
from pipelines._work import Outcome
from pipelines.embed import EmbedTask
from pipelines.score import ScoreTask
from wsi_ats.errors import ManifestError, ModelError, SettingsError
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.targets import Target


def outcomes(client, function, *names: str) -> dict[str, Outcome[str]]:
    found: list[Outcome[str]] = []
    refs = [SlideRef.from_path(f"{name}.svs") for name in names]
    for_each_slide(function, refs, client, on_result=found.append)
    assert len({each.ref.id for each in found}) == len(found)
    return {each.ref.id: each for each in found}


def test_every_slide_has_a_result(client):
    names = [f"slide{i}" for i in range(40)]
    found = outcomes(client, slide_jobs.job, *names)
    assert {name: each.result for name, each in found.items()} == {name: name.upper() for name in names}


def test_a_bad_slide_fails_alone(client):
    found = outcomes(client, slide_jobs.job, "a", "bad", "b")
    assert found["bad"].error == "bad.svs: is bad"
    assert "SlideReadError" in found["bad"].trace
    assert [found[name].error for name in "ab"] == [None, None]


def test_an_unforeseen_error_fails_one_slide(client):
    found = outcomes(client, slide_jobs.job, "a", "bug", "b")
    assert found["bug"].error == "bug.svs: ZeroDivisionError: division by zero"
    assert "slide_jobs.py" in found["bug"].trace
    assert found["b"].result == "B"


def test_an_error_that_cannot_be_sent_fails_one_slide(client):
    found = outcomes(client, slide_jobs.unpicklable, "a")
    assert "broken" in str(found["a"].error)


@pytest.mark.parametrize("value", [0, -1, 10**10, math.inf, math.nan])
@pytest.mark.parametrize("name", ["timeout", "wait"])
def test_invalid_limits(name, value):
    with pytest.raises(SettingsError, match=f"--{name} must be a positive number of seconds, not {value}"):
        Limits(**{name: value})


def test_what_a_killed_process_was_writing_is_removed(client, tmp_path):
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    refs = [SlideRef.from_path(tmp_path / f"{name}.svs") for name in ("a", "b")]
    complete(task, refs[:1], Execution(scheduler=client))
    left = [
        tmp_path / "out" / folder / f".b.1a2b3c4d.part.{suffix}"
        for folder, suffix in (("records", "json"), ("texts", "txt"))
    ]
    for path in left:
        path.write_text("{")
    assert task.recorded() == {"a"}
    assert complete(task, refs, Execution(scheduler=client)).reused == 1
    assert not any(path.exists() for path in left)


def test_records_keep_what_is_done(client, tmp_path):
    refs = [SlideRef.from_path(tmp_path / f"{name}.svs") for name in ("a", "b", "bad", "bug")]
    execution = Execution(scheduler=client)
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    first = complete(task, refs, execution)
    assert [row["slide_id"] for row in first.rows] == ["a", "b", "bad", "bug"]
    assert set(first.failed) == {"bad", "bug"}
    assert (first.reused, first.stopped) == (0, False)

    again = complete(task, refs, execution)
    assert again.reused == 2
    assert again.rows == first.rows


@pytest.mark.parametrize("change", ["settings", "slide", "file gone", "record damaged", "case"])
def test_stale_records_are_done_again(client, tmp_path, change):
    path = tmp_path / "a.svs"
    path.write_text("slide")
    ref = SlideRef.from_path(path)
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    complete(task, [ref], Execution(scheduler=client))
    assert task.finished(ref) is not None
    if change == "settings":
        task = slide_jobs.TextTask(tmp_path / "out", "another")
    elif change == "slide":
        path.write_text("another slide")
    elif change == "file gone":
        task.files("a")[0].unlink()
    elif change == "record damaged":
        Path(tmp_path / "out" / "records" / "a.json").write_text("{")
    else:
        ref = SlideRef("a", str(path), case="patient")
    assert task.finished(ref) is None
    assert complete(task, [ref], Execution(scheduler=client)).reused == 0
    assert task.finished(ref) is not None


def test_a_record_requires_every_file_its_worker_wrote(tmp_path):
    """A worker of the next command may delete files meanwhile, as it starts the same slide again."""
    ref = SlideRef.from_path(tmp_path / "a.svs")

    class Overtaken(slide_jobs.TextTask):
        def work(self, ref):
            done = super().work(ref)
            for path in self.files(ref.id):
                path.unlink()
            return done

    Overtaken(tmp_path / "out", "digest")(ref)
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    assert task.finished(ref) is None  # should the next command be killed, too
    assert task.kept(["a"]) == {}
    task.work(ref)
    assert task.finished(ref) is not None


def test_rows_of_another_run_are_not_kept(tmp_path):
    """As when its results were being deleted (--overwrite) and the process was killed."""
    ref = SlideRef.from_path(tmp_path / "a.svs")
    task, other = (slide_jobs.TextTask(tmp_path / "out", name) for name in ("digest", "another"))
    row = other(ref)
    assert other.kept(["a"]) == {"a": row}
    assert task.kept(["a"]) == {}


def test_a_failed_slide_is_not_finished(client, tmp_path):
    ref = SlideRef.from_path(tmp_path / "bad.svs")
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    complete(task, [ref], Execution(scheduler=client))
    assert task.finished(ref) is None


def test_notes_are_of_this_run_alone(client, tmp_path):
    seconds = iter([0.0, 30.0, 100.0, 100.0, 200.0, 210.0])
    execution = Execution(scheduler=client, timer=lambda: next(seconds))
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    refs = [SlideRef.from_path(tmp_path / f"{name}.svs") for name in "abc"]
    first = complete(task, refs[:2], execution)
    assert first.notes == {"seconds": 30.0, "slides_per_minute": 4.0}
    assert complete(task, refs[:2], execution).notes == {}
    assert complete(task, refs, execution).notes == {"seconds": 10.0, "slides_per_minute": 6.0}


def test_two_slides_with_one_id_are_refused_before_any_work(client, tmp_path):
    refs = [SlideRef("a", str(tmp_path / folder / "a.svs"), case="a") for folder in ("one", "two")]
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    said = "two slides are called 'a': .*one/a.svs and .*two/a.svs; give each an id of its own"
    with pytest.raises(ManifestError, match=said):
        complete(task, refs, Execution(scheduler=client))
    with pytest.raises(ManifestError, match="two slides are called 'a'"):
        complete(task, refs[:1] * 2, Execution(scheduler=client))
    assert task.recorded() == set()


def test_an_unforeseen_error_tells_no_secret(client, tmp_path):
    ref = SlideRef("bug", "https://127.0.0.1:1/bug.svs?X-Amz-Signature=abcd", case="bug")
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    results = complete(task, [ref], Execution(scheduler=client))
    assert "ZeroDivisionError" in results.failed["bug"]
    assert "abcd" not in str(results)


def test_a_trace_tells_no_secret(client, tmp_path):
    class Traces(Silent):
        def debug(self, text):
            traces.append(text)

    traces: list[str] = []
    ref = SlideRef("store", "https://127.0.0.1:1/store.svs?X-Amz-Signature=abcd", case="store")
    task, execution = slide_jobs.TextTask(tmp_path / "out", "digest"), Execution(scheduler=client)
    complete(task, [ref], replace(execution, reporter=Traces()))
    (trace,) = traces
    assert "ConnectionError: GET https://127.0.0.1:1/store.svs?X-Amz-Signature=***" in trace
    assert "abcd" not in trace


@pytest.mark.parametrize(("kind", "given", "slides"), [("image", None, 1), ("image", 3, 3), ("mil", None, 2)])
def test_whole_images_are_in_memory_one_at_a_time(tmp_path, monkeypatch, kind, given, slides):
    @contextmanager
    def connect(scheduler, *, at_once, **others):
        asked.append(at_once)
        yield scheduler

    asked: list[int] = []
    monkeypatch.setattr(_cluster, "connect", connect)
    settings = Settings().with_values([f"model.kind={kind}"])
    target = Target("classification", ("a", "b"))
    task = ScoreTask(tmp_path, "digest", tmp_path, "digest", target, settings, seed=0)
    monkeypatch.setattr(_workers, "on_each_worker", lambda *arguments, **named: None)
    with workers_for(task, Execution(scheduler="none", slides_at_once=given)):
        assert asked == [slides]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, (4, 4)), ({"workers": 3}, (1, 2)), ({"slides_at_once": 1}, (4, 1))],
)
def test_embed_has_a_slide_for_each_of_four_cores_unless_workers_are_counted(
    tmp_path, monkeypatch, chosen, expected
):
    @contextmanager
    def connect(scheduler, *, cores, at_once, **others):
        asked.append((cores, at_once))
        yield scheduler

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(_cluster, "connect", connect)
    monkeypatch.setattr(_workers, "on_each_worker", lambda *arguments, **named: None)
    task = EmbedTask(tmp_path, "digest", Settings(), "digest", None, 0, "float32")
    with workers_for(task, Execution(scheduler="none", **chosen)):
        assert asked == [expected]


def test_a_worker_that_cannot_start_ends_the_run(client, tmp_path):
    task = slide_jobs.UnstartedTask(tmp_path, "digest")
    with pytest.raises(ModelError, match="no model today"):
        complete(task, [SlideRef.from_path("a.svs")], Execution(scheduler=client))
