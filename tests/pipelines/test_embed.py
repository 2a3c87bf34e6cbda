"""Features of all tissue tiles, from slides to files, through the command line and from Python."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from bad_slides import glass
from conftest import LIMIT, embed_settings, files, start, table, without_times
from interruptions import recorded

from pipelines._features import KnownFeatures, starting_settings
from pipelines._runs import Execution
from pipelines.embed import EmbedTask, embed
from wsi_ats.bags.matched import match_features
from wsi_ats.bags.opening import open_bag
from wsi_ats.bags.writing import BagWriter
from wsi_ats.errors import ArtifactError
from wsi_ats.files import read_json
from wsi_ats.models.encoding import TileBatches
from wsi_ats.nn.encoder import build_encoder
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.manifest import read_manifest

TRAINING = (
    *("thumbnail.pixels_per_cell=4", "sampling.tiles=8", "training.precision=float32"),
    *("training.epochs=1", "training.tiles=8", "training.attention_epochs=1", "training.attention_tiles=16"),
    *("training.slides_per_step=2", "training.validation=0.34", "training.calibration_tiles=16"),
)


@pytest.fixture(scope="module")
def settings(weights) -> Settings:
    return embed_settings(weights)


@pytest.fixture(scope="module")
def words(weights) -> list[str]:
    """Options with the same settings."""
    changes = ("tile.size=64", "thumbnail.pixels_per_cell=4", "scoring.precision=float32")
    chosen = [word for change in (*changes, f"model.checkpoint={weights}") for word in ("--set", change)]
    return ["--encoder", "test_vit", *chosen]


@pytest.fixture(scope="module")
def embedded(refs, settings, client, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "features"
    summary = embed(refs, out, settings=settings, execution=Execution(scheduler=client))
    assert summary.exit_code == 0, summary.failed
    return out


def stored(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in ("features", "coords")}


def expected(ref: SlideRef, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Corners and features of all tissue tiles, by the encoder alone."""
    with open_slide(ref) as slide:
        tissue = read_overview(slide, settings).tissue
        tiles = read_tiles(slide, tissue.grid, tissue.cells)
    model = settings.model
    encoder = build_encoder(model.backbone, pretrained=False, checkpoint=model.checkpoint, size=64).eval()
    with TileBatches(encoder.raw, threads=1) as batches:
        features = batches.encode(tiles).result()
    return tissue.grid.boxes(tissue.cells)[:, :2], features.numpy()


def test_features_are_bit_for_bit_those_of_the_encoder(embedded, refs, settings):
    for ref in refs:
        corners, features = expected(ref, settings)
        found = stored(embedded / f"{ref.id}.h5")
        assert np.array_equal(found["coords"], corners)
        assert found["features"].dtype == np.float32
        assert np.array_equal(found["features"], features)


def test_each_slide_has_a_row_and_a_file_at_the_top_of_the_folder(embedded, refs, settings):
    rows = table(embedded / "embedded.csv")
    assert [row["slide_id"] for row in rows] == [ref.id for ref in refs]
    for row in rows:
        path = embedded / f"{row['slide_id']}.h5"
        assert row["status"] == "done"
        assert row["error"] == ""
        assert int(row["tiles"]) == int(row["tissue_tiles"]) == len(stored(path)["features"]) > 0
        assert (row["features"], row["encoder"], row["dtype"]) == ("64", "test_vit", "float32")
        assert int(row["bytes"]) == path.stat().st_size
        assert float(row["seconds"]) > 0
    assert read_json(embedded / "run.json")["counts"] == {"done": 6, "no_tissue": 0, "failed": 0}
    assert [name for name in files(embedded) if name.endswith(".h5")] == [f"{ref.id}.h5" for ref in refs]


def test_files_name_encoder_weights_size_resolution_and_precision(embedded, refs):
    (row, *_) = table(embedded / "embedded.csv")
    with h5py.File(embedded / f"{refs[0].id}.h5") as file:
        features, coords = dict(file["features"].attrs), dict(file["coords"].attrs)
    assert features["encoder"] == "test_vit"
    assert features["encoder_digest"] == row["encoder_digest"] != ""
    assert features["precision"] == row["precision"] == "float32"
    assert (coords["tile_size"], coords["tile_mpp"], coords["mpp"]) == (64, 0.5, 0.5)
    assert (coords["patch_size"], coords["patch_level"], coords["patch_size_level0"]) == (64, 0, 64)


