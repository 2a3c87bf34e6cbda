"""Settings that are refused: wrong files and values, and combinations that cannot work."""

from __future__ import annotations

import re

import pytest

from settings.other_values import DESCRIBED
from wsi_ats import settings as config
from wsi_ats.errors import SettingsError
from wsi_ats.nn.sampling import BIASED, DESIGNS
from wsi_ats.settings import Settings

OUT_OF_RANGE = [
    *["tile.size=15", "tile.mpp=0", "tile.mpp=-1.0", "tile.tolerance=1.0", "tile.tolerance=-0.1"],
    *["tile.stride=0.0", "tile.stride=1.01", "thumbnail.pixels_per_cell=0", "thumbnail.tissue=otsu"],
    *["thumbnail.min_tissue=0.0", "thumbnail.min_tissue=1.1", "model.backbone=''", "model.attention=''"],
    *["thumbnail.exclude=fold", "thumbnail.exclude=pen,pen", "thumbnail.exclude=pen,"],
    *["thumbnail.max_artefact=1.0", "thumbnail.max_artefact=-0.1"],
    *["model.task=ranking", "model.kind=cnn"],
    *["model.pool=none", "sampling.design=best", "sampling.tiles=0", "sampling.draws=0"],
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
    *["training.supervision=-0.1", "training.evidence=-0.1"],
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
def test_numbers_must_be_finite(value):
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


def test_weights_for_a_missing_attention_network_are_refused():
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
    said = r"model\.scale 0\.3 makes .* 19\.2 pixels .* model\.scale=0\.296875"
    with pytest.raises(SettingsError, match=said):
        Settings().with_values(["model.kind=image", "tile.size=64", "model.scale=0.3"])


@pytest.mark.parametrize("kind", ["uniform", "mil", "image"])
def test_settings_of_other_kinds_are_refused(kind):
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
@pytest.mark.parametrize("only", ["joint_epochs=3", "supervision=1.0"])
def test_kinds_without_thumbnail_attention_refuse_its_training(kind, only):
    name, value = only.split("=")
    said = rf"training\.{name} is {value}, but a model of kind {kind} has .* set training\.{name}=0"
    with pytest.raises(SettingsError, match=said):
        Settings().with_values([f"model.kind={kind}", f"training.{only}"]).check_trainable()


@pytest.mark.parametrize("joint", [0, 5])
def test_distillation_needs_classifier_epochs(joint):
    changes = ["training.epochs=0", f"training.joint_epochs={joint}"]  # 12 epochs of attention by default
    said = (
        r"epochs is 0 and training\.attention_epochs is 12: .* untrained classifier; set .*attention_epochs=0"
    )
    with pytest.raises(SettingsError, match=said):
        Settings().with_values(changes).check_trainable()
    Settings().with_values(["training.attention_epochs=0"]).check_trainable()


def test_attention_epochs_need_draws_by_attention():
    uniform = Settings().with_values(["sampling.design=uniform"])
    with pytest.raises(SettingsError, match=r"never used to draw tiles; set model\.kind=uniform"):
        uniform.check_trainable()
    uniform.with_values(["model.kind=uniform"]).check_trainable()
    uniform.with_values(["training.attention_epochs=0"]).check_trainable()


def test_precomputed_features_cannot_serve_as_attention_network():
    assert Settings().with_values(["model.backbone=features:12"]).model.takes_features
    assert not Settings().model.takes_features
    with pytest.raises(SettingsError, match=r"name a timm network, not 'features:12'"):
        Settings().with_values(["model.attention=features:12"])


def test_patience_needs_validation_slides():
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
def test_impossible_scoring_limits_are_refused(changes, said):
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
