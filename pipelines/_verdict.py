"""The result of a plan in words: whether few tiles would do, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines._ways import ALL, ATTENTION, UNIFORM
from wsi_ats.tasks.base import Task

# Loss of the main metric that a user would hardly notice, and the largest that its interval may include.
_TOLERABLE = 0.02
_UNLIKELY = 0.05


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
    whole, metric = by[ALL, 0], task.main_metric
    few = [row for row in rows if row["method"] == ATTENTION and row["tiles"] < tiles]
    if not few:
        return f"undecided: slides have {tiles} tiles, no more than were drawn; give --tiles fewer"
    if any(row["low"] is None for row in (whole, *few)):
        return (
            f"undecided: {metric} or its interval is not defined; give test slides of every class, and "
            "--resamples of 100 or more"
        )
    of_all = _interval(whole)
    if whole["low"] <= task.chance:
        best = max(few, key=lambda row: float(row["low"]))
        if best["low"] <= task.chance:
            return (
                f"no: not even all tiles predict the labels better than chance ({metric} {of_all}); give "
                "more slides, or features of another encoder"
            )
        return (
            f"undecided: attention MIL learned nothing from all tiles ({metric} {of_all}), so it is no "
            f"reference for {best['tiles']} tiles ({_interval(best)}); give more slides"
        )
    tolerable = [row for row in few if row["loss"] <= _TOLERABLE]
    sure = [row for row in tolerable if row["loss_high"] <= _UNLIKELY]
    if not tolerable:
        most = few[-1]
        return (
            f"no: with {most['tiles']} of {tiles} tiles, {metric} is {_interval(most)}, lower by "
            f"{most['loss']:.3f} ({most['loss_low']:.3f} to {most['loss_high']:.3f}) than with all; draw "
            f"more, or use all tiles (model.kind=mil){_of_uniform(by[UNIFORM, most['tiles']], most)}"
        )
    found = (sure or tolerable)[0]
    text = (
        f"{found['tiles']} of {tiles} tiles: {metric} {_interval(found)} against {of_all} with all; "
        f"{tiles / found['tiles']:.3g} times fewer tiles"
    )
    uniform = _of_uniform(by[UNIFORM, found["tiles"]], found)
    if sure:
        return f"yes: {text}{uniform}"
    return (
        f"undecided: {text}, but with {found['n']} slides a loss of up to {found['loss_high']:.3f} cannot be "
        f"excluded{uniform}"
    )


def _of_uniform(uniform: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """Say that attention does not help, if so."""
    if uniform["loss"] > drawn["loss"] + _TOLERABLE / 2:
        return ""
    return f"; uniform draws do as well ({uniform['value']:.3f}): attention does not help here"


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
