"""Tasks whose network predicts one number, which is the score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsi_ats.tasks.base import Floats, Names, Task

if TYPE_CHECKING:
    from torch import Tensor


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

    def outputs_with_error(self, outputs: Tensor, scores: Tensor) -> Tensor:
        """Return the numbers."""
        return outputs
