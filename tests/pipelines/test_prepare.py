"""Preparing slides through the command line, with bad slides among them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest import SETTINGS, files, table

from pipelines._runs import Execution
from pipelines.prepare import prepare
from wsi_ats.files import locked, read_json
from wsi_ats.overview.records import load_overview
from wsi_ats.tables.files import read_parquet
from wsi_ats.tables.manifest import read_manifest

COLUMNS = [
    *("slide_id", "case_id", "path", "status", "mpp", "mpp_source", "width", "height", "levels", "level"),
    *("tile_size", "rows", "cols", "tissue_tiles", "tissue_method", "tissue_reason", "pen", "blur"),
    *(
        "excluded_tiles",
        "outside_tiles",
        "feature_tiles",
        "matched_tiles",
        "unmatched_cells",
        "bytes_read",
        "seconds",
        "warning",
        "error",
    ),
]


@pytest.fixture
def work(run, slides, config, tmp_path):
    run("prepare", slides, "--out", tmp_path / "work", "--config", config, "--json")
    return tmp_path / "work"


def test_output_files(work):
    assert files(work) == ["prepared", "records", "run.json", "slides.csv", "slides.parquet", "thumbnails"]
    rows = table(work / "slides.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["slide_id"] for row in rows] == [f"slide_{i:03d}" for i in range(6)]
    assert {row["status"] for row in rows} == {"done"}
    columns, _ = read_parquet(work / "slides.parquet")
    assert list(columns) == COLUMNS
    assert [str(value) for value in columns["tissue_tiles"]] == [row["tissue_tiles"] for row in rows]
    prepared = load_overview(work / "prepared" / "slide_000.npz")
    assert prepared.tissue.grid.shape == (int(rows[0]["rows"]), int(rows[0]["cols"])) == (16, 24)
    assert len(prepared.tissue.cells) == int(rows[0]["tissue_tiles"]) > 0
    assert prepared.thumbnail.shape == (16 * 4, 24 * 4, 3)
    assert files(work / "thumbnails") == [f"slide_{i:03d}.png" for i in range(6)]
    record = read_json(work / "run.json")
    assert (record["stage"], record["counts"]) == ("prepare", {"done": 6, "failed": 0, "no_tissue": 0})


def inked(slides, folder, columns):
    """A slide of which the columns in a range are under blue ink."""
    import tifffile

    folder.mkdir()
    pixels = tifffile.imread(slides / "slide_000.tif")
    pixels[:, columns] = (pixels[:, columns] * np.array([0.12, 0.24, 0.64])).astype(np.uint8)
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(folder / "inked.tif", pixels, **options, resolution=(20000, 20000), resolutionunit=3)
    return folder


def test_cells_under_ink_are_counted_and_left_out_if_asked(run, slides, config, tmp_path):
    folder = inked(slides, tmp_path / "inked", slice(512, 768))
    common = ("prepare", folder, "--config", config, "--out")
    run(*common, tmp_path / "all")
    run(*common, tmp_path / "less", "--qc", "pen")
    (everything,), (less,) = (table(tmp_path / name / "slides.csv") for name in ("all", "less"))
    assert everything["pen"] == less["pen"]
    assert (everything["blur"], everything["excluded_tiles"]) == ("", "0")
    assert float(less["pen"]) * int(everything["tissue_tiles"]) == pytest.approx(int(less["excluded_tiles"]))
    assert int(less["excluded_tiles"]) == 4 * 16  # ink on glass is no tissue either
    assert int(less["tissue_tiles"]) + int(less["excluded_tiles"]) == int(everything["tissue_tiles"])
    prepared = load_overview(tmp_path / "less" / "prepared" / "inked.npz")
    assert prepared.quality.blur is None
    assert (prepared.quality.pen[:, 8:12] == 1).all()
    assert not prepared.quality.pen[:, :8].any()
    assert not prepared.tissue.mask[:, 8:12].any()
    for name in ("all", "less"):
        assert files(tmp_path / name / "quality") == ["inked.png"]


def test_the_tissue_method_and_doubts_are_reported(run, slides, model, config, tmp_path):
    import tifffile

    folder = tmp_path / "half"
    folder.mkdir()
    pixels = tifffile.imread(slides / "slide_000.tif")
    pixels[:, :768], pixels[:, 768:1152] = 0, 240
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(folder / "half.tif", pixels, **options, resolution=(20000, 20000), resolutionunit=3)
    out = tmp_path / "out"
    ran = run("prepare", folder, "--config", config, "--out", out)
    (row,) = table(out / "slides.csv")
    assert row["tissue_method"] == "brightfield"
    assert row["tissue_reason"].endswith("50% dark, all around rectangles that were scanned")
    assert row["warning"].startswith("50% of it is bright, 50% dark: a brightfield slide with dark fields")
    assert f"warning: half: {row['warning']}" in ran.stderr
    looked = run("info", folder, "--config", config)
    assert "brightfield: 50% of it is bright, 50% dark" in " ".join(looked.stdout.split())
    # With all cells scored, the empty ones are counted.
    tissue = int(row["tissue_tiles"])
    all_cells = ("--set", "thumbnail.tissue=none", "--set", "sampling.tiles=384")
    run("score", folder, "--model", model, "--out", tmp_path / "scores", *all_cells)
    (row,) = table(tmp_path / "scores" / "predictions.csv")
    assert row["tiles_read"] == "384"
    assert 18 * 16 <= int(row["tiles_empty"]) <= 384 - tissue < 384


def test_a_fully_excluded_slide_is_reported(run, slides, model, config, tmp_path):
    folder = inked(slides, tmp_path / "inked", slice(None))
    out = tmp_path / "out"
    ran = run("prepare", folder, "--config", config, "--out", out, "--qc", "pen", "--json")
    assert ran.json["counts"] == {"done": 0, "failed": 0, "no_tissue": 1}
    assert "warning: inked has nothing to read: all 384 tissue cells were left out: pen 384" in ran.stderr
    (row,) = table(out / "slides.csv")
    assert (row["status"], row["tissue_tiles"], row["excluded_tiles"]) == ("no_tissue", "0", "384")
    assert "pen 384" in row["error"]
    scored = run("score", folder, "--model", model, "--out", tmp_path / "scores", "--qc", "pen")
    assert "inked has nothing to read" in scored.stderr
    (row,) = table(tmp_path / "scores" / "predictions.csv")
    assert row["status"] == "no_tissue"
    assert "pen 384" in row["error"]
    (looked,) = run("info", folder, "--config", config, "--qc", "pen", "--json").json["slides"]
    assert (looked["pen"], looked["blur"], looked["excluded_tiles"]) == (1, None, 384)


def test_unknown_artefacts_are_refused(run, slides, tmp_path):
    ran = run("prepare", slides, "--out", tmp_path / "out", "--qc", "fold", code=2)
    assert "thumbnail.exclude must be some of pen, blur" in ran.stderr


def test_a_second_run_does_nothing(work, run, slides, config):
    before = (work / "slides.csv").read_bytes()
    ran = run("prepare", slides, "--out", work, "--config", config, "--json")
    assert (ran.exit_code, ran.json["reused"]) == (0, 6)
    assert (work / "slides.csv").read_bytes() == before


def test_another_reader_prepares_slides_again(run, slides, config, work):
    ran = run("prepare", slides, "--out", work, "--config", config, "--reader", "openslide", "--json")
    assert (ran.exit_code, ran.json["reused"]) == (0, 0)


def test_other_settings_into_the_same_folder_are_refused(work, run, slides, config):
    other = ("prepare", slides, "--out", work, "--config", config, "--set", "tile.size=128")
    ran = run(*other, code=2)
    assert "settings.tile.size is 64 there and 128 now" in ran.stderr
    assert ran.stderr.count("\n") == 1
    run(*other, "--overwrite")
    assert table(work / "slides.csv")[0]["tile_size"] == "128"


def test_a_second_run_into_a_held_folder_is_refused(run, slides, tmp_path):
    with locked(tmp_path, "the first run"):
        ran = run("prepare", slides, "--out", tmp_path, code=2)
    assert "the first run" in ran.stderr


def test_a_folder_that_cannot_be_written_to(run, slides, tmp_path):
    (tmp_path / "file").write_text("")
    ran = run("prepare", slides, "--out", tmp_path / "file" / "out", code=2)
    assert "cannot be written to" in ran.stderr


def test_a_dry_run_writes_nothing(run, slides, config, tmp_path):
    ran = run("prepare", slides, "--out", tmp_path / "out", "--config", config, "--dry-run", "--json")
    assert ran.json["counts"] == {"to_do": 6, "finished": 0}
    assert not (tmp_path / "out").exists()


@pytest.fixture
def mixed(slides, tmp_path):
    """Good slides among bad ones of each kind."""
    import tifffile

    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("slide_000.tif", "slide_001.tif"):
        shutil.copy(slides / name, folder / name)
    whole = (slides / "slide_002.tif").read_bytes()
    (folder / "text.svs").write_text("this is no slide")
    (folder / "truncated.tif").write_bytes(whole[: len(whole) // 3])
    late = folder / "late.tif"
    late.write_bytes(whole)
    with tifffile.TiffFile(late) as file:  # the thumbnail's level stays whole, the tiles do not
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with late.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(b"\0" * size)
    glass = np.full((512, 768, 3), 240, np.uint8)
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(folder / "glass.tif", glass, **options, resolution=(20000, 20000), resolutionunit=3)
    tifffile.imwrite(folder / "no_mpp.tif", glass, **options)
    tifffile.imwrite(folder / "zero_mpp.tif", glass, **options, resolution=(0, 0), resolutionunit=3)
    return folder


def test_bad_slides_fail_alone(run, mixed, config, tmp_path):
    ran = run("prepare", mixed, "--out", tmp_path / "out", "--config", config, "--json", code=1)
    rows = {row["slide_id"]: row for row in table(tmp_path / "out" / "slides.csv")}
    failed = {"text": "does not know", "truncated": "", "no_mpp": "--mpp", "zero_mpp": "--mpp"}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == failed.keys()
    for name, advice in failed.items():
        assert advice in rows[name]["error"]
        assert f"{name}." in rows[name]["error"]
        assert f"{name} failed" in ran.stderr
    assert rows["glass"]["status"] == "no_tissue"
    assert rows["slide_000"]["status"] == rows["slide_001"]["status"] == "done"
    assert "Traceback" not in ran.stderr
    assert ran.json["counts"] == {"done": 3, "failed": 4, "no_tissue": 1}
    assert set(ran.json["failed"]) == failed.keys()
    assert files(tmp_path / "out" / "prepared") == ["glass.npz", "late.npz", "slide_000.npz", "slide_001.npz"]

    # With the resolution given the input is new: the remaining slides are done, the others repeated.
    again = run(
        "prepare", mixed, "--out", tmp_path / "out", "--config", config, "--mpp", 0.5, "--json", code=1
    )
    assert set(again.json["failed"]) == {"text", "truncated"}


def test_debug_shows_where_a_failure_came_from(run, mixed, config, tmp_path):
    ran = run("prepare", mixed / "text.svs", "--out", tmp_path / "out", "--config", config, "--debug", code=1)
    assert "Traceback" in ran.stderr
    assert "openslide.py" in ran.stderr


def test_strict_stops_and_writes_no_tables(run, mixed, config, tmp_path):
    run("prepare", mixed / "text.svs", "--out", tmp_path / "out", "--config", config, "--strict", code=1)
    several = run(
        "prepare", mixed, "--out", tmp_path / "more", "--config", config, "--strict", "--json", code=1
    )
    assert len(several.json["failed"]) == 1
    assert not (tmp_path / "more" / "slides.csv").exists()


def test_a_manifest_with_a_missing_file(run, slides, config, tmp_path):
    manifest = tmp_path / "slides.csv"
    manifest.write_text(
        f"slide_id,path,mpp\na,{slides / 'slide_000.tif'},0.25\ngone,{slides / 'gone.tif'},\n"
    )
    run("prepare", manifest, "--out", tmp_path / "out", "--config", config, "--set", "tile.mpp=0.25", code=1)
    done, gone = table(tmp_path / "out" / "slides.csv")
    assert (done["mpp"], done["mpp_source"]) == ("0.25", "override")
    assert "no such file" in gone["error"]


@pytest.mark.parametrize("kind", ["empty", "missing", "twice", "no such column"])
def test_slides_that_cannot_be_listed(run, slides, tmp_path, kind):
    source = tmp_path / "source"
    if kind == "empty":
        source.mkdir()
    elif kind == "twice":
        (source / "a").mkdir(parents=True)
        for path in (source / "same.tif", source / "a" / "same.tif"):
            shutil.copy(slides / "slide_000.tif", path)
    elif kind == "no such column":
        source = tmp_path / "table.csv"
        source.write_text("name\na\n")
    ran = run("prepare", source, "--out", tmp_path / "out", code=2)
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_as_a_function(client, slides, tmp_path):
    summary = prepare(
        read_manifest(slides), tmp_path / "out", settings=SETTINGS, execution=Execution(scheduler=client)
    )
    assert summary.counts == {"done": 6, "failed": 0, "no_tissue": 0}
    fewer = prepare(
        read_manifest(slides)[:2], tmp_path / "out", settings=SETTINGS, execution=Execution(scheduler=client)
    )
    assert (fewer.counts["done"], fewer.reused) == (2, 2)  # the table is that of the command
    assert len(table(tmp_path / "out" / "slides.csv")) == 2
