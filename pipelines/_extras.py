"""Optional packages that a task needs, checked before any work."""

from __future__ import annotations

from importlib import import_module

# The module that imports the optional package of a task, and raises an error if it is missing.
_MODULES = {"survival": "wsi_ats.tasks.concordance"}


def check_installed(task: str) -> None:
    """Refuse a task whose optional package is missing.

    Raises
    ------
    SettingsError
        With the command that installs it.
    """
    if task in _MODULES:
        import_module(_MODULES[task])
