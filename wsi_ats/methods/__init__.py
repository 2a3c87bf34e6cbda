"""Kinds of models, one file each: the ways from a slide to logits, which know slides *and* networks."""

from __future__ import annotations

import torch

from wsi_ats.config import Settings
from wsi_ats.methods.base import Method
from wsi_ats.methods.sampling import AttentionSampling
from wsi_ats.methods.two_level import TwoLevelSampling
from wsi_ats.nn.model import AttentionSampler


def method_for(model: AttentionSampler, settings: Settings, device: torch.device | None = None) -> Method:
    """Find the way from slides to logits that goes with a network.

    Parameters
    ----------
    model
        The network.
    settings
        What to use it with.
    device
        Where it is; the CPU by default.
    """
    kind = TwoLevelSampling if settings.thumbnail.levels == 2 else AttentionSampling
    return kind(model, settings, device)
