"""Backbones by name; the only module that imports timm.

It does so when a network is built: timm and what it imports take longer to load than torch, and models of
precomputed features need none of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from wsi_ats.encoders import Encoder, find_encoder, nearest_name
from wsi_ats.errors import ModelError
from wsi_ats.nn.key_names import timm_names
from wsi_ats.nn.tokens import AttentionPool, ConvStem, Pooled


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network, and the input that it expects.

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
    """Build a network without its classifier.

    Parameters
    ----------
    name
        An encoder of :data:`wsi_ats.encoders.ENCODERS` such as ``"uni"``, a timm name such as ``"resnet18"``,
        ``"hf-hub:owner/model"``, or ``"features:1280"`` for precomputed features of that width.
    pretrained
        Whether to load the published weights, which are downloaded at first use.
    checkpoint
        A local weights file (safetensors, or a PyTorch state dict), or a folder as downloaded from the hub;
        takes precedence.
    maps
        Whether to return feature maps rather than a pooled vector.
    size
        Side of the images in pixels, for networks that are built for one size.

    Raises
    ------
    ModelError
        When the name is unknown, or the weights cannot be loaded or do not fit.

    Examples
    --------
    >>> create_backbone("test_resnet", pretrained=False).width
    96
    """
    if precomputed := re.fullmatch(r"features:([1-9]\d*)", name):
        return Backbone(Precomputed(), int(precomputed[1]), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    encoder = find_encoder(name)
    if checkpoint:
        checkpoint = _weights_file(checkpoint, encoder, _setting(maps))
        pretrained = False
    if encoder is not None:
        return _known(encoder, pretrained, checkpoint, maps, size)
    options: dict[str, Any] = {"features_only": True} if maps else {"num_classes": 0}
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
    if isinstance(network, Pooled):
        following = [] if network.pool is None else list(network.pool.parameters())
        return last_blocks(network.trunk, count) + following
    known: Any = network
    if not hasattr(network, "group_matcher"):
        raise ModelError(
            f"timm does not know the blocks of {type(network).__name__}; train all of it or none: "
            "--set training.fine_tuning=full, or frozen"
        )
    import timm

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
    after = sorted(groups)[1 + len(blocks) :]
    if count > len(blocks):
        raise ModelError(
            f"training.fine_tuning asks for the last {count} blocks, but {type(network).__name__} has "
            f"{len(blocks)}; use full, or last-{len(blocks)}"
        )
    names = {name for group in [*blocks[-count:], *after] for name in groups[group]}
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
    import timm

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


def _weights_file(path: str, encoder: Encoder | None, setting: str) -> str:
    """Return the file that a path names: itself, or the weights in a folder as downloaded from the hub."""
    if Path(path).is_file():
        return path
    names = ["model.safetensors", "pytorch_model.bin"]
    names[1:1] = [encoder.file] if encoder and encoder.file not in names else []
    found = [each for name in names if (each := Path(path, name)).is_file()]
    if not found:
        what = f"a folder without {', '.join(names)}" if Path(path).is_dir() else "not a file"
        raise ModelError(f"{setting} {path!r} is {what}; give a weights file, or a folder that has it")
    return str(found[0])


def _known(encoder: Encoder, pretrained: bool, checkpoint: str, maps: bool, size: int | None) -> Backbone:
    """Build the network of a known encoder."""
    if maps:
        raise ModelError(
            f"model.attention is {encoder.name!r}, an encoder of tiles that returns no maps; set "
            "model.attention=small, or name a timm network"
        )
    from timm.layers import SwiGLUPacked  # type: ignore[attr-defined]  # not in its list of names

    layers = {"SwiGLUPacked": SwiGLUPacked, "ConvStem": ConvStem}  # classes that encoders name
    arguments: dict[str, Any] = {
        name: layers.get(value, value) if isinstance(value, str) else value
        for name, value in encoder.arguments.items()
    }
    arguments |= {"num_classes": 0, "img_size": size or encoder.tile}
    network = _create(encoder.architecture, False, arguments)
    if encoder.pooling == "attention":
        tokens: int = network.num_features  # type: ignore[assignment]
        pool = AttentionPool(encoder.width, tokens, bias=encoder.pool_bias)
        network = Pooled(network, encoder.prefix, pool)
    elif encoder.pooling == "class+mean":
        network = Pooled(network, encoder.prefix)
    if checkpoint:
        _load(network, encoder.name, checkpoint, keys=encoder.keys)
    elif pretrained:
        _fill(network, encoder.name, encoder.hub, _published(encoder), encoder.keys)
    return Backbone(network, encoder.width, encoder.mean, encoder.std)


def _published(encoder: Encoder) -> dict[str, Any]:
    """Read the published weights from the hub's cache, where they are downloaded at first use."""
    import timm

    try:
        state: dict[str, Any] = timm.models.load_state_dict_from_hf(
            encoder.hub, encoder.file, weights_only=True
        )
    except _UNREADABLE as error:
        access = (
            f"accept its licence on {encoder.page}, and log in with `hf auth login` or set HF_TOKEN"
            if encoder.gated
            else f"check the network and {encoder.page}"
        )
        raise ModelError(
            f"the weights of encoder {encoder.name!r} cannot be downloaded: {_first_line(error)}. To get "
            f"them, {access}; or give a local {encoder.file}, or its folder, with --set "
            "model.checkpoint=PATH; or start from random weights with --set model.pretrained=false"
        ) from error
    return state


