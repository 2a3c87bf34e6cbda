"""Description of a trained model, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from wsi_ats.errors import ArtifactError
from wsi_ats.files import read_json, write_json
from wsi_ats.settings import Settings
from wsi_ats.tasks.targets import Target

_SCHEMA = 5  # since 5, settings name the encoder of features


@dataclass(frozen=True)
class ModelCard:
    """Contents of ``model.json``.

    Parameters
    ----------
    settings
        Settings the model was trained with.
    target
        Target of its predictions.
    digest
        Fingerprint of weights, settings and target.
    attention
        Trust in attention; see :class:`wsi_ats.training.distillation.Trust`. Empty for models without
        attention.
    """

    settings: Settings
    target: Target
    digest: str
    attention: Mapping[str, float | None] = field(default_factory=dict)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write ``model.json``, atomically."""
    write_json(folder / "model.json", {"schema": _SCHEMA, **asdict(card)})


def read_card(folder: Path) -> ModelCard:
    """Read ``model.json``.

    Raises
    ------
    ArtifactError
        When there is no complete model in the folder, or one of another version.
    """
    path = folder / "model.json"
    record = read_json(path)
    if record.get("schema") != _SCHEMA:
        raise ArtifactError(
            f"{path} has schema {record.get('schema')!r}, expected {_SCHEMA}; train again, or use the "
            "version that wrote it"
        )
    if not (folder / "model.safetensors").is_file():
        raise ArtifactError(f"{folder / 'model.safetensors'} is missing; was the training completed?")
    try:
        settings = Settings.from_mapping(record["settings"])
        target = Target(**record["target"] | {"names": tuple(record["target"]["names"])})
        return ModelCard(settings, target, str(record["digest"]), record["attention"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} does not describe a model: {error!r}; train again") from error
