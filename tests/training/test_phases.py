"""The phases of a training: what learns in each, from what, and that none of it depends on interruptions."""

from __future__ import annotations

import logging
import math
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.test_fit import (
    SETTINGS,
    TARGET,
    TRAINING,
    VALIDATION,
    assert_same_weights,
    example,
    figures,
    progress,
    run,
    slide_of,
    trained,
    trusting,
    unreadable,
)
from wsi_ats.errors import ArtifactError, ModelError, SlideReadError
from wsi_ats.models import one_level
from wsi_ats.models.batches import Reader, TileReader
from wsi_ats.models.kinds import method_for, model_for
from wsi_ats.nn import model
from wsi_ats.nn.backbone import batch_norms
from wsi_ats.settings import Settings
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.training import attention as attention_phase
from wsi_ats.training import distillation as distilling
from wsi_ats.training.fit import Trained, fit
from wsi_ats.training.learner import Learner
from wsi_ats.training.metrics import Metrics
from wsi_ats.training.phases import Phase, phases_of
from wsi_ats.training.processes import Processes

# Four steps an epoch.
PHASES = [
    *("training.epochs=2", "training.attention_epochs=3", "training.joint_epochs=2"),
    *("training.tiles=5", "training.attention_tiles=10", "training.slides_per_step=2"),
    *("training.learning_rate=0.001", "training.weight_decay=0.5", "sampling.exploration=0.1"),
]
CLASSIFIER = [*PHASES, "training.attention_epochs=0", "training.joint_epochs=0"]
ATTENTION = [*PHASES, "training.joint_epochs=0"]


