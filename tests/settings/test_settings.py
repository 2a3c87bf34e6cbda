"""Settings are checked at birth, frozen, and come back from TOML as they were."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from settings.other_values import DESCRIBED, OTHER
from wsi_ats import settings as config
from wsi_ats.errors import SettingsError
from wsi_ats.models import kinds
from wsi_ats.nn.expectation import POOLINGS
from wsi_ats.nn.sampling import DESIGNS
from wsi_ats.settings import Fixes, ImageModel, MilModel, Settings, commented_toml, describe
from wsi_ats.settings import model as model_settings
from wsi_ats.tasks.registry import TASKS


def of_kind(kind: str) -> dict:
    """Values of all settings of a kind, none of them its default."""
    model = {
        name: value
        for name, value in OTHER["model"].items()
        if kind in (DESCRIBED[f"model.{name}"].kinds or config.KINDS)
    }
    others = {} if kind == "sampling" else {"thumbnail": {"exclude": "pen"}, "sampling": {"tiles": 3}}
    return OTHER | {"model": model | {"kind": kind}} | others


def test_the_values_of_these_tests_cover_every_setting():
    listed = {f"{section}.{name}" for section, values in OTHER.items() for name in values}
    assert listed == set(DESCRIBED)
    for section, values in OTHER.items():
        assert all(DESCRIBED[f"{section}.{name}"].default != value for name, value in values.items())


def test_every_default_has_its_reason_and_every_setting_decides_something():
    for each in describe():
        assert re.match(r"[A-Z`].{12,}[.]$", each.reason), each.name
        assert each.fixes, each.name
        assert set(each.kinds) <= set(config.KINDS)


def test_a_commented_file_holds_all_defaults_and_names_all_settings():
    text = commented_toml()
    assert Settings.from_mapping(tomllib.loads(text)) == Settings()
    every = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M)
    assert {
        f"{section}.{name}" for section, values in tomllib.loads(every).items() for name in values
    } == set(DESCRIBED)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "settings",
    [Settings(), *(Settings.from_mapping(of_kind(kind)) for kind in ("sampling", "uniform", "mil"))],
    ids=["defaults", "sampling", "uniform", "mil"],
)
def test_settings_round_trip_through_a_file(tmp_path, settings):
    path = tmp_path / "ats.toml"
    path.write_text(settings.to_toml(), encoding="utf-8")
    assert Settings.read(path) == settings
    assert Settings.read(path).digest() == settings.digest()
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_value_can_be_set_on_a_command_line_and_changes_the_digest():
    seen = {Settings().digest()}
    for section, values in OTHER.items():
        for name, value in values.items():
            others = DESCRIBED[f"{section}.{name}"].kinds if section == "model" else ()
            kind = [f"model.kind={each}" for each in others[:1]]
            changed = Settings().with_values([f"{section}.{name}={json.dumps(value)}", *kind])
            assert getattr(getattr(changed, section), name) == value
            seen.add(changed.digest())
    assert len(seen) == 1 + sum(map(len, OTHER.values()))


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_digest_depends_on_the_settings_that_decide_its_results_and_on_no_other(name):
    section, key = name.split(".")
    kinds = DESCRIBED[name].kinds if section == "model" else ()
    base = Settings().with_values([f"model.kind={kind}" for kind in kinds[:1]])
    changed = base.with_values([f"{name}={json.dumps(OTHER[section][key])}"])
    for part in Fixes:
        differs = base.digest(part) != changed.digest(part)
        assert differs is (part.name.lower() in DESCRIBED[name].fixes or (name == "model.kind" and differs))


def test_scoring_may_change_only_these_settings():
    """As the documentation lists it."""
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "training.md").read_text(encoding="utf-8")
    _, _, after = page.partition("A trained model can be scored with other values of these settings:")
    listed, _, _ = after.partition("All others need a new training")
    changeable = [name for name, each in DESCRIBED.items() if not each.needs_training]
    assert re.findall(r"`([\w.]+)`", listed) == changeable


@pytest.mark.parametrize("kind", ["sampling", "mil"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_a_trained_model_refuses_settings_it_cannot_follow(kind, name):
    section, key = name.split(".")
    each, trained = DESCRIBED[name], Settings().with_values([f"model.kind={kind}"])
    used = kind in (each.kinds or config.KINDS)
    if name == "model.kind" or not (used or section == "sampling"):
        return
    try:
        wanted = trained.with_values([f"{name}={json.dumps(OTHER[section][key])}"])
    except SettingsError:  # no model of the kind can have it
        assert not used
        return
    if used and not each.needs_training:
        wanted.check_scoring(trained)
        return
    message = "the model was trained with" if "network" in each.fixes else "has no effect on scoring"
    with pytest.raises(SettingsError, match=rf"^{re.escape(name)} is .*{message}"):
        wanted.check_scoring(trained)
    with pytest.raises(SettingsError, match=r"^model\.kind is uniform, but the model was trained with"):
        Settings().with_values(["model.kind=uniform"]).check_scoring(trained)


def test_a_kind_has_its_own_settings_and_those_that_all_share():
    mil = Settings().with_values(["model.mil_tiles=7", "model.kind=mil", "model.cases=mean"])
    assert mil.model == MilModel(mil_tiles=7, cases="mean")
    all_tiles = mil.with_values(["model.mil_tiles=0"])
    assert all_tiles.with_values(["model.kind=image"]).model == ImageModel(cases="mean")
    with pytest.raises(SettingsError, match=r"model\.mil_tiles is 7, but a model of kind image has no such"):
        mil.with_values(["model.kind=image"])
    with pytest.raises(
        SettingsError, match=r"model\.pool is a setting of kind sampling and uniform, but .* mil"
    ):
        mil.with_values(["model.pool=linear"])
    with pytest.raises(
        SettingsError, match=r"model\.kind is mil, but these settings are used for ImageModel"
    ):
        mil.model_as(ImageModel)


def test_settings_and_code_list_the_same_kinds_and_poolings():
    assert list(kinds.KINDS) == list(config.KINDS)
    for name, record in config.KINDS.items():
        assert record().kind == name
    for name in POOLINGS:
        assert Settings().with_values([f"model.pool={name}"]).model.pool == name
    *others, last = POOLINGS
    with pytest.raises(SettingsError, match=f"model.pool must be {', '.join(others)} or {last}, not"):
        Settings().with_values(["model.pool=none"])


def test_a_file_changes_the_settings_that_it_names(tmp_path):
    path = tmp_path / "ats.toml"
    path.write_text("[model]\nkind = 'mil'\n[sampling]\ntiles = 5\n")
    base = Settings().with_values(["model.task=regression", "sampling.tiles=3", "tile.size=32"])
    assert Settings.read(path, base) == base.with_values(["model.kind=mil", "sampling.tiles=5"])


def test_the_digest_is_the_same_in_another_process():
    code = "from wsi_ats.settings import Settings; print(Settings().digest())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == Settings().digest()


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().tile.size = 3
    assert hash(Settings()) == hash(Settings.from_mapping({}))


def test_a_file_may_name_a_few_settings_only(tmp_path):
    path = tmp_path / "ats.toml"
    path.write_text("[sampling]\ntiles = 7\n[tile]\nmpp = 1\n")
    assert Settings.read(path) == Settings().with_values(["sampling.tiles=7", "tile.mpp=1.0"])


def test_words_need_no_quotes_on_a_command_line():
    for text in ("resnet50", "'resnet50'", '"resnet50"', " resnet50 "):
        assert Settings().with_values([f"model.backbone={text}"]).model.backbone == "resnet50"
    assert Settings().with_values(["model.checkpoint=a=b.pth"]).model.checkpoint == "a=b.pth"
    assert Settings().with_values(["model.checkpoint="]).model.checkpoint == ""


def test_later_values_win():
    assert Settings().with_values(["sampling.tiles=3", "sampling.tiles=4"]).sampling.tiles == 4


def test_settings_and_code_list_the_same_designs():
    for design in DESIGNS:
        assert Settings().with_values([f"sampling.design={design}"]).sampling.design == design
    with pytest.raises(SettingsError) as caught:
        Settings().with_values(["sampling.design=none"])
    assert all(design in str(caught.value) for design in DESIGNS)


def test_settings_and_code_list_the_same_tasks():
    assert tuple(TASKS) == model_settings.TASKS
    for task in TASKS:
        assert Settings().with_values([f"model.task={task}"]).model.task == task
    with pytest.raises(SettingsError, match=", ".join([*TASKS][:-1]) + f" or {[*TASKS][-1]}, not 'none'"):
        Settings().with_values(["model.task=none"])
