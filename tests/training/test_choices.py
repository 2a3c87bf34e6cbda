"""What settings of training promise, each held against a hand count."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter

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
    progress,
    run,
    slide_of,
    trained,
    unreadable,
)
from wsi_ats.errors import ManifestError, ModelError, SettingsError, SlideReadError
from wsi_ats.models import batches
from wsi_ats.models.batches import Example, TileReader, balancing
from wsi_ats.models.kinds import method_for, model_for
from wsi_ats.models.one_level import CellDraws
from wsi_ats.nn.backbone import last_blocks
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.classification import Classification
from wsi_ats.tasks.targets import Target
from wsi_ats.training import epochs as epoch_loop
from wsi_ats.training import learner, steps
from wsi_ats.training.fit import fit
from wsi_ats.training.metrics import Metrics

FEW = ["training.slides_per_step=2", "training.joint_epochs=2"]
RARE = [example(name) for name in ("s0p", "s2p", "s4p", "s6p", "s8p", "s10p", "s1v", "s3v")]


@pytest.fixture
def begun(monkeypatch) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Slides and cells of each pass that is begun in training, in order."""
    passes: list = []
    real_plan = CellDraws.plan

    def plan(self, examples, reader, seeds):
        plans, failed = real_plan(self, examples, reader, seeds)
        if self.attention.model.training:
            passes.append([(e.ref.id, tuple(p.cells.tolist())) for e, p in zip(examples, plans, strict=True)])
        return plans, failed

    monkeypatch.setattr(CellDraws, "plan", plan)
    return passes


