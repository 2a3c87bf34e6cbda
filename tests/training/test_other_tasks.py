"""Attention learns where to read for every task: held-out metrics compared with uniform draws.

A twentieth of a slide's 400 cells stands out in the thumbnail, and their tiles determine the label.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from bags import Bag, BagReader, blob, directions, features_of, settings_of, train

from wsi_ats.models.base import draw_seed
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings
from wsi_ats.tasks.evaluation import main_metric
from wsi_ats.tasks.targets import Target

SIDE, MATTER, WIDTH = 20, 20, 128
ONE, OTHER, COMMON = directions(3, WIDTH)
DRAWS = 8


def slide(task: str, name: str, rng: np.random.Generator) -> Bag:
    """A slide whose label depends only on the cells that stand out; all slides have equally many."""
    here = blob(SIDE, MATTER, rng)
    if task == "multilabel":
        one, other = rng.integers(0, 2, 2)
        shown = COMMON + (2 * one - 1) * ONE + (2 * other - 1) * OTHER
        label = ";".join(text for text, has in (("one", one), ("other", other)) if has) or "-"
    else:
        value = rng.uniform(-1, 1)
        shown = COMMON + value * ONE
        label = f"{50 + 10 * value:.3f}"
        if task == "survival":  # the larger the value the sooner; of about a third the event is not seen
            time, seen = rng.exponential() * np.exp(-3 * value), 4 * rng.exponential()
            label = f"{min(time, seen):.5f};{int(time <= seen)}"
    return Bag(name, features_of(here, shown, rng), here, label)


def slides(task: str, split: str, number: int, seed: int) -> list[Bag]:
    rng = np.random.default_rng([seed, *split.encode()])
    return [slide(task, f"{split}{each}", rng) for each in range(number)]


@torch.inference_mode()
def held_out(model: SlideNetwork, settings: Settings, target: Target, bags: list[Bag]) -> float:
    """The task's main metric, mean over draws."""
    method, reader = method_for(model.eval(), settings), BagReader(bags)
    examples = [bag.example(target) for bag in bags]
    true = np.array([each.target for each in examples])
    found = []
    for number in range(DRAWS):
        seeds = [draw_seed(0, each.ref.id, number) for each in examples]
        outputs = method.begin(examples, reader, seeds)().outputs
        scores = target.restore(target.definition.activate(outputs)).double().numpy()
        found.append(main_metric(target.definition, true, scores)[1])
    return fmean(found)


def compared(task: str, folder: Path, seed: int = 0) -> tuple[float, float]:
    """Main metric of 60 slides by attention, and by uniform draws with the same classifier."""
    training, validation, test = (
        slides(task, split, number, seed)
        for split, number in (("training", 80), ("validation", 20), ("test", 60))
    )
    settings = settings_of(WIDTH, f"model.task={task}", f"training.seed={seed}")
    target = Target.of(task, [bag.label for bag in training])
    model = train(training, validation, settings, target, folder).model
    by_attention = held_out(model, settings, target, test)
    model.attention_scale.fill_(0.0)
    return by_attention, held_out(model, settings, target, test)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "margin"), [("multilabel", 0.03), ("regression", 0.05), ("survival", 0.05)])
def test_attention_is_better_than_uniform_draws(tmp_path, task, margin):
    by_attention, by_uniform = compared(task, tmp_path)
    assert by_attention > by_uniform + margin, f"{by_attention:.3f} and {by_uniform:.3f}"
