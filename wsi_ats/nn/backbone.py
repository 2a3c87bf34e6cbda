"""Backbones by name; the only module that imports timm."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
from safetensors import SafetensorError
from torch import Tensor, nn

from wsi_ats.errors import ModelError


@dataclass(frozen=True, slots=True)
class Backbone:
    """A timm network, and the input that it expects.

    Parameters
    ----------
    network
        Network from images (N, 3, h, w) to features (N, width), or to a list of maps with ``maps=True``.
    width
        Number of features (of the last map).
    mean, std
        Normalisation of RGB in [0, 1] that the network was trained with.
    map_widths, map_strides
        Channels of each map and image pixels per pixel of it; empty without ``maps=True``.
    """

    network: nn.Module
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    map_widths: tuple[int, ...] = ()
    map_strides: tuple[int, ...] = ()


class Precomputed(nn.Module):
    """Placeholder for a backbone whose features were computed before."""

    def forward(self, images: Tensor) -> Tensor:
        """Refuse pixels.

        Raises
        ------
        ModelError
            Always.
        """
        raise ModelError(
            f"this model takes precomputed features, not pixels of shape {tuple(images.shape)}; give it "
            "features, or train a model with a backbone"
        )


def create_backbone(
    name: str, *, pretrained: bool, checkpoint: str = "", maps: bool = False, size: int | None = None
) -> Backbone:
    """Build a timm network without its classifier.

    Parameters
    ----------
    name
        A timm name such as ``"resnet18"``, ``"hf-hub:owner/model"``, or ``"features:1280"`` for precomputed
        features of that width.
    pretrained
        Whether to load the published weights, which are downloaded at first use.
    checkpoint
        A local weights file (safetensors, or a PyTorch state dict); takes precedence.
    maps
        Whether to return feature maps rather than a pooled vector.
    size
        Side of the images in pixels, for networks that are built for one size.

    Raises
    ------
    ModelError
        When the name is unknown, or the weights cannot be loaded or do not fit.
    """
    if precomputed := re.fullmatch(r"features:([1-9]\d*)", name):
        return Backbone(Precomputed(), int(precomputed[1]), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    options: dict[str, Any] = {"features_only": True} if maps else {"num_classes": 0}
    if checkpoint:
        if not Path(checkpoint).is_file():
            raise ModelError(f"{_setting(maps)} {checkpoint!r} is not a file; give a weights file")
        pretrained = False
    if checkpoint and maps:
        # For maps timm builds a part of the network, and accepts weights that do not fit at all. So load them
        # into the whole network first.
        create_backbone(name, pretrained=False, checkpoint=checkpoint, size=size)
        pretrained = True
        # Otherwise timm prefers the source that it knows for the name.
        options["pretrained_cfg_overlay"] = {"file": checkpoint, "source": "", "custom_load": False}
    try:
        network = _build(name, pretrained, options, size)
    except (RuntimeError, OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(_advice(name, pretrained and not checkpoint, error, _setting(maps))) from error
    if checkpoint and not maps:
        _load(network, name, checkpoint)
    # timm keeps these as attributes that the type of a module does not show.
    facts: Any = network
    mean, std = tuple(facts.pretrained_cfg["mean"]), tuple(facts.pretrained_cfg["std"])
    if maps:
        widths, strides = facts.feature_info.channels(), facts.feature_info.reduction()
        return Backbone(network, widths[-1], mean, std, tuple(widths), tuple(strides))
    # Some networks end in a layer that is wider than their last map.
    return Backbone(network, getattr(facts, "head_hidden_size", facts.num_features), mean, std)


def batch_norms(network: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """Yield the batch normalisation layers of a network, including timm's own kinds."""
    return (each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))


