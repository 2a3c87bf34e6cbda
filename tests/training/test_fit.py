"""Training learns, and ends in the same weights however it was interrupted."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wsi_ats.errors import ArtifactError, ModelError, SettingsError, SlideReadError
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.checkpoints import read_record
from wsi_ats.models.kinds import model_for
from wsi_ats.nn.optimisation import share_of_peak
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tables.files import read_csv
from wsi_ats.tasks.classification import Classification
from wsi_ats.tasks.targets import Target
from wsi_ats.training import progress as progressing
from wsi_ats.training.fit import Trained, fit

torch.set_num_threads(1)  # tiny networks, and a subprocess that must round as this process does

TARGET = Target("classification", ("pink", "violet"))
CPU = torch.device("cpu")
SETTINGS = Settings().with_values(
    [
        "tile.size=16",
        "thumbnail.pixels_per_cell=4",
        "thumbnail.tissue=none",
        "model.backbone=test_resnet",
        "model.pretrained=false",
        "sampling.tiles=3",
        *("training.epochs=0", "training.attention_epochs=0", "training.joint_epochs=3"),
        "training.slides_per_step=3",
        "training.head_learning_rate=0.01",
        "training.gate_learning_rate=0.01",
        "training.feature_dropout=0.0",
        "training.calibration_tiles=40",
        "training.precision=float32",
    ]
)

# Calibration, the first epoch with its validation, by attention and uniformly, and the middle of the second.
INTERRUPTED_READ = 8 + 8 + 2 * 4 + 5


def slide_of(name: str) -> MemorySlide:
    """A slide of 4 x 5 cells with noise; the last letter of its name is its class, in half of its cells."""
    seed, target = int(name[1:-1]), "pv".index(name[-1])
    generator = np.random.default_rng(seed)
    pixels = generator.normal((200, 130, 190), 25, (64, 80, 3))
    if target:
        for cell in generator.permutation(20)[:10]:
            row, column = divmod(int(cell), 5)
            pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] -= (90, 20, 0)
    return MemorySlide([pixels.clip(0, 255).astype(np.uint8)], mpp=0.5, path=name)


def example(name: str, settings: Settings = SETTINGS) -> Example:
    overview = read_overview(slide_of(name), settings)
    return Example(SlideRef(name, name, name), overview, (float("pv".index(name[-1])),))


TRAINING = [example(f"s{i}{'pv'[i % 2]}") for i in range(8)]
VALIDATION = [example(f"s{i}{'pv'[i % 2]}") for i in range(20, 24)]


def run(folder: Path, *changes: str, **options):
    """The model of :func:`trained`."""
    return trained(folder, *changes, **options).model


def trained(
    folder: Path,
    *changes: str,
    examples=TRAINING,
    validation=VALIDATION,
    on_epoch=lambda row: None,
    opener=lambda ref: slide_of(ref.id),
    threads: int = 2,
    **options,
) -> Trained:
    with TileReader(threads, opener) as reader:
        return fit(
            examples,
            validation,
            SETTINGS.with_values(changes),
            target=TARGET,
            folder=folder,
            device=CPU,
            on_epoch=on_epoch,
            reader=reader,
            **options,
        )


def trusting(trust):
    """Trust attention whatever four slides say of it: what comes after is what is tested."""

    def trusted(model, *args, **options):
        found = trust(model, *args, **options)
        model.attention_scale.fill_(found.scale or 1.0)
        return replace(found, scale=found.scale or 1.0)

    return trusted


def assert_same_weights(one, other) -> None:
    for (name, value), its in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, its), name


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step_*"))


def progress(folder: Path) -> dict:
    return read_record(newest(folder))["record"]


def figures(folder: Path) -> dict[str, list[str]]:
    return {name: column for name, column in read_csv(folder / "metrics.csv").items() if name != "seconds"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Model and folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run(folder), folder


# Learning


def test_training_learns_a_class_that_shows_in_half_of_the_cells(tmp_path):
    rows = []
    model = run(
        tmp_path,
        "training.joint_epochs=25",
        "training.learning_rate=0.001",
        on_epoch=rows.append,
    )
    assert not model.training
    assert len(rows) == 25
    assert np.mean([row["loss"] for row in rows[:3]]) > 0.4
    assert np.mean([row["loss"] for row in rows[-3:]]) < 0.2
    assert rows[-1]["validation_loss"] < 0.3
    assert rows[-1]["validation_auc"] == 1.0
    assert rows[0]["effective_cells"] > rows[-1]["effective_cells"]  # attention has moved away from uniform
    assert rows[-1]["top_share"] > rows[0]["top_share"]


def test_every_epoch_has_a_row_of_figures(uninterrupted):
    _, folder = uninterrupted
    table = read_csv(folder / "metrics.csv")
    assert list(table) == [
        "epoch",
        "phase",
        "loss",
        "gain",
        "effective_cells",
        "top_share",
        "effective",
        "staleness",
        "tiles",
        "failed",
        "validation_loss",
        "validation_gain",
        "validation_auc",
        "uniform_loss",
        "uniform_gain",
        "uniform_auc",
        "seconds",
    ]
    assert [float(value) for value in table["epoch"]] == [0, 1, 2]
    assert [float(value) for value in table["tiles"]] == [24, 24, 24]  # 8 slides, 3 tiles each
    assert table["phase"] == ["joint"] * 3
    assert float(table["effective_cells"][0]) == pytest.approx(20, rel=0.03)
    assert float(table["top_share"][0]) == pytest.approx(1 / 20, rel=0.2)  # one cell of twenty
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "metrics.csv",
        "step_000000006.safetensors",
        "step_000000009.safetensors",
    ]


def test_training_without_validation_slides_leaves_their_figures_empty(tmp_path):
    rows = []
    run(tmp_path, "training.joint_epochs=1", validation=[], on_epoch=rows.append)
    assert rows[0]["validation_loss"] is rows[0]["validation_auc"] is None
    assert read_csv(tmp_path / "metrics.csv")["validation_auc"] == [""]


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    rates = [share_of_peak(done / 100, 0.2) for done in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert rates[20:51] == pytest.approx([1] * 31)
    assert all(a > b for a, b in itertools.pairwise(rates[50:]))
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert share_of_peak(0, 0) == 1


def test_attention_stays_as_it_starts_while_the_classifier_learns(tmp_path):
    changes = ("training.joint_epochs=0", "training.epochs=2", "model.attention=test_resnet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = model_for(SETTINGS.with_values(changes), TARGET)
    end = run(tmp_path, *changes)
    assert_same_weights(end.attention, start.attention)
    assert not torch.equal(end.head.weight, start.head.weight)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(end.encoder.parameters(), start.encoder.parameters(), strict=True)
    )


# The same weights


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, uninterrupted):
    model, folder = uninterrupted
    assert_same_weights(run(tmp_path / "again"), model)
    assert figures(tmp_path / "again") == figures(folder)
    other = run(tmp_path / "other", "training.seed=1")
    assert not torch.equal(other.head.weight, model.head.weight)


def test_training_neither_uses_nor_moves_the_global_generator(tmp_path, uninterrupted):
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert_same_weights(run(tmp_path), uninterrupted[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("threads", [1, 4])
def test_number_of_reading_threads_and_their_order_change_nothing(tmp_path, threads, uninterrupted):
    def slow_for_some(ref):
        time.sleep(0.003 * (hash(ref.id) % 4))
        return slide_of(ref.id)

    assert_same_weights(run(tmp_path, threads=threads, opener=slow_for_some), uninterrupted[0])


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_run_stopped_after_any_epoch_and_started_again_ends_the_same(tmp_path, done, uninterrupted):
    def stop(row):
        if row["epoch"] == done - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_epoch=stop)
    assert len(progress(tmp_path)["rows"]) == done
    rows = []
    assert_same_weights(run(tmp_path, on_epoch=rows.append), uninterrupted[0])
    assert [row["epoch"] for row in rows] == list(range(done, 3))
    assert figures(tmp_path) == figures(uninterrupted[1])


def test_a_run_stopped_in_the_middle_of_an_epoch_ends_the_same(tmp_path, uninterrupted):
    reads = []

    class Stops(MemorySlide):
        def read_regions(self, *args):
            reads.append(self.path)
            if len(reads) == INTERRUPTED_READ:
                raise KeyboardInterrupt
            return super().read_regions(*args)

    def opener(ref):
        return Stops(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, opener=opener, threads=1)
    assert len(progress(tmp_path)["rows"]) == 1
    assert_same_weights(run(tmp_path), uninterrupted[0])


def test_a_run_stopped_between_state_and_metrics_has_all_metrics_in_the_end(
    tmp_path, monkeypatch, uninterrupted
):
    def stop(path, columns):
        if len(columns["epoch"]) == 3:
            raise KeyboardInterrupt
        return write(path, columns)

    write = progressing.write_csv
    monkeypatch.setattr(progressing, "write_csv", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    assert_same_weights(run(tmp_path), uninterrupted[0])
    assert figures(tmp_path) == figures(uninterrupted[1])


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX systems know them")
def test_a_process_interrupted_by_a_signal_and_started_again_ends_the_same(tmp_path, uninterrupted):
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    for line in child.stdout:
        if line.strip() == f"read {INTERRUPTED_READ}":
            child.send_signal(signal.SIGINT)
            break
    _, errors = child.communicate(timeout=120)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert len(progress(tmp_path)["rows"]) == 1
    assert_same_weights(run(tmp_path), uninterrupted[0])
    assert figures(tmp_path) == figures(uninterrupted[1])


# Every kind of model

OTHERS = ["training.epochs=3", "training.tiles=3", "training.joint_epochs=0"]
# Settings of each, and how many tiles are read in each epoch of 8 slides that have 20.
KINDS = [
    (["model.kind=uniform", *OTHERS], [8 * 3] * 3),
    (["model.kind=mil", *OTHERS], [8 * 20 * 2] * 3),
    (["model.kind=mil", "model.mil_attention=plain", *OTHERS], [8 * 20 * 2] * 3),
    (["model.kind=mil", "model.mil_tiles=7", *OTHERS], [8 * 7 * 2] * 3),
    (["model.kind=mil", "training.fine_tuning=frozen", *OTHERS], [8 * 20, 0, 0]),
    (["model.kind=image", "model.scale=1.0", *OTHERS], [0] * 3),
    (["model.kind=sampling", "training.fine_tuning=last-1"], [8 * 3] * 3),
]


@pytest.mark.parametrize(("changes", "tiles"), KINDS, ids=[" ".join(changes[:2]) for changes, _ in KINDS])
def test_every_kind_trains_and_a_stopped_run_ends_the_same(tmp_path, changes, tiles):
    def stop(row):
        if row["epoch"] == 0:
            raise KeyboardInterrupt

    rows = []
    model = run(tmp_path / "whole", *changes, on_epoch=rows.append)
    assert [row["tiles"] for row in rows] == tiles
    draws = changes[0].endswith(("sampling", "uniform"))
    assert [row["effective_cells"] is not None for row in rows] == [draws] * 3
    assert all(math.isfinite(row["loss"]) and row["validation_auc"] is not None for row in rows)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", *changes, on_epoch=stop)
    assert_same_weights(run(tmp_path / "stopped", *changes), model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = model_for(SETTINGS.with_values(changes), TARGET)
    backbones = zip(model.encoder.parameters(), start.encoder.parameters(), strict=True)
    learns = "training.fine_tuning=frozen" not in changes
    assert any(not torch.equal(one, other) for one, other in backbones) is learns
    assert not torch.equal(model.head.weight, start.head.weight)


def test_mil_learns_a_class_that_shows_in_half_of_the_cells(tmp_path):
    rows = []
    run(
        tmp_path,
        *("model.kind=mil", "training.epochs=10", "training.joint_epochs=0", "training.learning_rate=0.001"),
        on_epoch=rows.append,
    )
    assert rows[-1]["loss"] < 0.2
    assert rows[-1]["validation_auc"] == 1.0


def test_an_image_that_does_not_fit_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 100_000}))
    with pytest.raises(ModelError, match=r"at model\.scale 1\.0: training would need .* GB on cpu"):
        run(
            tmp_path,
            *("model.kind=image", "model.scale=1.0", "training.epochs=1", "training.joint_epochs=0"),
            opener=unreadable(*(each.ref.id for each in TRAINING)),
        )


# Refusals and failures


@pytest.mark.parametrize(
    "other",
    [
        {"changes": ["training.joint_epochs=4"]},
        {"changes": ["training.epochs=1"]},
        {"changes": ["training.attention_tiles=7"]},
        {"changes": ["sampling.tiles=4"]},
        {"examples": TRAINING[:-1]},
        {"validation": VALIDATION[:-1]},
    ],
    ids=["joint epochs", "epochs", "tiles of the survey", "tiles", "slides", "validation slides"],
)
def test_the_state_of_another_run_is_refused(tmp_path, other):
    run(tmp_path, "training.joint_epochs=1")
    state = newest(tmp_path)
    before = state.read_bytes()
    changes = ["training.joint_epochs=1", *other.pop("changes", [])]
    with pytest.raises(ArtifactError, match=r"other settings or slides.*--overwrite"):
        run(tmp_path, *changes, **other)
    assert state.read_bytes() == before


def test_a_damaged_state_is_refused_and_not_begun_anew(tmp_path):
    run(tmp_path, "training.joint_epochs=1")
    state = newest(tmp_path)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="damaged"):
        run(tmp_path, "training.joint_epochs=1")


class Unreadable(MemorySlide):
    """Opens, but gives no pixels after so many reads."""

    left = 0

    def read_regions(self, *args):
        if self.left <= 0:
            raise SlideReadError(self.path, "tile 3 is damaged")
        self.left -= 1
        return super().read_regions(*args)


def unreadable(*names: str, left: int = 0):
    def opener(ref):
        slide = slide_of(ref.id)
        if ref.id in names:
            slide = Unreadable(slide._pyramid, mpp=0.5, path=ref.id)
            slide.left = left
        return slide

    return opener


def test_a_slide_that_cannot_be_read_is_left_out_counted_and_named(tmp_path, caplog):
    rows = []
    with caplog.at_level(logging.WARNING):
        model = run(tmp_path, opener=unreadable("s2p"), on_epoch=rows.append)
    assert [row["failed"] for row in rows] == [1, 1, 1]
    assert [row["tiles"] for row in rows] == [21, 21, 21]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert caplog.text.count("s2p: tile 3 is damaged") == 1  # not in every epoch


def test_a_step_none_of_whose_slides_can_be_read_is_left_out(tmp_path):
    rows = []
    run(
        tmp_path,
        "training.slides_per_step=1",
        "training.joint_epochs=1",
        opener=unreadable("s2p", "s3v", *(e.ref.id for e in VALIDATION)),
        on_epoch=rows.append,
    )
    assert rows[0]["failed"] == 2
    assert rows[0]["validation_loss"] is rows[0]["validation_auc"] is None


def test_no_readable_slide_is_an_error_that_says_why(tmp_path):
    names = [each.ref.id for each in TRAINING]
    with pytest.raises(ModelError, match=r"calibration.*s0p: tile 3 is damaged"):
        run(tmp_path / "from the start", opener=unreadable(*names))
    with pytest.raises(ModelError, match="no training slide could be read"):
        run(tmp_path / "after calibration", opener=unreadable(*names, left=1))
    assert not (tmp_path / "after calibration" / "metrics.csv").exists()


def test_learning_rates_that_are_far_too_high_stop_training_with_advice(tmp_path):
    for rate in ("head_learning_rate", "gate_learning_rate", "attention_learning_rate", "learning_rate"):
        with pytest.raises(ModelError, match=r"(loss|norm|attention) is .*try lower learning rates"):
            run(tmp_path / rate, f"training.{rate}=1e36", "training.warmup=0.0", validation=[])


@pytest.mark.parametrize("what", ["loss", "gradient's norm"])
def test_nan_is_reported_with_epoch_step_and_slides_and_never_stored(tmp_path, monkeypatch, what):
    real, calls = Classification.losses, []

    def in_the_second_epoch(task, outputs, targets):
        loss = real(task, outputs, targets)
        if not loss.requires_grad:  # of watched slides, and of a guess
            return loss
        calls.append(1)
        if len(calls) == 5:  # three steps; then the second step
            if what == "loss":
                return loss * math.nan
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(Classification, "losses", in_the_second_epoch)
    said = rf"{what} is (nan|inf) in step 4, epoch 1 \(slides s\d.*step_000000003.safetensors; try"
    with pytest.raises(ModelError, match=said):
        run(tmp_path)
    assert len(progress(tmp_path)["rows"]) == 1
    assert all(value.isfinite().all() for value in load_file(newest(tmp_path)).values())


class Announcing(MemorySlide):
    reads = 0

    def read_regions(self, *args):
        Announcing.reads += 1
        print(f"read {Announcing.reads}", flush=True)  # noqa: T201  (the other process listens)
        if Announcing.reads == INTERRUPTED_READ:
            time.sleep(3)  # long enough for a signal to arrive on a busy machine
        return super().read_regions(*args)


def test_slides_in_other_colours_than_the_settings_ask_for_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"s0p: its colour is 'stored', but tile\.colour is 'srgb'"):
        run(tmp_path, "tile.colour=srgb")


if __name__ == "__main__":
    run(
        Path(sys.argv[1]),
        threads=1,
        opener=lambda ref: Announcing(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id),
    )
