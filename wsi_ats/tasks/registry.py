"""All tasks by name. A new task is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from wsi_ats.errors import SettingsError
from wsi_ats.tasks.base import Task
from wsi_ats.tasks.classification import Classification
from wsi_ats.tasks.multilabel import Multilabel
from wsi_ats.tasks.regression import Regression
from wsi_ats.tasks.survival import Survival

TASKS: Mapping[str, Task] = {
    task.name: task for task in (Classification(), Multilabel(), Regression(), Survival())
}

DEFAULT_TASK = Classification.name
"""Default task of functions that read tables."""


def task_named(name: str) -> Task:
    """Return the task with a name.

    Raises
    ------
    SettingsError
        When there is no such task; the message lists all tasks.

    Examples
    --------
    >>> task_named("regression").main_metric
    'r2'
    """
    if name not in TASKS:
        raise SettingsError(f"a task must be one of {', '.join(TASKS)}, not {name!r}")
    return TASKS[name]