def start_of(*changes: str):
    """The network as it starts, but with attention that is not uniform, so that it would show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = model_for(SETTINGS.with_values(changes), TARGET)
        if getattr(network, "attention", None) is not None:
            torch.nn.init.normal_(network.attention.logit.weight)
    return network


class Recorded(TileReader):
    """Keeps which tiles of which slides were asked for, in order."""

    def __init__(self) -> None:
        super().__init__(2, lambda ref: slide_of(ref.id))
        self.asked: list[tuple[str, int]] = []

    def run(self, jobs):
        self.asked += [(ref.id, cell) for ref, job in jobs for cell in job.keywords["cells"].tolist()]
        return super().run(jobs)


def recorded(folder: Path, *changes: str, on_epoch=lambda row: None):
    """What came of a training, and the tiles that were asked for."""
    with Recorded() as reader:
        found = fit(
            TRAINING,
            VALIDATION,
            SETTINGS.with_values(changes),
            target=TARGET,
            folder=folder,
            device=torch.device("cpu"),
            on_epoch=on_epoch,
            reader=reader,
        )
    return found, reader.asked


@pytest.fixture(scope="module", autouse=True)
def trusted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_phase, "trust", trusting(attention_phase.trust))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What comes of a run that nothing disturbs, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return trained(folder, *PHASES), folder


def assert_same(one: Trained, other: Trained) -> None:
    assert_same_weights(one.model, other.model)
    assert one.trust == other.trust
    assert (one.by_attention, one.by_uniform) == (other.by_attention, other.by_uniform)


# Which there are


def test_phases_are_those_that_have_epochs():
    def names(*changes: str) -> list[tuple[str, int, int]]:
        return [(each.name, each.epochs, each.tiles) for each in phases_of(SETTINGS.with_values(changes))]

    assert names(*PHASES) == [("classifier", 2, 5), ("attention", 3, 10), ("joint", 2, 3)]
    assert names(*PHASES, "training.epochs=0") == [("attention", 3, 10), ("joint", 2, 3)]
    for kind in ("uniform", "mil", "image"):
        assert names(*PHASES, f"model.kind={kind}") == [("classifier", 2, 5)]
        assert names(*PHASES, f"model.kind={kind}", "training.epochs=0") == []


def test_a_phase_draws_its_own_number_of_tiles_and_as_many_in_each_region_as_ever():
    settings = Settings().with_values(["sampling.tiles=64", "sampling.regions=8", "sampling.max_tiles=640"])
    for tiles, regions in ((64, 8), (256, 32), (8, 1), (9, 2), (1, 1)):
        found = Phase("attention", 1, ("attention",), tiles).settings(settings).sampling
        assert (found.tiles, found.regions, found.max_tiles) == (tiles, regions, 0)


def test_every_epoch_says_of_which_phase_it_is_and_has_the_same_columns(whole):
    found, folder = whole
    table = figures(folder)
    assert table["phase"] == ["classifier"] * 2 + ["attention"] * 3 + ["joint"] * 2
    assert [int(float(value)) for value in table["epoch"]] == list(range(7))
    assert [row["phase"] for row in found.rows] == table["phase"]
    tiles = [int(float(value)) for value in table["tiles"]]
    assert tiles == [8 * 5, 8 * 5, (8 + 4) * 10, 0, 0, 8 * 3, 8 * 3]
    assert [value == "" for value in table["gain"]] == [False] * 2 + [True] * 3 + [False] * 2
    assert [value == "" for value in table["staleness"]] == [False] * 2 + [True] * 3 + [False] * 2
    for value in table["effective_cells"][:2]:
        assert float(value) == pytest.approx(20)  # uniform
    for name in ("loss", "gain", "auc"):
        assert table[f"uniform_{name}"][:2] == table[f"validation_{name}"][:2]
        assert len(set(table[f"uniform_{name}"][2:5])) == 1  # the classifier is fixed
    assert found.by_attention.keys() == found.by_uniform.keys() >= {"loss", "auc"}


# The classifier


def test_the_classifier_learns_from_uniform_draws_and_attention_stays_as_it_is(tmp_path, monkeypatch):
    logits, real = [], one_level.draw_cells

    def draw_cells(given, tissue, settings, seed):
        logits.append((given.clone(), settings.tiles))
        return real(given, tissue, settings, seed)

    monkeypatch.setattr(one_level, "draw_cells", draw_cells)
    start = start_of(*CLASSIFIER)
    found = trained(tmp_path, *CLASSIFIER, network=lambda: start_of(*CLASSIFIER), validation=[])
    assert {tiles for _, tiles in logits} == {5}
    assert len(logits) == 2 * 8
    assert not any(each.any() for each, _ in logits)
    assert_same_weights(found.model.attention, start.attention)  # it does not decay either
    assert not torch.equal(found.model.head.weight, start.head.weight)
    assert not torch.equal(found.model.gate.weight, start.gate.weight)
    backbones = zip(found.model.encoder.network.parameters(), start.encoder.network.parameters(), strict=True)
    assert all(not torch.equal(one, other) for one, other in backbones)
    assert found.model.attention_scale == 0  # nothing is known of it
    assert found.trust == distilling.Trust(0.0, None, None, None, 0)


def test_a_classifier_of_uniform_draws_is_that_of_the_kind_without_attention(tmp_path):
    """The same slides, draws and rates, and so the same weights, if it starts as the other."""

    def without():
        model = start_of(*CLASSIFIER)
        model.attention = None
        return model

    one = run(tmp_path / "sampling", *CLASSIFIER, network=lambda: start_of(*CLASSIFIER))
    other = run(tmp_path / "uniform", *CLASSIFIER, "model.kind=uniform", network=without)
    for name in ("encoder", "head", "gate"):
        assert_same_weights(getattr(one, name), getattr(other, name))
    rows = [figures(tmp_path / name) for name in ("sampling", "uniform")]
    assert rows[0] == rows[1]


# Attention


def test_attention_learns_from_the_survey_alone_and_the_classifier_stays_as_it_is(tmp_path):
    asked: list[list[tuple[str, int]]] = []
    with Recorded() as reader:

        def on_epoch(row):
            asked.append(list(reader.asked))
            reader.asked.clear()

        def attention_of(folder, *changes):
            return fit(
                TRAINING, [], SETTINGS.with_values(changes), target=TARGET, folder=folder,
                device=torch.device("cpu"), on_epoch=on_epoch, reader=reader,
            ).model  # fmt: skip

        before = attention_of(tmp_path / "before", *CLASSIFIER)
        asked.clear()
        after = attention_of(tmp_path / "after", *ATTENTION)
    for name in ("encoder", "head", "gate"):
        assert_same_weights(getattr(before, name), getattr(after, name))
    learned = zip(before.attention.parameters(), after.attention.parameters(), strict=True)
    assert all(not torch.equal(one, other) for one, other in learned)
    _, _, survey, *rest = asked
    assert Counter(slide for slide, _ in survey) == {each.ref.id: 10 for each in TRAINING}
    assert len(set(survey)) == len(survey)
    assert rest == [[], []]


def test_gradients_of_attention_are_clipped_by_their_own_norm(tmp_path, monkeypatch):
    """Those that the classifier's last step has left are not among them."""
    owners: dict[str, set[str]] = {}
    real = Learner.take_step

    def take_step(self, count, check):
        names = {name.split(".")[0] for name, each in self.model.named_parameters() if each.grad is not None}
        owners.setdefault(check.func.__self__.phase.name, set()).update(names)
        return real(self, count, check)

    monkeypatch.setattr(Learner, "take_step", take_step)
    trained(tmp_path, *PHASES)
    assert owners["classifier"] == {"encoder", "gate", "head"}
    assert owners["attention"] == {"attention"}
    assert owners["joint"] <= {"encoder", "gate", "head", "attention"}


