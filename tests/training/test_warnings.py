"""Every warning at the end of a training is given by real runs that deserve it, and by none that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bags import Bag, blob, directions, features_of, settings_of, train

from wsi_ats.tasks.targets import Target
from wsi_ats.training.diagnosis import diagnose
from wsi_ats.training.fit import Trained

TARGET = Target("classification", ("normal", "tumour"))

NOTHING, MEMORISED = "the classifier found nothing", "memorised its training slides"
COLLAPSED, NARROWED, FEW = "attention has collapsed", "while attention narrowed", "training cases, too few"

# More steps than there would be by default, for slides are few.
PHASES = ("training.slides_per_step=4", "training.attention_epochs=6", "training.attention_tiles=100")
CLASSIFIER = ("training.slides_per_step=4", "training.attention_epochs=0")
# All together from the start, as in the paper.
JOINT = (
    *("training.epochs=0", "training.attention_epochs=0", "training.joint_epochs=15"),
    *("training.slides_per_step=4", "training.head_learning_rate=0.01", "sampling.exploration=0.0"),
    "training.gate_learning_rate=0.01",
)
UNBOUND = (
    *("training.feature_dropout=0.0", "training.head_learning_rate=0.01"),
    "training.gate_learning_rate=0.01",
)


def slides(
    seed: int,
    split: str,
    labels: list[int],
    side: int,
    cells: int,
    width: int,
    *,
    visible: bool,
    meaningless: bool,
) -> list[Bag]:
    """Slides with a pattern in a few cells, of the class or of none, visible in the thumbnail or not."""
    rng = np.random.default_rng([seed, *split.encode()])
    kinds, bags = directions(2, width), []
    for number, label in enumerate(rng.permutation(labels)):
        here = blob(side, cells, rng)
        shown = kinds[rng.integers(0, 2) if meaningless else label]
        features = features_of(here, shown, rng)
        bags.append(Bag(f"{split}{number}", features, here & visible, TARGET.names[label]))
    return bags


def ran(
    folder: Path,
    *changes: str,
    seed: int = 0,
    labels: tuple[int, int] = (12, 12),
    side: int = 12,
    cells: int = 8,
    width: int = 128,
    visible: bool = True,
    meaningless: bool = False,
) -> tuple[Trained, list[str]]:
    """Train; return the result and its warnings."""
    settings = settings_of(width, f"training.seed={seed}", *changes)
    training, validation = (
        slides(seed, split, each, side, cells, width, visible=visible, meaningless=meaningless)
        for split, each in (("training", [0] * labels[0] + [1] * labels[1]), ("validation", [0, 1] * 10))
    )
    found = train(training, validation, settings, TARGET, folder)
    scale = 1.0 if found.trust is None else found.trust.scale
    lines = diagnose(found.rows, settings, classes=[bag.label for bag in training], scale=scale)
    names = (NOTHING, MEMORISED, COLLAPSED, NARROWED, FEW)
    kinds = [name for line in lines for name in names if name in line]
    assert len(kinds) == len(lines)  # each is known here
    return found, kinds


def test_a_run_with_useful_attention_has_no_warnings(tmp_path):
    found, said = ran(tmp_path, *PHASES)
    assert said == []
    assert found.by_attention["auc"] > found.by_uniform["auc"]


def test_a_run_with_uninformative_thumbnails_has_no_warnings(tmp_path):
    found, said = ran(tmp_path, *PHASES, visible=False)
    assert said == []
    assert found.trust.scale == 0


def test_random_labels_are_reported_when_the_classifier_finds_no_signal(tmp_path):
    _, said = ran(tmp_path, *CLASSIFIER, width=16, side=16, meaningless=True)
    assert said == [NOTHING]


def test_a_classifier_that_is_far_too_certain_has_found_something(tmp_path):
    """With dropout and few tiles its loss of training slides is worse than a guess, though it knows them."""
    changes = (*("training.head_learning_rate=0.05", "training.gate_learning_rate=0.05"), "training.tiles=32")
    found, said = ran(tmp_path, *PHASES, *changes, seed=2, width=64)
    assert [row["gain"] for row in found.rows if row["gain"] is not None][-1] < 0.05
    assert found.by_attention["auc"] > 0.9
    assert said == []


def test_random_labels_are_reported_when_the_classifier_memorises_them(tmp_path):
    _, said = ran(tmp_path, *CLASSIFIER, *UNBOUND, width=256, side=8, cells=4, meaningless=True)
    assert said == [MEMORISED]


def test_partial_memorisation_is_reported(tmp_path):
    """As most runs with labels that mean nothing end."""
    found, said = ran(tmp_path, *CLASSIFIER, width=256, meaningless=True)
    assert 0.05 < found.rows[-1]["gain"] < 0.9
    assert said == [MEMORISED]


def test_attention_that_collapses_by_chance_is_reported(tmp_path):
    rates = ("attention", "head", "gate")
    changes = tuple(f"training.{part}_learning_rate=0.1" for part in rates)
    found, said = ran(tmp_path, *JOINT, *changes, width=16, meaningless=True)
    assert found.rows[-1]["effective_cells"] < 3
    assert COLLAPSED in said


def test_attention_that_is_narrow_and_right_has_not_collapsed(tmp_path):
    found, said = ran(tmp_path, *JOINT, "training.supervision=1")
    assert found.rows[-1]["effective_cells"] < 16
    assert found.by_attention["auc"] > 0.95
    assert said == []


def test_attention_that_narrows_on_memorised_tiles_is_reported(tmp_path):
    _, said = ran(tmp_path, *JOINT, *UNBOUND, "training.attention_learning_rate=0.03", meaningless=True)
    assert NARROWED in said


def test_narrow_attention_that_is_not_used_is_not_reported(tmp_path):
    """Distilled long from an overfitted classifier, attention narrows, and is not trusted."""
    changes = (
        *("training.attention_epochs=25", "training.attention_tiles=144"),
        *("training.attention_learning_rate=0.03", "augmentation.turns=false"),
    )
    found, said = ran(
        tmp_path, "training.slides_per_step=4", *UNBOUND, *changes, labels=(10, 10), meaningless=True
    )
    assert found.rows[-1]["effective_cells"] < 100
    assert found.trust.scale == 0
    assert said == [MEMORISED]


def test_a_class_of_few_slides_is_reported(tmp_path):
    _, said = ran(tmp_path, *CLASSIFIER, labels=(16, 4))
    assert FEW in said
