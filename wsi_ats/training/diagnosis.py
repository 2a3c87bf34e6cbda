"""Explain the metrics of a training in sentences: success, failure, and the benefit of attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

from wsi_ats.settings import Settings

Row = Mapping[str, float | str | None]
"""A row of ``metrics.csv``."""

# Fewer cases than this do not represent a class.
_FEW_CASES = 10

# Shares of the loss of a guess from label frequencies: no gain, a gain beyond chance on few slides, and a
# rise that may be chance.
_NOTHING, _SOMETHING, _RISE = 0.05, 0.2, 0.1

# Area under the curve, or concordance, above which slides are ranked well, however wrong probabilities are.
_WELL_RANKED = 0.7


def diagnose(
    rows: Sequence[Row], settings: Settings, *, classes: Sequence[str], scale: float = 1.0
) -> list[str]:
    """Return the problems of a training, each as a sentence with advice.

    Parameters
    ----------
    rows
        Metrics of all epochs.
    settings
        Settings of the run.
    classes
        Class of each training case; empty for tasks without classes.
    scale
        Factor of the attention logits, chosen on the validation slides. Below 1 attention is wider than
        learned, and with 0 unused; narrow attention is then not a problem.

    Examples
    --------
    >>> diagnose([], Settings(), classes=["tumour"] * 12 + ["normal"] * 3)  # doctest: +ELLIPSIS
    ["class 'normal' has only 3 training cases, ...]
    """
    lines = [*_few(classes), *_learned(rows)]
    if scale >= 1:
        lines += [*_collapsed(rows, settings), *_narrowed(rows, settings)]
    return lines


def _few(classes: Sequence[str]) -> list[str]:
    scarce = {name: count for name, count in Counter(classes).items() if count < _FEW_CASES}
    if not scarce:
        return []
    name, count = min(scarce.items(), key=lambda each: each[1])
    cases, others = "case" if count == 1 else "cases", ""
    if more := len(scarce) - 1:
        others = f" ({more} more {'class has' if more == 1 else 'classes have'} fewer than {_FEW_CASES})"
    return [
        f"class {name!r} has only {count} training {cases}{others}, too few to separate it from what "
        "these cases share by chance; add cases, or evaluate by cross-validation (wsi-ats crossval)"
    ]


def _learned(rows: Sequence[Row]) -> list[str]:
    """Assess the last epoch in which the classifier learned."""
    known = [row for row in rows if row["gain"] is not None]
    if not known:
        return []
    last = known[-1]
    gain = cast(float, last["gain"])
    # Attention may have improved the validation gain since.
    gains = (_validation_gain(last), _validation_gain(rows[-1]))
    best = max((each for each in gains if each is not None), default=None)
    if gain < _NOTHING:
        # Training has dropout and other draws, and its loss may suffer from overconfidence.
        if best is not None and best >= _SOMETHING:
            return []
        return [
            "the classifier found nothing that separates the labels: its loss on fresh draws of the "
            f"training slides is {1 - gain:.0%} of that of a guess from label frequencies; check the "
            "labels and tile.mpp, train longer (training.epochs), draw more tiles (training.tiles), or start "
            "from a pretrained backbone"
        ]
    little = max(_NOTHING, gain / 4)
    if best is not None and best < little and not _ranked_well(last) and not _ranked_well(rows[-1]):
        return [
            f"the model has memorised its training slides: their loss is {gain:.0%} below that of a guess, "
            f"but that of the validation slides only {max(0.0, best):.0%}; check the labels, add slides, "
            "freeze the backbone (training.fine_tuning=frozen), raise training.feature_dropout, or train for "
            "fewer epochs"
        ]
    return []


def _validation_gain(row: Row) -> float | None:
    """Return the gain on the validation slides, from draws like those of training."""
    uniform = row["phase"] == "classifier" and row["uniform_gain"] is not None
    return cast(float | None, row["uniform_gain" if uniform else "validation_gain"])


def _ranked_well(row: Row) -> bool:
    """Return whether validation slides are ranked well, although their loss may be that of a guess."""
    metrics = [row.get(f"validation_{name}") for name in ("auc", "concordance")]
    return any(each is not None and cast(float, each) >= _WELL_RANKED for each in metrics)


def _collapsed(rows: Sequence[Row], settings: Settings) -> list[str]:
    """Report narrow attention, unless it helps on validation slides: then the evidence is small."""
    last = rows[-1] if rows else None
    if last is None or last["effective_cells"] is None or last["phase"] == "classifier":
        return []
    cells, tiles = cast(float, last["effective_cells"]), settings.sampling.tiles
    at_first = cast(float, rows[0]["effective_cells"])  # small slides have few cells
    if cells >= min(tiles, at_first / 2) or _helps(last):
        return []
    joint = last["phase"] == "joint"
    advice = "training.joint_epochs), or raise training.entropy" if joint else "training.attention_epochs)"
    return [
        f"attention has collapsed: it is as narrow as {cells:.0f} cells of equal attention, and {tiles} "
        f"tiles are drawn; train it for fewer epochs ({advice}"
    ]


def _helps(row: Row) -> bool:
    """Return whether attention predicts better than a guess, and no worse than uniform draws."""
    by_attention, by_uniform = row["validation_gain"], row["uniform_gain"]
    if by_attention is None or by_uniform is None:
        return False
    return cast(float, by_attention) >= max(_RISE, cast(float, by_uniform))


def _narrowed(rows: Sequence[Row], settings: Settings) -> list[str]:
    """Compare the last epoch with the best of its phase in which attention was wider.

    Nothing is reported if the best epoch is kept anyway.
    """
    last = rows[-1] if rows else None
    if last is None or last["phase"] == "classifier" or last["validation_gain"] is None:
        return []
    if settings.training.patience or (last["phase"] == "joint" and rows[0]["phase"] != "joint"):
        return []
    cells, loss = cast(float, last["effective_cells"]), cast(float, last["validation_loss"])
    wider = [
        row
        for row in rows
        if row["phase"] == last["phase"]
        and row["validation_loss"] is not None
        and cells < 0.8 * cast(float, row["effective_cells"])
    ]
    left = 1 - cast(float, last["validation_gain"])  # of the loss of a guess
    if not wider or left <= 0:
        return []
    best = min(wider, key=lambda row: cast(float, row["validation_loss"]))
    least, before = cast(float, best["validation_loss"]), cast(float, best["effective_cells"])
    if loss - least <= _RISE * loss / left:
        return []
    return [
        f"the validation loss rose from {least:.3f} in epoch {best['epoch']:.0f} to {loss:.3f} while "
        f"attention narrowed from {before:.0f} to {cells:.0f} cells: attention memorises the training "
        "slides; train it for fewer epochs, or on more slides"
    ]


def compare(
    by_attention: Row,
    by_uniform: Row,
    *,
    slides: int,
    tiles: int,
    scale: float,
    foretells: bool | None,
    cases: int,
) -> list[str]:
    """Return lines that compare attention with uniform draws of the same size.

    Parameters
    ----------
    by_attention, by_uniform
        Metrics of the validation slides: ``loss``, ``gain``, and those of the task.
    slides
        Number of validation slides.
    tiles
        Number of tiles drawn from each slide.
    scale, foretells, cases
        See :class:`wsi_ats.training.distillation.Trust`.
    """
    if not scale and foretells:
        return [
            "attention predicts which tiles are informative, but draws by it were no better on the "
            "validation slides; tiles are drawn uniformly"
        ]
    if not scale:
        return ["the thumbnail does not show which tiles are informative; tiles are drawn uniformly"]
    lines = []
    if foretells is None and (cases or not by_attention):
        count = f"{cases} validation case{'' if cases == 1 else 's'}" if cases else "no validation cases"
        lines += [f"attention was not evaluated, because there are {count}; tiles are drawn by it anyway"]
    if not by_attention:
        return lines
    lines += [f"{slides} validation slides, {tiles} tiles each, mean of several draws:"]
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
        lines.append(
            f"on these {slides} slides attention raises {name} by {better:.3f} with the same number of tiles"
        )
    elif better < -margin:
        lines.append(
            f"on these {slides} slides attention lowers {name} by {-better:.3f}; if more slides confirm "
            "that, use model.kind=uniform, which reads as many tiles and is simpler"
        )
    else:
        lines.append(f"on these {slides} slides attention and uniform draws perform equally well")
    return lines
