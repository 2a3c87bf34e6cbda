"""Which kind of model goes with a network."""

from __future__ import annotations

import torch

from wsi_ats.errors import ModelError
from wsi_ats.models.base import Method
from wsi_ats.models.image import WholeImage
from wsi_ats.models.mil import MultipleInstanceLearning
from wsi_ats.models.sampling import AttentionSampling
from wsi_ats.nn.image import ImageClassifier
from wsi_ats.nn.mil import AttentionMIL
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings


def method_for(model: SlideNetwork, settings: Settings, device: torch.device | None = None) -> Method:
    """Find the way from slides to logits that goes with a network.

    Parameters
    ----------
    model
        The network.
    settings
        What to use it with.
    device
        Where it is; the CPU by default.

    Raises
    ------
    ModelError
        When no method goes with the network.
    """
    if isinstance(model, AttentionSampler):
        levels = 1 if model.regions is None else 2
        if levels != settings.thumbnail.levels:
            raise ModelError(
                f"the model has {levels} levels, but thumbnail.levels is {settings.thumbnail.levels}; use "
                "the settings that it was trained with"
            )
        return AttentionSampling(model, settings, device)
    if isinstance(model, AttentionMIL):
        return MultipleInstanceLearning(model, settings, device)
    if isinstance(model, ImageClassifier):
        return WholeImage(model, settings, device)
    raise ModelError(f"{type(model).__name__} is no kind of model that is known; see wsi_ats.models")