def last_blocks(network: nn.Module, count: int) -> list[nn.Parameter]:
    """Return the weights of the last blocks of a network, and of all layers after them.

    Parameters
    ----------
    network
        Made by :func:`create_backbone`.
    count
        Number of blocks, as timm counts them: residual blocks of a ResNet, layers of a transformer, without
        the stem.

    Raises
    ------
    ModelError
        When the network has fewer, or timm does not know its blocks.

    Examples
    --------
    >>> made = create_backbone("test_vit", pretrained=False, size=64)
    >>> len(last_blocks(made.network, 0)), len(last_blocks(made.network, 1)) > 5
    (0, True)
    """
    if count == 0:
        return []
    known: Any = network
    if not hasattr(network, "group_matcher"):
        raise ModelError(
            f"timm does not know the blocks of {type(network).__name__}; train all of it or none: "
            "--set training.fine_tuning=full, or frozen"
        )
    matcher = known.group_matcher(coarse=False)
    groups = timm.models.group_parameters(network, matcher)
    parts = [[(each,)] if isinstance(each, str) else each for each in matcher.values() if each]
    patterns = [pattern for part in parts for pattern, *_ in part]
    # timm puts layers that no pattern names, such as a norm before the classifier, into a group at the end.
    blocks = [
        group
        for group in sorted(groups)[1:]  # the first is the stem
        if any(re.match(pattern, name) for pattern in patterns for name in groups[group])
    ]
    following = sorted(groups)[1 + len(blocks) :]
    if count > len(blocks):
        raise ModelError(
            f"training.fine_tuning asks for the last {count} blocks, but {type(network).__name__} has "
            f"{len(blocks)}; use full, or last-{len(blocks)}"
        )
    names = {name for group in [*blocks[-count:], *following] for name in groups[group]}
    return [weight for name, weight in network.named_parameters() if name in names]


def _build(name: str, pretrained: bool, options: dict[str, Any], size: int | None) -> nn.Module:
    """Create the network, with its image size if it needs one."""
    if size is not None:
        try:
            return _create(name, pretrained, options | {"img_size": size})
        except TypeError:  # convolutional networks take images of any size and no such argument
            pass
    return _create(name, pretrained, options)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    return network


# Errors of parsing damaged or foreign weights files, and of loading their contents.
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    UnpicklingError,
    SafetensorError,
)


def _load(network: nn.Module, name: str, checkpoint: str) -> None:
    """Load all weights from a file, except those of the classifier, which the network lacks."""
    try:
        state: dict[str, Any] = timm.models.load_state_dict(checkpoint, weights_only=True)
        # As timm adapts published weights: it fits position embeddings to the image size, for example.
        prepare = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        state = prepare(state, network) if prepare else state
        missing, unexpected = network.load_state_dict(state, strict=False)
    except _UNREADABLE as error:
        raise ModelError(
            f"the weights in {checkpoint} do not fit backbone {name!r}: {_first_line(error)}"
        ) from error
    config: Any = network
    classifiers = config.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    foreign = [key for key in unexpected if not key.startswith(tuple(f"{each}." for each in classifiers))]
    if missing or foreign:
        raise ModelError(
            f"the weights in {checkpoint} do not fit backbone {name!r}: {len(missing)} of its weights are "
            f"not in the file and {len(foreign)} of the file's are not in it, such as "
            f"{(missing or foreign)[0]!r}"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _setting(maps: bool) -> str:
    """Return the setting that names a file of weights."""
    return "model.attention_checkpoint" if maps else "model.checkpoint"


def _advice(name: str, pretrained: bool, error: Exception, setting: str) -> str:
    first = _first_line(error)
    if not pretrained or "Unknown model" in first:
        return (
            f"backbone {name!r} cannot be built: {first}; "
            "`python -c 'import timm; print(timm.list_models())'` lists the names"
        )
    return (
        f"the weights of backbone {name!r} cannot be downloaded: {first}. Check the network; where the "
        "model is gated, accept its licence on its page and log in with `hf auth login`; or give a "
        f"local file with --set {setting}=FILE, or start from random weights with "
        "--set model.pretrained=false"
    )