def test_clam_and_torchmil_read_the_files(embedded, refs):
    from torchmil import datasets

    bags = datasets.ProcessedMILDataset(
        features_path=str(embedded),
        coords_path=str(embedded),
        bag_keys=["X", "coords"],
        bag_names=[ref.id for ref in refs],
        file_ext=".h5",
        verbose=False,
    )
    for ref, bag in zip(refs, bags, strict=True):
        with h5py.File(embedded / f"{ref.id}.h5", "r") as file:  # as CLAM's dataset does
            features, coords = torch.from_numpy(file["features"][:]), file["coords"][:]
        assert torch.equal(bag["X"], features)
        assert np.array_equal(np.asarray(bag["coords"]), coords)


def test_training_reads_the_features(embedded, slides, run, tmp_path):
    chosen = [word for change in TRAINING for word in ("--set", change)]
    run(
        *("train", slides, "--labels", slides / "labels.csv", "--features", embedded),
        *("--out", tmp_path / "run", *chosen),
    )
    learned = read_json(tmp_path / "run" / "model.json")["settings"]
    assert (learned["model"]["backbone"], learned["model"]["encoder"]) == ("features:64", "test_vit")
    assert (learned["tile"]["size"], learned["tile"]["mpp"]) == (64, 0.5)
    for row in table(tmp_path / "run" / "slides.csv"):
        assert row["matched_tiles"] == row["feature_tiles"] == row["tissue_tiles"]


@pytest.mark.parametrize(
    ("side", "written", "size"), [(128, {}, 128), (512, {}, 256), (512, {"tile_size": 448}, 448)]
)
def test_tiles_of_a_training_have_the_size_that_the_encoder_saw_or_one_that_the_slide_has(
    refs, tmp_path, side, written, size
):
    path = tmp_path / f"{refs[0].id}.h5"
    about = {"size": (1536, 1024), "mpp": 0.5, "side": side, "width": 3, **written}
    with BagWriter(path, name="a", **about) as writer:
        writer.append(np.zeros((1, 2), int), np.zeros((1, 3)))
    tile = starting_settings([replace(refs[0], features=(str(path),))]).tile
    assert (tile.size, tile.mpp) == (size, float(f"{side * 0.5 / size:.4g}"))


@pytest.mark.parametrize(
    ("side", "chosen", "size", "mpp"), [(256, None, 256, 0.5), (512, None, 448, 0.5714), (256, 128, 128, 1.0)]
)
def test_tiles_that_were_enlarged_for_their_encoder_have_their_own_pixels(
    refs, tmp_path, side, chosen, size, mpp
):
    """Those of conch_v1 have 448, and slides 0.5 um; finer pixels would be made up."""
    path = tmp_path / f"{refs[0].id}.h5"
    about = {"size": (1536, 1024), "mpp": 0.5, "side": side, "width": 3, "encoder": "conch_v1"}
    with BagWriter(path, name="a", **about) as writer:
        writer.append(np.zeros((1, 2), int), np.zeros((1, 3)))
    ref = replace(refs[0], features=(str(path),))
    settings = KnownFeatures.of([ref]).settings(chosen)
    assert (settings.tile.size, settings.tile.mpp) == (size, mpp)
    with open_slide(ref) as slide:
        overview, _ = match_features(ref, slide, read_overview(slide, settings), settings.model)
    assert len(overview.tissue.cells) == 1


def test_a_draw_has_the_same_tiles_again_and_others_with_another_seed(refs, settings, client, tmp_path):
    def drawn(name: str, seed: int | None) -> list[dict[str, np.ndarray]]:
        out = tmp_path / name
        chosen = {"tiles": 5, "seed": seed, "execution": Execution(scheduler=client)}
        assert embed(refs, out, settings=settings, **chosen).exit_code == 0
        rows = table(out / "embedded.csv")
        assert {row["tiles"] for row in rows} == {"5"}
        assert min(int(row["tissue_tiles"]) for row in rows) > 5
        return [stored(out / f"{ref.id}.h5") for ref in refs]

    first, again, other = drawn("first", 3), drawn("again", 3), drawn("other", 4)
    for ref, one, same, another in zip(refs, first, again, other, strict=True):
        corners, features = expected(ref, settings)
        places = [corners.tolist().index(each) for each in one["coords"].tolist()]
        assert len(set(places)) == 5
        assert np.array_equal(one["features"], features[places])
        assert all(np.array_equal(one[name], same[name]) for name in one)
        assert not np.array_equal(one["coords"], another["coords"])