def start_of(*changes: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_for(SETTINGS.with_values(changes), TARGET)


# Reading ahead


@pytest.mark.parametrize(
    ("ahead", "every", "staleness"),
    [
        *((0, 200, 0), (1, 200, 0.75), (3, 200, 1.5), (9, 200, 1.5)),  # 0 1 1 1; 0 1 2 3
        *((0, 2, 0), (1, 2, 0.5), (3, 2, 0.5), (3, 1, 0)),  # nothing is read across a stored state
    ],
)
def test_staleness_is_the_mean_age_in_steps_of_the_attention_that_drew(tmp_path, ahead, every, staleness):
    rows = []
    changes = [f"training.read_ahead={ahead}", f"training.checkpoint_steps={every}", *FEW]
    run(tmp_path, *changes, "training.attention_learning_rate=1e-30", validation=[], on_epoch=rows.append)
    assert [row["staleness"] for row in rows] == [staleness] * 2  # four steps in each epoch
    assert [row["effective"] for row in rows] == pytest.approx([3, 3])  # attention that never changes


def test_tiles_of_an_older_attention_are_less_effective(tmp_path):
    def effective(ahead):
        rows = []
        run(
            tmp_path / str(ahead),
            *(
                "training.slides_per_step=1",
                "training.joint_epochs=3",
                "training.attention_learning_rate=0.3",
            ),
            f"training.read_ahead={ahead}",
            validation=[],
            on_epoch=rows.append,
        )
        assert all(1 <= row["effective"] <= 3 + 1e-6 for row in rows)
        return rows[-1]["effective"]

    assert effective(3) != effective(0)


def test_no_tiles_are_drawn_by_other_kinds_and_nothing_is_said_of_them(tmp_path):
    rows = []
    changes = ["model.kind=mil", "training.epochs=2", "training.joint_epochs=0"]
    run(tmp_path, *changes, on_epoch=rows.append, validation=[])
    assert {
        row[name] for row in rows for name in ("effective", "staleness", "effective_cells", "top_share")
    } == {None}


def test_far_ahead_threads_and_slow_reads_change_nothing_even_of_one_slide_in_several_steps(tmp_path, begun):
    changes = ["training.read_ahead=3", "training.balance=sampling", *FEW]
    slow = threading.local()

    class Slow(MemorySlide):
        def read_regions(self, *args):
            slow.times = getattr(slow, "times", 0) + 1
            time.sleep(0.004 * ((slow.times * 7 + len(self.path)) % 3))
            return super().read_regions(*args)

    def opener(ref):
        return Slow(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id)

    model = run(tmp_path / "quick", *changes, examples=RARE, threads=1)
    whole = list(begun)
    for threads in (1, 5):
        begun.clear()
        other = run(tmp_path / str(threads), *changes, examples=RARE, threads=threads, opener=opener)
        assert_same_weights(other, model)
        assert begun == whole
    shown = [slide for each in whole for slide, _ in each]
    assert any(first == second for first, second in itertools.pairwise(shown)) or any(
        len({slide for slide, _ in each}) < len(each) for each in whole
    )
    draws = {cells for each in whole for slide, cells in each if slide == "s1v"}
    assert len(draws) > 1  # each time it is shown, by a draw of its own


def test_every_slide_that_was_opened_is_closed_however_many_read_at_once(monkeypatch):
    monkeypatch.setattr(batches, "_OPEN_SLIDES", 3)
    guard, opened, most_idle = threading.Lock(), [], []

    class Watched(MemorySlide):
        closed = False

        def close(self):
            assert not self.closed
            self.closed = True

        def read_regions(self, *args):
            assert not self.closed
            time.sleep(0.001)
            if int(self.path[1:-1]) == 5:
                raise SlideReadError(self.path, "is damaged")
            return super().read_regions(*args)

    def opener(ref):
        slide = Watched(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id)
        with guard:
            opened.append(slide)
        return slide

    examples = [example(f"s{i}p") for i in range(8)]
    with TileReader(6, opener) as reader:
        futures = [
            future
            for _ in range(5)
            for future in reader.read(
                [(each.ref, each.overview.tissue.grid, np.array([0, 7])) for each in examples + examples[:2]]
            )
        ]
        failed = [future for future in futures if future.exception() is not None]
        assert len(failed) == 5
        most_idle.append(sum(not slide.closed for slide in opened))
    assert most_idle[0] <= 3 + 6
    assert len(opened) > 8
    assert all(slide.closed for slide in opened)


# Several slides of a case


def cased(names: dict[str, str]) -> list[Example]:
    made = [(example(name), case) for name, case in names.items()]
    return [Example(SlideRef(e.ref.id, e.ref.path, case), e.overview, e.target) for e, case in made]


CASES = {"s0p": "a", "s1v": "b", "s2p": "a", "s3v": "c", "s4p": "a", "s5v": "b", "s6p": "d", "s8p": "e"}


@pytest.mark.parametrize("cases", ["mean", "union"])
@pytest.mark.parametrize("tiles", [0, 1])
def test_batches_and_passes_never_tear_a_case_apart(tmp_path, begun, cases, tiles):
    rows = []
    changes = [f"model.cases={cases}", f"training.tiles_per_pass={tiles}", *FEW]
    run(tmp_path, *changes, examples=cased(CASES), validation=cased({"s20p": "x", "s21v": "y", "s22p": "x"}),
        on_epoch=rows.append)  # fmt: skip
    members = {case: {s for s, its in CASES.items() if its == case} for case in CASES.values()}
    for each in begun:
        slides = {slide for slide, _ in each}
        for case in {CASES[slide] for slide in slides}:
            assert members[case] <= slides
    shown = Counter(slide for each in begun for slide, _ in each)
    assert shown == dict.fromkeys(CASES, 2)
    assert [row["tiles"] for row in rows] == [8 * 3] * 2
    if tiles:
        assert all(len({CASES[slide] for slide, _ in each}) == 1 for each in begun)


def test_labels_that_differ_within_a_case_are_refused(tmp_path):
    mixed = cased(CASES | {"s3v": "a"})
    with pytest.raises(ManifestError, match=r"case 'a' have different labels \(s0p .*s3v"):
        run(tmp_path, "model.cases=mean", examples=mixed)
    run(tmp_path, "training.joint_epochs=1", examples=mixed, validation=[])  # each for itself


def test_labels_of_which_the_same_is_unknown_do_not_differ():
    two = [
        Example(SlideRef(name, name, "case"), each.overview, (float("nan"), 1.0))
        for name, each in zip("ab", TRAINING, strict=False)
    ]
    assert batches.units(two, by_case=True) == [[0, 1]]


# What learns


@pytest.mark.parametrize("which", ["frozen", "last-1", "full"])
def test_exactly_what_is_to_learn_changes(tmp_path, which):
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


def test_more_blocks_than_there_are_is_an_error(tmp_path):
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
def test_the_rates_of_the_parts_are_those_set(tmp_path, monkeypatch, attention, peaks):
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


# When it ends


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
    )  # it has ended, and says so again
    assert trained(tmp_path / "none", "training.joint_epochs=1", validation=[]).validation_loss == math.inf


