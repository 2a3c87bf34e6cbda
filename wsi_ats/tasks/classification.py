"""Classification: a slide is of one of two or more classes.

The label is the name of the class, such as ``tumour``; any text is one. The target is the number of the class
among all names, the scores are probabilities that sum to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_ats.errors import ManifestError
from wsi_ats.tasks.base import Details, Floats, Metrics, Task
from wsi_ats.tasks.labels import check_known, refuse_columns
from wsi_ats.tasks.panels import Confusion

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_ats.tasks.evaluation import Event


class Classification(Task):
    """One class of two or more."""

    name = "classification"
    main_metric = "auc"
    tables = ("roc.csv", "precision_recall.csv", "reliability.csv", "confusion.csv")
    fewest_names, most_names = 2, None
    has_units, has_classes, relative = False, True, False

    def join(self, columns: Mapping[str, Sequence[str | None]]) -> list[str | None]:
        """Refuse several columns."""
        refuse_columns(self.name, columns)

    def must_learn(self, label: str) -> frozenset[str]:
        """Return the class."""
        return frozenset({label})

    def describe(self, labels: Sequence[str]) -> tuple[tuple[str, ...], float, float]:
        """Return the classes in alphabetic order."""
        classes = sorted(set(labels))
        if len(classes) < self.fewest_names:
            raise ManifestError(f"two classes are needed, not {classes}")
        return tuple(classes), 0.0, 1.0

    def check_enough(self, labels: Sequence[str], cases: Sequence[str], fewest: int) -> None:
        """Check the cases of each class: of one, either training or validation would see nothing."""
        number = Counter(label for label, _ in set(zip(labels, cases, strict=True)))
        few = [f"{number[name]} of class {name!r}" for name in sorted(number) if number[name] < fewest]
        if few:
            raise ManifestError(
                f"each class needs slides of {fewest} patients or more, but there are {', '.join(few)}; add "
                "slides, or leave the class out"
            )

    def strata(self, labels: Sequence[str], cases: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Return the classes."""
        return list(labels)

    def notes(self, labels: Sequence[str]) -> dict[str, Any]:
        """Count slides by class."""
        return {"classes": dict(sorted(Counter(labels).items()))}

    def encode(self, label: str, names: Sequence[str]) -> tuple[float, ...]:
        """Return the number of the class."""
        check_known(label, {label}, names)
        return (float(names.index(label)),)

    def width(self, names: Sequence[str]) -> int:  # noqa: ARG002
        """Return 1, for the number of the class."""
        return 1

    def columns(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return a probability for each class."""
        return tuple(f"prob_{name}" for name in names)

    def decide(self, scores: Sequence[float], names: Sequence[str]) -> str | None:
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

    def outputs_with_error(self, outputs: Tensor, scores: Tensor) -> Tensor:
        """Return the log-odds of the predicted class."""
        best = int(scores.argmax())
        others = [place for place in range(outputs.shape[1]) if place != best]
        return (outputs[:, best] - outputs[:, others].logsumexp(1))[:, None]

    def metrics(self, targets: Floats, scores: Floats, names: Sequence[str]) -> Metrics:
        """Compute auc, average_precision, accuracy, balanced_accuracy, f1, brier and calibration_error.

        They are means over the classes where there are more than two, whose areas are ``auc_<name>``.
        """
        from wsi_ats.tasks import evaluation
        from wsi_ats.tasks.curves import expected_calibration_error

        classes = scores.shape[1]
        number, predicted = targets[:, 0].astype(int), scores.argmax(axis=1)
        events = _events(number, scores)
        n, whole = len(number), len(np.unique(number)) == classes
        recalls = [np.mean(predicted[number == k] == k) for k in np.unique(number)]
        found: Metrics = {
            "auc": evaluation.auc(number, scores),
            "average_precision": evaluation.average_precision(events) if whole else None,
            "accuracy": float(np.mean(number == predicted)) if n else None,
            "balanced_accuracy": float(np.mean(recalls)) if whole else None,
            "f1": evaluation.f1([(number == k, predicted == k) for k in _shown(classes)]) if whole else None,
            "brier": float(np.mean(((scores - np.eye(classes)[number]) ** 2).sum(axis=1)) / 2) if n else None,
            "calibration_error": expected_calibration_error(*_prediction(targets, scores)),
        }
        areas = map(evaluation.area, events) if classes > 2 else ()
        return found | {f"auc_{name}": area for name, area in zip(names, areas, strict=False)}

    def main(self, targets: Floats, scores: Floats) -> float | None:
        """Compute the area under the ROC curve."""
        from wsi_ats.tasks.evaluation import auc

        return auc(targets[:, 0], scores)

    def undefined(self, targets: Floats, names: Sequence[str]) -> str:
        """Name the classes of which there is no slide."""
        absent = [repr(name) for k, name in enumerate(names) if k not in targets[:, 0]]
        return f"there is none of class {', '.join(absent)}" if absent else ""

    def details(
        self,
        targets: Floats,
        scores: Floats,
        names: Sequence[str],
        models: Sequence[str],  # noqa: ARG002
    ) -> Details:
        """Make ROC and precision-recall curves, calibration and the confusion matrix."""
        from wsi_ats.tasks.curves import confusion, details_of_events

        events = dict(
            zip([names[k] for k in _shown(len(names))], _events(targets[:, 0], scores), strict=True)
        )
        shown = details_of_events(events, *_prediction(targets, scores))
        counts = confusion(targets[:, 0], scores.argmax(axis=1), len(names))
        predicted = {f"predicted_{name}": counts[:, k].tolist() for k, name in enumerate(names)}
        table = {"confusion.csv": {"true": list(names)} | predicted}
        return Details({**shown.tables, **table}, [*shown.panels, Confusion(counts, names)])


def _shown(classes: int) -> Sequence[int]:
    """Return the classes to tell from the rest: of two the second, of which the first is the mirror image."""
    return [1] if classes == 2 else range(classes)


def _events(number: Floats, scores: Floats) -> list[Event]:
    return [(number == k, scores[:, k]) for k in _shown(scores.shape[1])]


def _prediction(targets: Floats, scores: Floats) -> Event:
    """Return whether a prediction came true, and its probability.

    Of two classes the prediction is the second, of more the most probable one.
    """
    number = targets[:, 0]
    if scores.shape[1] == 2:
        return number == 1, scores[:, 1]
    return number == scores.argmax(axis=1), scores.max(axis=1)
