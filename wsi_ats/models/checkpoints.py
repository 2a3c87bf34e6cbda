"""Models on disk, as safetensors and JSON, so that loading one never executes code."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsi_ats.encoders import find_encoder
from wsi_ats.errors import ArtifactError, ModelError
from wsi_ats.files import atomic
from wsi_ats.models.card import ModelCard, read_card, write_card
from wsi_ats.models.frozen import fingerprint
from wsi_ats.models.kinds import model_for
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.nn.backbone import create_backbone
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Fixes, Settings
from wsi_ats.tasks.targets import Target

_LOG = logging.getLogger(__name__)

# Errors of reading a file that is missing, damaged or not a state.
_UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError)


def save_model(
    folder: Path,
    model: SlideNetwork,
    settings: Settings,
    target: Target,
    *,
    attention: Mapping[str, float | None] | None = None,
) -> str:
    """Write ``model.safetensors`` and ``model.json``, the latter last.

    Parameters
    ----------
    folder
        Output folder; created if it is missing.
    model
        The trained model.
    settings
        Settings it was trained with.
    target
        Target of its predictions.
    attention
        Trust in its attention, for ``model.json``.

    Returns
    -------
    str
        The model's digest.
    """
    weights = folder / "model.safetensors"
    with atomic(weights) as temporary:
        save_file(_contiguous(model.state_dict()), temporary)
    digest = _digest(weights, settings, target)
    write_card(folder, ModelCard(settings, target, digest, attention or {}))
    return digest


def load_model(
    folder: str | Path,
    device: torch.device | None = None,
    *,
    encoder: bool = True,
    encoder_checkpoint: str = "",
) -> LoadedModel:
    """Read a trained model.

    Parameters
    ----------
    folder
        Output folder of ``train``.
    device
        Device of the model; the CPU by default.
    encoder
        Whether a model that was trained on features gets the encoder in ``model.encoder``, with which it can
        score slides by their pixels. Its weights are not part of the model, and may be downloaded.
    encoder_checkpoint
        A local file of these weights.

    Raises
    ------
    ArtifactError
        When a file is missing, damaged or of another version.
    ModelError
        When the encoder cannot be built, its weights cannot be loaded, or it saw enlarged tiles.

    Examples
    --------
    >>> scored = load_model("run").score("slides/case7.svs")  # doctest: +SKIP
    >>> scored.prediction.predicted  # doctest: +SKIP
    'tumour'
    """
    folder = Path(folder)
    card, weights = read_card(folder), folder / "model.safetensors"
    digest = _digest(weights, card.settings, card.target)
    if digest != card.digest:
        raise ArtifactError(
            f"{weights} and model.json do not match (digest {digest}, recorded {card.digest}); "
            "copy the whole folder again"
        )
    model = model_for(card.settings, card.target, weights=False)
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{weights} does not fit model.json: {error}") from error
    settings = card.settings
    if encoder and settings.model.encoder:
        _refuse_enlarged(settings)
        try:
            made = create_backbone(
                settings.model.encoder,
                pretrained=True,
                checkpoint=encoder_checkpoint,
                size=settings.tile.size,
            )
        except ModelError as error:
            raise ModelError(
                f"the model was trained on features of {settings.model.encoder}, which cannot encode pixels "
                "here; give its weights with --set scoring.encoder_checkpoint=FILE, or the slides' features "
                f"with --features ({error})"
            ) from error
        found, learned = fingerprint(TileEncoder(made, trained=True)), settings.model.encoder_digest
        if learned and found != learned:
            raise ModelError(
                f"the weights of {settings.model.encoder} have digest {found}, but the model was trained on "
                f"features of other weights ({learned}); give them by --set scoring.encoder_checkpoint=FILE"
            )
        model.encoder.adopt(made)
    return LoadedModel(model.to(device).eval(), card.settings, card.target, digest)


def _refuse_enlarged(settings: Settings) -> None:
    """Refuse an encoder whose features are of tiles that were enlarged for it: no pixel is invented here."""
    name, known = settings.model.encoder, find_encoder(settings.model.encoder)
    # Our own files of features, which have a digest, are of tiles of exactly this size.
    if known is not None and settings.tile.size < known.tile and not settings.model.encoder_digest:
        raise ModelError(
            f"the model was trained on features of {name}, which takes tiles of {known.tile} pixels, but the "
            f"tiles have only {settings.tile.size}: they were enlarged for the encoder, so slides cannot be "
            "scored by their pixels; give their features with --features"
        )


class StateFolder:
    """States of a run: the last few of training, and the weights of the best epoch.

    Parameters
    ----------
    folder
        Folder of the states.
    run
        Fingerprint of everything that a state depends on.
    keep
        Number of latest states to keep.
    """

    def __init__(self, folder: Path, run: str, *, keep: int) -> None:
        self._folder, self._run, self._keep = folder, run, keep

    def newest(self) -> Path | None:
        """Return the path of the latest state; ``None`` if there is none."""
        return max(self._folder.glob("step_*.safetensors"), default=None)

    def save(
        self,
        step: int,
        model: SlideNetwork,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        record: Mapping[str, Any],
    ) -> None:
        """Write everything that training needs to continue, atomically, and delete the oldest state.

        Parameters
        ----------
        step
            Number of steps taken; names the file.
        model, optimizer, average
            Network, optimiser and average of weights to store.
        record
            Record to store with them, as JSON.

        Raises
        ------
        ArtifactError
            When it cannot be written; existing states are unchanged.
        """
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        if average is not None:
            tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        self._write(f"step_{step:09d}", tensors, record)
        for old in sorted(self._folder.glob("step_*.safetensors"))[: -self._keep]:
            old.unlink()
        for part in self._folder.glob(".*.part.safetensors"):  # of a run that was killed while writing
            part.unlink()

    def record(self) -> dict[str, Any] | None:
        """Return the record of the latest state; ``None`` if there is no state.

        Raises
        ------
        ArtifactError
            When the state is damaged or belongs to another run.
        """
        path = self.newest()
        if path is None:
            return None
        found = read_record(path)
        self._check_own(path, found)
        record: dict[str, Any] = found["record"]
        return record

    def _check_own(self, path: Path, found: Mapping[str, Any]) -> None:
        if found["run"] != self._run:
            raise ArtifactError(
                f"{path} belongs to a run with other settings or slides, or another number of processes; "
                "use --overwrite to start again, or another --out"
            )

    def load(self, model: SlideNetwork, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> bool:
        """Restore the latest state, if there is one, and return whether there was.

        Parameters
        ----------
        model, optimizer, average
            Objects of the kinds that were stored, on any device; they are changed.

        Raises
        ------
        ArtifactError
            When the state is damaged or belongs to another run.
        """
        path = self.newest()
        if path is None:
            return False
        with _fitting(path):
            # Load through main memory: AdamW keeps its number of steps there, and fetching it from the device
            # would make it wait at each weight.
            tensors = load_file(path)
            model.load_state_dict(_named(tensors, "model."))
            if average is not None:
                average.load_state_dict(_named(tensors, "average."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _named(tensors, "optimizer.").items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        # In the channels-last layout of their weights; any other is slower.
        for weight, moments in optimizer.state.items():
            moments.update(
                {
                    name: torch.empty_like(weight, requires_grad=False).copy_(each)
                    for name, each in moments.items()
                    if each.shape == weight.shape
                }
            )
        return True

    def save_best(self, model: SlideNetwork) -> None:
        """Store the weights of the best epoch so far."""
        self._write("best", {f"model.{name}": value for name, value in model.state_dict().items()}, {})

    def load_best(self, model: SlideNetwork) -> None:
        """Load the weights of the best epoch into a model.

        Raises
        ------
        ArtifactError
            When they are missing or damaged.
        """
        path = self._folder / "best.safetensors"
        with _fitting(path):
            model.load_state_dict(_named(load_file(path), "model."))

    def save_named(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors of this run under a name, atomically; ``tensors`` may be empty."""
        self._write(name, tensors, {})

    def load_named(self, name: str) -> dict[str, Tensor] | None:
        """Load the tensors that :meth:`save_named` stored; ``None`` if they are missing or damaged.

        Raises
        ------
        ArtifactError
            When they belong to another run.
        """
        path = self._folder / f"{name}.safetensors"
        try:
            found = _read_record(path)
            tensors: dict[str, Tensor] = load_file(path)
        except _UNREADABLE as error:
            _LOG.warning("%s is missing or damaged: %s", path, error)
            return None
        self._check_own(path, found)
        return tensors

    def _write(self, name: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        text = json.dumps({"run": self._run, "record": record})
        path = self._folder / f"{name}.safetensors"
        try:
            with atomic(path) as temporary:
                save_file(_contiguous(tensors), temporary, metadata={"state": text})
        except SafetensorError as error:  # raised on a full disk
            raise ArtifactError(
                f"{path} cannot be written: {error}; make room on the disk, and run the same command to "
                "continue from the previous state"
            ) from error


def read_record(path: Path) -> dict[str, Any]:
    """Read the metadata of a state: ``run``, the fingerprint of its run, and ``record``.

    Raises
    ------
    ArtifactError
        When the file is damaged.
    """
    try:
        return _read_record(path)
    except _UNREADABLE as error:
        raise ArtifactError(
            f"{path} is damaged: {error}; delete it to continue from the previous state, or use --overwrite"
        ) from error


def _read_record(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["state"])
    return found


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ArtifactError(f"{path} does not fit the model: {error}; start with --overwrite") from error


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def _digest(weights: Path, settings: Settings, target: Target) -> str:
    with weights.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    text = json.dumps([content, settings.digest(Fixes.MODEL), asdict(target)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
