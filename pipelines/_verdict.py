"""The result of a plan in words: whether few tiles would do, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines._ways import ALL, ATTENTION, UNIFORM
from wsi_ats.tasks.base import Task

# Loss of the main metric that a user would hardly notice.
_TOLERABLE = 0.02


def verdict(rows: Sequence[Mapping[str, Any]], task: Task, *, tiles: int) -> str:
    """Say whether few tiles suffice.

    Parameters
    ----------
    rows
        Rows of ``plan.csv``.
    task
        The task, with its metric's value by chance.
    tiles
        Median number of tiles of a slide.
    """
    by = {(row["method"], row["tiles"]): row for row in rows}
    whole = by[ALL, 0]
    metric = task.main_metric
    budgets = [row for row in rows if row["method"] == ATTENTION]
    if whole["value"] is None or any(row["value"] is None for row in budgets):
        return f"undecided: {metric} is not defined on the test slides; give slides of every class"
    if max(row["low"] or task.chance for row in (whole, *budgets)) <= task.chance:
        return (
            f"no: not even all tiles predict the labels better than chance ({metric} {_interval(whole)}); "
            "give more slides, or features of another encoder"
        )
    enough = next((row for row in budgets if row["loss"] <= _TOLERABLE), None)
    if enough is None:
        most = budgets[-1]
        return (
            f"no: with {most['tiles']} of {tiles} tiles, {metric} is {_interval(most)}, lower by "
            f"{most['loss']:.3f} ({most['loss_low']:.3f} to {most['loss_high']:.3f}) than with all; draw "
            "more, or use all tiles (model.kind=mil)"
        )
    number = enough["tiles"]
    text = (
        f"yes: {number} of {tiles} tiles: {metric} {_interval(enough)} against {_interval(whole)} with all; "
        f"{tiles / number:.3g} times fewer tiles"
    )
    if enough["loss_high"] > 2 * _TOLERABLE:
        text += f"; with {enough['n']} slides, a loss of up to {enough['loss_high']:.3f} cannot be excluded"
    uniform = by[UNIFORM, number]
    if uniform["loss"] <= enough["loss"] + _TOLERABLE / 2:
        text += f"; uniform draws do as well ({uniform['value']:.3f}): attention does not help here"
    return text


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
