"""Training and scoring with features that were extracted before, through the command line."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from conftest import SETTINGS, table
from typer.testing import CliRunner

from pipelines.cli import app
from wsi_ats.bags.matched import open_features
from wsi_ats.bags.writing import BagWriter
from wsi_ats.files import read_json
from wsi_ats.models.checkpoints import load_model
from wsi_ats.nn.backbone import create_backbone
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.slides import open_slide
from wsi_ats.tables.manifest import read_manifest

# No backbone, which features replace.
CHANGES = (
    *("tile.size=64", "thumbnail.pixels_per_cell=4", "sampling.tiles=8", "training.precision=float32"),
    *("training.epochs=2", "training.tiles=8", "training.attention_epochs=2", "training.attention_tiles=16"),
    *("training.slides_per_step=2", "training.validation=0", "training.calibration_tiles=16"),
)
SET = [word for change in CHANGES for word in ("--set", change)]
ABSENT = "slide_005"


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone("test_vit", pretrained=False, size=64)


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file({name: each.contiguous() for name, each in backbone.network.state_dict().items()}, path)
    return path


def write_features(folder, path, backbone, *, name=None, damage=None):
    """Write the features of all tissue tiles of a slide."""
    with open_slide(path) as slide:
        tissue = read_overview(slide, SETTINGS).tissue
        tiles = read_tiles(slide, tissue.grid, tissue.cells)
        about = {"size": (slide.levels[0].width, slide.levels[0].height), "mpp": slide.mpp.value}
    with torch.inference_mode():
        rows = TileEncoder(backbone, trained=True).eval().raw(torch.from_numpy(tiles)).numpy()
    name = name or path.stem
    about |= {"side": tissue.grid.cell, "width": backbone.width, "encoder": "test_vit"}
    with BagWriter(folder / f"{name}.h5", name=name, **about) as writer:
        writer.append(tissue.grid.boxes(tissue.cells)[:, :2], rows)
    if damage is not None:
        with h5py.File(folder / f"{name}.h5", "a") as file:
            file["features"][:] = damage


@pytest.fixture(scope="module")
def features(slides, backbone, tmp_path_factory):
    """Features of all slides but one, and of a slide that is elsewhere."""
    folder = tmp_path_factory.mktemp("features")
    for path in sorted(slides.glob("*.tif")):
        if path.stem != ABSENT:
            write_features(folder, path, backbone)
    write_features(folder, slides / "slide_000.tif", backbone, name="elsewhere")
    return folder


def wsi_ats(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture(scope="module")
def trained(slides, features, address, tmp_path_factory):
    """A model that was trained on features."""
    out = tmp_path_factory.mktemp("trained") / "run"
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--features", features, *SET),
        *("--out", out, "--scheduler", address),
    )
    assert code == 1, text
    return out, text


def test_slides_without_features_are_listed_and_the_others_learned_from(trained, slides, features):
    out, text = trained
    rows = {row["slide_id"]: row for row in table(out / "slides.csv")}
    assert [name for name, row in rows.items() if row["status"] == "failed"] == [ABSENT]
    assert f"has no features of slide {ABSENT}" in rows[ABSENT]["error"]
    assert "features of 1 slides that are not among these 6: elsewhere" in text
    assert {row["slide_id"] for row in table(out / "splits.csv")} == rows.keys() - {ABSENT}
    for name, row in rows.items():
        if name != ABSENT:
            assert 0 < int(row["matched_tiles"]) == int(row["feature_tiles"]) == int(row["tissue_tiles"])
    tiles = sum(int(row["feature_tiles"]) for row in rows.values() if row["feature_tiles"])
    message = f"features: {tiles} of {tiles} tiles are used, one in a cell; 0 cells with tissue have none"
    assert message in " ".join(text.split())
    settings = read_json(out / "model.json")["settings"]
    assert settings["model"]["backbone"] == "features:64"
    assert settings["model"]["encoder"] == "test_vit"


def test_scores_from_features_are_those_of_the_pixels_they_came_from(
    trained, slides, features, weights, address, tmp_path
):
    common = ("score", slides, "--model", trained[0], "--scheduler", address)
    code, text = wsi_ats(*common, "--features", features, "--out", tmp_path / "features")
    assert code == 1, text  # one slide has none
    code, text = wsi_ats(
        *common,
        *("--set", f"scoring.encoder_checkpoint={weights}", "--set", "scoring.precision=float32"),
        *("--out", tmp_path / "pixels"),
    )
    assert code == 0, text
    by_pixels = {row["slide_id"]: row for row in table(tmp_path / "pixels" / "predictions.csv")}
    compared = 0
    for row in table(tmp_path / "features" / "predictions.csv"):
        if row["slide_id"] == ABSENT:
            assert row["status"] == "failed"
            continue
        same = by_pixels[row["slide_id"]]
        assert float(row["prob_positive"]) == pytest.approx(float(same["prob_positive"]), rel=1e-4)
        assert row["tiles_read"] == same["tiles_read"] == "8"
        compared += 1
    assert compared == 5


def test_a_reference_to_a_slide_names_its_features_for_the_python_api(trained, slides, features):
    from dataclasses import replace

    [ref] = [each for each in read_manifest(slides) if each.id == "slide_001"]
    loaded = load_model(trained[0], encoder=False)
    settings = loaded.settings
    scored = loaded.score(replace(ref, features=(str(features),)), settings=settings)
    assert scored.prediction.tiles_read == 8
    assert scored.selection is not None


def test_training_on_features_again_has_the_same_weights(trained, slides, features, address, tmp_path):
    out = tmp_path / "again"
    wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--features", features, *SET),
        *("--out", out, "--scheduler", address, "--readers", "threads:3"),
    )
    assert read_json(out / "model.json")["digest"] == read_json(trained[0] / "model.json")["digest"]


def test_features_that_are_nan_leave_out_their_slide_alone(slides, backbone, address, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for path in sorted(slides.glob("*.tif")):
        damage = float("nan") if path.stem == "slide_002" else None
        write_features(folder, path, backbone, damage=damage)
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--features", folder, *SET),
        *("--out", tmp_path / "out", "--scheduler", address),
    )
    assert code == 1, text
    assert "training goes on without slide_002" in text
    assert "NaN" in text
    unreadable = read_json(tmp_path / "out" / "run.json")["unreadable"]
    assert list(unreadable) == ["slide_002"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.backbone=test_vit"], "model.backbone is test_vit, whose weights are trained"),
        (["model.kind=image"], "model.kind is image, which uses no features of tiles"),
        (["thumbnail.levels=2"], "thumbnail.levels is 2, but features need 1"),
        (["model.checkpoint=a.pth"], "model.checkpoint is 'a.pth', but model.backbone is features:64"),
    ],
)
def test_settings_that_cannot_use_features_are_refused(slides, features, tmp_path, changes, message):
    words = [word for change in changes for word in ("--set", change)]
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--features", features, *words),
        *("--out", tmp_path / "out"),
    )
    assert code == 2
    assert message in " ".join(text.split())


def test_slides_are_opened_once_to_find_the_settings(slides, features, tmp_path, monkeypatch):
    opened = []

    def counted(ref, mpp):
        opened.append(ref.id)
        return open_features(ref, mpp)

    monkeypatch.setattr("pipelines._features.open_features", counted)
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--features", features, *SET),
        *("--set", "tile.size=32", "--out", tmp_path / "out", "--dry-run"),
    )
    assert code == 0, text
    assert sorted(opened) == [f"slide_{number:03d}" for number in range(6)]


def test_a_model_of_enlarged_tiles_scores_features_but_no_pixels(trained, slides, address, tmp_path):
    import shutil

    from wsi_ats.models.checkpoints import save_model

    loaded = load_model(trained[0], encoder=False)
    folder = shutil.copytree(trained[0], tmp_path / "model")
    save_model(folder, loaded.model, loaded.settings.with_values(["model.encoder=conch_v1"]), loaded.target)
    words = ("score", slides, "--model", folder, "--out", tmp_path / "out", "--scheduler", address)
    code, text = wsi_ats(*words)
    assert code == 2
    said = "features of conch_v1, which takes tiles of 448 pixels, but the tiles have only 64"
    assert said in " ".join(text.split())


def test_dask_readers_of_tiles_are_refused_with_features(slides, features, tmp_path):
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--features", features, *SET),
        *("--readers", "dask", "--out", tmp_path / "out"),
    )
    assert code == 2
    assert "--readers dask reads tiles, but --features takes their place" in " ".join(text.split())


def test_settings_for_features_are_refused_without_features(slides, tmp_path):
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--set", "model.backbone=features:64"),
        *("--out", tmp_path / "out"),
    )
    assert code == 2
    assert "6 slides name no features" in " ".join(text.split())


def test_a_model_without_the_name_of_an_encoder_scores_no_pixels(trained, slides, tmp_path):
    import shutil

    from wsi_ats.models.checkpoints import save_model

    loaded = load_model(trained[0], encoder=False)
    folder = shutil.copytree(trained[0], tmp_path / "model")
    save_model(folder, loaded.model, loaded.settings.with_values(['model.encoder=""']), loaded.target)
    code, text = wsi_ats("score", slides, "--model", folder, "--out", tmp_path / "out")
    assert code == 2
    assert "trained on features of an unknown encoder" in " ".join(text.split())


def test_features_of_another_encoder_fail_with_both_names(
    trained, slides, features, backbone, address, tmp_path
):
    folder = tmp_path / "features"
    folder.mkdir()
    write_features(folder, slides / "slide_000.tif", backbone)
    with h5py.File(folder / "slide_000.h5", "a") as file:
        for place in (file, file["features"], file["coords"]):
            if "encoder" in place.attrs:
                place.attrs["encoder"] = "uni_v1"
    code, _ = wsi_ats(
        *("score", slides / "slide_000.tif", "--model", trained[0], "--features", folder),
        *("--out", tmp_path / "out", "--scheduler", address),
    )
    assert code == 1
    [row] = table(tmp_path / "out" / "predictions.csv")
    assert "has features of uni, but the model is for those of test_vit" in row["error"]


def without_seconds(out):
    return [{**row, "seconds": ""} for row in table(out / "metrics.csv")]


def compressed(features, folder, dtype="float32"):
    folder.mkdir()
    for path in features.glob("slide_*.h5"):
        with h5py.File(path) as plain, h5py.File(folder / path.name, "w") as packed:
            packed.attrs.update(plain.attrs)
            for name in ("coords", "features"):
                values = plain[name][:].astype(dtype if name == "features" else np.int64)
                made = packed.create_dataset(name, data=values, compression="gzip", chunks=True)
                made.attrs.update(plain[name].attrs)
    return folder


def test_folds_share_one_copy_of_compressed_features_in_their_own_type(slides, backbone, address, tmp_path):
    (tmp_path / "plain").mkdir()
    for path in slides.glob("*.tif"):
        write_features(tmp_path / "plain", path, backbone)
    folder, out = compressed(tmp_path / "plain", tmp_path / "features", "float16"), tmp_path / "cv"
    code, text = wsi_ats(
        *("crossval", slides, "--labels", slides / "labels.csv", "--features", folder, *SET),
        *("--set", "training.epochs=1", "--set", "training.attention_epochs=0"),
        *("--set", "training.validation=0.5", "--folds", 3),
        *("--resamples", 20, "--out", out, "--scheduler", address),
    )
    assert code == 0, text
    copies = sorted(out.rglob("copied/*.h5"))
    assert copies == sorted(out / "copied" / path.name for path in folder.glob("*.h5"))
    for path in copies:
        with h5py.File(path) as copy:
            assert copy["features"].dtype == "float16"


def test_compressed_features_are_copied_and_learned_from_alike(trained, slides, features, address, tmp_path):
    folder = compressed(features, tmp_path / "features")
    out = tmp_path / "out"
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--features", folder, *SET),
        *("--out", out, "--scheduler", address),
    )
    assert code == 1, text  # one slide has no features
    assert sorted(path.stem for path in (out / "copied").glob("*.h5")) == sorted(
        path.stem for path in folder.glob("*.h5")
    )
    assert not (trained[0] / "copied").exists()
    assert without_seconds(out) == without_seconds(trained[0])


def test_other_weights_of_the_encoder_are_refused(slides, weights, address, tmp_path):
    """In pixels and in features, by the digest that embed writes."""
    torch.manual_seed(1)
    from safetensors.torch import save_file

    other = {name: each.contiguous() + 0.01 for name, each in torch_state(weights).items()}
    save_file(other, tmp_path / "other.safetensors")
    one = slides / "slide_000.tif"
    for name, file, source in (("own", weights, slides), ("other", tmp_path / "other.safetensors", one)):
        code, text = wsi_ats(
            *("embed", source, "--encoder", "test_vit", "--out", tmp_path / name, "--scheduler", address),
            *(
                "--set",
                f"model.checkpoint={file}",
                "--set",
                "tile.size=64",
                "--set",
                "scoring.precision=float32",
            ),
        )
        assert code == 0, text
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", "--features", tmp_path / "own", *SET),
        *("--out", tmp_path / "run", "--scheduler", address),
    )
    assert code == 0, text
    score = ("score", one, "--model", tmp_path / "run", "--scheduler", address)
    code, text = wsi_ats(*score, "--features", tmp_path / "other", "--out", tmp_path / "a")
    assert code == 1
    [row] = table(tmp_path / "a" / "predictions.csv")
    assert "features of other weights of test_vit" in row["error"]
    file = f"scoring.encoder_checkpoint={tmp_path / 'other.safetensors'}"
    code, text = wsi_ats(*score, "--set", file, "--out", tmp_path / "b")
    assert code == 2
    assert "the model was trained on features of other weights" in " ".join(text.split())
    file = f"scoring.encoder_checkpoint={weights}"
    code, text = wsi_ats(*score, "--set", file, "--out", tmp_path / "c")
    assert code == 0, text


def test_weights_of_a_frozen_backbone_are_compared_with_those_of_features(slides, weights, address, tmp_path):
    """The model was trained on pixels; its own digest is that of `embed` with the same weights."""
    from safetensors.torch import save_file

    one, file = slides / "slide_000.tif", f"model.checkpoint={weights}"
    other = {name: each.contiguous() + 0.01 for name, each in torch_state(weights).items()}
    save_file(other, tmp_path / "other.safetensors")
    same = ("--set", "tile.size=64", "--set", "scoring.precision=float32")
    for name, own in (("own", file), ("other", f"model.checkpoint={tmp_path / 'other.safetensors'}")):
        words = ("embed", one, "--encoder", "test_vit", "--set", own, *same)
        code, text = wsi_ats(*words, "--out", tmp_path / name, "--scheduler", address)
        assert code == 0, text
    frozen = ("model.backbone=test_vit", file, "training.fine_tuning=frozen")
    code, text = wsi_ats(
        *("train", slides, "--labels", slides / "labels.csv", *SET),
        *(word for each in frozen for word in ("--set", each)),
        *("--out", tmp_path / "run", "--scheduler", address),
    )
    assert code == 0, text
    score = ("score", one, "--model", tmp_path / "run", "--scheduler", address)
    code, text = wsi_ats(*score, "--features", tmp_path / "own", "--out", tmp_path / "a")
    assert code == 0, text
    code, text = wsi_ats(*score, "--features", tmp_path / "other", "--out", tmp_path / "b")
    assert code == 1
    [row] = table(tmp_path / "b" / "predictions.csv")
    assert "features of other weights of test_vit" in row["error"]


def torch_state(path):
    from safetensors.torch import load_file

    return load_file(path)
