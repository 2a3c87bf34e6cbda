"""Target of a model: its task, names and units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from wsi_ats.errors import SettingsError
from wsi_ats.tasks.base import Task
from wsi_ats.tasks.registry import task_named

_Numbers = TypeVar("_Numbers", bound=Any)


@dataclass(frozen=True, slots=True)
class Target:
    """Description of the predictions of a model.

    Parameters
    ----------
    task
        Name of the task; one of :data:`wsi_ats.tasks.registry.TASKS`.
    names
        Classes, labels, or the one number of regression (``value``) and survival (``risk``).
    centre, scale
        A network predicts (value - centre) / scale; 0 and 1 for tasks without units.

    Raises
    ------
    SettingsError
        When there is no such task, or the other values do not fit it.

    Examples
    --------
    >>> target = Target.of("multilabel", ["her2;er", "-", "pr;?er"])
    >>> target.names, target.encode("pr;?er")
    (('er', 'her2', 'pr'), (nan, 0.0, 1.0))
    >>> target.columns
    ('prob_er', 'prob_her2', 'prob_pr')
    """

    task: str
    names: tuple[str, ...]
    centre: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        fewest, most = self.definition.fewest_names, self.definition.most_names
        if len(self.names) > (most or math.inf):
            raise SettingsError(f"{self.task} predicts {most} number, not {self.names}")
        if len(set(self.names)) != len(self.names) or len(self.names) < fewest:
            raise SettingsError(f"{self.task} needs {fewest} different names or more, not {self.names}")
        if not (math.isfinite(self.centre) and 0 < self.scale < math.inf):
            raise SettingsError(
                f"a finite centre and a positive scale are needed, not {self.centre}, {self.scale}"
            )
        if not self.definition.has_units and (self.centre, self.scale) != (0, 1):
            raise SettingsError(
                f"{self.task} has no units; centre {self.centre} and scale {self.scale} must be 0 and 1"
            )

    @classmethod
    def of(cls, task: str, labels: Iterable[str]) -> Self:
        """Derive the target from the labels of training slides.

        Names are in alphabetic order; for a task with units, ``centre`` and ``scale`` are mean and standard
        deviation of the labels.

        Raises
        ------
        ManifestError
            When a label is of a wrong type, or the labels do not differ.
        """
        return cls(task, *task_named(task).describe(list(labels)))

    @property
    def definition(self) -> Task:
        """Definition of the task."""
        return task_named(self.task)

    @property
    def outputs(self) -> int:
        """Number of outputs of the network, one for each column of scores."""
        return len(self.columns)

    @property
    def width(self) -> int:
        """Length of an encoded label."""
        return self.definition.width(self.names)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the scores in ``predictions.csv``, one for each output."""
        return self.definition.columns(self.names)

    def encode(self, label: str) -> tuple[float, ...]:
        """Encode a label as numbers; the docstring of each task's module explains them.

        Raises
        ------
        ManifestError
            When the label is of a wrong type, or has a name that the model does not know.

        Examples
        --------
        >>> Target("survival", ("risk",)).encode("23.5;1")
        (23.5, 1.0)
        """
        return self.definition.encode(label, self.names)

    def normalise(self, targets: _Numbers) -> _Numbers:
        """Return targets (..., T), an array or a tensor, in the units of the network's outputs."""
        normal: _Numbers = (targets - self.centre) / self.scale
        return normal

    def restore(self, scores: _Numbers) -> _Numbers:
        """Return scores (..., C), an array or a tensor, in the units of the labels."""
        restored: _Numbers = scores * self.scale + self.centre
        return restored

    def decide(self, scores: Mapping[str, float]) -> str | None:
        """Return the predicted label from scores by column; ``None`` for a risk.

        Examples
        --------
        >>> target = Target("multilabel", ("er", "her2"))
        >>> target.decide({"prob_er": 0.7, "prob_her2": 0.5})
        'er;her2'
        >>> target.decide({"prob_er": 0.1, "prob_her2": 0.2})
        '-'
        """
        return self.definition.decide([scores[column] for column in self.columns], self.names)
