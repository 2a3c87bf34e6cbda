"""All choices of a run: frozen records, validated when created, read from and written as TOML.

Each section is a record; ``model.kind`` selects the record of section ``model``. A field declares its
default, the allowed values and the results that depend on it (``fields.py``); the docstring below it gives
the reason. Other rooms import the names listed here.
"""

from wsi_ats.settings.description import Described, commented_toml, describe, json_schema
from wsi_ats.settings.fields import Fixes
from wsi_ats.settings.model import (
    KINDS,
    DrawingModel,
    ImageModel,
    MilModel,
    ModelSettings,
    SamplingModel,
    UniformModel,
)
from wsi_ats.settings.sections import (
    ARTEFACTS,
    COARSEST_FOCUS,
    LEAST_DRAWS,
    AugmentationSettings,
    SamplingSettings,
    ScoringSettings,
    ThumbnailSettings,
    TileSettings,
    TrainingSettings,
)
from wsi_ats.settings.settings import Settings

__all__ = [
    "ARTEFACTS",
    "COARSEST_FOCUS",
    "KINDS",
    "LEAST_DRAWS",
    "AugmentationSettings",
    "Described",
    "DrawingModel",
    "Fixes",
    "ImageModel",
    "MilModel",
    "ModelSettings",
    "SamplingModel",
    "SamplingSettings",
    "ScoringSettings",
    "Settings",
    "ThumbnailSettings",
    "TileSettings",
    "TrainingSettings",
    "UniformModel",
    "commented_toml",
    "describe",
    "json_schema",
]
