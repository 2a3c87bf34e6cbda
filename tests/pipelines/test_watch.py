"""A watch from its beginning to its end."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import slide_jobs
from conftest import ROOT, files, table, without_times
from test_arrivals import Clock, put

from pipelines._records import absolute
from pipelines._reports import Finished
from pipelines._rounds import complete_arrivals
from pipelines._runs import Execution, Silent, Summary
from pipelines._watch import Arrivals
from pipelines.cli import app
from pipelines.score import ScoreTask, score
from wsi_ats.errors import MppError, SettingsError, WsiAtsError
from wsi_ats.files import read_json
from wsi_ats.results.selections import read_selection
from wsi_ats.tables.manifest import read_manifest


class Heard(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.finished: list[Finished] = []
        self.reused: list[int] = []

    def slides(self, title, total, reused):
        self.reused.append(reused)
        return nullcontext(self.finished.append)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Story:
    """Steps taken one by one, each time that the watch waits."""

    def __init__(self, steps: Iterator[None]) -> None:
        self.steps = steps
        self.clock = Clock()
        self.ended = False
        self.heard = Heard()

    def pause(self, seconds: float) -> None:
        self.clock.now += seconds
        try:
            next(self.steps)
        except StopIteration:
            self.ended = True


def watched(
    story: Story, *sources: Path, model: Path, out: Path, client: object, **options: object
) -> Summary:
    strict = bool(options.pop("strict", False))
    arrivals = Arrivals([*map(str, sources)], clock=story.clock, pause=story.pause, **options)
    execution = Execution(
        scheduler=client, stop=lambda: story.ended, reporter=story.heard, strict=strict, command="a watch"
    )
    return score(arrivals, model, out, execution=execution)


def until(condition: Callable[[], object]) -> Iterator[None]:
    """Let the watch scan until a condition holds."""
    for _ in range(50):
        if condition():
            return
        yield
    pytest.fail("it never came to be")


def assert_like_a_plain_run(out: Path, sources: Path, model: Path, client: object) -> None:
    plain = out.with_name(f"{out.name}_plain")
    score(read_manifest(sources), model, plain, execution=Execution(scheduler=client))
    mine, theirs = (without_times(table(each / "predictions.csv")) for each in (out, plain))
    assert mine == theirs
    for name in files(plain / "selections"):
        one, other = (read_selection(each / "selections" / name).columns() for each in (out, plain))
        assert one == other


def test_a_slide_is_not_scored_before_it_is_complete(slides, model, client, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    whole = (slides / "slide_000.tif").read_bytes()

    def steps() -> Iterator[None]:
        yield
        with (folder / "a.tif").open("wb") as file:
            for part in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
                assert not (out / "predictions.csv").exists()
                file.write(part)
                file.flush()
                yield
                yield
        yield from until((out / "predictions.csv").exists)
        assert [row["slide_id"] for row in table(out / "predictions.csv")] == ["a"]
        assert read_json(out / "run.json")["end"] is None
        shutil.copy(slides / "slide_001.tif", folder / "b.tif")
        yield from until(lambda: len(table(out / "predictions.csv")) == 2)
        (folder / "a.tif").rename(tmp_path / "a.tif")
        yield
        yield

    story = Story(steps())
    summary = watched(story, folder, model=model, out=out, client=client)
    assert (summary.exit_code, summary.counts["done"], summary.reused) == (0, 2, 0)
    assert "left_for_the_next_time" not in summary.notes
    assert summary.notes["tiles_read"] > 0
    (tmp_path / "a.tif").rename(folder / "a.tif")
    assert_like_a_plain_run(out, folder, model, client)
    record = read_json(out / "run.json")
    assert record["end"] is not None
    assert record["counts"] == {"done": 2, "no_tissue": 0, "failed": 0}
    waiting = "score: waiting for slides; stop with Ctrl-C or SIGTERM"
    arrived = "score: 1 slide arrived"
    assert story.heard.messages == [waiting, arrived, waiting, arrived, waiting, "score: stopping"]


def test_a_changed_slide_is_scored_again_and_a_failed_one_only_after_a_change(
    slides, model, client, tmp_path
):
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    shutil.copy(slides / "slide_000.tif", folder / "a.tif")
    (folder / "b.tif").write_text("no slide")
    first: list[dict[str, str]] = []

    def steps() -> Iterator[None]:
        yield from until((out / "predictions.csv").exists)
        first.extend(table(out / "predictions.csv"))
        for _ in range(10):
            yield
        shutil.copy(slides / "slide_001.tif", folder / "a.tif")
        shutil.copy(slides / "slide_002.tif", folder / "b.tif")
        yield from until(lambda: table(out / "predictions.csv")[1]["status"] == "done")

    story = Story(steps())
    summary = watched(story, folder, model=model, out=out, client=client)
    assert [row["status"] for row in first] == ["done", "failed"]
    assert (summary.exit_code, summary.counts["done"], summary.failed) == (0, 2, {})
    assert [(each.slide_id, each.status) for each in story.heard.finished if each.slide_id == "b"] == [
        ("b", "failed"),
        ("b", "done"),
    ]
    assert without_times(table(out / "predictions.csv"))[0] != without_times(first)[0]
    assert_like_a_plain_run(out, folder, model, client)


def test_a_restarted_watch_continues(slides, model, client, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    for name in ("gone", "kept", "other"):
        shutil.copy(slides / "slide_000.tif", folder / f"{name}.tif")

    def there(number: int) -> Iterator[None]:
        yield from until(
            lambda: (out / "predictions.csv").exists() and len(table(out / "predictions.csv")) == number
        )

    options = {"model": model, "out": out, "client": client}
    assert watched(Story(there(3)), folder, **options).counts["done"] == 3
    before = {path.name: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    old = table(out / "predictions.csv")
    (folder / "gone.tif").unlink()
    shutil.copy(slides / "slide_001.tif", folder / "other.tif")
    shutil.copy(slides / "slide_002.tif", folder / "new.tif")
    (out / "predictions.csv").unlink()

    def steps() -> Iterator[None]:
        rows = table(out / "predictions.csv")
        assert [row["slide_id"] for row in rows] == ["gone", "kept"], "what is known is written at once"
        yield from there(4)

    story = Story(steps())
    summary = watched(story, folder, **options)
    assert (summary.counts["done"], summary.reused) == (4, 2)
    assert set(story.heard.reused) == {2}
    assert story.heard.messages[:3] == [
        "score: 2 slides finished already",
        "score: waiting for slides; stop with Ctrl-C or SIGTERM",
        "score: 2 slides arrived",
    ]
    after = {path.name: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"new.json", "other.json"}
    rows = {row["slide_id"]: row for row in table(out / "predictions.csv")}
    assert [rows["gone"], rows["kept"]] == old[:2]


def test_strict_ends_a_watch_at_the_first_failure(slides, model, client, tmp_path):
    (tmp_path / "bad.tif").write_text("no slide")
    story = Story(until(lambda: False))
    summary = watched(story, tmp_path, model=model, out=tmp_path / "scores", client=client, strict=True)
    assert (summary.exit_code, set(summary.failed)) == (1, {"bad"})
    [row] = table(tmp_path / "scores" / "predictions.csv")
    assert (row["slide_id"], row["status"]) == ("bad", "failed")


def test_a_watch_without_arrivals(model, client, tmp_path):
    (tmp_path / "scans").mkdir()
    summary = watched(
        Story(iter(())), tmp_path / "scans", model=model, out=tmp_path / "scores", client=client
    )
    assert (summary.exit_code, sum(summary.counts.values())) == (0, 0)
    assert table(tmp_path / "scores" / "predictions.csv") == []
    assert read_json(tmp_path / "scores" / "run.json")["end"] is not None


def test_a_long_queue_is_done_in_rounds(slides, model, client, tmp_path, monkeypatch):
    """Tables, and slides that come in the meantime, do not wait for its end."""
    monkeypatch.setattr("pipelines._rounds._ROUND_SECONDS", 0.0)
    folder, out = tmp_path / "scans", tmp_path / "scores"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.tif").symlink_to(slides / f"slide_{i % 6:03}.tif")
    numbers: list[int] = []

    class Ticking(Clock):
        def __call__(self) -> float:
            self.now += 1e-3
            return self.now

    def steps() -> Iterator[None]:
        yield from until((out / "predictions.csv").exists)

    story = Story(steps())
    story.clock = Ticking()
    write = ScoreTask.write_tables

    def counted(task: object, rows: list[object]) -> None:
        numbers.append(len(rows))
        write(task, rows)

    monkeypatch.setattr("pipelines.score.ScoreTask.write_tables", counted)
    summary = watched(story, folder, model=model, out=out, client=client)
    assert summary.counts["done"] == 12
    assert numbers == sorted(numbers)
    assert len(set(numbers)) >= 2
    assert [text for text in story.heard.messages if "arrived" in text] == ["score: 12 slides arrived"]


def test_a_lost_scheduler_ends_the_watch(model, client, tmp_path):
    from distributed import Client

    (tmp_path / "scans").mkdir()
    own = Client(client.scheduler.address, set_as_default=False)

    def steps() -> Iterator[None]:
        yield
        own.close()
        yield

    with pytest.raises(WsiAtsError, match="the connection to the Dask scheduler was lost"):
        watched(Story(steps()), tmp_path / "scans", model=model, out=tmp_path / "scores", client=own)
    assert read_json(tmp_path / "scores" / "run.json")["end"] is None


def test_a_slide_is_scored_again_when_unrecorded_files_change(client, tmp_path, monkeypatch):
    folder = tmp_path / "scans"
    put(folder / "a.mrxs")
    put(folder / "a" / "Data0001.dat", "half")
    task = slide_jobs.TextTask(tmp_path / "out", "digest")
    record = tmp_path / "out" / "records" / "a.json"
    kept: list[int] = []
    monkeypatch.setattr(slide_jobs.TextTask, "write_tables", lambda self, rows: kept.append(len(rows)))

    def steps() -> Iterator[None]:
        yield from until(lambda: kept)
        first = record.stat().st_mtime_ns
        put(folder / "a" / "Data0001.dat", "half and half")
        yield from until(lambda: len(kept) == 2)
        assert record.stat().st_mtime_ns != first

    story = Story(steps())
    results = complete_arrivals(
        task,
        Arrivals([str(folder)], clock=story.clock, pause=story.pause),
        Execution(scheduler=client, stop=lambda: story.ended, reporter=story.heard),
        refer=absolute,
    )
    assert list(results.rows) == [{"slide_id": "a", "status": "done", "value": "A"}]
    assert "left_for_the_next_time" not in results.notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--every", 1), "--every has no effect without --watch"),
        (("--settle", 1), "--settle has no effect"),
        (("--marker", ".done"), "--marker has no effect"),
        (("--watch", "--every", 0), "--every must be a positive number"),
        (("--watch", "--dry-run"), "--watch waits for slides that --dry-run cannot know"),
        (("--watch", "--mpp", 1000), "1000"),
        (("--watch", "--tiles", 0.5), "--tiles"),
    ],
)
def test_options_that_do_not_go_together(run, slides, model, tmp_path, change, said):
    ran = run("score", slides, "--model", model, "--out", tmp_path / "scores", *change, code=2)
    assert said in ran.stderr
    assert not (tmp_path / "scores").exists()


PAGE = (ROOT / "docs" / "how-to" / "watching.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", re.findall(r"(?:^    |^ExecStart=\S*)(wsi-ats .*)", PAGE, re.M))
def test_commands_of_the_page_are_understood(line):
    from typer.main import get_command

    name, *words = shlex.split(line)[1:]
    stage = get_command(app).get_command(None, name)
    given = stage.make_context(name, words).params
    assert given["watch"]
    Arrivals(given["slides"], **{each: given[each] for each in ("every", "settle", "marker") if given[each]})


def test_the_service_of_the_page():
    [unit] = re.findall(r"^```ini\n(.*?)^```", PAGE, re.M | re.S)
    parser = configparser.ConfigParser()
    parser.optionxform = str
    parser.read_string(unit)
    service = parser["Service"]
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert "wsi-ats score " in service["ExecStart"]


def test_a_folder_that_is_not_there_is_an_error_at_once(run, model, tmp_path):
    ran = run("score", tmp_path / "scans", "--model", model, "--out", tmp_path / "scores", "--watch", code=2)
    assert f"{tmp_path / 'scans'}: no such file or folder" in ran.stderr
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"every": 0}, SettingsError, "--every must be a positive number of seconds, not 0"),
        ({"every": float("nan")}, SettingsError, "--every must be"),
        ({"every": 1e10}, SettingsError, "--every must be"),  # more than the system can wait
        ({"settle": -1}, SettingsError, "--settle must be seconds, 0 or more, not -1"),
        ({"settle": float("inf")}, SettingsError, "--settle must be"),
        ({"marker": ""}, SettingsError, "--marker is ''"),
        ({"marker": "/done"}, SettingsError, "--marker is '/done'"),
        ({"mpp": 1000.0}, MppError, "1000"),
        ({"reader": "mine"}, SettingsError, "reader is 'mine'"),
    ],
)
def test_invalid_options(tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        Arrivals([str(tmp_path)], **options)


def test_stores_are_not_watched():
    with pytest.raises(SettingsError, match="s3://bucket/scans: --watch needs files of this machine"):
        Arrivals(["s3://bucket/scans"])