def test_patience_with_a_metric_that_is_not_defined_ends_after_the_first_epoch(tmp_path):
    alike = [each for each in VALIDATION if each.target == VALIDATION[0].target]
    with pytest.raises(ModelError, match=r"validation_auc is not defined .* a class may be absent"):
        run(tmp_path, "training.patience=2", "training.monitor=score", validation=alike)


def test_patience_without_validation_slides_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="there are no validation slides"):
        run(tmp_path, "training.patience=2", validation=[])


def test_training_asks_no_other_processors_for_random_numbers(tmp_path, monkeypatch):
    asked, real = [], torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: asked.append(devices) or real(devices))
    run(tmp_path, "training.joint_epochs=1")
    assert asked == [[]]


# Rare classes


def test_weights_give_classes_the_same_say(tmp_path, monkeypatch):
    assert balancing([0, 0, 0, 1]) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert balancing([2, 2, 0, 0]) == [1, 1, 1, 1]
    noted = []

    def losses(task, outputs, targets):
        each = real(task, outputs, targets)
        if outputs.requires_grad:  # attention is supervised by losses of single tiles
            noted.extend(zip(targets[:, 0].tolist(), each.tolist(), strict=True))
        return each

    real = Classification.losses
    monkeypatch.setattr(Classification, "losses", losses)
    rows = []
    changes = ["training.balance=weights", "training.joint_epochs=1"]
    run(tmp_path, *changes, examples=RARE, validation=[], on_epoch=rows.append)
    weight = {0.0: 8 / (2 * 6), 1.0: 8 / (2 * 2)}
    assert Counter(target for target, _ in noted) == {0: 6, 1: 2}
    assert rows[0]["loss"] == pytest.approx(sum(weight[target] * loss for target, loss in noted) / 8)


