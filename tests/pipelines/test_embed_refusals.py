"""What `embed` refuses, and what is part of its run."""

from __future__ import annotations

import pickle

import pytest
from conftest import embed_settings

from pipelines.embed import EmbedTask, embed
from pipelines.embed import _once as loaded_once
from pipelines.embed import _used as used
from wsi_ats.errors import ModelError, SettingsError
from wsi_ats.settings import Settings


@pytest.fixture(scope="module")
def settings(weights) -> Settings:
    return embed_settings(weights)


def test_weights_that_differ_on_a_worker_are_refused(settings):
    with pytest.raises(ModelError, match="on this worker, but 0123"):
        loaded_once(settings, "0123")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sampling.tiles=5", "sampling.tiles is 5, but it has no effect on features"),
        ("training.epochs=3", "training.epochs is 3, but it has no effect"),
        ("model.kind=mil", "model.kind is 'mil', but it has no effect"),
        ("thumbnail.levels=2", "thumbnail.levels is 2, but it has no effect"),
        ("scoring.encoder_checkpoint=a.pt", "scoring.encoder_checkpoint is 'a.pt', but it has no effect"),
        ("model.backbone=features:64", "encodes no pixels"),
        ("model.pretrained=false", "random weights"),
    ],
)
def test_settings_without_effect_and_untrained_encoders_are_refused(change, said, refs, tmp_path):
    with pytest.raises(SettingsError, match=said):
        embed(refs, tmp_path / "out", settings=Settings().with_values([change]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"dtype": "float64"}, "--dtype is 'float64', expected float32 or float16"),
        ({"tiles": 0}, "--tiles is 0"),
        ({"seed": 1}, "--seed has no effect without --tiles"),
    ],
)
def test_impossible_options_are_refused(chosen, said, refs, settings, tmp_path):
    with pytest.raises(SettingsError, match=said):
        embed(refs, tmp_path / "out", settings=settings, **chosen)


def test_every_setting_that_decides_features_is_part_of_the_run(settings):
    names = {f"{section}.{name}" for section, own in used(settings).items() for name in own}
    assert {"tile.size", "tile.mpp", "tile.stride", "tile.channel", "thumbnail.tissue"} <= names
    assert {"thumbnail.exclude", "model.backbone", "model.checkpoint", "scoring.precision"} <= names
    assert not names & {"thumbnail.levels", "model.kind", "sampling.tiles", "training.seed"}


def test_an_unknown_encoder_is_an_error_before_any_work(slides, run, tmp_path):
    ran = run("embed", slides, "--encoder", "resnet81", "--out", tmp_path / "out", code=2)
    assert "resnet81" in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["uni", "resnet18"])
@pytest.mark.parametrize("in_file", [False, True])
def test_another_backbone_beside_the_encoder_is_refused(slides, run, tmp_path, other, in_file):
    given = ["--set", f"model.backbone={other}"]
    if in_file:
        (tmp_path / "ats.toml").write_text(f'[model]\nbackbone = "{other}"\n')
        given = ["--config", tmp_path / "ats.toml"]
    ran = run("embed", slides, "--encoder", "test_vit", *given, "--out", tmp_path / "out", code=2)
    said = f"--encoder is test_vit, but model.backbone is {other} in --config or --set"
    assert said in " ".join(ran.stderr.split())


def test_the_task_is_small_enough_to_send(settings, tmp_path):
    task = EmbedTask(tmp_path, "run", settings, "digest", None, 0, "float32")
    assert len(pickle.dumps(task)) < 10_000