def test_attention_approaches_its_target(tmp_path):
    """As its cross-entropy falls, its draws come closer to the target."""
    rows: list = []
    changes = [*ATTENTION, "training.attention_epochs=20", "training.epochs=8", "training.weight_decay=0.0"]
    trained(tmp_path, *changes, on_epoch=rows.append)
    learned = [row for row in rows if row["phase"] == "attention"]
    assert learned[0]["loss"] == pytest.approx(math.log(20), rel=0.05)  # of flat attention
    assert learned[-1]["loss"] < learned[0]["loss"] - 0.05
    assert learned[-1]["effective_cells"] < learned[0]["effective_cells"]


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_of_several_processes_the_first_says_how_far_attention_is_trusted(tmp_path, monkeypatch, scale):
    """If each went by its own verdict, they could wait for one another in different phases."""
    verdict = distilling.Trust(scale, scale > 0, 0.5, 0.1, 4)

    class Second(Processes):
        def gather(self, value):
            return [verdict, value] if isinstance(value, distilling.Trust) else [value]

    def trust(model, *args, **options):
        model.attention_scale.fill_(2.0)
        return distilling.Trust(2.0, True, 1.0, 0.1, 4)

    monkeypatch.setattr(attention_phase, "trust", trust)
    found = trained(tmp_path, *ATTENTION, processes=Second())
    assert found.trust == verdict
    assert found.model.attention_scale == scale


def test_what_a_run_has_surveyed_itself_is_not_recalled(tmp_path, monkeypatch):
    """With two levels that would read the closer looks at regions again."""
    recalled: list[list[int]] = []
    real = attention_phase.recall

    def recall(method, examples, reader, seed, found, *, on_bad):
        recalled.append(sorted(found))
        return real(method, examples, reader, seed, found, on_bad=on_bad)

    monkeypatch.setattr(attention_phase, "recall", recall)
    trained(tmp_path, *ATTENTION)
    assert recalled == [[]]


@pytest.mark.parametrize("turns", [True, False])
def test_attention_learns_from_slides_laid_any_way_and_is_used_as_they_lie(tmp_path, monkeypatch, turns):
    seen: list[tuple[bool, int]] = []
    real = model.score_turned

    def score_turned(network, thumbnail, mask, turn):
        seen.append((network.training, turn))
        return real(network, thumbnail, mask, turn)

    monkeypatch.setattr(model, "score_turned", score_turned)
    trained(tmp_path, *ATTENTION, f"augmentation.turns={turns}".lower())
    learning = [turn for training, turn in seen if training]
    assert len(learning) == 8 * 3
    assert {turn for training, turn in seen if not training} == {0}
    # Three slides in a row laid the same way, every time, are not chance.
    assert len(set(learning)) >= 5 if turns else set(learning) == {0}


def test_attention_learns_from_all_slides_of_a_pooled_case_together(tmp_path, monkeypatch):
    counts: list[int] = []
    real = attention_phase.loss

    def loss(evidence):
        counts.append(len(evidence.tile_outputs))
        return real(evidence)

    monkeypatch.setattr(attention_phase, "loss", loss)
    ordered = sorted(TRAINING, key=lambda each: each.target)
    pairs = [replace(each, ref=replace(each.ref, case=f"case {n // 2}")) for n, each in enumerate(ordered)]
    trained(tmp_path / "union", *ATTENTION, "model.cases=union", examples=pairs)
    assert counts == [20] * (4 * 3)  # of two slides
    counts.clear()
    trained(tmp_path / "mean", *ATTENTION, "model.cases=mean", examples=pairs)
    assert counts == [10] * (8 * 3)


