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

from wsi_ats import settings as config
from wsi_ats.errors import SettingsError
from wsi_ats.models import kinds
from wsi_ats.nn.pooling import POOLINGS
from wsi_ats.nn.sampling import BIASED, DESIGNS
from wsi_ats.settings import Fixes, ImageModel, MilModel, Settings, commented_toml, describe
from wsi_ats.settings import model as model_settings
from wsi_ats.tasks.registry import TASKS

OTHER = {  # for every setting, a value that is not its default
    "tile": {"size": 128, "mpp": 0.25, "tolerance": 0.0, "stride": 0.5, "colour": "srgb", "channel": "DAPI"},
    "thumbnail": {
        "pixels_per_cell": 4,
        "tissue": "none",
        "min_tissue": 1.0,
        "levels": 2,
        "cells_per_region": 8,
        "pixels_per_region": 8,
        "exclude": "pen",
        "max_artefact": 0.5,
    },
    "model": {
        "task": "multilabel",
        "backbone": "hf-hub:owner/model",
        "pretrained": False,
        "checkpoint": 'C:\\weights\\"a".pth',
        "attention": "resnet18",
        "attention_checkpoint": "maps.pth",
        "pool": "linear",
        "kind": "mil",
        "mil_attention": "plain",
        "mil_tiles": 100,
        "cases": "union",
        "scale": 0.25,
    },
    "sampling": {
        "design": "uniform",
        "tiles": 1,
        "draws": 9,
        "regions": 3,
        "exploration": 0.5,
        "tolerance": 0.5,
        "max_tiles": 900,
    },
    "scoring": {"precision": "bfloat16"},
    "training": {
        "epochs": 1,
        "tiles": 16,
        "attention_epochs": 3,
        "attention_tiles": 128,
        "joint_epochs": 2,
        "feature_dropout": 0.25,
        "slides_per_step": 1,
        "learning_rate": 0.0,
        "attention_learning_rate": 1.5e-7,
        "head_learning_rate": 1e-300,
        "gate_learning_rate": 1e-300,
        "calibrate_scores": False,
        "weight_decay": 0.0,
        "entropy": 0.0,
        "teaching": 0.5,
        "evidence": 1.0,
        "warmup": 0.0,
        "clip": 0.1,
        "validation": 0.0,
        "calibration_tiles": 2,
        "tiles_per_pass": 256,
        "read_ahead": 0,
        "precision": "float32",
        "compile": True,
        "fine_tuning": "last-2",
        "ema": 0.99,
        "balance": "weights",
        "patience": 5,
        "monitor": "score",
        "checkpoint_steps": 7,
        "keep_checkpoints": 1,
        "seed": 2**40,
    },
    "augmentation": {"turns": False, "colour": 0.1, "stain": 0.2},
}

# The settings of ``model`` that one kind has, by the kind.
DESCRIBED = {each.name: each for each in describe()}


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
def test_settings_come_back_from_a_file_as_they_were(tmp_path, settings):
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


