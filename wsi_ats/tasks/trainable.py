"""Check whether a task can be trained with settings."""

from __future__ import annotations

from wsi_ats.errors import SettingsError
from wsi_ats.settings import Settings
from wsi_ats.tasks.registry import task_named


def check_trainable(settings: Settings, *, processes: int = 1) -> None:
    """Refuse settings that suit scoring but not training.

    Parameters
    ----------
    settings
        Settings of the run.
    processes
        Number of processes that train together.

    Raises
    ------
    SettingsError
        As in :meth:`wsi_ats.settings.Settings.check_trainable`; also when classes are to be balanced but
        there are none, or when a task that compares the slides of a step would see too few of them at once.
    """
    settings.check_trainable()
    task, training = task_named(settings.model.task), settings.training
    task.check_installed()
    if training.balance != "none" and not task.has_classes:
        raise SettingsError(
            f"training.balance is {training.balance}, but {task.name} has no classes to balance; use none"
        )
    if not task.relative:
        return
    compares = f"model.task {task.name} compares the slides of a step"
    if not settings.model.reads_tiles:
        raise SettingsError(
            f"{compares}, but a model of kind {settings.model.kind} has one slide at a time in memory; use "
            "another kind"
        )
    if training.slides_per_step == 1:
        raise SettingsError(
            f"{compares}, but training.slides_per_step is 1; make it 8 or more, so that most steps see an "
            "event"
        )
    if processes > 1:
        raise SettingsError(
            f"{compares}, but each of {processes} processes sees a share of them; train with one process"
        )
