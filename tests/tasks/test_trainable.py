"""Settings that a task cannot be trained with are refused before any work."""

from __future__ import annotations

import pytest

from wsi_ats.errors import SettingsError
from wsi_ats.settings import Settings
from wsi_ats.tasks.registry import TASKS
from wsi_ats.tasks.trainable import check_trainable

SURVIVAL = Settings().with_values(["model.task=survival", "training.slides_per_step=2"])


@pytest.mark.parametrize("task", TASKS)
def test_the_default_settings_suit_every_task(task):
    check_trainable(Settings().with_values([f"model.task={task}"]))


def test_survival_needs_several_slides_in_a_step():
    check_trainable(SURVIVAL)
    image = SURVIVAL.with_values(["model.kind=image", "training.joint_epochs=0", "training.supervision=0"])
    with pytest.raises(SettingsError, match=r"survival compares .* kind image has one slide at a time"):
        check_trainable(image)
    with pytest.raises(SettingsError, match=r"survival compares .* training\.slides_per_step is 1;"):
        check_trainable(SURVIVAL.with_values(["training.slides_per_step=1"]))
    with pytest.raises(
        SettingsError, match="survival compares the slides of a step, but each of 2 processes"
    ):
        check_trainable(SURVIVAL, processes=2)
    check_trainable(Settings(), processes=2)


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_only_classes_can_be_balanced(balance):
    changes = [f"training.balance={balance}"]
    check_trainable(Settings().with_values(changes))
    with pytest.raises(SettingsError, match=f"balance is {balance}, but survival has no classes"):
        check_trainable(SURVIVAL.with_values(changes))