def test_without_validation_slides_attention_is_not_judged(tmp_path):
    rows: list = []
    found = trained(tmp_path, *ATTENTION, validation=[], on_epoch=rows.append)
    assert found.trust == distilling.Trust(distilling.USUAL, None, None, None, 0)
    assert found.model.attention_scale == distilling.USUAL
    assert [row["tiles"] for row in rows] == [8 * 5, 8 * 5, 8 * 10, 0, 0]
    assert (found.by_attention, found.by_uniform) == ({}, {})
    watched = trained(tmp_path / "watched", *ATTENTION)
    assert watched.trust.cases == len(VALIDATION)


def test_slides_that_cannot_be_read_are_left_out_of_the_survey(tmp_path):
    rows: list = []
    bad: list[str] = []
    found = trained(
        tmp_path,
        *ATTENTION,
        opener=unreadable("s2p", "s21v"),
        on_epoch=rows.append,
        on_bad=lambda slide_id, error: bad.append(slide_id),
    )
    assert sorted(bad) == ["s21v", "s2p"]  # each once
    assert [row["tiles"] for row in rows[2:]] == [(7 + 3) * 10, 0, 0]
    assert found.trust.cases == 3
    with pytest.raises(ModelError, match=r"--max-bad allows 0: s21v: tile 3 is damaged"):
        trained(
            tmp_path / "none allowed",
            *ATTENTION,
            opener=unreadable("s21v", left=2),  # as often as it is watched before
            max_bad=0,
        )


def test_nan_in_attention_is_reported_with_slide_step_and_last_good_state(tmp_path, monkeypatch):
    real = attention_phase.AttentionPhase.take

    def poison(self, step, batch, begun):
        if step == 14:
            with torch.no_grad():
                self._learner.model.attention.logit.weight.fill_(torch.nan)
        return real(self, step, batch, begun)

    monkeypatch.setattr(attention_phase.AttentionPhase, "take", poison)
    said = r"s\d[pv]: attention is NaN .* \(step 14, epoch 3\); the last good state is .*step_000000012"
    with pytest.raises(ModelError, match=said):
        trained(tmp_path, *ATTENTION)
    assert progress(tmp_path)["step"] == 12


def test_nan_in_attention_that_is_judged_is_an_error(tmp_path):
    rate = ["training.attention_learning_rate=1e36", "training.warmup=0.0"]
    with pytest.raises(ModelError, match=r"(loss|norm|attention) is .*try lower learning rates"):
        trained(tmp_path, *ATTENTION, *rate)


# All together


def spoil(monkeypatch, values: list[float]) -> list[dict[str, torch.Tensor]]:
    """Validation losses by hand, in the phase in which all learns; gives the weights that had each."""
    seen: list[dict[str, torch.Tensor]] = []
    real = Metrics.validate

    def validate(self, prefix="validation_"):
        found = real(self, prefix)
        if self.journal.phase.name == "joint" and prefix == "validation_":
            seen.append({name: each.clone() for name, each in self.learner.final.state_dict().items()})
            found["validation_loss"] = values[len(seen) - 1]
        return found

    monkeypatch.setattr(Metrics, "validate", validate)
    return seen


@pytest.mark.parametrize(
    ("values", "best"), [([1, 2, 3], 0), ([3, 1, 2], 1), ([3, 2, 1], 2), ([1, 1, 1], 0)], ids=str
)
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_joint_epochs_are_kept_as_far_as_validation_says_so(tmp_path, monkeypatch, values, best, ema):
    seen = spoil(monkeypatch, values)
    found = trained(tmp_path, *PHASES, f"training.ema={ema}")
    assert len(seen) == 3
    assert all(torch.equal(each, seen[best][name]) for name, each in found.model.state_dict().items())
    assert not torch.equal(seen[0]["head.weight"], seen[1]["head.weight"])
    assert not torch.equal(seen[1]["head.weight"], seen[2]["head.weight"])


def test_without_slides_to_watch_all_joint_epochs_are_kept(tmp_path):
    before = run(tmp_path / "before", *ATTENTION, validation=[])
    after = run(tmp_path / "after", *PHASES, validation=[])
    assert not torch.equal(before.head.weight, after.head.weight)
    assert not (tmp_path / "after" / "checkpoints" / "best.safetensors").exists()


