"""Multilabel: a slide has any of several labels, each with its own probability.

The label is written as names joined by ``;``, such as ``her2;?er``: ``?`` marks those that
are unknown, ``-`` alone means none. The target has a number for each name: 0, 1, or NaN if it is unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_ats.errors import ManifestError
from wsi_ats.tasks.base import Details, Floats, Names
from wsi_ats.tasks.labels import check_known, column_flag, join_rows
from wsi_ats.tasks.probabilities import ProbabilityTask

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_ats.tasks.evaluation import Bools, Event

_NONE = "-"  # no labels; an empty text means that nothing is known
_UNKNOWN = "?"


class Multilabel(ProbabilityTask):
    """The task of predicting any of several labels."""

    name = "multilabel"
    tables = ("roc.csv", "precision_recall.csv", "reliability.csv")
    fewest_names, has_classes = 1, False

    def join(self, columns: Mapping[str, Sequence[str | None]]) -> list[str | None]:
        """Join columns of 0 and 1, each named as the label.

        Examples
        --------
        >>> Multilabel().join({"her2": ["1", "0"], "er": [None, "1"]})
        ['her2;?er', 'er']
        """
        labels = join_rows(columns, _join)
        for name in columns:
            # The model gets its names from the labels, so a name that no label has would be dropped.
            if not any(name in (label or "").split(";") for label in labels):
                raise ManifestError(
                    f"no row of column {name!r} is 1, so it cannot be learned; leave it out of --label-column"
                )
        return labels

    def must_learn(self, label: str) -> frozenset[str]:
        """Return the labels that the slide is known to have."""
        return frozenset(name for name, has in _members(label).items() if has == 1)

    def describe(self, labels: Sequence[str]) -> tuple[tuple[str, ...], float, float]:
        """Return the names in alphabetical order."""
        names = {name for label in labels for name in _members(label)}
        if not names:
            raise ManifestError(
                f"none of {len(labels)} slides has any label; write their names, joined by ';'"
            )
        return tuple(sorted(names)), 0.0, 1.0

    def check_enough(self, labels: Sequence[str], cases: Sequence[str]) -> None:
        """Check that there are slides with and without each label."""
        names, *_ = self.describe(labels)
        rows = [self.encode(label, names) for label in labels]
        for name, column in zip(names, zip(*rows, strict=True), strict=True):
            yes, no = column.count(1.0), column.count(0.0)
            if not (yes and no):
                raise ManifestError(
                    f"{yes} slides are known to have label {name!r} and {no} not to have it, but there must "
                    "be some of each; add slides, or leave the label out"
                )

    def notes(self, labels: Sequence[str]) -> dict[str, Any]:
        """Count the slides that have each label."""
        number = Counter(name for label in labels for name in self.must_learn(label))
        return {"labels": {name: number[name] for name in self.describe(labels)[0]}}

    def encode(self, label: str, names: Names) -> tuple[float, ...]:
        """Return 0, 1 or NaN for each name."""
        members = _members(label)
        check_known(label, members, names)
        return tuple(members.get(name, 0.0) for name in names)

    def width(self, names: Names) -> int:
        """Return the number of names."""
        return len(names)

    def decide(self, scores: Sequence[float], names: Names) -> str | None:
        """Return the labels of probability 1/2 or more."""
        return ";".join(name for name, score in zip(names, scores, strict=True) if score >= 0.5) or _NONE

    def pool(self, scores: Floats, weight: Floats) -> Floats:
        """Average log-odds."""
        tiny = np.finfo(np.float64).tiny  # a probability may have been rounded to 0
        with np.errstate(under="ignore"):
            yes, no = (np.exp(weight @ np.log(np.maximum(each, tiny))) for each in (scores, 1 - scores))
        return np.asarray(yes / (yes + no))

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean binary cross-entropy over all labels; unknown labels count 0.

        Examples
        --------
        >>> import torch
        >>> Multilabel().losses(torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]]))  # log(2) / 2
        tensor([0.3466])
        """
        from torch.nn import functional as F

        targets = targets.to(outputs.dtype)
        known = targets.isfinite()
        each = F.binary_cross_entropy_with_logits(outputs, targets.where(known, 0), reduction="none")
        return each.where(known, 0).mean(1)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return a probability for each label."""
        return outputs.sigmoid()

    def constant_outputs(self, targets: Tensor, outputs: int) -> Tensor:
        """Return the log-odds of the labels' shares."""
        return targets.nanmean(0).float().nan_to_num(0.5).logit(eps=1e-6)

    def on_link_scale(self, outputs: Tensor) -> Tensor:
        """Return the outputs, which are log-odds."""
        return outputs

    def undefined(self, targets: Floats, names: Names) -> str:
        """Name the labels that all slides have, or that none has."""
        same = [repr(name) for k, name in enumerate(names) if not {0, 1} <= set(targets[:, k])]
        return f"slides with and without {', '.join(same)} are needed" if same else ""

    def details(self, targets: Floats, scores: Floats, names: Names, models: Names) -> Details:
        """Make ROC and precision-recall curves and calibration."""
        return self._curves(targets, scores, names)

    def _events(self, targets: Floats, scores: Floats) -> list[Event]:
        """Return the event of each label, for the slides in which it is known."""
        return [self._forecasts(targets[:, [k]], scores[:, [k]]) for k in range(scores.shape[1])]

    def _forecasts(self, targets: Floats, scores: Floats) -> Event:
        """Return all known labels as one event."""
        from wsi_ats.tasks.evaluation import Event

        known = ~np.isnan(targets)
        return Event(targets[known] == 1, scores[known], known.nonzero()[0])

    def _decisions(self, targets: Floats, scores: Floats, counts: Floats, whole: Bools) -> dict[str, Floats]:
        """Compute accuracy, f1 and brier."""
        from wsi_ats.tasks.evaluation import f1, ratio

        known = ~np.isnan(targets)
        true, predicted = targets == 1, known & (scores >= 0.5)
        labels = counts @ known.sum(axis=1)
        return {
            "accuracy": ratio(counts @ (known & (true == predicted)).sum(axis=1), labels),
            "f1": np.where(whole, f1(true, predicted, counts), np.nan),
            "brier": ratio(counts @ np.square(scores - true).sum(axis=1, where=known), labels),
        }


def _join(columns: Mapping[str, str | None]) -> str | None:
    label = []
    for name, text in columns.items():
        if ";" in name or name.startswith(_UNKNOWN) or name == _NONE:
            raise ManifestError(
                f"label {name!r} conflicts with the meaning of ';', '?' and '-'; rename its column"
            )
        if text is None:
            label.append(_UNKNOWN + name)
        elif column_flag(text, name):
            label.append(name)
    return None if set(columns.values()) == {None} else ";".join(label) or _NONE


def _members(label: str) -> dict[str, float]:
    """Return the names in a label, each with 1, or NaN if it is unknown."""
    if label.strip() == _NONE:
        return {}
    members = {}
    for name in map(str.strip, label.split(";")):
        bare = name.removeprefix(_UNKNOWN)
        if bare in {"", _NONE}:
            raise ManifestError(
                f"label is {label!r}, expected names joined by ';' such as 'her2;er', a '?' before those "
                "that are unknown, or '-' for none"
            )
        members[bare] = 1.0 if bare == name else math.nan
    return members
