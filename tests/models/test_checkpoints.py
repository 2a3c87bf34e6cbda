"""Models on disk come back as they were, or not at all, and loading one never runs code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tasks.examples import OTHERS

from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.models import checkpoints
from wsi_ats.models.checkpoints import StateFolder, load_model, read_record, save_model
from wsi_ats.models.kinds import model_for
from wsi_ats.nn.optimisation import averaged
from wsi_ats.settings import Settings
from wsi_ats.tasks.targets import Target

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another

TARGET = Target("classification", ("benign", "malignant", "other"))
SETTINGS = Settings().with_values(
    [
        *("tile.size=32", "model.backbone=test_resnet", "model.pretrained=false", "sampling.tiles=5"),
        "training.feature_dropout=0.0",
    ]
)


def build(seed: int = 0, settings: Settings = SETTINGS, target=TARGET):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_for(settings, target)
        model.encoder.calibrate(torch.randint(0, 255, (8, 32, 32, 3), dtype=torch.uint8))
        torch.nn.init.normal_(model.attention.logit.weight)
    return model


@pytest.fixture
def saved(tmp_path):
    model = build()
    return model, save_model(tmp_path, model, SETTINGS, TARGET), tmp_path


def test_a_model_comes_back_with_its_weights_settings_target_and_digest(saved):
    model, digest, folder = saved
    loaded = load_model(folder)
    assert loaded.settings == SETTINGS
    assert loaded.target == TARGET
    assert loaded.digest == digest
    assert not loaded.model.training
    for (name, one), other in zip(
        loaded.model.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    tiles = torch.randint(0, 255, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.model.embed(tiles), model.eval().embed(tiles))


TINY = Target("regression", ("value",), centre=1 / 3, scale=1e-300)


@pytest.mark.parametrize("target", [*OTHERS, TINY], ids=lambda target: f"{target.task} by {target.scale}")
def test_a_model_of_another_task_comes_back_with_what_it_predicts(tmp_path, target):
    settings = SETTINGS.with_values([f"model.task={target.task}"])
    model = build(settings=settings, target=target)
    assert model.head.out_features == target.outputs
    save_model(tmp_path, model, settings, target)
    assert load_model(tmp_path).target == target
    with pytest.raises(SettingsError, match=f"model.task is classification, .* is {target.task}"):
        model_for(SETTINGS, target)


def test_the_files_are_safetensors_and_json_and_nothing_else(saved):
    model, _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
    assert json.loads((folder / "model.json").read_text())["target"]["names"] == list(TARGET.names)


def test_loading_needs_neither_published_weights_nor_the_file_training_started_from(tmp_path):
    """They may have moved since, and the machine may be offline."""
    settings = SETTINGS.with_values(["model.checkpoint=/nowhere/weights.pth", "model.pretrained=true"])
    digest = save_model(tmp_path, build(), settings, TARGET)
    assert load_model(tmp_path).digest == digest


def test_attention_starts_from_its_own_file_and_is_loaded_without_it(tmp_path):
    given = timm.create_model("test_resnet", pretrained=False)
    save_file(given.state_dict(), tmp_path / "maps.safetensors")
    settings = SETTINGS.with_values(
        ["model.attention=test_resnet", f"model.attention_checkpoint={tmp_path / 'maps.safetensors'}"]
    )
    model = model_for(settings, TARGET)
    known = given.state_dict()
    for name, weight in model.attention.network.state_dict().items():
        assert torch.equal(weight, known[name])
    stem = "conv1.0.weight"
    assert not torch.equal(model.encoder.network.state_dict()[stem], known[stem])
    save_model(tmp_path / "model", model, settings, TARGET)
    (tmp_path / "maps.safetensors").unlink()
    loaded = load_model(tmp_path / "model").model
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_the_digest_covers_weights_settings_and_target(tmp_path):
    digests = [
        save_model(tmp_path / "0", build(), SETTINGS, TARGET),
        save_model(tmp_path / "1", build(seed=1), SETTINGS, TARGET),
        save_model(tmp_path / "2", build(), SETTINGS.with_values(["sampling.tiles=6"]), TARGET),
        save_model(tmp_path / "3", build(), SETTINGS, replace(TARGET, names=TARGET.names[::-1])),
    ]
    assert len(set(digests)) == 4
    assert save_model(tmp_path / "4", build(), SETTINGS, TARGET) == digests[0]


def test_weights_that_were_tampered_with_are_refused(saved):
    _, _, folder = saved
    weights = load_file(folder / "model.safetensors")
    weights["head.bias"] += 1e-7
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match="do not match"):
        load_model(folder)


def test_settings_and_target_that_were_tampered_with_are_refused(saved):
    _, _, folder = saved
    record = json.loads((folder / "model.json").read_text())
    for change in (
        {"target": record["target"] | {"names": TARGET.names[::-1]}},
        {"settings": record["settings"] | {"sampling": {"tiles": 6}}},
    ):
        (folder / "model.json").write_text(json.dumps(record | change))
        with pytest.raises(ArtifactError, match="do not match"):
            load_model(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    _, _, folder = saved
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        load_model(folder)


def test_weights_without_a_model_card_are_refused(tmp_path, monkeypatch):
    """A run killed between the two files: the card is written last."""
    from wsi_ats.models import checkpoints

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_card", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, build(), SETTINGS, TARGET)
    with pytest.raises(ArtifactError, match=r"model\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"schema": 0}, {"schema": None}, {"schema": 99}, {"settings": 3}, {"target": 3}, {"target": {}}],
    ids=str,
)
def test_a_card_of_another_version_or_kind_is_refused(saved, change):
    _, _, folder = saved
    record = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(record | change))
    with pytest.raises(ArtifactError, match=r"model\.json"):
        load_model(folder)


def test_a_model_of_an_earlier_version_is_refused_with_advice(saved):
    """Its settings hold those of all kinds, and its digest is of them."""
    _, _, folder = saved
    record = json.loads((folder / "model.json").read_text())
    record["settings"]["model"] |= {"mil_attention": "gated", "mil_tiles": 0, "scale": 0.5}
    (folder / "model.json").write_text(json.dumps(record | {"schema": 3}))
    with pytest.raises(
        ArtifactError, match="schema 3, expected 5; train again, or use the version that wrote"
    ):
        load_model(folder)


# The state of a training run


def train(model, optimizer, steps: int):
    tiles = torch.randint(
        0, 255, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model.classify(model.embed(tiles)).square().mean().backward()
        optimizer.step()


def test_a_state_restores_model_optimiser_and_record_exactly(tmp_path):
    first = build()
    optimizer = torch.optim.AdamW(first.parameters(), lr=1e-3)
    train(first, optimizer, 2)
    record = {"step": 2, "rows": [{"loss": 0.1, "validation_auc": None}]}
    average, others = averaged(first, 0.5), averaged(first, 0.5)
    train(first, optimizer, 1)
    average.update_parameters(first)
    StateFolder(tmp_path, "abc", keep=1).save(2, first, optimizer, average, record)

    second = build(seed=1)
    other = torch.optim.AdamW(second.parameters(), lr=1e-3)
    states = StateFolder(tmp_path, "abc", keep=1)
    assert states.record() == record
    assert states.load(second, other, others)
    assert read_record(tmp_path / "step_000000002.safetensors") == {"run": "abc", "record": record}
    for (name, one), its in zip(average.state_dict().items(), others.state_dict().values(), strict=True):
        assert torch.equal(one, its), name
    train(first, optimizer, 2)
    train(second, other, 2)
    for (name, one), its in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, its), name
    states = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())
        assert all(value.stride() == states[1][key][name].stride() for name, value in state.items())


def test_a_state_is_read_by_safetensors_alone(tmp_path):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    StateFolder(tmp_path, "abc", keep=1).save(1, model, optimizer, None, {})
    names = set(load_file(tmp_path / "step_000000001.safetensors"))
    assert {f"model.{name}" for name in model.state_dict()} < names
    assert any(name.startswith("optimizer.") for name in names)


def test_the_state_of_another_network_or_run_is_refused(tmp_path):
    model, states = build(), StateFolder(tmp_path, "abc", keep=1)
    states.save(1, model, torch.optim.AdamW(model.parameters()), None, {})
    other = build(target=Target("classification", TARGET.names[:2]))
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(ArtifactError, match="does not fit"):
        states.load(other, optimizer, None)
    with pytest.raises(ArtifactError, match="belongs to a run with other settings"):
        StateFolder(tmp_path, "abd", keep=1).record()


def test_the_last_states_and_the_best_weights_are_kept(tmp_path):
    model, states = build(), StateFolder(tmp_path, "abc", keep=2)
    optimizer = torch.optim.AdamW(model.parameters())
    assert states.newest() is None
    assert states.record() is None
    assert not states.load(model, optimizer, None)
    states.save_best(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for step in (9, 10, 100):
        train(model, optimizer, 1)
        states.save(step, model, optimizer, None, {"step": step})
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["best.safetensors", "step_000000010.safetensors", "step_000000100.safetensors"]
    assert states.record() == {"step": 100}
    assert states.load(model, optimizer, None)
    assert not torch.equal(model.head.weight, before["head.weight"])
    states.load_best(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_full_disk_is_an_error_with_advice_and_keeps_the_previous_state(tmp_path, monkeypatch):
    model, states = build(), StateFolder(tmp_path, "abc", keep=1)
    optimizer = torch.optim.AdamW(model.parameters())
    states.save(1, model, optimizer, None, {"step": 1})

    def full(tensors, path, metadata):
        path.write_bytes(b"the beginning")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(ArtifactError, match=r"step_000000002.*No space left.*make room"):
        states.save(2, model, optimizer, None, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.safetensors"]
    assert states.record() == {"step": 1}
    assert states.load(model, optimizer, None)


def test_named_tensors_are_restored_only_in_their_own_run(tmp_path):
    states = StateFolder(tmp_path, "abc", keep=1)
    assert states.load_named("survey") is None
    given = {"3": torch.rand(5, dtype=torch.float64), "11": torch.zeros(0)}
    states.save_named("survey", given)
    found = states.load_named("survey")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], each) for name, each in given.items())
    states.save_named("survey", {})  # no slide could be read
    assert states.load_named("survey") == {}
    assert states.newest() is None  # it is no state to go on from
    with pytest.raises(ArtifactError, match="belongs to a run with other settings"):
        StateFolder(tmp_path, "abd", keep=1).load_named("survey")
    (tmp_path / "survey.safetensors").write_bytes(b"")
    assert states.load_named("survey") is None


@pytest.mark.parametrize(
    "content", [None, b"", b"no safetensors at all" * 10], ids=["missing", "empty", "text"]
)
def test_a_damaged_state_is_an_error(tmp_path, content):
    path = tmp_path / "last.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        read_record(path)


def test_tensors_without_a_record_are_not_a_state(tmp_path):
    save_file({"model.x": torch.zeros(1)}, tmp_path / "last.safetensors")
    with pytest.raises(ArtifactError, match="damaged"):
        read_record(tmp_path / "last.safetensors")
