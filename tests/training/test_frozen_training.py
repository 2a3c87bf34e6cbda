"""Training on a frozen backbone and on features computed before, and calibration of scores."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from training.phase_runs import CLASSIFIER, PHASES, assert_same, recorded, start_of
from training.runs import (
    SETTINGS,
    TARGET,
    TRAINING,
    VALIDATION,
    assert_same_weights,
    example,
    metrics_in,
    run,
    slide_of,
    trained,
)
from wsi_ats.errors import ModelError
from wsi_ats.models.batches import Reader, TileReader
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.backbone import batch_norms
from wsi_ats.training import attention as attention_phase
from wsi_ats.training import distillation as distilling
from wsi_ats.training.fit import fit

pytestmark = pytest.mark.usefixtures("trusted")

# Frozen backbones


FROZEN = ["training.fine_tuning=frozen", "training.feature_dropout=0.5"]
KINDS = {
    "sampling": [*PHASES, *FROZEN],
    "uniform": [*CLASSIFIER, *FROZEN, "model.kind=uniform"],
    "mil": [*CLASSIFIER, *FROZEN, "model.kind=mil", "model.mil_tiles=7"],
}

CALIBRATION = SETTINGS.training.calibration_tiles  # read first, and not kept


def calibrated(*changes: str):
    """The network as it starts, once its constants are measured."""
    model = start_of(*changes)
    with TileReader(1, lambda ref: slide_of(ref.id)) as reader:
        method_for(model, SETTINGS.with_values(changes), torch.device("cpu")).calibrate(TRAINING, reader)
    return model


@pytest.fixture(scope="module", params=KINDS)
def frozen(request, trusted, tmp_path_factory):
    """A kind, a run that nothing disturbs, the tiles it read, its rows, and its folder."""
    folder, rows = tmp_path_factory.mktemp("frozen"), []
    found, asked = recorded(folder, *KINDS[request.param], on_epoch=rows.append)
    return request.param, found, asked, rows, folder


def test_statistics_of_a_frozen_backbone_without_published_weights_are_measured(frozen):
    kind, found, *_ = frozen
    assert_same_weights(found.model.encoder, calibrated(*KINDS[kind]).encoder)
    for layer in batch_norms(found.model.encoder.network):
        assert layer.running_mean.abs().max() > 0


def test_a_frozen_backbone_reads_each_tile_once_over_all_epochs(frozen):
    kind, found, asked, rows, folder = frozen
    asked = asked[CALIBRATION:]
    assert max(Counter(asked).values()) == 1
    learned = {each.ref.id for each in TRAINING}
    own = [slide for slide, _ in asked if slide in learned]
    surveyed = 0 if kind != "sampling" else len(VALIDATION) * 10
    assert len(own) <= sum(row["tiles"] for row in rows) <= len(own) + surveyed
    assert len(list((folder / "features").iterdir())) == len(TRAINING) + len(VALIDATION)
    start = start_of(*KINDS[kind])
    for one, other in zip(found.model.encoder.parameters(), start.encoder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(found.model.head.weight, start.head.weight)


def test_stored_features_are_reused_and_do_not_change_results(tmp_path, frozen):
    def stop(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    kind, whole, every, _, folder = frozen
    changes = KINDS[kind]
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", *changes, on_epoch=stop)
    shutil.copytree(tmp_path / "stopped", tmp_path / "lost")
    again, fewer = recorded(tmp_path / "stopped", *changes)
    assert_same(again, whole)
    assert len(fewer) < len(every)
    assert metrics_in(tmp_path / "stopped") == metrics_in(folder)

    shutil.copytree(folder / "features", tmp_path / "other" / "features")
    other, none = recorded(tmp_path / "other", *changes)  # from the start, with all features there
    assert_same(other, whole)
    assert none == every[:CALIBRATION]

    for path in (tmp_path / "lost" / "features").iterdir():
        path.unlink()
    assert_same(trained(tmp_path / "lost", *changes), whole)


# Features that are there already


WIDTH = 12
TABLE = ["model.backbone=features:12", "training.precision=float32"]


class Table(Reader):
    """Gives features of each tile: its mean colour and some noise."""

    def __init__(self) -> None:
        self.read_tiles = 0

    def read(self, wanted):
        return [self._known(ref, grid, cells) for ref, grid, cells in wanted]

    def _known(self, ref, grid, cells):
        self.read_tiles += len(cells)
        noise = np.random.default_rng(int(ref.id[1:-1])).normal(size=(grid.size, WIDTH)).astype(np.float32)
        tiles = slide_of(ref.id)._pyramid[0].reshape(4, 16, 5, 16, 3).mean((1, 3)).reshape(20, 3)
        noise[:, :3] += tiles / 20
        found: Future = Future()
        found.set_result(noise[cells])
        return found

    def run(self, jobs):
        raise AssertionError("nothing else is read of a slide")


@pytest.mark.parametrize("kind", ["sampling", "uniform", "mil"])
def test_training_takes_features_in_place_of_pixels(tmp_path, monkeypatch, kind):
    def trust(model, judges, figure, **options):
        return distilling.Trust(1.0, True, 0.5, 0.1, len(judges))

    monkeypatch.setattr(attention_phase, "trust", trust)
    rows: list = []
    phases = PHASES if kind == "sampling" else CLASSIFIER
    settings = SETTINGS.with_values([*phases, *TABLE, f"model.kind={kind}", "training.epochs=12"])

    def fitted(folder, on_epoch):
        return fit(
            TRAINING, VALIDATION, settings,
            target=TARGET, folder=folder, device=torch.device("cpu"), on_epoch=on_epoch, reader=Table(),
        )  # fmt: skip

    found = fitted(tmp_path / "whole", rows.append)
    assert found.model.encoder.width == WIDTH
    assert not (tmp_path / "whole" / "features").exists()  # they are at hand
    classifier = [row for row in rows if row["phase"] == "classifier"]
    assert classifier[-1]["loss"] < 0.8 * classifier[0]["loss"]
    expected = {
        "sampling": [8 * 5] * 12 + [12 * 10, 0, 0] + [8 * 3] * 2,
        "uniform": [8 * 5] * 12,
        "mil": [8 * 20] * 12,
    }
    assert [row["tiles"] for row in rows] == expected[kind]
    for place in (0, 12):
        if place < len(rows):

            def stop(row, place=place):
                if row["epoch"] == place:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                fitted(tmp_path / str(place), stop)
            assert_same(fitted(tmp_path / str(place), lambda row: None), found)


def test_a_model_of_features_refuses_pixels(tmp_path):
    with pytest.raises(
        ModelError, match=r"takes precomputed features, not pixels of shape \(\d+, 3, 16, 16\); give it"
    ):
        trained(tmp_path, *PHASES, *TABLE)


def test_features_of_another_width_are_refused(tmp_path):
    changes = [*PHASES, "model.backbone=features:13", "training.precision=float32"]
    with pytest.raises(ModelError, match="got 12 features for each tile, but the model takes 13"):
        fit(
            TRAINING, [], SETTINGS.with_values(changes), target=TARGET, folder=tmp_path,
            device=torch.device("cpu"), on_epoch=print, reader=Table(),
        )  # fmt: skip


MORE = [example(f"s{number}{'pv'[number % 2]}") for number in range(40, 52)]


@pytest.mark.parametrize("kind", ["sampling", "uniform", "mil", "image"])
def test_scores_are_calibrated_on_the_validation_slides_and_keep_their_order(tmp_path, kind):
    changes = [*CLASSIFIER, f"model.kind={kind}", "training.head_learning_rate=0.05"]
    as_they_are = trained(
        tmp_path / "as they are", *changes, "training.calibrate_scores=false", validation=MORE
    )
    found = trained(tmp_path / "calibrated", *changes, validation=MORE)
    assert (as_they_are.calibrated, found.calibrated) == (False, True)
    assert found.validation_loss < as_they_are.validation_loss
    before, after = as_they_are.model.head, found.model.head
    scale = after.weight / before.weight
    torch.testing.assert_close(scale, scale[0, 0].expand_as(scale), rtol=1e-4, atol=0)
    assert scale[0, 0] > 0
    assert not torch.allclose(after.bias, scale[0, 0] * before.bias)
    assert_same_weights(found.model.encoder, as_they_are.model.encoder)


@pytest.mark.parametrize("watched", [MORE[:9], [each for each in MORE if each.target == (0.0,)] * 2])
def test_scores_are_left_alone_where_validation_slides_are_few_or_of_one_class(tmp_path, watched):
    as_they_are = run(
        tmp_path / "as they are", *CLASSIFIER, "training.calibrate_scores=false", validation=watched
    )
    found = trained(tmp_path / "tried", *CLASSIFIER, validation=watched)
    assert not found.calibrated
    assert_same_weights(found.model, as_they_are)


def test_calibration_keeps_class_weights_of_the_loss(tmp_path):
    rare = [each for each in MORE if each.target == MORE[0].target] * 2 + MORE[1:4:2]
    heads = [
        run(tmp_path / balance, *CLASSIFIER, f"training.balance={balance}", validation=rare).head.bias
        for balance in ("none", "weights")
    ]
    # By how common classes are among these slides the rare one would lose by its bias alone.
    rarer = int(rare[-1].target[0])
    assert heads[1][rarer] - heads[1][1 - rarer] > heads[0][rarer] - heads[0][1 - rarer]
