"""A task: everything that depends on what is predicted, from the label in a table to the plots."""

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
"""Cases that it takes to learn: one for training, one for validation."""


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
    """A kind of prediction. Tasks have no state: what a model predicts is a `Target`.

    In all methods ``targets`` has shape (N, T) and ``scores`` and ``outputs`` have shape (N, C), for N slides
    (or cases). Targets are what :meth:`encode` gives, and scores have a column for each of :meth:`columns`.
    Methods that take tensors import torch when they are called.
    """

    name: ClassVar[str]
    """As in ``model.task``."""
    main_metric: ClassVar[str]
    """The first of :meth:`metrics`; larger is better."""
    tables: ClassVar[tuple[str, ...]]
    """Files that :meth:`details` may give."""
    fewest_names: ClassVar[int]
    """Names that a target must have."""
    most_names: ClassVar[int | None]
    """Names that it may have; ``None``: any number."""
    has_units: ClassVar[bool]
    """Labels have a unit, so that a network predicts (value - centre) / scale."""
    has_classes: ClassVar[bool]
    """A slide is of exactly one class: training may balance classes, and evidence for a class may teach
    attention."""
    relative: ClassVar[bool]
    """Outputs only mean something beside those of other slides: the loss compares all slides of a step, and
    scores of two models cannot be compared."""
    requires: ClassVar[str] = ""
    """Module of ours whose import needs an optional package; see :meth:`check_installed`."""

    @final
    def check_installed(self) -> None:
        """Refuse the task where an optional package that it needs is missing.

        Raises
        ------
        SettingsError
            With the command that installs the package.
        """
        if self.requires:
            import_module(self.requires)

    # --- labels ---

    @abstractmethod
    def join(self, columns: Mapping[str, Sequence[str | None]]) -> list[str | None]:
        """Write one label for each row of a table from the texts in several columns.

        Parameters
        ----------
        columns
            Texts by name of the column, one for each row; ``None`` where nothing is known.

        Raises
        ------
        ManifestError
            When the task has its label in one column, or a text is of a wrong type.
        """

    @abstractmethod
    def must_learn(self, label: str) -> frozenset[str]:
        """Return what a model can only learn from slides that have it, such as a class or an event.

        Raises
        ------
        ManifestError
            When the label is of a wrong type.
        """

    @abstractmethod
    def describe(self, labels: Sequence[str]) -> tuple[tuple[str, ...], float, float]:
        """Return names, centre and scale of the target that labels of training slides give.

        Raises
        ------
        ManifestError
            When a label is of a wrong type, or there is nothing to tell apart.
        """

    @abstractmethod
    def check_enough(self, labels: Sequence[str], cases: Sequence[str]) -> None:
        """Check that labels are enough to learn from.

        Parameters
        ----------
        labels, cases
            Of each slide; :meth:`describe` accepts the labels, and there are :data:`FEWEST_CASES`.

        Raises
        ------
        ManifestError
            When a class or an event is too rare.
        """

    @abstractmethod
    def strata(self, labels: Sequence[str], cases: Sequence[str]) -> list[str]:
        """Return the stratum of each slide, for splits that have their share of all strata."""

    @abstractmethod
    def notes(self, labels: Sequence[str]) -> dict[str, Any]:
        """Summarise the labels of a training for its report."""

    # --- targets and scores ---

    @abstractmethod
    def encode(self, label: str, names: Names) -> tuple[float, ...]:
        """Turn a label into T numbers.

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
        """Write the scores of one slide as a label; ``None`` where they decide nothing."""

    @abstractmethod
    def pool(self, scores: Floats, weight: Floats) -> Floats:
        """Return the scores of a case, shape (C,), by averaging the outputs of its slides.

        Parameters
        ----------
        scores
            Of the slides, shape (S, C).
        weight
            Of the slides, shape (S,); sums to 1.
        """

    # --- networks ---

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each slide.

        Parameters
        ----------
        outputs
            Of the network.
        targets
            In the units of the outputs; float64 keeps times apart that differ by little.

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
        """Turn outputs (..., C) into scores (..., C)."""

    @abstractmethod
    def constant_outputs(self, targets: Tensor, outputs: int) -> Tensor:
        """Return the outputs (C,) of a network that knows the labels' frequencies and nothing of the slides.

        Parameters
        ----------
        targets
            Of all training slides.
        outputs
            C.
        """

    @abstractmethod
    def outputs_with_error(self, outputs: Tensor, scores: Tensor) -> Tensor:
        """Return the numbers (D, K) whose standard error over draws is reported; the largest counts.

        Parameters
        ----------
        outputs
            Of one slide by each draw, shape (D, C).
        scores
            From all draws, shape (C,).
        """

    # --- evaluation ---

    @abstractmethod
    def metrics(self, targets: Floats, scores: Floats, names: Names) -> Metrics:
        """Compute all metrics, the main one first; ``None`` where one is not defined.

        Parameters
        ----------
        targets, scores
            Of the slides; there may be none.
        names
            Of the target.
        """

    @abstractmethod
    def main(self, targets: Floats, scores: Floats) -> float | None:
        """Compute the main metric alone."""

    @abstractmethod
    def undefined(self, targets: Floats, names: Names) -> str:
        """Say why metrics of these targets, at least one, are not defined; empty where they are."""

    @abstractmethod
    def details(self, targets: Floats, scores: Floats, names: Names, models: Names) -> Details:
        """Make tables and plots of an evaluation.

        Parameters
        ----------
        targets, scores, names
            As everywhere; at least one slide.
        models
            Name of the model that gave each row of scores.
        """
