"""An encoder brings the tiles of its training; values that are given win."""

from __future__ import annotations

import pytest

from wsi_ats.encoders import ENCODERS
from wsi_ats.settings import Settings

FIRST = Settings().tile


def tiles(settings: Settings) -> tuple[int, float]:
    return settings.tile.size, settings.tile.mpp


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_sets_the_tiles_of_its_training(encoder):
    settings = Settings().with_values([f"model.backbone={encoder.name}"])
    assert tiles(settings) == (encoder.tile, encoder.mpp[0] if encoder.mpp else FIRST.mpp)
    assert settings.unsuited_tiles == ""
    assert Settings.from_mapping({"model": {"backbone": encoder.name}}) == settings


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (["model.backbone=conch_v1", "tile.size=512"], (512, 0.5)),
        (["tile.mpp=1.0", "model.backbone=conch_v1"], (448, 1.0)),
        (["model.backbone=resnet18"], (FIRST.size, FIRST.mpp)),
        (["model.backbone=hf-hub:owner/uni"], (FIRST.size, FIRST.mpp)),
        (["tile.stride=0.5", "model.backbone=uni"], (224, 0.5)),
    ],
)
def test_given_values_win(changes, found):
    assert tiles(Settings().with_values(changes)) == found


@pytest.mark.parametrize(
    ("text", "changes", "found"),
    [
        ("[model]\nbackbone = 'conch_v1'", [], (448, 0.5)),
        ("[model]\nbackbone = 'conch_v1'\n[tile]\nsize = 512", [], (512, 0.5)),
        ("[tile]\nsize = 512", ["model.backbone=conch_v1"], (512, 0.5)),
        ("[model]\nbackbone = 'conch_v1'", ["tile.size=512"], (512, 0.5)),
        ("[model]\nbackbone = 'conch_v1'", ["model.backbone=uni"], (224, 0.5)),
        # The file's encoder is not used, so its tiles are not either.
        ("[model]\nbackbone = 'conch_v1'", ["model.backbone=resnet18"], (FIRST.size, FIRST.mpp)),
        (Settings().to_toml(), ["model.backbone=uni"], (FIRST.size, FIRST.mpp)),
    ],
)
def test_a_settings_file_and_later_changes_are_one_choice(tmp_path, text, changes, found):
    path = tmp_path / "ats.toml"
    path.write_text(text)
    assert tiles(Settings.read(path, changes=changes)) == found


def test_settings_of_a_trained_model_keep_their_tiles(tmp_path):
    """What is saved has the values that were used, and naming the same encoder again changes nothing."""
    used = Settings().with_values(["model.backbone=uni", "tile.size=448", "tile.mpp=0.25"])
    path = tmp_path / "config.toml"
    path.write_text(used.to_toml())
    assert Settings.read(path) == used
    assert used.with_values(["model.backbone=uni"]) == used
    assert Settings.read(path).unsuited_tiles == used.unsuited_tiles != ""


def test_a_model_that_reads_no_tiles_has_none_that_could_be_unsuited():
    settings = Settings().with_values(["model.kind=image", "model.backbone=uni", "tile.size=512"])
    assert settings.unsuited_tiles == ""
