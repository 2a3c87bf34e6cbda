"""Settings of training, each compared with a count by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.choices import FEW, start_of
from training.runs import SETTINGS, VALIDATION, assert_same_weights, run, slide_of, trained
from wsi_ats.errors import ModelError, SettingsError
from wsi_ats.models.batches import TileReader
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.backbone import last_blocks
from wsi_ats.tasks.classification import Classification
from wsi_ats.training import learner, steps
from wsi_ats.training import steps as epoch_loop
from wsi_ats.training.validation import Metrics

# Trainable parts


@pytest.mark.parametrize("which", ["frozen", "last-1", "full"])
def test_only_parameters_set_to_train_change(tmp_path, which):
    end = run(tmp_path, f"training.fine_tuning={which}", "training.weight_decay=0.5", *FEW, validation=[])
    start = start_of()
    names = [name for name, _ in start.encoder.network.named_parameters()]
    changed = {
        name
        for name, one, other in zip(
            names, start.encoder.network.parameters(), end.encoder.network.parameters(), strict=True
        )
        if not torch.equal(one, other)
    }
    blocks = {id(weight): name for name, weight in start.encoder.network.named_parameters()}
    last = {blocks[id(weight)] for weight in last_blocks(start.encoder.network, 1)}
    assert changed == {"frozen": set(), "last-1": last, "full": set(names)}[which]
    assert names[-len(last) :] == [name for name in names if name in last]  # the end of the network
    assert 0 < len(last) < len(names) / 2
    assert not torch.equal(start.head.weight, end.head.weight)
    assert not torch.equal(start.attention.logit.weight, end.attention.logit.weight)


def test_unfreezing_more_blocks_than_exist_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"last 99 blocks, but ResNet has \d+; use full"):
        run(tmp_path, "training.fine_tuning=last-99")


@pytest.fixture
def weights_after(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """Weights before the first step and after each."""
    taken: list[dict[str, torch.Tensor]] = []

    def optimizer_of(model, *args, **options):
        def note(*_):
            taken.append({name: each.detach().clone() for name, each in model.named_parameters()})

        optimizer = real(model, *args, **options)
        optimizer.register_step_pre_hook(lambda *_: None if taken else note())
        optimizer.register_step_post_hook(note)
        return optimizer

    real = learner.optimizer_of
    monkeypatch.setattr(learner, "optimizer_of", optimizer_of)
    return taken


def test_the_average_is_that_of_the_weights_after_each_step(tmp_path, weights_after):
    model = run(tmp_path, "training.ema=0.8", *FEW)
    assert len(weights_after) == 1 + 2 * 4
    average = {name: each.double() for name, each in weights_after[0].items()}
    for weights in weights_after[1:]:
        average = {name: 0.8 * average[name] + 0.2 * each.double() for name, each in weights.items()}
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.double(), average[name], rtol=1e-5, atol=1e-7, msg=name)
    assert not torch.equal(model.head.weight, weights_after[-1]["head.weight"])


@pytest.mark.parametrize(
    ("attention", "peaks"),
    [("small", [1e-5, 1e-3, 1e-2, 1e-2]), ("test_resnet", [1e-5, 1e-3, 1e-5, 1e-2, 1e-2])],
)
def test_each_part_has_its_own_learning_rate(tmp_path, monkeypatch, attention, peaks):
    seen = []

    def noted(optimizer, done, *, warmup):
        real(optimizer, done, warmup=warmup)
        seen.append((done, [group["lr"] for group in optimizer.param_groups]))

    real = epoch_loop.set_rates
    monkeypatch.setattr(epoch_loop, "set_rates", noted)
    rates = ["training.learning_rate=1e-5", "training.attention_learning_rate=1e-3", "training.warmup=0.0"]
    run(tmp_path, *FEW, *rates, f"model.attention={attention}", validation=[])
    assert [done for done, _ in seen] == [step / 8 for step in range(8)]
    assert seen[0][1] == pytest.approx(peaks)  # attention's own backbone learns like that of tiles


# End of training


@pytest.mark.parametrize(
    ("monitor", "values", "epochs", "best"),
    [
        ("loss", [3, 2, 1, 1.5, 1.2, 0.1], 5, 2),
        ("loss", [1, 1, 1, 0.1], 3, 0),  # as good is not better
        ("loss", [6, 5, 4, 3, 2, 1], 6, 5),
        ("score", [0.5, 0.7, 0.6, 0.6, 0.9, 1.0], 4, 1),
        ("score", [0.5, None, 0.6, 0.4, None, 1.0], 5, 2),
    ],
)
def test_patience_ends_training_and_gives_the_best_epochs_weights(
    tmp_path, monkeypatch, monitor, values, epochs, best
):
    seen = []

    def validate(self, prefix="validation_"):
        if prefix != "validation_":  # by uniform draws
            return {"uniform_loss": None, "uniform_auc": None}
        seen.append({name: each.clone() for name, each in self.learner.final.state_dict().items()})
        value = values[len(self.journal.progress.rows)]
        other = -1.0 if monitor == "score" else 0.5
        found = {"loss": other, "auc": other, ("loss" if monitor == "loss" else "auc"): value}
        return {f"validation_{name}": number for name, number in found.items()}

    monkeypatch.setattr(Metrics, "validate", validate)
    rows = []
    changes = ["training.joint_epochs=6", "training.patience=2", f"training.monitor={monitor}"]
    model = run(tmp_path, *changes, "training.slides_per_step=4", "training.ema=0.5", on_epoch=rows.append)
    assert len(rows) == epochs
    assert all(torch.equal(value, seen[best][name]) for name, value in model.state_dict().items())
    assert not torch.equal(seen[best]["head.weight"], seen[best - 1]["head.weight"])
    again = run(tmp_path, *changes, "training.slides_per_step=4", "training.ema=0.5", on_epoch=rows.append)
    assert len(rows) == epochs  # it has ended, and stays so
    assert_same_weights(again, model)


@pytest.mark.parametrize("patience", [0, 2])
def test_the_loss_of_a_model_is_that_of_the_weights_that_are_kept(tmp_path, monkeypatch, patience):
    values = [0.9, 0.4, 0.7, 0.8]

    def validate(self, prefix="validation_"):
        return {f"{prefix}loss": values[len(self.journal.progress.rows)], f"{prefix}auc": 0.5}

    monkeypatch.setattr(Metrics, "validate", validate)
    changes = [
        "model.kind=mil",
        "training.epochs=4",
        "training.joint_epochs=0",
        f"training.patience={patience}",
    ]
    found = trained(tmp_path, *changes)
    settings = SETTINGS.with_values(changes)
    with TileReader(1, lambda ref: slide_of(ref.id)) as reader, torch.inference_mode():
        outputs = method_for(found.model, settings).begin(VALIDATION, reader, [0] * len(VALIDATION))().outputs
    targets = torch.tensor([each.target for each in VALIDATION])
    expected = Classification().losses(outputs, targets).mean().item()
    assert found.validation_loss == pytest.approx(expected, rel=1e-5)  # one is of double precision
    assert (
        trained(tmp_path, *changes).validation_loss == found.validation_loss
    )  # it has ended, and reports so again
    assert trained(tmp_path / "none", "training.joint_epochs=1", validation=[]).validation_loss == math.inf


def test_patience_with_a_metric_that_is_not_defined_ends_after_the_first_epoch(tmp_path):
    alike = [each for each in VALIDATION if each.target == VALIDATION[0].target]
    with pytest.raises(ModelError, match=r"validation_auc is not defined .* a class may be absent"):
        run(tmp_path, "training.patience=2", "training.monitor=score", validation=alike)


def test_patience_without_validation_slides_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="there are no validation slides"):
        run(tmp_path, "training.patience=2", validation=[])


def test_training_leaves_generators_of_other_devices_alone(tmp_path, monkeypatch):
    asked, real = [], torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: asked.append(devices) or real(devices))
    run(tmp_path, "training.joint_epochs=1")
    assert asked == [[]]


# Compiled


@pytest.mark.slow
def test_a_compiled_backbone_is_saved_uncompiled(tmp_path):
    model = run(tmp_path, "training.compile=true", "training.joint_epochs=1", "training.ema=0.5")
    start = start_of()
    assert model.state_dict().keys() == start.state_dict().keys()
    start.load_state_dict(model.state_dict())
    tiles = torch.randint(0, 255, (3, 16, 16, 3), dtype=torch.uint8)
    torch.testing.assert_close(start.eval().embed(tiles), model.embed(tiles))
    plain = run(tmp_path / "plain", "training.joint_epochs=1", "training.ema=0.5")
    torch.testing.assert_close(model.head.weight, plain.head.weight, rtol=0, atol=5e-3)


# NaN


def test_nan_in_attention_is_reported_with_the_last_good_state(tmp_path, monkeypatch):
    take = steps.Steps.take

    def poison(self, number, batch, begun):
        take(self, number, batch, begun)
        if number == 5:
            with torch.no_grad():
                self.learner.model.attention.logit.weight.fill_(torch.nan)

    monkeypatch.setattr(steps.Steps, "take", poison)
    with pytest.raises(ModelError, match=r"s\d.: attention is NaN .* \(step 6, epoch 1\)") as raised:
        run(tmp_path, "training.slides_per_step=2", "training.read_ahead=0", "training.checkpoint_steps=5")
    good = tmp_path / "checkpoints" / "step_000000005.safetensors"
    assert f"the last good state is {good}" in str(raised.value)
