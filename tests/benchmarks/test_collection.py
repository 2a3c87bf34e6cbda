"""The benchmark of collections measures what it says, on tiny slides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import _collection, collection
from benchmarks.collection import Case, Crew
from pipelines._records import SlideTask
from wsi_ats.overview.overview import read_overview
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.tables.files import read_csv


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return tmp_path_factory.mktemp("slides")


def run(part, slides, tmp_path, *more):
    options = ["--quick", "--only", part, "--workers", "2", *more]
    folders = ["--slides", str(slides), "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    collection.main([*options, *folders])
    columns = read_csv(tmp_path / f"collection_{part}.csv")
    assert set(columns["hardware"]) == {_collection.hardware()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_overhead(rows):
    for row in rows:
        loop, cluster = float(row["loop_s"]), float(row["cluster_s"])
        assert float(row["overhead_ms"]) == pytest.approx(1e3 * (cluster - loop) / int(row["slides"]))
        assert 0 < float(row["in_workers_s"]) <= int(row["workers"]) * cluster
        assert float(row["least"]) <= float(row["most"])
    assert float(rows[0]["loop_s"]) < float(rows[0]["cluster_s"])


def test_overhead_is_what_a_cluster_adds_to_a_loop(slides, tmp_path):
    refs = _collection.links(_collection.tiny_slides(slides, 2), tmp_path / "links", 8)
    record = _collection.RecordTask(tmp_path, "benchmark")
    cases = [Case("nothing", _collection.nothing, refs), Case("a record", record, refs)]
    rows = collection.overhead(cases, [Crew(2, 2)], 2, tmp_path)
    assert [(row["task"], row["slides"], row["workers"]) for row in rows] == [
        ("nothing", 8, 2),
        ("a record", 8, 2),
    ]
    check_overhead(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["links"]  # nothing that was recorded is left


@pytest.mark.slow
def test_overhead_is_measured_on_tiny_slides_and_on_large_ones(slides, tmp_path):
    rows = run("overhead", slides, tmp_path)
    assert [row["task"] for row in rows[:3]] == ["nothing", "a record", "score, tiny slides"]
    assert "4096" in rows[3]["task"]
    assert rows[0]["overhead_percent"] == ""
    check_overhead(rows)


@pytest.mark.slow
def test_slides_that_share_batches_have_few_tiles_and_their_rate_is_by_those_alone(slides, tmp_path):
    alone, together = run("batches", slides, tmp_path, "--small", "4")
    assert (alone["at_once"], together["at_once"]) == ("1", "2")
    assert float(alone["by_alone"]) == 1
    for row in (alone, together):
        assert float(row["slides_per_hour"]) == pytest.approx(3600 * 4 / float(row["seconds"]))
        assert 4 <= int(row["fewest_tiles"]) <= float(row["tiles_a_slide"]) <= int(row["most_tiles"]) <= 12
        assert float(row["start_s"]) > 0
    rate = float(together["slides_per_hour"]) / float(alone["slides_per_hour"])
    assert float(together["by_alone"]) == pytest.approx(rate)


@pytest.mark.slow
def test_workers_share_the_cores_and_a_single_one_may_have_all(slides, tmp_path):
    one, two = run("workers", slides, tmp_path)
    assert (one["workers"], two["workers"]) == ("1", "2")
    assert one["threads"] == two["threads"]
    assert float(one["by_one"]) == 1
    assert float(two["by_one"]) > 0


@pytest.mark.slow
def test_a_worker_holds_more_when_it_has_scored_than_before(slides, tmp_path):
    (row,) = run("memory", slides, tmp_path)
    assert 50 < float(row["loaded_mb"]) < float(row["peak_mb"])


def test_each_round_works_in_a_new_folder(tmp_path):
    task = _collection.RecordTask(tmp_path, "benchmark")
    assert isinstance(task, SlideTask)
    with collection._fresh(task, tmp_path) as one:
        assert one == replace(task, out=one.out)
        assert one.out.is_dir()
        with collection._fresh(task, tmp_path) as other:
            assert one.out != other.out
    assert not one.out.exists()
    with collection._fresh(_collection.nothing, tmp_path) as same:
        assert same is _collection.nothing


def test_a_slide_that_fails_is_no_figure(tmp_path):
    refs = [SlideRef("missing", str(tmp_path / "missing.tif"), "missing")]
    with Crew(1, 1).at_work() as client, pytest.raises(RuntimeError, match=r"missing\.tif"):
        collection.timed(open_slide, refs, client)


def test_a_case_is_as_many_slides_as_it_has_links(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"a")
    (tmp_path / "b.tif").write_bytes(b"b")
    refs = _collection.links([tmp_path / "a.tif", tmp_path / "b.tif"], tmp_path / "links", 5)
    assert len({ref.id for ref in Case("read", _collection.nothing, refs).refs}) == 5
    assert [Path(ref.path).read_bytes() for ref in refs] == [b"a", b"b", b"a", b"b", b"a"]


def test_small_slides_have_few_tissue_tiles(slides):
    from wsi_ats.settings import Settings

    for path in _collection.small_slides(slides, 4):
        with open_slide(path) as slide:
            assert 4 <= len(read_overview(slide, Settings()).tissue.cells) <= 12
