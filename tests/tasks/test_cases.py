"""A case's scores follow from those of its slides as its outputs do from theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.examples import EXAMPLES
from wsi_ats.nn.cases import pool_slides
from wsi_ats.tasks.cases import case_scores
from wsi_ats.tasks.registry import TASKS


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("slides", [1, 2, 5])
def test_pooling_scores_is_pooling_outputs(task, slides):
    outputs = 3 * EXAMPLES[task].outputs(slides, seed=slides)
    log_weight = 2 * torch.randn(slides, dtype=torch.float64, generator=torch.Generator().manual_seed(slides))
    pooled, _ = pool_slides(outputs, log_weight, [0] * slides)
    found = case_scores(TASKS[task], TASKS[task].activate(outputs).numpy(), log_weight.numpy())
    np.testing.assert_allclose(found, TASKS[task].activate(pooled)[0].numpy(), rtol=1e-12, atol=1e-12)


def test_probabilities_of_zero_and_one_stay_in_range_without_nan():
    found = case_scores(TASKS["classification"], [[0.0, 1.0], [0.5, 0.5]], [0.0, -800.0])
    assert found.tolist() == pytest.approx([0, 1])
    assert case_scores(TASKS["multilabel"], [[0.0, 1.0]], [0.0]).tolist() == pytest.approx([0, 1])