def test_joint_epochs_that_no_figure_can_judge_are_left_out_with_a_warning(tmp_path, caplog):
    alike = [each for each in VALIDATION if each.target == VALIDATION[0].target]
    before = trained(tmp_path / "before", *ATTENTION, validation=alike)
    changes = [*PHASES, "training.monitor=score"]
    for _ in range(2):  # the second goes on from a run that has ended
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            after = trained(tmp_path / "after", *changes, validation=alike)
        assert_same(before, after)
        assert [row["phase"] for row in after.rows] == ["classifier"] * 2 + ["attention"] * 3
        assert "joint training is skipped: validation_auc is not defined" in caplog.text


def test_patience_with_slides_that_turn_unreadable_ends_the_phase(tmp_path, monkeypatch):
    real = Metrics.validate

    def validate(self, prefix="validation_"):
        found = real(self, prefix)
        readable = (
            self.journal.phase.name != "joint" or self.journal.progress.step == self.journal.progress.start
        )
        return found if readable else dict.fromkeys(found)

    monkeypatch.setattr(Metrics, "validate", validate)
    changes = [*PHASES, "training.attention_epochs=0", "training.joint_epochs=5", "training.patience=2"]
    found = trained(tmp_path, *changes)
    assert [row["phase"] for row in found.rows] == ["classifier"] * 2 + ["joint"] * 2


def test_attention_that_was_not_trained_is_compared_with_nothing(tmp_path):
    found, asked = recorded(tmp_path, *CLASSIFIER)
    assert found.trust == distilling.Trust(0.0, None, None, None, 0)
    assert found.by_attention == found.by_uniform
    watched = Counter(slide for slide, _ in asked)["s20p"]
    assert watched == 3 * (2 + 4)  # by one draw in each epoch, and by four in the end


def test_attention_that_learned_with_all_the_rest_is_used_as_it_is(tmp_path):
    assert trained(tmp_path, "training.joint_epochs=1").trust == distilling.Trust(1.0, None, None, None, 0)


def test_joint_training_is_left_out_where_attention_is_not_trusted(tmp_path, monkeypatch, caplog):
    """The network of attention would be passed over, and so would all that teaches it."""

    def trust(model, *given, **options):
        model.attention_scale.fill_(0.0)
        return distilling.Trust(0.0, False, 0.1, 0.6, 4)

    monkeypatch.setattr(attention_phase, "trust", trust)
    before = trained(tmp_path / "before", *ATTENTION)
    for _ in range(2):  # the second goes on from a run that has ended
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            after = trained(tmp_path / "after", *PHASES)
        assert_same(before, after)
        assert [row["phase"] for row in after.rows] == ["classifier"] * 2 + ["attention"] * 3
        assert "joint training is skipped: the validation slides call for uniform draws" in caplog.text


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_all_together_draw_by_attention_as_far_as_it_is_trusted(tmp_path, monkeypatch, scale):
    logits: list[torch.Tensor] = []
    real = one_level.draw_cells

    def draw_cells(given, tissue, settings, seed):
        if settings.tiles == 3:
            logits.append(given.detach().clone())
        return real(given, tissue, settings, seed)

    def trust(model, judges, figure, *, tiles, exploration, seed):
        assert (tiles, exploration, seed, len(judges)) == (3, 0.1, 0, 4)
        assert figure(torch.zeros(4, 2), range(4)) == 0.5  # the area under the curve
        model.attention_scale.fill_(scale)
        return distilling.Trust(scale, True, 0.5, 0.6, 4)

    monkeypatch.setattr(one_level, "draw_cells", draw_cells)
    monkeypatch.setattr(attention_phase, "trust", trust)
    found = trained(tmp_path, *PHASES)
    assert found.model.attention_scale == scale
    assert found.trust == distilling.Trust(scale, True, 0.5, 0.6, 4)
    overview = TRAINING[0].overview
    attention = found.model.score_cells(
        torch.from_numpy(overview.thumbnail), torch.arange(20), overview.tissue.grid.shape
    )
    assert attention.detach().any()
    joint = logits[-16 - 4 * 2 * (1 + 4) :]
    assert any(each.any() for each in joint)


class OneBadTile(MemorySlide):
    """One of its twenty tiles cannot be read: some draws meet it, others do not."""

    def read_regions(self, level, corners, width, height):
        if [16, 16] in corners.tolist():
            raise SlideReadError(self.path, "tile 6 is damaged")
        return super().read_regions(level, corners, width, height)