def _load(network: nn.Module, name: str, checkpoint: str, keys: str = "timm") -> None:
    """Load all weights from a file, except those of the classifier, which the network lacks."""
    import timm

    try:
        state: dict[str, Any] = timm.models.load_state_dict(checkpoint, weights_only=True)
    except _UNREADABLE as error:
        raise ModelError(
            f"the weights in {checkpoint} do not fit backbone {name!r}: {_first_line(error)}"
        ) from error
    _fill(network, name, checkpoint, state, keys)


def _fill(network: nn.Module, name: str, source: str, state: dict[str, Any], keys: str) -> None:
    """Fill a network with weights under any known names."""
    trunk: Any = network.trunk if isinstance(network, Pooled) else network
    try:
        state = timm_names(state, keys)
        own = {each: state.pop(each) for each in [*state] if keys == "conch" and each.startswith("pool.")}
        # As timm adapts published weights: it fits position embeddings to the image size, for example.
        prepare = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
        # Only timm smooths position embeddings when it makes them smaller.
        options = {} if keys == "timm" else {"antialias": False}
        state = prepare(state, trunk, **options) if prepare else state
        if trunk is not network:
            state = {f"trunk.{each}": value for each, value in state.items()} | own
        missing, unexpected = network.load_state_dict(state, strict=False)
    except _UNREADABLE as error:
        raise ModelError(
            f"the weights in {source} do not fit backbone {name!r}: {_first_line(error)}"
        ) from error
    classifiers = trunk.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    heads = tuple(f"{each}." for each in classifiers)
    foreign = [key for key in unexpected if not key.removeprefix("trunk.").startswith(heads)]
    if missing or foreign:
        raise ModelError(
            f"the weights in {source} do not fit backbone {name!r}: {len(missing)} of its weights are "
            f"not in the file and {len(foreign)} of the file's are not in it, such as "
            f"{(missing or foreign)[0]!r}"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _setting(maps: bool) -> str:
    """Return the setting that names a file of weights."""
    return "model.attention_checkpoint" if maps else "model.checkpoint"


def _advice(name: str, pretrained: bool, error: Exception, setting: str) -> str:
    first = _first_line(error)
    if not pretrained or "Unknown model" in first:
        import timm

        near = nearest_name(name, timm.list_models()) if "Unknown model" in first else ""
        return (
            f"backbone {name!r} cannot be built: {first}{near}; `wsi-ats encoders` lists foundation "
            "encoders, and `python -c 'import timm; print(timm.list_models())'` all networks of timm"
        )
    return (
        f"the weights of backbone {name!r} cannot be downloaded: {first}. Check the network; where the "
        "model is gated, accept its licence on its page and log in with `hf auth login`; or give a "
        f"local file with --set {setting}=FILE, or start from random weights with "
        "--set model.pretrained=false"
    )
