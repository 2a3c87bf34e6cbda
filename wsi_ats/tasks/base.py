"""Interface of tasks: everything that depends on the kind of prediction, from label columns to plots.

`NumberTask` implements what tasks with one number as their score have in common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import numpy.typing as npt

from wsi_ats.tasks.panels import Panel

if TYPE_CHECKING:
    from torch import Tensor


Floats = npt.NDArray[np.float64]
Metrics = dict[str, float | None]
Names = Sequence[str]

FEWEST_CASES = 2
"""Fewest cases to learn from: one for training, one for validation."""


@dataclass(frozen=True)
class Details:
    """Tables and plots of an evaluation, beside its metrics.

    Parameters
    ----------
    tables
        Columns of CSV files by the file's name; the names are among :attr:`Task.tables`.
    panels
        Plots, side by side in ``evaluation.png``; see :func:`wsi_ats.results.plots.figure_of_panels`.
    """

    tables: Mapping[str, Mapping[str, Sequence[Any]]]
    panels: Sequence[Panel]


class Task(ABC):
    """A kind of prediction. Tasks have no state; a `Target` describes the predictions of one model.

    In all methods ``targets`` has shape (N, T) and ``scores`` and ``outputs`` have shape (N, C), for N slides
    (or cases). Targets come from :meth:`encode`, and scores have the columns of :meth:`columns`. Methods that
    take tensors import torch when they are called.
    """

    name: ClassVar[str]
    """Name in ``model.task``."""
    main_metric: ClassVar[str]
    """Name of the first of :meth:`metrics`; larger is better."""
    chance: ClassVar[float]
    """Value of the main metric for scores that do not depend on the slide."""
    tables: ClassVar[tuple[str, ...]]
    """Files that :meth:`details` may return."""
    fewest_names: ClassVar[int]
    """Smallest number of names of a target."""
    most_names: ClassVar[int | None]
    """Largest number of names of a target; ``None`` for no limit."""
    has_units: ClassVar[bool]
    """Whether labels have a unit; the network then predicts (value - centre) / scale."""
    has_classes: ClassVar[bool]
    """Whether a slide has exactly one class: training may then balance classes, and supervise attention by
    the evidence for a class."""
    relative: ClassVar[bool]
    """Whether outputs are relative to those of other slides: the loss compares all slides of a step, and
    scores of two models cannot be compared."""
    requires: ClassVar[str] = ""
    """Module of this package whose import needs an optional package; see :meth:`check_installed`."""

    @final
    def check_installed(self) -> None:
        """Refuse the task if an optional package that it needs is missing.

        Raises
        ------
        SettingsError
            When it is missing; the message has the command that installs it.
        """
        if self.requires:
            import_module(self.requires)

    # --- labels ---

    @abstractmethod
    def join(self, columns: Mapping[str, Sequence[str | None]]) -> list[str | None]:
        """Combine the texts of several columns into one label for each row of a table.

        Parameters
        ----------
        columns
            Texts by name of the column, one for each row; ``None`` where the value is unknown.

        Raises
        ------
        ManifestError
            When the task has its label in one column, or a text is of a wrong type.
        """

    @abstractmethod
    def must_learn(self, label: str) -> frozenset[str]:
        """Return the parts of a label that training slides must have, such as a class or an event.

        Raises
        ------
        ManifestError
            When the label is of a wrong type.
        """

    @abstractmethod
    def describe(self, labels: Sequence[str]) -> tuple[tuple[str, ...], float, float]:
        """Return names, centre and scale of the target for the labels of training slides.

        Raises
        ------
        ManifestError
            When a label is of a wrong type, or the labels do not differ.
        """

    @abstractmethod
    def check_enough(self, labels: Sequence[str], cases: Sequence[str]) -> None:
        """Check that labels are enough to learn from.

        Parameters
        ----------
        labels, cases
            Label and case of each slide, with at least :data:`FEWEST_CASES` cases; :meth:`describe` accepts
            the labels.

        Raises
        ------
        ManifestError
            When a class or an event is too rare.
        """

    @abstractmethod
    def strata(self, labels: Sequence[str], cases: Sequence[str]) -> list[str]:
        """Return the stratum of each slide, for stratified splits."""

    @abstractmethod
    def notes(self, labels: Sequence[str]) -> dict[str, Any]:
        """Summarise the labels of the training slides for the report."""

    # --- targets and scores ---

    @abstractmethod
    def encode(self, label: str, names: Names) -> tuple[float, ...]:
        """Encode a label as T numbers.

        Raises
        ------
        ManifestError
            When the label is of a wrong type, or has a name that is not among ``names``.
        """

    @abstractmethod
    def width(self, names: Names) -> int:
        """Return T."""

    @abstractmethod
    def columns(self, names: Names) -> tuple[str, ...]:
        """Return the names of the C columns of scores."""

    @abstractmethod
    def decide(self, scores: Sequence[float], names: Names) -> str | None:
        """Return the predicted label from the scores of one slide; ``None`` if they determine none."""

    @abstractmethod
    def pool(self, scores: Floats, weight: Floats) -> Floats:
        """Return the scores of a case, shape (C,), by averaging the outputs of its slides.

        Parameters
        ----------
        scores
            Scores of the slides, shape (S, C).
        weight
            Weights of the slides, shape (S,); sums to 1.
        """

    # --- networks ---

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each slide.

        Parameters
        ----------
        outputs
            Outputs of the network.
        targets
            Targets in the units of the outputs; float64 distinguishes times that differ by little.

        Returns
        -------
        Tensor, shape (N,)
            Float32 or better.
        """
        import torch

        return self._losses(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), targets)

    @abstractmethod
    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute :meth:`losses`, of outputs in float32 or better."""

    @abstractmethod
    def activate(self, outputs: Tensor) -> Tensor:
        """Return the scores (..., C) of outputs (..., C)."""

    @abstractmethod
    def constant_outputs(self, targets: Tensor, outputs: int) -> Tensor:
        """Return the constant outputs (C,) that fit the frequencies of the labels, without any slide.

        Parameters
        ----------
        targets
            Targets of all training slides.
        outputs
            Number C of outputs.
        """

    @abstractmethod
    def on_link_scale(self, outputs: Tensor) -> Tensor:
        """Return the log-odds (N, C) of probabilities; other scores as they are."""

    # --- evaluation ---

    @abstractmethod
    def metrics(self, targets: Floats, scores: Floats, names: Names, counts: Floats) -> dict[str, Floats]:
        """Compute all metrics of R samples of the slides, the main one first.

        Parameters
        ----------
        targets, scores
            Targets and scores of the slides; there may be none.
        names
            Names of the target.
        counts
            How often each slide is in each sample, whole numbers of shape (R, N).

        Returns
        -------
        dict of array
            Metrics by name, shape (R,); NaN where they are undefined.
        """

    @abstractmethod
    def main(self, targets: Floats, scores: Floats, counts: Floats) -> Floats:
        """Compute the main metric alone, shape (R,).

        Parameters
        ----------
        targets, scores, counts
            As in :meth:`metrics`.
        """

    @abstractmethod
    def undefined(self, targets: Floats, names: Names) -> str:
        """Return the reason why metrics of one or more targets are undefined; empty if they are defined."""

    @abstractmethod
    def details(self, targets: Floats, scores: Floats, names: Names, models: Names) -> Details:
        """Make tables and plots of an evaluation.

        Parameters
        ----------
        targets, scores, names
            As in :meth:`metrics`; at least one slide.
        models
            Name of the model of each row of scores.
        """


class NumberTask(Task):
    """A task whose score is one number; abstract."""

    fewest_names, most_names = 1, 1
    has_classes = False

    def columns(self, names: Names) -> tuple[str, ...]:
        """Return the column of the number."""
        return tuple(names)

    def pool(self, scores: Floats, weight: Floats) -> Floats:
        """Average the numbers."""
        return np.asarray(weight @ scores)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the outputs."""
        return outputs

    def constant_outputs(self, targets: Tensor, outputs: int) -> Tensor:
        """Return 0: values are normalised, and only differences of risks matter."""
        return targets.new_zeros(outputs).float()

    def on_link_scale(self, outputs: Tensor) -> Tensor:
        """Return the numbers."""
        return outputs