def test_a_slide_that_only_some_draws_can_read_is_left_out_of_the_comparison(tmp_path):
    def opener(ref):
        slide = slide_of(ref.id)
        return OneBadTile(slide._pyramid, mpp=0.5, path=ref.id) if ref.id == "s21v" else slide

    changes = ["training.joint_epochs=1", "training.attention_learning_rate=0.1"]
    found = trained(tmp_path / "bad", *changes, opener=opener)
    others = [each for each in VALIDATION if each.ref.id != "s21v"]
    expected = trained(tmp_path / "without", *changes, validation=others)
    assert found.by_attention == pytest.approx(expected.by_attention)
    assert found.by_uniform == pytest.approx(expected.by_uniform)
    assert found.by_attention != found.by_uniform


def test_attention_is_compared_with_the_kept_epoch_of_the_classifier(tmp_path, monkeypatch):
    """Which need not be the last."""
    values = iter([3.0, 1.0, 2.0, 2.0])
    real = Metrics.validate

    def validate(self, prefix="validation_"):
        found = real(self, prefix)
        if self.journal.phase.name == "classifier":
            kept.append(found["validation_loss"])
            found["validation_loss"] = next(values)
        return found

    kept: list[float] = []
    monkeypatch.setattr(Metrics, "validate", validate)
    rows: list = []
    changes = [*ATTENTION, "training.epochs=6", "training.patience=2", "training.attention_epochs=2"]
    trained(tmp_path, *changes, on_epoch=rows.append)
    assert [row["phase"] for row in rows] == ["classifier"] * 4 + ["attention"] * 2
    assert len(set(kept)) == 4
    assert [row["uniform_loss"] for row in rows[4:]] == [kept[1]] * 2


# Interrupted


@pytest.mark.parametrize("done", range(7))
def test_a_run_stopped_after_any_epoch_ends_the_same(tmp_path, done, whole):
    def stop(row):
        if row["epoch"] == done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *PHASES, on_epoch=stop)
    rows: list = []
    assert_same(trained(tmp_path, *PHASES, on_epoch=rows.append), whole[0])
    assert [row["epoch"] for row in rows] == list(range(done + 1, 7))
    assert figures(tmp_path) == figures(whole[1])
    assert not (tmp_path / "features").exists()  # the backbone learns, if not in each phase


# Reads: 8 for calibration, 8 and 4 in each epoch of the classifier, 12 surveyed, then 4 of each watched.
@pytest.mark.parametrize(
    "read", [3, 8 + 5, 8 + 12 + 10, 8 + 24 + 1, 8 + 24 + 7, 8 + 24 + 12, 8 + 24 + 12 + 3, 66]
)
def test_a_run_stopped_at_any_read_ends_the_same(tmp_path, read, whole):
    reads: list[str] = []

    class Stops(MemorySlide):
        def read_regions(self, *args):
            reads.append(self.path)
            if len(reads) == read:
                raise KeyboardInterrupt
            return super().read_regions(*args)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *PHASES, opener=lambda ref: Stops(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id))
    assert_same(trained(tmp_path, *PHASES), whole[0])
    assert figures(tmp_path) == figures(whole[1])


STATES = [*PHASES, "training.checkpoint_steps=3", "training.read_ahead=0", "training.ema=0.5"]


@pytest.fixture(scope="module")
def whole_with_states(tmp_path_factory):
    """A run that nothing disturbs, with states after every third step, and its folder."""
    folder = tmp_path_factory.mktemp("states")
    return trained(folder, *STATES), folder


@pytest.mark.parametrize("step", range(1, 28, 3))
def test_a_run_stopped_at_any_step_goes_on_from_the_state_before_and_ends_the_same(
    tmp_path, monkeypatch, step, whole_with_states
):
    real = Learner.take_step

    def take_step(self, count, check):
        if check.keywords["step"] == step:
            raise KeyboardInterrupt
        return real(self, count, check)

    monkeypatch.setattr(Learner, "take_step", take_step)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *STATES)
    monkeypatch.undo()
    assert progress(tmp_path)["step"] == max(step - step % 4, step - step % 3)
    assert_same(trained(tmp_path, *STATES), whole_with_states[0])
    assert figures(tmp_path) == figures(whole_with_states[1])


