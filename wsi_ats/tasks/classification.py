"""Classification: a slide has one of two or more classes.

The label is the name of the class, such as ``tumour``; any text is allowed. The target is the number of the
class among all names, and the scores are probabilities that sum to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_ats.errors import ManifestError
from wsi_ats.tasks.base import FEWEST_CASES, Details, Floats, Names
from wsi_ats.tasks.labels import check_known, refuse_columns
from wsi_ats.tasks.panels import Confusion
from wsi_ats.tasks.probabilities import ProbabilityTask

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_ats.tasks.evaluation import Bools, Event


class Classification(ProbabilityTask):
    """The task of predicting one class of two or more."""

    name = "classification"
    tables = ("roc.csv", "precision_recall.csv", "reliability.csv", "confusion.csv")
    fewest_names, has_classes = 2, True

    def join(self, columns: Mapping[str, Sequence[str | None]]) -> list[str | None]:
        """Refuse several columns."""
        refuse_columns(self.name, columns)

    def must_learn(self, label: str) -> frozenset[str]:
        """Return the class."""
        return frozenset({label})

    def describe(self, labels: Sequence[str]) -> tuple[tuple[str, ...], float, float]:
        """Return the classes in alphabetical order."""
        classes = sorted(set(labels))
        if len(classes) < self.fewest_names:
            raise ManifestError(f"classification needs two classes or more, not {classes}")
        return tuple(classes), 0.0, 1.0

    def check_enough(self, labels: Sequence[str], cases: Sequence[str]) -> None:
        """Check that each class has a case for training and one for validation."""
        number = Counter(label for label, _ in set(zip(labels, cases, strict=True)))
        few = [f"{number[name]} of class {name!r}" for name in sorted(number) if number[name] < FEWEST_CASES]
        if few:
            raise ManifestError(
                f"each class needs slides of {FEWEST_CASES} patients or more, but there are "
                f"{', '.join(few)}; add slides, or leave the class out"
            )

    def notes(self, labels: Sequence[str]) -> dict[str, Any]:
        """Count slides by class."""
        return {"classes": dict(sorted(Counter(labels).items()))}

    def encode(self, label: str, names: Names) -> tuple[float, ...]:
        """Return the number of the class."""
        check_known(label, {label}, names)
        return (float(names.index(label)),)

    def width(self, names: Names) -> int:
        """Return 1, for the number of the class."""
        return 1

    def decide(self, scores: Sequence[float], names: Names) -> str | None:
        """Return the most probable class."""
        return names[scores.index(max(scores))]

    def pool(self, scores: Floats, weight: Floats) -> Floats:
        """Average log-probabilities."""
        with np.errstate(under="ignore"):
            # A probability may have been rounded to 0.
            pooled = np.exp(weight @ np.log(np.maximum(scores, np.finfo(np.float64).tiny)))
            return np.asarray(pooled / pooled.sum())

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute cross-entropies."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs, targets[:, 0].long(), reduction="none")

    def activate(self, outputs: Tensor) -> Tensor:
        """Return probabilities that sum to 1."""
        return outputs.softmax(-1)

    def constant_outputs(self, targets: Tensor, outputs: int) -> Tensor:
        """Return the logarithms of the classes' shares.

        Examples
        --------
        >>> import torch
        >>> classes = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
        >>> Classification().constant_outputs(classes, 2).softmax(0)
        tensor([0.7500, 0.2500])
        """
        import torch

        counts = torch.bincount(targets[:, 0].long(), minlength=outputs).float()
        return counts.clamp(min=torch.finfo(counts.dtype).tiny).div(counts.sum()).log()

    def on_link_scale(self, outputs: Tensor) -> Tensor:
        """Return the log-odds of each class against all others.

        Examples
        --------
        >>> import torch
        >>> Classification().on_link_scale(torch.tensor([[0.0, 0.0, 0.0]])).exp()  # 1/3 to 2/3
        tensor([[0.5000, 0.5000, 0.5000]])
        """
        import torch

        classes = range(outputs.shape[1])
        others = [outputs[:, [other for other in classes if other != each]] for each in classes]
        return torch.stack([outputs[:, each] - others[each].logsumexp(1) for each in classes], 1)

    def undefined(self, targets: Floats, names: Names) -> str:
        """Name the classes without slides."""
        absent = [repr(name) for k, name in enumerate(names) if k not in targets[:, 0]]
        return f"there are no slides of class {', '.join(absent)}" if absent else ""

    def details(self, targets: Floats, scores: Floats, names: Names, models: Names) -> Details:
        """Make ROC and precision-recall curves, calibration and the confusion matrix."""
        from wsi_ats.tasks.curves import confusion

        counts = confusion(targets[:, 0], scores.argmax(axis=1), len(names))
        predicted = {f"predicted_{name}": counts[:, k].tolist() for k, name in enumerate(names)}
        shown = self._curves(targets, scores, names)
        table = {"confusion.csv": {"true": list(names)} | predicted}
        return Details({**shown.tables, **table}, [*shown.panels, Confusion(counts, names)])

    def _events(self, targets: Floats, scores: Floats) -> list[Event]:
        from wsi_ats.tasks.evaluation import class_events

        return class_events(targets[:, 0], scores)

    def _forecasts(self, targets: Floats, scores: Floats) -> Event:
        """Return the event of the second of two classes; of more, the event that the prediction is right."""
        from wsi_ats.tasks.evaluation import Event

        if scores.shape[1] == 2:
            [event] = self._events(targets, scores)
            return event
        return Event(targets[:, 0] == scores.argmax(axis=1), scores.max(axis=1), np.arange(len(targets)))

    def _decisions(self, targets: Floats, scores: Floats, counts: Floats, whole: Bools) -> dict[str, Floats]:
        """Compute accuracy, balanced_accuracy, f1 and brier."""
        from wsi_ats.tasks.evaluation import f1, ratio

        classes, slides = np.arange(scores.shape[1]), counts.sum(axis=1)
        true, predicted = targets == classes, scores.argmax(axis=1)[:, None] == classes
        recalls = ratio(counts @ (true & predicted), counts @ true)
        judged = slice(1 if len(classes) == 2 else 0, None)  # of two classes, the second
        return {
            "accuracy": ratio(counts @ (true & predicted).any(axis=1), slides),
            "balanced_accuracy": np.where(whole, recalls.mean(axis=1), np.nan),
            "f1": np.where(whole, f1(true[:, judged], predicted[:, judged], counts), np.nan),
            "brier": ratio(counts @ np.square(scores - true).sum(axis=1), slides) / 2,
        }