def test_a_draw_of_more_tiles_than_a_slide_has_takes_all(refs, settings, client, tmp_path, embedded):
    few = [refs[0]]
    embed(few, tmp_path, settings=settings, tiles=10**6, execution=Execution(scheduler=client))
    assert np.array_equal(
        stored(tmp_path / f"{refs[0].id}.h5")["coords"], stored(embedded / f"{refs[0].id}.h5")["coords"]
    )


def test_float16_rounds_what_is_stored_and_is_read_as_float32(refs, settings, client, tmp_path, embedded):
    out, few = tmp_path / "half", refs[:1]
    embed(few, out, settings=settings, dtype="float16", execution=Execution(scheduler=client))
    found, whole = (stored(folder / f"{refs[0].id}.h5")["features"] for folder in (out, embedded))
    assert found.dtype == np.float16
    assert np.array_equal(found, whole.astype(np.float16))
    [row] = table(out / "embedded.csv")
    assert row["dtype"] == "float16"
    assert open_bag(out / f"{refs[0].id}.h5", mpp=0.5).read(np.arange(3)).dtype == np.float32


def test_a_damaged_slide_fails_alone_and_glass_has_an_empty_file(slides, words, run, tmp_path):
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    whole = (slides / "slide_000.tif").read_bytes()
    (folder / "good.tif").write_bytes(whole)
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    glass(folder / "glass.tif")
    run("embed", folder, *words, "--out", out, code=1)
    rows = {row["slide_id"]: row for row in table(out / "embedded.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "cut": "failed",
        "glass": "no_tissue",
        "good": "done",
    }
    assert "cut.tif" in rows["cut"]["error"]
    assert [name for name in files(out) if name.endswith(".h5")] == ["glass.h5", "good.h5"]
    empty = stored(out / "glass.h5")
    assert (empty["features"].shape, empty["coords"].shape) == ((0, 64), (0, 2))
    assert len(open_bag(out / "glass.h5", mpp=0.5).corners) == 0
    again = run("embed", folder, *words, "--out", out, "--json", code=1)
    assert (again.json["reused"], again.json["counts"]["failed"]) == (2, 1)


def test_killed_with_all_its_processes_and_run_again_it_leaves_the_same_files(
    some, settings, words, client, run, tmp_path
):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    embed(read_manifest(some), whole, settings=settings, execution=Execution(scheduler=client))
    command = ("embed", some, *words, "--out", out)
    process = start(*command, "--workers", 1)
    while process.poll() is None and len(recorded(out)) < 5:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = {name: (out / f"{name}.h5").stat().st_mtime_ns for name in recorded(out)}
    assert 5 <= len(done) < 24
    run(*command)
    assert {name: (out / f"{name}.h5").stat().st_mtime_ns for name in done} == done
    assert without_times(table(out / "embedded.csv")) == without_times(table(whole / "embedded.csv"))
    assert files(out) == files(whole)
    assert not list(out.glob(".*.part*"))
    for path in whole.glob("*.h5"):
        one, same = stored(path), stored(out / path.name)
        assert all(one[name].tobytes() == same[name].tobytes() for name in one)


@contextmanager
def no_file_above(size: int):
    """A disk that is full, as this process sees it; writing fails with an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1, 3000, 20_000])
def test_a_full_disk_is_an_error_that_says_so_and_leaves_no_file(refs, settings, embedded, tmp_path, size):
    digest = table(embedded / "embedded.csv")[0]["encoder_digest"]
    task = EmbedTask(tmp_path / "out", "run", settings, digest, None, 0, "float32")
    task.start()
    with no_file_above(size), pytest.raises(ArtifactError, match=r"cannot be written: .*free space"):
        task.work(refs[0])
    assert list((tmp_path / "out").iterdir()) == []
    row, _ = task.work(refs[0])
    assert row["status"] == "done"


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(slides, words, run, tmp_path):
    (tmp_path / "file").touch()
    ran = run("embed", slides, *words, "--out", tmp_path / "file" / "out", code=2)
    assert "cannot be written" in ran.stderr


def test_slides_of_different_sizes_share_batches(refs, settings, slides, tmp_path, monkeypatch):
    """Batches that two slides fill together have the features of each slide alone."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    import wsi_ats.models.embedding as module

    encoder = module.load_encoder(settings)
    go, seen = Event(), []

    def embed_tiles(tiles: torch.Tensor) -> torch.Tensor:
        go.wait(LIMIT)
        seen.append(int((tiles.flatten(1).sum(1) > 0).sum()))
        return encoder.network.raw(tiles)

    def write(ref: SlideRef, count: int) -> None:
        with open_slide(ref) as slide:
            tissue = read_overview(slide, settings).tissue
            about = {"slide_id": ref.id, "encoder": encoder, "batches": batches}
            module.embed_cells(tmp_path / f"{ref.id}.h5", slide, tissue, tissue.cells[:count], **about)

    with TileBatches(embed_tiles, threads=1) as batches, ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(write, ref, count) for ref, count in zip(refs, (5, 11), strict=False)]
        while sum(piece.count for piece in list(batches._queue)) < 8:  # the rest is in the first batch
            time.sleep(0.005)
        go.set()
        for each in begun:
            each.result(LIMIT)
    assert len(seen) == 3 if seen[0] == 5 else seen == [8, 8]
    assert sum(seen) == 16
    for ref, count in zip(refs, (5, 11), strict=False):
        assert np.array_equal(
            stored(tmp_path / f"{ref.id}.h5")["features"], expected(ref, settings)[1][:count]
        )