@pytest.mark.parametrize(("balance", "chance"), [("none", 0.5623), ("weights", 0.6931), ("sampling", 0.6931)])
def test_a_network_that_knows_nothing_has_no_gain_however_classes_are_balanced(tmp_path, balance, chance):
    """What it settles on under a loss or draws that are balanced is that all classes are equally likely."""

    def knows_nothing():
        model = start_of()
        torch.nn.init.zeros_(model.head.weight)
        with torch.no_grad():
            model.head.bias.copy_(torch.tensor([0.75, 0.25] if balance == "none" else [0.5, 0.5]).log())
        return model

    rates = [
        f"training.{name}=1e-30" for name in ("learning_rate", "head_learning_rate", "gate_learning_rate")
    ]
    rows = []
    changes = [f"training.balance={balance}", "training.joint_epochs=1", "training.weight_decay=0.0", *rates]
    run(tmp_path, *changes, examples=RARE, validation=RARE, network=knows_nothing, on_epoch=rows.append)
    assert rows[0]["loss"] == pytest.approx(chance, abs=1e-4)
    assert rows[0]["gain"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["validation_gain"] == pytest.approx(0, abs=1e-6)


def test_sampling_shows_classes_equally_often(tmp_path, begun):
    run(tmp_path, "training.balance=sampling", *FEW, examples=RARE, validation=[])
    for epoch in range(2):
        shown = Counter(slide for each in begun[4 * epoch : 4 * epoch + 4] for slide, _ in each)
        assert sum(shown.values()) == 8
        assert sum(n for slide, n in shown.items() if slide.endswith("v")) == 4
        assert max(n for slide, n in shown.items() if slide.endswith("p")) == 1
        assert shown["s1v"] == shown["s3v"] == 2


@pytest.mark.parametrize("cases", ["separate", "mean"])
def test_a_slide_that_is_shown_twice_in_a_step_counts_twice(tmp_path, monkeypatch, cases):
    counted = []

    def losses(task, outputs, targets):
        if outputs.requires_grad:  # attention is supervised by losses of single tiles
            counted.append(targets[:, 0].tolist())
        return real(task, outputs, targets)

    real = Classification.losses
    monkeypatch.setattr(Classification, "losses", losses)
    changes = ["training.balance=sampling", "training.slides_per_step=8", f"model.cases={cases}"]
    run(tmp_path, *changes, "training.joint_epochs=2", examples=RARE, validation=[])
    assert [sorted(each) for each in counted] == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2  # two slides of class 1


@pytest.mark.parametrize("balance", ["weights", "sampling"])
@pytest.mark.parametrize("task", ["regression", "survival", "multilabel"])
def test_what_has_no_classes_cannot_be_balanced(tmp_path, task, balance):
    with pytest.raises(SettingsError, match=rf"balance is {balance}, but {task} has no classes"):
        fit(
            TRAINING, VALIDATION, SETTINGS.with_values([f"training.balance={balance}", f"model.task={task}"]),
            target=Target(task, ("risk",)), folder=tmp_path, device=torch.device("cpu"), on_epoch=print,
            reader=None,
        )  # fmt: skip


# Few tiles, bad slides


def test_more_tiles_than_there_are_trains_and_reads_each_once(tmp_path):
    rows = []
    run(tmp_path, "sampling.tiles=1000", *FEW, on_epoch=rows.append)
    assert [row["tiles"] for row in rows] == [8 * 20] * 2
    assert all(math.isfinite(row["loss"]) for row in rows)


def fit_with_bad(folder, bad, max_bad, reported, *, names=("s2p", "s5v"), stop=False):
    def on_epoch(row):
        if stop:
            raise KeyboardInterrupt

    with TileReader(2, unreadable(*names)) as reader:
        fit(
            TRAINING, VALIDATION, SETTINGS.with_values(FEW), target=TARGET, folder=folder,
            device=torch.device("cpu"), on_epoch=on_epoch, reader=reader, max_bad=max_bad,
            on_bad=lambda slide_id, error: reported.append((slide_id, error)),
        )  # fmt: skip


def test_fewer_bad_slides_than_allowed_are_reported_once_and_again_by_a_resumed_run(tmp_path):
    reported: list = []
    with pytest.raises(KeyboardInterrupt):
        fit_with_bad(tmp_path, 2, 2, reported, stop=True)
    assert sorted(reported) == [("s2p", "s2p: tile 3 is damaged"), ("s5v", "s5v: tile 3 is damaged")]
    assert progress(tmp_path)["bad"] == dict(reported)
    reported.clear()
    fit_with_bad(tmp_path, 2, 2, reported)  # another epoch in which both fail again
    assert sorted(slide for slide, _ in reported) == ["s2p", "s5v"]


def test_more_bad_slides_than_allowed_end_training_with_all_messages(tmp_path):
    with pytest.raises(ModelError, match="2 slides could not be read, and --max-bad allows 1") as caught:
        fit_with_bad(tmp_path, 2, 1, [])
    assert "s2p: tile 3 is damaged" in str(caught.value)
    assert "s5v: tile 3 is damaged" in str(caught.value)
    with pytest.raises(ModelError, match="--max-bad allows 0: s21v: tile 3 is damaged"):
        fit_with_bad(tmp_path / "watched", 1, 0, [], names=["s21v"])  # one that is only watched counts, too
    with pytest.raises(ModelError, match="--max-bad allows 0"):
        fit_with_bad(tmp_path / "watched", 1, 0, [], names=["s21v"])  # and goes on counting


# Compiled


@pytest.mark.slow
def test_a_compiled_backbone_leaves_a_model_that_is_none(tmp_path):
    model = run(tmp_path, "training.compile=true", "training.joint_epochs=1", "training.ema=0.5")
    start = start_of()
    assert model.state_dict().keys() == start.state_dict().keys()
    start.load_state_dict(model.state_dict())
    tiles = torch.randint(0, 255, (3, 16, 16, 3), dtype=torch.uint8)
    torch.testing.assert_close(start.eval().embed(tiles), model.embed(tiles))
    plain = run(tmp_path / "plain", "training.joint_epochs=1", "training.ema=0.5")
    torch.testing.assert_close(model.head.weight, plain.head.weight, rtol=0, atol=5e-3)


# Networks that no longer give numbers


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