def test_what_can_be_changed_when_a_trained_model_is_scored():
    """As the documentation lists it."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    _, _, after = page.partition("A trained model can be scored with other values of these:")
    listed, _, _ = after.partition("All others need training")
    changeable = [name for name, each in DESCRIBED.items() if not each.needs_training]
    assert re.findall(r"`([\w.]+)`", listed) == changeable


@pytest.mark.parametrize("kind", ["sampling", "mil"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_a_trained_model_is_scored_with_settings_that_it_can_follow_and_no_others(kind, name):
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


def test_settings_and_code_know_the_same_kinds_and_poolings():
    assert list(kinds.KINDS) == list(config.KINDS)
    for name, record in config.KINDS.items():
        assert record().kind == name
    for name in POOLINGS:
        assert Settings().with_values([f"model.pool={name}"]).model.pool == name
    with pytest.raises(SettingsError, match=f"model.pool must be {' or '.join(POOLINGS)}, not"):
        Settings().with_values(["model.pool=mean"])


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


OUT_OF_RANGE = [
    *["tile.size=15", "tile.mpp=0", "tile.mpp=-1.0", "tile.tolerance=1.0", "tile.tolerance=-0.1"],
    *["tile.stride=0.0", "tile.stride=1.01", "thumbnail.pixels_per_cell=0", "thumbnail.tissue=otsu"],
    *["thumbnail.min_tissue=0.0", "thumbnail.min_tissue=1.1", "model.backbone=''", "model.attention=''"],
    *["thumbnail.exclude=fold", "thumbnail.exclude=pen,pen", "thumbnail.exclude=pen,"],
    *["thumbnail.max_artefact=1.0", "thumbnail.max_artefact=-0.1"],
    *["model.task=ranking", "model.kind=cnn"],
    *["model.pool=mean", "sampling.design=best", "sampling.tiles=0", "sampling.draws=0"],
    *["sampling.tolerance=-0.1", "sampling.max_tiles=-1", "sampling.max_tiles=63"],
    *["training.epochs=-1", "training.slides_per_step=0", "training.learning_rate=-1.0"],
    *["training.tiles=0", "training.attention_tiles=0", "training.attention_epochs=-1"],
    *["training.joint_epochs=-1", "training.feature_dropout=1.0", "training.feature_dropout=-0.1"],
    *[
        "training.attention_learning_rate=0.0",
        "training.head_learning_rate=0.0",
        "training.gate_learning_rate=0.0",
        "training.clip=0.0",
    ],
    *["training.weight_decay=-0.1", "training.entropy=-0.1", "training.warmup=1.0"],
    *["training.validation=0.6", "training.validation=-0.1", "training.calibration_tiles=1"],
    *["training.teaching=-0.1", "training.evidence=-0.1"],
    *["training.seed=-1", "model.cases=mixed", "training.precision=half", "training.fine_tuning=last-0"],
    *["training.tiles_per_pass=-1", "training.read_ahead=-1", "training.balance=even", "training.ema=1.0"],
    *["training.patience=-1", "training.monitor=auc", "training.checkpoint_steps=0"],
    *["training.keep_checkpoints=0", "augmentation.colour=-0.1", "augmentation.stain=1.1"],
]


OF_OTHER_KINDS = [
    ("mil", "model.mil_attention=soft"),
    ("mil", "model.mil_tiles=-1"),
    ("image", "model.scale=0.0"),
]


@pytest.mark.parametrize(
    ("kind", "assignment"), [*(("sampling", each) for each in OUT_OF_RANGE), *OF_OTHER_KINDS]
)
def test_a_value_out_of_range_is_refused_with_its_name_and_itself(kind, assignment):
    name, value = assignment.split("=")
    with pytest.raises(SettingsError) as caught:
        Settings().with_values([f"model.kind={kind}"]).with_values([assignment])
    assert name in str(caught.value)
    assert value.strip("'") in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_number_may_be_infinite_or_none(value):
    for name, each in DESCRIBED.items():
        if each.type == "float":
            kind = [f"model.kind={kind}" for kind in each.kinds[:1]]
            with pytest.raises(SettingsError, match=f"{name} must be a finite number"):
                Settings().with_values([*kind, f"{name}={value}"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("tile.size=big", "tile.size must be of type int, not 'big'"),
        ("tile.size=256.0", "tile.size must be of type int"),
        ("tile.size=true", "tile.size must be of type int"),
        ("tile.mpp='0.5'", "tile.mpp must be of type float"),
        ("tile.mpp=true", "tile.mpp must be of type float"),
        ("model.pretrained=1", "model.pretrained must be of type bool"),
        ("model.backbone=5", "model.backbone must be of type str"),
        ("model.backbone=[1]", "model.backbone must be of type str"),
        ("tile.sise=256", "unknown setting tile.sise; did you mean tile.size? known are size, mpp"),
        ("tiles.size=256", "unknown settings section 'tiles'; did you mean tile? known are tile, thumbnail"),
        ("tile.size", "expected section.name=value"),
        ("size=256", "expected section.name=value"),
        ("", "expected section.name=value"),
    ],
)
def test_a_wrong_assignment_says_what_was_expected(assignment, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        Settings().with_values([assignment])


@pytest.mark.parametrize(
    "content",
    [None, b"[tile", b"\xff\xfe", b"tile = 3", b"[tiles]\nsize = 3", b"size = 3", b"[tile]\nsize = 'a'"],
    ids=str,
)
def test_a_wrong_file_is_refused(tmp_path, content):
    path = tmp_path / "ats.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError):
        Settings.read(path)


def test_settings_and_code_know_the_same_designs():
    for design in DESIGNS:
        assert Settings().with_values([f"sampling.design={design}"]).sampling.design == design
    with pytest.raises(SettingsError) as caught:
        Settings().with_values(["sampling.design=none"])
    assert all(design in str(caught.value) for design in DESIGNS)


def test_settings_and_code_know_the_same_tasks():
    assert tuple(TASKS) == model_settings.TASKS
    for task in TASKS:
        assert Settings().with_values([f"model.task={task}"]).model.task == task
    with pytest.raises(SettingsError, match=", ".join([*TASKS][:-1]) + f" or {[*TASKS][-1]}, not 'none'"):
        Settings().with_values(["model.task=none"])


@pytest.mark.parametrize("name", ["colour", "stain"])
def test_tiles_that_are_encoded_once_cannot_be_varied(name):
    varied = Settings().with_values([f"augmentation.{name}=0.1"])
    for learning in ("full", "last-1"):
        varied.with_values([f"training.fine_tuning={learning}"]).check_trainable()
    frozen = varied.with_values(["training.fine_tuning=frozen"])  # as it may be scored with
    with pytest.raises(
        SettingsError,
        match=rf"augmentation\.{name} is 0\.1, but training\.fine_tuning is frozen.*"
        rf"training\.fine_tuning=last-1 or full; set augmentation\.{name}=0\.0",
    ):
        frozen.check_trainable()
    for model in ("model.kind=image", "model.backbone=features:8"):
        with pytest.raises(SettingsError, match=rf"augmentation\.{name} is 0\.1, but .*(image|features:8)"):
            varied.with_values([model]).check_trainable()
    frozen.with_values([f"augmentation.{name}=0"]).check_trainable()


def test_weights_of_a_network_of_attention_that_is_not_there_are_refused():
    given = Settings().with_values(["model.attention=resnet18", "model.attention_checkpoint=maps.pth"])
    given.check_trainable()
    with pytest.raises(SettingsError, match=r"maps\.pth', but there are no epochs to train attention"):
        given.with_values(["training.attention_epochs=0"]).check_trainable()
    with pytest.raises(SettingsError, match=r"attention_checkpoint is 'maps\.pth', but model\.attention is"):
        given.with_values(["model.attention=small"]).check_trainable()
    with pytest.raises(SettingsError, match=r"attention is 'resnet18', but a model of kind uniform has no"):
        given.with_values(["model.kind=uniform"])


def test_biased_designs_are_for_scoring_one_draw_only():
    for design in DESIGNS:
        settings = Settings().with_values([f"sampling.design={design}"])
        if design not in BIASED:
            settings.with_values(["training.attention_epochs=0"]).check_trainable()
            continue
        with pytest.raises(SettingsError, match=f"{design!r} is biased"):
            settings.check_trainable()
        with pytest.raises(SettingsError, match="same tiles every time"):
            settings.with_values(["sampling.draws=2"])


def test_a_cell_of_an_image_is_a_whole_number_of_pixels():
    settings = Settings().with_values(["model.kind=image", "tile.size=50", "model.scale=0.62"])
    assert settings.model.pixels_per_cell(settings.tile) == 31
    settings.with_values(["tile.stride=0.5", "model.scale=0.4"])
    with pytest.raises(SettingsError, match=r"model\.scale 0\.3 makes .* 19\.2 pixels .* model\.scale=0\.296875"):
        Settings().with_values(["model.kind=image", "tile.size=64", "model.scale=0.3"])


@pytest.mark.parametrize("kind", ["uniform", "mil", "image"])
def test_what_other_kinds_have_not_got_is_refused(kind):
    settings = Settings().with_values([f"model.kind={kind}"])
    settings.check_trainable()
    with pytest.raises(SettingsError, match=rf"thumbnail\.levels is 2, .*{kind}"):
        settings.with_values(["thumbnail.levels=2"])


def test_artefacts_that_can_be_left_out():
    both = ["thumbnail.exclude=pen, blur", "thumbnail.pixels_per_cell=32"]
    assert Settings().thumbnail.excluded == ()
    assert Settings().with_values(both).thumbnail.excluded == config.ARTEFACTS
    with pytest.raises(SettingsError, match=r"16 micrometres wide, .* set thumbnail\.pixels_per_cell=32"):
        Settings().with_values(["thumbnail.exclude=blur"])
    with pytest.raises(SettingsError, match=r"exclude is pen, but a model of kind image sees the whole"):
        Settings().with_values(["thumbnail.exclude=pen", "model.kind=image"])


@pytest.mark.parametrize("kind", ["sampling", "uniform", "mil", "image"])
def test_without_epochs_there_is_nothing_to_train(kind):
    none = Settings().with_values([f"model.kind={kind}", "training.epochs=0", "training.attention_epochs=0"])
    advice = r" or training\.joint_epochs" if kind == "sampling" else ""
    with pytest.raises(SettingsError, match=rf"there are no epochs to train; set training\.epochs{advice}$"):
        none.check_trainable()
    some = none.with_values(["training.joint_epochs=1"])
    if kind == "sampling":
        some.check_trainable()
    else:  # which has no such phase
        with pytest.raises(SettingsError, match="there are no epochs to train"):
            some.check_trainable()


@pytest.mark.parametrize("kind", ["uniform", "mil", "image"])
@pytest.mark.parametrize("only", ["joint_epochs=3", "teaching=1.0"])
def test_kinds_without_attention_to_thumbnails_refuse_what_would_teach_it(kind, only):
    name, value = only.split("=")
    said = rf"training\.{name} is {value}, but a model of kind {kind} has .* set training\.{name}=0"
    with pytest.raises(SettingsError, match=said):
        Settings().with_values([f"model.kind={kind}", f"training.{only}"]).check_trainable()


@pytest.mark.parametrize("joint", [0, 5])
def test_attention_is_not_taught_by_a_classifier_that_has_learned_nothing(joint):
    changes = ["training.epochs=0", f"training.joint_epochs={joint}"]  # 12 epochs of attention by default
    said = (
        r"epochs is 0 and training\.attention_epochs is 12: .* untrained classifier; set .*attention_epochs=0"
    )
    with pytest.raises(SettingsError, match=said):
        Settings().with_values(changes).check_trainable()
    Settings().with_values(["training.attention_epochs=0"]).check_trainable()


def test_attention_that_would_never_be_drawn_from_is_not_learned():
    uniform = Settings().with_values(["sampling.design=uniform"])
    with pytest.raises(SettingsError, match=r"never used to draw tiles; set model\.kind=uniform"):
        uniform.check_trainable()
    uniform.with_values(["model.kind=uniform"]).check_trainable()
    uniform.with_values(["training.attention_epochs=0"]).check_trainable()


def test_features_of_tiles_are_no_network_for_thumbnails():
    assert Settings().with_values(["model.backbone=features:12"]).model.takes_features
    assert not Settings().model.takes_features
    with pytest.raises(SettingsError, match=r"name a timm network, not 'features:12'"):
        Settings().with_values(["model.attention=features:12"])


def test_patience_needs_slides_to_watch():
    settings = Settings().with_values(["training.patience=3"])
    settings.check_watched(1)
    Settings().check_watched(0)
    with pytest.raises(SettingsError, match=r"training\.patience is 3, but there are no validation slides"):
        settings.check_watched(0)


@pytest.mark.parametrize("kind", ["mil", "image"])
@pytest.mark.parametrize("only", ["draws=2", "tolerance=0.1", "max_tiles=640"])
def test_kinds_that_draw_nothing_refuse_settings_of_draws(kind, only):
    with pytest.raises(SettingsError, match=f"kind {kind} draws no tiles; leave out sampling.draws"):
        Settings().with_values([f"model.kind={kind}", f"sampling.{only}"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["sampling.design=top", "sampling.tolerance=0.1"], "same tiles every time"),
        (["sampling.design=top", "sampling.max_tiles=640"], "same tiles every time"),
        (["sampling.draws=3", "sampling.max_tiles=191"], "3 draws of 64 tiles may read 192"),
        (["sampling.tiles=10", "sampling.tolerance=0.1", "sampling.max_tiles=79"], "8 draws of 10 tiles"),
    ],
)
def test_limits_of_scoring_that_cannot_be_kept_are_refused(changes, said):
    with pytest.raises(SettingsError, match=said):
        Settings().with_values(changes)


def test_the_least_number_of_draws():
    def least(*changes: str) -> int:
        return Settings().with_values([f"sampling.{change}" for change in changes]).sampling.least_draws

    assert least() == least("max_tiles=640") == 1
    assert least("draws=3") == least("draws=3", "max_tiles=640") == 3
    assert least("tolerance=0.1") == least("tolerance=0.1", "draws=2") == config.LEAST_DRAWS
    assert least("tolerance=0.1", "draws=20") == 20


@pytest.mark.parametrize("channel", ["0", "520", "DAPI", '"Opal 520"', "Opal 520"])
def test_a_channel_is_a_name_or_a_number(channel):
    settings = Settings().with_values([f"tile.channel={channel}"])
    assert settings.tile.channel == channel.strip('"')
    assert Settings.from_mapping({"tile": {"channel": 7}}).tile.channel == "7"
