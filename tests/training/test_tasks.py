"""Every task is learned from labels alone, of a pattern in some cells of a slide."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tasks.examples import EXAMPLES

from wsi_ats.models.batches import Example, TileReader
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.registry import TASKS
from wsi_ats.tasks.targets import Target
from wsi_ats.training.diagnosis import Row
from wsi_ats.training.fit import fit

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another

SETTINGS = Settings().with_values(
    [
        *("tile.size=16", "thumbnail.pixels_per_cell=4", "thumbnail.tissue=none"),
        *("model.backbone=test_resnet", "model.pretrained=false", "sampling.tiles=10", "training.epochs=0"),
        *("training.attention_epochs=0", "training.joint_epochs=12", "training.head_learning_rate=0.01"),
        *("training.feature_dropout=0.0", "training.slides_per_step=6", "training.learning_rate=0.001"),
        "training.calibration_tiles=80",
    ]
)
DARK, GREEN = (-90, 20, 0), (-60, 60, -60)


def marked(name: str) -> tuple[int, int]:
    """Return the numbers of dark and green cells among a slide's 20."""
    generator = np.random.default_rng([int(name), 1])
    return int(generator.integers(0, 11)), int(generator.choice([0, 6]))


def slide_of(name: str) -> MemorySlide:
    generator = np.random.default_rng(int(name))
    pixels = generator.normal((200, 130, 190), 25, (64, 80, 3))
    dark, green = marked(name)
    for number, cell in enumerate(generator.permutation(20)[: dark + green]):
        row, column = divmod(int(cell), 5)
        pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += DARK if number < dark else GREEN
    return MemorySlide([pixels.clip(0, 255).astype(np.uint8)], mpp=0.5, path=name)


def label_of(task: str, name: str) -> str:
    dark, green = marked(name)
    if task == "regression":
        return str(1000 + 20 * dark)
    if task == "survival":  # the darker the sooner; of every third slide the event is not seen
        time = 100 - 8 * dark
        return f"{time / 2};0" if int(name) % 3 == 0 else f"{time};1"
    labels = [label for label, has in (("dark", dark > 5), ("green", green > 0)) if has]
    unknown = ["?green"] if int(name) % 5 == 0 and not green else []
    return ";".join(labels + unknown) or "-"


def rows_of_training(folder, settings, target, labels, validation) -> list[Row]:
    """Train on slides with labels by name, but for those for validation."""
    rows: list[Row] = []
    examples = {
        name: Example(
            SlideRef(name, name, name), read_overview(slide_of(name), settings), target.encode(label)
        )
        for name, label in labels.items()
    }
    with TileReader(2, lambda ref: slide_of(ref.id)) as reader:
        fit(
            [example for name, example in examples.items() if name not in validation],
            [examples[name] for name in validation],
            settings,
            target=target,
            folder=folder,
            device=torch.device("cpu"),
            on_epoch=rows.append,
            reader=reader,
        )
    return rows


JOINT: list[str] = []
PHASES = [
    *("training.epochs=12", "training.tiles=10", "training.joint_epochs=0"),
    *("training.attention_epochs=3", "training.attention_tiles=20"),
]


@pytest.mark.parametrize("changes", [JOINT, PHASES], ids=["joint", "phases"])
@pytest.mark.parametrize(
    ("task", "score", "least"),  # by chance: 0.5, 0 and 0.5
    [("multilabel", "auc", 0.75), ("regression", "r2", 0.5), ("survival", "concordance", 0.75)],
)
def test_a_task_is_learnt(tmp_path, task, score, least, changes):
    settings = SETTINGS.with_values([f"model.task={task}", *changes])
    labels = {str(number): label_of(task, str(number)) for number in range(48)}
    training = [*labels][:32]
    target = Target.of(task, map(labels.get, training))
    rows = rows_of_training(tmp_path, settings, target, labels, [*labels][32:])
    assert all(math.isfinite(row["loss"]) for row in rows)
    learned = [row for row in rows if row["phase"] != "attention"]  # which has another loss
    assert len(learned) == 12
    assert learned[-1]["loss"] < learned[0]["loss"]
    assert learned[-1]["gain"] > learned[0]["gain"]
    assert rows[-1][f"validation_{score}"] > least


@pytest.mark.parametrize("task", TASKS)
def test_without_validation_slides_metrics_are_empty(tmp_path, task):
    settings = SETTINGS.with_values([f"model.task={task}", "training.joint_epochs=1"])
    labels = dict(zip("012345", EXAMPLES[task].labels, strict=True))
    [row] = rows_of_training(tmp_path, settings, EXAMPLES[task].target, labels, [])
    assert math.isfinite(row["loss"])
    assert (row["validation_loss"], row[f"validation_{TASKS[task].main_metric}"]) == (None, None)
