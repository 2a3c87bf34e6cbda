"""The schema of settings files, as an editor uses it."""

from __future__ import annotations

import json
import tomllib

import pytest
from jsonschema import Draft202012Validator

from settings.other_values import DESCRIBED, OTHER
from wsi_ats.errors import SettingsError
from wsi_ats.settings import KINDS, Settings, commented_toml, json_schema

SCHEMA = json.loads(json.dumps(json_schema()))
VALIDATOR = Draft202012Validator(SCHEMA)


def nested(name: str, value: object) -> dict[str, object]:
    section, _, own = name.partition(".")
    return {section: {own: value}}


def test_it_is_a_schema_that_allows_the_commented_file_and_other_values():
    Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(tomllib.loads(commented_toml()))
    VALIDATOR.validate(OTHER)
    VALIDATOR.validate({"tile": {"channel": 2, "mpp": 1}})
    for kind in KINDS:
        VALIDATOR.validate({"model": {"kind": kind}})


def test_every_setting_has_its_reason_and_default():
    for name, each in DESCRIBED.items():
        section, _, own = name.partition(".")
        found = SCHEMA["properties"][section]["properties"][own]
        assert found["description"].startswith(each.reason)
        assert found["default"] == each.default
        assert all(kind in found["description"] for kind in each.kinds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tile.size", 0), ("tile.size", 2.5), ("tile.mpp", "0.5"), ("tile.sise", 256), ("tiles.size", 256)),
        *(("thumbnail.levels", 3), ("thumbnail.pixels_per_region", 6), ("thumbnail.max_artefact", 1.0)),
        *(("model.kind", "MIL"), ("model.pretrained", 1), ("training.fine_tuning", "last-0")),
        *(("training.epochs", -1), ("sampling.tiles", 0), ("sampling.design", "best")),
    ],
)
def test_it_refuses_what_a_command_refuses(name, value):
    assert not VALIDATOR.is_valid(nested(name, value))
    with pytest.raises(SettingsError):
        Settings.from_mapping(nested(name, value))
