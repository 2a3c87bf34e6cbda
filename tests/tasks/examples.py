"""One example of each task, for all tests that go over the tasks: a new task adds one here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch

from wsi_ats.tasks.base import Task
from wsi_ats.tasks.registry import TASKS
from wsi_ats.tasks.targets import Target


@dataclass(frozen=True)
class Example:
    """Labels of six slides, enough to learn from even without the second and the fifth, and what follows."""

    target: Target
    columns: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def task(self) -> Task:
        return self.target.definition

    def targets(self, slides: int = 6) -> np.ndarray:
        """Encoded labels, again and again, shape (slides, T)."""
        rows = [self.target.encode(label) for label in islice(cycle(self.labels), slides)]
        return np.array(rows, dtype=float).reshape(slides, self.target.width)

    def outputs(self, slides: int = 6, seed: int = 0) -> torch.Tensor:
        """Outputs of a network, by chance, float64 of shape (slides, C)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(slides, self.target.outputs, generator=generator, dtype=torch.float64)

    def scores(self, slides: int = 6) -> np.ndarray:
        """Scores of these outputs, in units of the labels."""
        return self.target.restore(self.task.activate(self.outputs(slides))).numpy()


EXAMPLES = {
    each.target.task: each
    for each in (
        Example(
            Target("classification", ("x", "y", "z")),
            ("prob_x", "prob_y", "prob_z"),
            ("x", "x", "y", "z", "y", "z"),
        ),
        Example(
            Target("multilabel", ("er", "her2", "pr")),
            ("prob_er", "prob_her2", "prob_pr"),
            ("er;pr", "-", "er;?her2", "her2;pr", "her2", "er;?pr"),
        ),
        Example(
            Target("regression", ("value",), 107.0, 7.0),
            ("value",),
            ("100", "114", "114", "100", "1e2", "114"),
        ),
        Example(Target("survival", ("risk",)), ("risk",), ("3;1", "1;0", "3;1", "2;1", "5;0", "4;0")),
    )
}
assert EXAMPLES.keys() == TASKS.keys(), "add an example of the new task"
OTHERS = [EXAMPLES[task].target for task in TASKS if task != "classification"]
