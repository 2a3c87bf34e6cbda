"""Kinds of models by name: build networks from settings, and methods from networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from wsi_ats.errors import ModelError, SettingsError
from wsi_ats.models.base import Kind, Method
from wsi_ats.models.image import IMAGE
from wsi_ats.models.mil import MIL
from wsi_ats.models.sampling import AttentionSampling
from wsi_ats.nn.model import AttentionSampler, build_model
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import DrawingModel, SamplingModel, Settings
from wsi_ats.tasks.targets import Target


def _build_sampler(settings: Settings, outputs: int, weights: bool) -> AttentionSampler:
    model, view = settings.model_as(DrawingModel), settings.thumbnail
    attention, its_weights = None, ""
    if isinstance(model, SamplingModel):
        attention, its_weights = model.attention, model.attention_checkpoint
    sampler = build_model(
        classes=outputs,
        backbone=model.backbone,
        pretrained=model.pretrained and weights,
        checkpoint=model.checkpoint if weights else "",
        attention=attention,
        attention_checkpoint=its_weights if weights else "",
        pool=model.pool,
        tile_size=settings.tile.size,
        pixels_per_cell=view.pixels_per_cell,
        pixels_per_region=view.pixels_per_region if view.levels == 2 else None,
    )
    sampler.dropout = settings.training.feature_dropout
    return sampler


def _sampling(model: AttentionSampler, settings: Settings, device: torch.device | None) -> Method:
    levels = 1 if model.regions is None else 2
    if levels != settings.thumbnail.levels:
        raise ModelError(
            f"the model has {levels} levels, but thumbnail.levels is {settings.thumbnail.levels}; use the "
            "settings that it was trained with"
        )
    return AttentionSampling(model, settings, device)


SAMPLING = Kind(AttentionSampler, _build_sampler, _sampling)
"""Kinds ``sampling``, with one level or two, and ``uniform``, whose network has no attention."""

KINDS: Mapping[str, Kind] = {"sampling": SAMPLING, "uniform": SAMPLING, "mil": MIL, "image": IMAGE}
"""Each kind by its name in ``model.kind``."""


def model_for(settings: Settings, target: Target, *, weights: bool = True) -> SlideNetwork:
    """Build the network that settings describe.

    Parameters
    ----------
    settings
        Sections ``model``, ``tile`` and ``thumbnail`` are used, and ``training.feature_dropout``.
    target
        Target of the predictions.
    weights
        Whether to load the weights that training starts from; not needed if trained weights replace them.

    Raises
    ------
    SettingsError
        When settings and target are of different tasks.
    ModelError
        When a network cannot be built.
    """
    if target.task != settings.model.task:
        raise SettingsError(
            f"model.task is {settings.model.task}, but the target's is {target.task}; make both the same"
        )
    return KINDS[settings.model.kind].build(settings, target.outputs, weights)


def method_for(model: SlideNetwork, settings: Settings, device: torch.device | None = None) -> Method:
    """Return the method that computes logits of slides with a network.

    Parameters
    ----------
    model
        The network.
    settings
        Settings to use it with.
    device
        Device of the network; the CPU by default.

    Raises
    ------
    ModelError
        When the network is not of the kind in ``model.kind``.
    """
    kind = KINDS[settings.model.kind]
    if not isinstance(model, kind.network):
        raise ModelError(
            f"{type(model).__name__} is not a network of model.kind {settings.model.kind}, which is "
            f"{kind.network.__name__}; use the settings that it was built with"
        )
    return kind.method(model, settings, device)