def test_a_run_that_has_ended_gives_the_same_again_and_reads_only_what_is_watched(tmp_path):
    first, _ = recorded(tmp_path, *PHASES)
    again, asked = recorded(tmp_path, *PHASES)
    assert_same(again, first)
    assert {slide for slide, _ in asked} == {each.ref.id for each in VALIDATION}


@pytest.mark.parametrize("fate", ["missing", "cut short", "no state"])
@pytest.mark.parametrize("backbone", ["full", "frozen"])
def test_a_survey_that_is_lost_is_made_again(tmp_path, caplog, fate, backbone):
    def stop(row):
        if row["phase"] == "attention":
            raise KeyboardInterrupt

    changes = [*ATTENTION, f"training.fine_tuning={backbone}"]
    whole = trained(tmp_path / "whole", *changes)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "lost", *changes, on_epoch=stop)
    path = tmp_path / "lost" / "checkpoints" / "survey.safetensors"
    kept = path.read_bytes()
    path.unlink()
    if fate != "missing":
        path.write_bytes(kept[:-100] if fate == "cut short" else b"nothing that can be read")
    with caplog.at_level(logging.WARNING):
        assert_same(trained(tmp_path / "lost", *changes), whole)
    assert "survey.safetensors is missing or damaged" in caplog.text
    assert "slides are surveyed again" in caplog.text
    assert path.read_bytes() == kept
    assert figures(tmp_path / "lost") == figures(tmp_path / "whole")


def test_the_survey_of_another_run_is_refused(tmp_path):
    def stop(row):
        if row["phase"] == "attention":
            raise KeyboardInterrupt

    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / str(seed), *ATTENTION, f"training.seed={seed}", on_epoch=stop)
    path = Path("checkpoints") / "survey.safetensors"
    (tmp_path / "0" / path).write_bytes((tmp_path / "1" / path).read_bytes())
    with pytest.raises(ArtifactError, match=r"survey\.safetensors belongs to a run with other settings"):
        trained(tmp_path / "0", *ATTENTION)


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


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_a_frozen_backbone_without_published_weights_are_measured(tmp_path, kind):
    found = trained(tmp_path, *KINDS[kind])
    start = calibrated(*KINDS[kind])
    assert_same_weights(found.model.encoder, start.encoder)
    for layer in batch_norms(found.model.encoder.network):
        assert layer.running_mean.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_frozen_backbone_each_tile_is_read_once_over_all_epochs(tmp_path, kind):
    rows: list = []
    found, asked = recorded(tmp_path, *KINDS[kind], on_epoch=rows.append)
    asked = asked[CALIBRATION:]
    assert max(Counter(asked).values()) == 1
    learned = {each.ref.id for each in TRAINING}
    own = [slide for slide, _ in asked if slide in learned]
    surveyed = 0 if kind != "sampling" else len(VALIDATION) * 10
    assert len(own) <= sum(row["tiles"] for row in rows) <= len(own) + surveyed
    assert len(list((tmp_path / "features").iterdir())) == len(TRAINING) + len(VALIDATION)
    start = start_of(*KINDS[kind])
    for one, other in zip(found.model.encoder.parameters(), start.encoder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(found.model.head.weight, start.head.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_features_survive_a_run_and_change_nothing(tmp_path, kind):
    def stop(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    changes = KINDS[kind]
    whole, every = recorded(tmp_path / "whole", *changes)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", *changes, on_epoch=stop)
    again, fewer = recorded(tmp_path / "stopped", *changes)
    assert_same(again, whole)
    assert len(fewer) < len(every)
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")

    (tmp_path / "other" / "features").parent.mkdir()
    (tmp_path / "whole" / "features").rename(tmp_path / "other" / "features")
    other, none = recorded(tmp_path / "other", *changes)  # from the start, with all features there
    assert_same(other, whole)
    assert none == every[:CALIBRATION]

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "lost", *changes, on_epoch=stop)
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


def test_rare_classes_keep_their_say_where_the_loss_gave_them_one(tmp_path):
    rare = [each for each in MORE if each.target == MORE[0].target] * 2 + MORE[1:4:2]
    heads = [
        run(tmp_path / balance, *CLASSIFIER, f"training.balance={balance}", validation=rare).head.bias
        for balance in ("none", "weights")
    ]
    # By how common classes are among these slides the rare one would lose by its bias alone.
    rarer = int(rare[-1].target[0])
    assert heads[1][rarer] - heads[1][1 - rarer] > heads[0][rarer] - heads[0][1 - rarer]
