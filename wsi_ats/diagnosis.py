"""Say in sentences what a training's figures mean: was anything learned, and does attention help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

from wsi_ats.config import Settings

Row = Mapping[str, float | str | None]
"""A row of ``metrics.csv``."""

# Below, a class is what its few cases happen to show.
_FEW_CASES = 10

# Of the loss of a guess by how common labels are, what a classifier has removed: little, nearly all.
_NOTHING, _EVERYTHING = 0.05, 0.9


def diagnose(rows: Sequence[Row], settings: Settings, *, classes: Sequence[str]) -> list[str]:
    """Return what is wrong with a training, each as a sentence with advice; nothing where all is well.

    Parameters
    ----------
    rows
        Figures of all epochs.
    settings
        Those of the run.
    classes
        Class of each training case; empty for tasks without classes.

    Examples
    --------
    >>> diagnose([], Settings(), classes=["tumour"] * 12 + ["normal"] * 3)  # doctest: +ELLIPSIS
    ["class 'normal' has only 3 training cases, ...]
    """
    return [*_few(classes), *_learned(rows), *_collapsed(rows, settings), *_narrowed(rows)]


def _few(classes: Sequence[str]) -> list[str]:
    scarce = {name: count for name, count in Counter(classes).items() if count < _FEW_CASES}
    if not scarce:
        return []
    name, count = min(scarce.items(), key=lambda each: each[1])
    cases, others = "case" if count == 1 else "cases", ""
    if more := len(scarce) - 1:
        others = f" ({more} more {'class has' if more == 1 else 'classes have'} fewer than {_FEW_CASES})"
    return [
        f"class {name!r} has only {count} training {cases}{others}, too few to tell it from what they "
        "happen to have in common; add cases, or judge by cross-validation (wsi-ats crossval)"
    ]


def _learned(rows: Sequence[Row]) -> list[str]:
    """Judge the last epoch in which the classifier learned."""
    known = [row for row in rows if row["gain"] is not None]
    if not known:
        return []
    last = known[-1]
    watched = last["validation_gain"] if last["uniform_gain"] is None else last["uniform_gain"]
    gain = cast(float, last["gain"])
    if gain < _NOTHING:
        return [
            "the classifier found nothing that tells the labels apart: its loss on fresh draws of the "
            f"training slides is {1 - gain:.0%} of that of a guess by how common labels are; check the "
            "labels and tile.mpp, train longer (training.epochs), draw more tiles (training.tiles), or start "
            "from a pretrained backbone"
        ]
    if watched is not None and gain > _EVERYTHING and cast(float, watched) < _NOTHING:
        return [
            f"the model has learned its training slides by heart: {gain:.0%} of the loss is gone there, and "
            f"{max(0.0, cast(float, watched)):.0%} on the validation slides; add slides, freeze the backbone "
            "(training.fine_tuning=frozen), raise training.feature_dropout, or train for fewer epochs"
        ]
    return []


def _collapsed(rows: Sequence[Row], settings: Settings) -> list[str]:
    last = rows[-1] if rows else None
    if last is None or last["effective_cells"] is None or last["phase"] == "classifier":
        return []
    cells = cast(float, last["effective_cells"])
    if cells >= settings.sampling.tiles:
        return []
    return [
        f"attention has collapsed: it is as narrow as {cells:.0f} cells of equal attention, and "
        f"{settings.sampling.tiles} tiles are drawn; train attention for fewer epochs "
        "(training.attention_epochs, training.joint_epochs), or raise training.entropy"
    ]


def _narrowed(rows: Sequence[Row]) -> list[str]:
    """Compare the last epoch with the best of the same phase."""
    last = rows[-1] if rows else None
    if last is None or last["phase"] == "classifier" or last["validation_loss"] is None:
        return []
    own = [row for row in rows if row["phase"] == last["phase"] and row["validation_loss"] is not None]
    best = min(own, key=lambda row: cast(float, row["validation_loss"]))
    loss, least = cast(float, last["validation_loss"]), cast(float, best["validation_loss"])
    cells, before = cast(float, last["effective_cells"]), cast(float, best["effective_cells"])
    if loss <= 1.1 * least or cells >= 0.8 * before:
        return []
    return [
        f"the validation loss rose from {least:.3f} in epoch {best['epoch']:.0f} to {loss:.3f} while "
        f"attention narrowed from {before:.0f} to {cells:.0f} cells: attention learns the training slides by "
        "heart; train it for fewer epochs, or on more slides"
    ]


def compare(by_attention: Row, by_uniform: Row, *, slides: int, tiles: int, scale: float) -> list[str]:
    """Return lines that hold attention against uniform draws of the same size, and say what it means.

    Parameters
    ----------
    by_attention, by_uniform
        Figures of the validation slides: ``loss``, the task's own, and others.
    slides
        How many they are.
    tiles
        Drawn of each.
    scale
        Of attention's logits; 0 means that it is not used.
    """
    if not scale:
        return ["the thumbnail does not tell where to look; tiles are drawn uniformly"]
    if not by_attention:
        return []
    lines = [f"{slides} validation slides, {tiles} tiles each, mean of several draws:"]
    for name, value in by_attention.items():
        other = by_uniform[name]
        if value is not None and other is not None:
            lines.append(f"  {name}: {value:.3f} by attention, {other:.3f} by uniform draws")
    name = next(each for each in by_attention if each not in {"loss", "gain"})
    value, other = by_attention[name], by_uniform[name]
    if value is None or other is None:
        return lines
    better = cast(float, value) - cast(float, other)
    margin = 0.01
    if better > margin:
        lines.append(f"on these {slides} slides attention raises {name} by {better:.3f} for as many tiles")
    elif better < -margin:
        lines.append(
            f"on these {slides} slides attention lowers {name} by {-better:.3f}; if more slides say so, too, "
            "model.kind=uniform reads as much and is simpler"
        )
    else:
        lines.append(f"on these {slides} slides attention and uniform draws do equally well")
    return lines
