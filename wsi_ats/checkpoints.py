"""Models on disk: safetensors and JSON, so that loading one never runs code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from wsi_ats.artifacts import atomic
from wsi_ats.config import Settings
from wsi_ats.errors import ArtifactError
from wsi_ats.model_card import ModelCard, read_card, write_card
from wsi_ats.nn.encoder import build_encoder
from wsi_ats.nn.image import ImageClassifier
from wsi_ats.nn.mil import AttentionMIL
from wsi_ats.nn.model import build_model
from wsi_ats.nn.network import SlideNetwork


@dataclass(frozen=True)
class LoadedModel:
    """A trained model and what is needed to use it.

    Parameters
    ----------
    model
        In evaluation mode.
    settings
        Those it was trained with.
    classes
        Names of its outputs.
    digest
        Fingerprint of weights, settings and classes.
    """

    model: SlideNetwork
    settings: Settings
    classes: list[str]
    digest: str


def model_for(settings: Settings, classes: Sequence[str], *, weights: bool = True) -> SlideNetwork:
    """Build the model that settings describe.

    Parameters
    ----------
    settings
        Sections ``model``, ``tile`` and ``thumbnail`` are used.
    classes
        Names of the classes.
    weights
        Load the backbone's weights; not needed where a trained model's own will replace them.
    """
    network, view = settings.model, settings.thumbnail
    pretrained, checkpoint = network.pretrained and weights, network.checkpoint if weights else ""
    if network.kind == "image":
        whole = build_encoder(network.backbone, pretrained=pretrained, checkpoint=checkpoint)
        return ImageClassifier(whole, classes=len(classes))
    if network.kind == "mil":
        encoder = build_encoder(
            network.backbone, pretrained=pretrained, checkpoint=checkpoint, size=settings.tile.size
        )
        return AttentionMIL(encoder, classes=len(classes), gated=network.mil_attention == "gated")
    return build_model(
        classes=len(classes),
        backbone=network.backbone,
        pretrained=pretrained,
        checkpoint=checkpoint,
        attention=None if network.kind == "uniform" else network.attention,
        pool=network.pool,
        tile_size=settings.tile.size,
        pixels_per_cell=view.pixels_per_cell,
        pixels_per_region=view.pixels_per_region if view.levels == 2 else None,
    )


def save_model(folder: Path, model: SlideNetwork, settings: Settings, classes: Sequence[str]) -> str:
    """Write ``model.safetensors`` and ``model.json``, the latter last.

    Parameters
    ----------
    folder
        Where to; it is made if need be.
    model
        The trained model.
    settings
        Those it was trained with.
    classes
        Names of its outputs, in order.

    Returns
    -------
    str
        The model's digest.
    """
    weights = folder / "model.safetensors"
    with atomic(weights) as temporary:
        save_file(_contiguous(model.state_dict()), temporary)
    digest = _digest(weights, settings, classes)
    write_card(folder, ModelCard(settings, tuple(classes), digest))
    return digest


def load_model(folder: str | Path, device: torch.device | None = None) -> LoadedModel:
    """Read a trained model.

    Parameters
    ----------
    folder
        Output folder of ``train``.
    device
        Where to put it; the CPU by default.

    Raises
    ------
    ArtifactError
        When a file is missing, damaged or of another version.
    """
    folder = Path(folder)
    card, weights = read_card(folder), folder / "model.safetensors"
    digest = _digest(weights, card.settings, card.classes)
    if digest != card.digest:
        raise ArtifactError(
            f"{weights} and model.json do not belong together (digest {digest}, recorded {card.digest}); "
            "copy the whole folder again"
        )
    model = model_for(card.settings, card.classes, weights=False)
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{weights} does not fit model.json: {error}") from error
    return LoadedModel(model.to(device).eval(), card.settings, list(card.classes), digest)


def save_state(
    path: Path, model: SlideNetwork, optimizer: torch.optim.Optimizer, record: Mapping[str, Any]
) -> None:
    """Write everything that training needs to go on, atomically.

    Parameters
    ----------
    path
        The file.
    model, optimizer
        What to store.
    record
        Stored with it, as JSON.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    with atomic(path) as temporary:
        save_file(_contiguous(tensors), temporary, metadata={"record": json.dumps(record)})


def load_state(
    path: Path, model: SlideNetwork, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Put a stored state into a model and an optimiser; returns the record stored with it.

    Parameters
    ----------
    path
        The file.
    model, optimizer
        Of the kind that was stored; they are changed.
    device
        Where the model is.

    Raises
    ------
    ArtifactError
        When the file is damaged or of another model.
    """
    record = read_record(path)
    try:
        tensors = load_file(path, device=str(device))
        weights = {
            name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
        }
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{path} does not fit the model: {error}; start with --overwrite") from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return record


def read_record(path: Path) -> dict[str, Any]:
    """Read the record stored with a training state, without its tensors.

    Raises
    ------
    ArtifactError
        When the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Any] = json.loads(file.metadata()["record"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; start with --overwrite") from error
    return record


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def _digest(weights: Path, settings: Settings, classes: Sequence[str]) -> str:
    with weights.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    text = json.dumps([content, settings.digest(), list(classes)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