def test_only_a_few_tiles_and_their_features_are_in_memory(refs, settings, tmp_path, monkeypatch):
    import wsi_ats.models.embedding as module

    read, written, most = 0, 0, 0
    real_read, real_append = module.read_tiles, module.BagWriter.append

    def noted_read(slide, grid, cells):
        nonlocal read, most
        read += len(cells)
        most = max(most, read - written)
        return real_read(slide, grid, cells)

    def noted_append(self, corners, features):
        nonlocal written
        written += len(features)
        real_append(self, corners, features)

    monkeypatch.setattr(module, "read_tiles", noted_read)
    monkeypatch.setattr(module.BagWriter, "append", noted_append)
    monkeypatch.setattr(module, "encode_parts", lambda *each: parts(*each, at_a_time=8))
    from wsi_ats.models.encoding import encode_parts as parts

    encoder = module.load_encoder(settings)
    with TileBatches(encoder.network.raw) as batches, open_slide(refs[0]) as slide:
        tissue = read_overview(slide, settings).tissue
        about = {"slide_id": "a", "encoder": encoder, "batches": batches}
        module.embed_cells(tmp_path / "a.h5", slide, tissue, tissue.cells, **about)
    assert read == written == len(tissue.cells) > 24
    assert most == 16


def test_a_dry_run_counts_and_writes_nothing(slides, words, run, tmp_path):
    ran = run("embed", slides, *words, "--out", tmp_path / "out", "--dry-run", "--json")
    assert (ran.exit_code, ran.json["counts"]) == (0, {"to_do": 6, "finished": 0})
    assert not (tmp_path / "out").exists()


def test_other_weights_or_options_need_another_folder_or_overwrite(refs, settings, client, weights, tmp_path):
    from safetensors.torch import load_file, save_file

    execution, few = Execution(scheduler=client), refs[:2]
    embed(few, tmp_path / "out", settings=settings, execution=execution)
    changed = load_file(weights)
    changed["norm.bias"] += 1
    save_file(changed, tmp_path / "other.safetensors")
    other = replace(settings, model=replace(settings.model, checkpoint=str(tmp_path / "other.safetensors")))
    for chosen in ({"settings": other}, {"dtype": "float16"}, {"tiles": 3}):
        with pytest.raises(ArtifactError, match="holds the results of another run"):
            embed(few, tmp_path / "out", **{"settings": settings, "execution": execution, **chosen})
    (tmp_path / "out" / "mine.h5").touch()
    again = replace(execution, overwrite=True)
    embed(few[:1], tmp_path / "out", settings=other, execution=again)
    names = [name for name in files(tmp_path / "out") if name.endswith(".h5")]
    assert names == ["mine.h5", f"{few[0].id}.h5"]


def test_the_same_weights_in_another_file_continue_the_run(
    refs, settings, client, weights, tmp_path, monkeypatch
):
    execution, few = Execution(scheduler=client), refs[:1]
    embed(few, tmp_path / "out", settings=settings, execution=execution)
    shutil.copy(weights, tmp_path / "copy.safetensors")
    monkeypatch.chdir(tmp_path)  # of this process, and not of the worker
    moved = replace(settings, model=replace(settings.model, checkpoint="copy.safetensors"))
    assert embed(few, "out", settings=moved, execution=execution).reused == 1
    embed(refs[:2], "out", settings=moved, execution=execution)
    assert [row["status"] for row in table(tmp_path / "out" / "embedded.csv")] == ["done", "done"]
