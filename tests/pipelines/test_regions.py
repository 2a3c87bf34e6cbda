"""Annotated regions through the command line: only tiles in them are prepared, scored, embedded, learned."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from annotation_files import asap, feature, rectangle, write_qupath
from conftest import SETTINGS, table

from wsi_ats.files import read_json
from wsi_ats.models.checkpoints import load_model
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.records import load_overview
from wsi_ats.results.scores import read_scores
from wsi_ats.results.selections import load_attention, read_selection
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.manifest import read_manifest

SIZE, TILE = (1536, 1024), 64
BOUNDS = (512, 256, 1024, 768)  # as of a MIRAX slide: the rest was not scanned


def write_bounded(path: Path) -> Path:
    """A slide whose tiles outside the bounds are missing, so that OpenSlide and QuPath show only these."""
    noise = np.random.default_rng(0).normal(0, 20, (TILE, TILE, 3))
    tissue = (np.array([200, 120, 170]) + noise).clip(0, 255).astype(np.uint8)
    columns, rows = SIZE[0] // TILE, SIZE[1] // TILE
    tiles = [
        zlib.compress(tissue.tobytes()) if x * TILE >= BOUNDS[0] and y * TILE >= BOUNDS[1] else b""
        for y in range(rows)
        for x in range(columns)
    ]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter(tiles),
            shape=(SIZE[1], SIZE[0], 3),
            dtype=np.uint8,
            tile=(TILE, TILE),
            photometric="rgb",
            compression="adobe_deflate",
            resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
    return path


@pytest.fixture(scope="module")
def bounded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bounded")
    write_bounded(folder / "a.tif")
    with open_slide(folder / "a.tif") as slide:
        assert slide.bounds == BOUNDS
    return folder


NO_GLASS = ["--set", "tile.size=64", "--set", "thumbnail.tissue=none"]
CORNER = rectangle(0, 0, 128, 192)  # two by three cells, from the corner of the bounds


def in_qupath(folder: Path) -> None:
    write_qupath(folder / "a.geojson", [feature(CORNER)])


def in_asap(folder: Path) -> None:
    moved = [(x + BOUNDS[0], y + BOUNDS[1]) for x, y in CORNER]
    (folder / "a.xml").write_text(asap([("Polygon", "Tumor", moved)]))


@pytest.mark.parametrize("write", [in_qupath, in_asap])
def test_regions_are_at_their_place_on_a_slide_with_scanned_bounds(run, bounded, tmp_path, write):
    regions = tmp_path / "regions"
    regions.mkdir()
    write(regions)
    run("prepare", bounded, "--regions", regions, "--out", tmp_path / "work", *NO_GLASS)
    expected = np.zeros((16, 24), dtype=bool)
    expected[4:7, 8:10] = True
    np.testing.assert_array_equal(load_overview(tmp_path / "work/prepared/a.npz").tissue.mask, expected)
    [row] = table(tmp_path / "work" / "slides.csv")
    assert (row["tissue_tiles"], row["outside_tiles"], row["warning"]) == ("6", str(12 * 16 - 6), "")


def lesions_and_lookalikes(slides: Path, name: str) -> np.ndarray:
    return np.load(slides / "truth" / f"{name}.npz")["kinds"] >= 2


def test_scores_come_from_tiles_in_the_regions_alone(run, slides, model, tmp_path):
    command = ("score", slides, "--model", model, "--regions", slides / "truth", "--out", tmp_path / "scores")
    assert "0 reused" not in run(*command).stdout
    loaded = load_model(model)
    for ref in read_manifest(slides):
        selection = read_selection(tmp_path / "scores" / "selections" / f"{ref.id}.parquet")
        attention = load_attention(tmp_path / "scores" / "attention" / f"{ref.id}.npz")
        with open_slide(ref) as slide:
            tissue = read_overview(slide, SETTINGS).tissue.mask
        annotated = np.zeros(tissue.shape, dtype=bool)
        annotated.flat[selection.cells] = True
        assert (attention.tissue[annotated]).all()
        assert (attention.attention[~attention.tissue] == 0).all()
        # Outlines cross tiles, and a tile belongs to a region by its centre.
        by_area = lesions_and_lookalikes(slides, ref.id) & tissue
        assert np.count_nonzero(by_area != attention.tissue) <= 0.1 * np.count_nonzero(by_area)
        # The same in Python.
        named = SlideRef(ref.id, ref.path, ref.case, regions=str(slides / "truth" / f"{ref.id}.geojson"))
        np.testing.assert_array_equal(loaded.score(named).selection.cells, selection.cells)
    # The scores remember how their slides were opened.
    [first, *_] = read_scores(tmp_path / "scores").slides
    assert first.ref().regions == str(slides / "truth" / f"{first.id}.geojson")
    assert first.ref().region_classes == ()


def test_a_changed_region_or_class_is_another_job_for_its_slide_alone(run, slides, model, tmp_path):
    regions = tmp_path / "regions"
    shutil.copytree(slides / "truth", regions)
    command = ("score", slides, "--model", model, "--out", tmp_path / "scores", "--json")
    assert run(*command, "--regions", regions).json["reused"] == 0
    assert run(*command, "--regions", regions).json["reused"] == 6
    write_qupath(regions / "slide_001.geojson", [feature(rectangle(0, 0, *SIZE))])
    assert run(*command, "--regions", regions).json["reused"] == 5
    whole = table(tmp_path / "scores" / "predictions.csv")[1]
    assert run(*command).json["reused"] == 0
    assert table(tmp_path / "scores" / "predictions.csv")[1]["prob_positive"] == whole["prob_positive"]


def test_classes_of_regions_and_slides_without_any(run, slides, model, tmp_path):
    """Lesions are only in positive slides; the others have nothing to read, and that is said."""
    out = tmp_path / "scores"
    ran = run(
        *("score", slides, "--model", model, "--out", out, "--json"),
        *("--regions", slides / "truth", "--region-class", "Lesion"),
    )
    labels = {row["slide_id"]: row["label"] for row in table(slides / "labels.csv")}
    rows = {row["slide_id"]: row for row in table(out / "predictions.csv")}
    assert {name for name, row in rows.items() if row["status"] == "done"} == {
        name for name, label in labels.items() if label == "positive"
    }
    assert ran.json["counts"] == {"done": 3, "failed": 0, "no_tissue": 3}
    negative = next(row for name, row in rows.items() if labels[name] == "negative")
    assert "tissue cells has its centre in the regions of" in negative["error"]
    assert "of class Lesion; it has Look-alike" in negative["error"]
    assert f"warning: {negative['slide_id']} has nothing to read: none of" in " ".join(ran.stderr.split())
    # Cutting lesions out leaves the look-alikes.
    run(
        *("score", slides, "--model", model, "--out", tmp_path / "others"),
        *("--regions", slides / "truth", "--region-class", "!Lesion"),
    )
    others = [row for row in table(tmp_path / "others" / "predictions.csv") if row["status"] == "done"]
    assert len(others) >= 3
    for row in others:
        kinds = np.load(slides / "truth" / f"{row['slide_id']}.npz")["kinds"]
        cells = read_selection(tmp_path / "others" / "selections" / f"{row['slide_id']}.parquet").cells
        assert np.mean(kinds.flat[cells] == 2) > 0.7


def test_features_are_those_of_the_tiles_in_regions(run, bounded, weights, tmp_path):
    in_qupath(tmp_path)
    run(
        *("embed", bounded, "--encoder", "test_vit", "--set", f"model.checkpoint={weights}", *NO_GLASS),
        *("--regions", tmp_path, "--out", tmp_path / "features"),
    )
    with h5py.File(tmp_path / "features" / "a.h5") as file:
        corners = {(int(x), int(y)) for x, y in file["coords"]}
    assert corners == {(x, y) for x in (512, 576) for y in (256, 320, 384)}


def test_slides_without_a_usable_file_fail_with_the_reason_and_the_others_are_done(run, slides, tmp_path):
    regions = tmp_path / "regions"
    regions.mkdir()
    for number in (1, 3, 5):
        shutil.copy(slides / "truth" / f"slide_{number:03d}.geojson", regions)
    shutil.copy(regions / "slide_001.geojson", regions / "slide_001.json")
    shutil.copy(regions / "slide_001.geojson", regions / "elsewhere.geojson")
    write_qupath(regions / "slide_002.geojson", [feature(rectangle(9000, 9000, 10, 10))])
    crossed = [(0, 0), (1536, 1024), (1536, 0), (0, 1024)]
    write_qupath(regions / "slide_004.geojson", [feature(crossed)])
    ran = run(
        *("prepare", slides, "--regions", regions, "--out", tmp_path / "work"),
        *("--set", "tile.size=64"),
        code=1,
    )
    said = " ".join(ran.stderr.split())
    assert "annotations of 1 slides that are not among these 6: elsewhere" in said
    assert "1 of 6 slides have no file in" in said
    rows = {row["slide_id"]: row for row in table(tmp_path / "work" / "slides.csv")}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {
        *("slide_000", "slide_001", "slide_002")
    }
    assert "has no annotations of slide slide_000" in rows["slide_000"]["error"]
    assert "is one of 2 files of slide slide_001" in rows["slide_001"]["error"]
    assert "of another slide, or of another level or scan" in rows["slide_002"]["error"]
    assert rows["slide_004"]["warning"].endswith("outlines that cross themselves, and were repaired: 1")
    assert "slide_004: " in said


def test_training_learns_from_regions_alone_and_keeps_to_them(train, slides, tmp_path):
    regions = tmp_path / "regions"
    shutil.copytree(slides / "truth", regions)
    options = ("--regions", regions)
    train(tmp_path / "run", *options)
    whole = {row["slide_id"]: row for row in table(tmp_path / "run" / "slides.csv")}
    for name, row in whole.items():
        found = load_overview(tmp_path / "run" / "prepared" / f"{name}.npz").tissue
        assert int(row["tissue_tiles"]) == len(found.cells) > 0
        by_area = lesions_and_lookalikes(slides, name)
        assert np.mean(by_area[found.mask]) > 0.9
    train(tmp_path / "run", *options)
    assert "digests.slides" in train(tmp_path / "run", code=2).stderr
    write_qupath(regions / "slide_001.geojson", [feature(rectangle(0, 0, *SIZE))])
    assert "digests.slides" in train(tmp_path / "run", *options, code=2).stderr
    assert read_json(tmp_path / "run" / "run.json")["counts"]["done"] == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--region-class", "Tumor"), "--region-class is 'Tumor', which has no effect without --regions"),
        (("--regions", "missing"), "no such folder; expected a folder with a file of annotations"),
        (
            ("--regions", "{truth}", "--watch"),
            "--watch scores slides that have no regions yet; leave out --regions",
        ),
        (("--regions", "{empty}"), "no annotations found"),
        (("--regions", "{other}"), "but none of the 6 slides slide_000"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(run, slides, model, tmp_path, words, said):
    places = {"truth": slides / "truth", "empty": tmp_path / "empty", "other": tmp_path / "other"}
    for name in ("empty", "other"):
        places[name].mkdir()
    (places["other"] / "x.xml").touch()
    given = [word.format(**places) for word in words]
    ran = run("score", slides, "--model", model, "--out", tmp_path / "out", *given, code=2)
    assert said in " ".join(ran.stderr.split())
    assert not (tmp_path / "out" / "records").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("thumbnail.levels=2", "thumbnail.levels is 2, but regions need 1"),
        ("model.kind=image", "model.kind is image, which reads whole slides"),
    ],
)
def test_models_that_would_look_beyond_the_regions_are_refused(train, run, slides, tmp_path, change, said):
    options = ("--regions", slides / "truth", "--set", change)
    assert said in " ".join(train(tmp_path / "run", *options, code=2).stderr.split())
    ran = run("prepare", slides, "--out", tmp_path / "work", *options, code=2)
    assert said in " ".join(ran.stderr.split())
