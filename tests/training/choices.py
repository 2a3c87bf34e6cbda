"""Few steps, rare classes, and the passes that are begun."""

from __future__ import annotations

import torch

from training.runs import SETTINGS, TARGET, example
from wsi_ats.models.kinds import model_for

FEW = ["training.slides_per_step=2", "training.joint_epochs=2"]
RARE = [example(name) for name in ("s0p", "s2p", "s4p", "s6p", "s8p", "s10p", "s1v", "s3v")]


def start_of(*changes: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_for(SETTINGS.with_values(changes), TARGET)
