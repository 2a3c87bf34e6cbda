"""The benchmark of scoring measures what it says, on a small slide."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from benchmarks import scoring
from benchmarks.scoring import Stopwatch, all_tissue
from benchmarks.slide_size import write
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.tiff_index import TiffIndex
from wsi_ats.tables.files import read_csv


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    write(folder, 4096)
    return folder


@pytest.fixture(scope="module")
def tables(slides, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    places = ["--slides", str(slides), "--work", str(out / "work"), "--out", str(out)]
    scoring.main(["--quick", "--threads", "2", *places])

    def rows(name):
        columns = read_csv(out / f"scoring_{name}.csv")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    return rows


def test_stages_are_all_of_the_task_and_say_what_was_read(tables):
    stages = {row["stage"]: row for row in tables("split")}
    assert len(stages) == len(scoring.ORDER)
    assert all(float(row["seconds"]) > 0 for row in stages.values())
    assert sum(float(row["share"]) for row in stages.values()) == pytest.approx(1)
    assert stages["tiles: read"]["tiles"] == "4"
    (all_tiles, _) = tables("exhaustive")
    read = sum(int(row["bytes"]) for row in stages.values() if row["bytes"])
    assert read == int(all_tiles["scoring_bytes"])


def test_the_floor_is_the_sum_of_what_it_cannot_do_without(tables):
    (row,) = tables("floor")
    parts = ("floor_read_s", "floor_attention_s", "floor_network_s")
    assert float(row["floor_s"]) == pytest.approx(sum(float(row[part]) for part in parts))
    assert min(float(row[part]) for part in parts) > 0
    for name in ("predict", "task"):
        ratio = float(row[f"{name}_s"]) / float(row["floor_s"])
        assert float(row[f"{name}_by_floor"]) == pytest.approx(ratio)


def test_each_part_computes_with_the_threads_that_it_says(tables):
    threads = {part: {row["threads"] for row in tables(part)} for part in ("split", "floor", "exhaustive")}
    assert threads == {"split": {"1"}, "floor": {"1"}, "exhaustive": {"2"}}


def test_all_tissue_is_extrapolated_from_what_was_measured_and_its_bytes_are_not(tables, slides):
    path = slides / "slide_4096.tif"
    corners, stored = all_tissue(path, Settings())
    image = TiffIndex.of(LocalFile(str(path))).images[0]
    rows, columns = corners[:, 1] // 256, corners[:, 0] // 256
    assert stored == image.sizes[rows, columns].sum()
    for row in tables("exhaustive"):
        assert (int(row["all_tiles"]), int(row["measured_tiles"])) == (len(corners), 16)
        assert int(row["all_bytes"]) == stored
        measured, whole = float(row["measured_s"]), float(row["extrapolated_s"])
        assert whole == pytest.approx(measured * len(corners) / 16)
        assert 0 < float(row["of_it_reading_s"]) < measured
        assert float(row["times"]) == pytest.approx(whole / float(row["scoring_s"]))
        assert int(row["scoring_bytes"]) <= int(row["scoring_bytes_asked"])
        assert int(row["scoring_bytes"]) < stored
        assert float(row["bytes_times"]) == pytest.approx(stored / int(row["scoring_bytes"]))


def test_they_encode_the_tiles_that_they_read(slides):
    path = slides / "slide_4096.tif"
    corners, _ = all_tissue(path, Settings())
    seen = []

    class Network(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean((2, 3))

    scoring.encode_all(path, corners[:3], 256, Network(), "float32")
    with open_slide(path) as slide:
        tiles = slide.read_regions(0, corners[:3], 256, 256)
    (images,) = seen
    pixels = images * torch.tensor((0.229, 0.224, 0.225)).reshape(3, 1, 1)
    pixels = 255 * (pixels + torch.tensor((0.485, 0.456, 0.406)).reshape(3, 1, 1))
    assert np.array_equal(pixels.round().byte().permute(0, 2, 3, 1).numpy(), tiles)


def test_precisions_are_held_against_float32(tables):
    rows = tables("precision")
    assert [(row["batch"], row["precision"]) for row in rows] == [
        ("2", "float32"),
        ("2", "bfloat16"),
        ("4", "float32"),
        ("4", "bfloat16"),
    ]
    for row in rows:
        assert float(row["images_per_s"]) > 0
        if row["precision"] == "float32":
            assert float(row["largest_difference"]) == 0
            assert float(row["by_float32"]) == 1
        else:
            assert 0 < float(row["largest_difference"]) < 0.2
            assert float(row["least_cosine"]) > 0.98


def test_a_stopwatch_counts_what_is_called_within_a_stage_for_that_alone():
    now = [0.0]

    def spend(seconds):
        now[0] += seconds

    watch = Stopwatch(clock=lambda: now[0])
    part = watch.watch(scoring.READ, lambda: spend(4))
    inner = watch.watch("inner", lambda: (spend(2), part()))
    watch.watch("outer", lambda: (spend(1), inner(), inner()))()
    assert watch.seconds == {"outer": 1, "inner": 4, "inner: read": 8}


def test_a_stopwatch_is_of_one_thread():
    watch = Stopwatch()
    thread = threading.Thread(target=watch.watch("stage", lambda: None))
    thread.start()
    thread.join()
    assert not watch.seconds


def test_what_is_watched_is_as_it_was_afterwards():
    before = [getattr(owner, name) for owner, name in scoring.STAGES.values()]
    with Stopwatch().watching():
        assert all(
            getattr(owner, name) is not was
            for (owner, name), was in zip(scoring.STAGES.values(), before, strict=True)
        )
    assert [getattr(owner, name) for owner, name in scoring.STAGES.values()] == before
