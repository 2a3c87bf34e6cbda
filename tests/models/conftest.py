"""A small classifier that is not trained."""

from __future__ import annotations

import pytest
import torch

from models.scored import SETTINGS, TARGET
from wsi_ats.models.kinds import model_for


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model_for(SETTINGS, TARGET)
        made.encoder.calibrate(torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8))
        for part in (made.attention.logit, made.gate, made.head):
            torch.nn.init.normal_(part.weight, std=0.5)
    return made.eval()
