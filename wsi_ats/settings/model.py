"""Section ``model``: one record for each kind of model, with only the settings that this kind uses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from wsi_ats.settings.fields import Fixes, Must, at_least, check, one_of, positive, require, setting
from wsi_ats.settings.sections import TileSettings

TASKS = ("classification", "multilabel", "regression", "survival")
"""Names of the tasks, the same as in :data:`wsi_ats.tasks.registry.TASKS`."""

_NAMED = Must(
    lambda value: bool(value) and re.fullmatch(r"(?!features:).*|features:[1-9]\d*", value) is not None,
    "be the name of a network, or features:N with N features of each tile",
)

# Replaces the name of a backbone, followed by the number of features that are computed elsewhere.
_FEATURES = "features:"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Settings that all kinds of models share.

    Attributes
    ----------
    attends
        Whether the kind learns attention from thumbnails.
    draws
        Whether it draws tiles.
    reads_tiles
        Whether it reads tiles; otherwise the whole slide is one image.
    """

    attends: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    reads_tiles: ClassVar[bool] = True

    kind: str = setting("", fixes=Fixes.NETWORK, must=one_of("sampling", "uniform", "mil", "image"))
    """``sampling`` is attention sampling, the purpose of this project. The others are for comparison:
    ``uniform`` (tiles drawn without attention), ``mil`` (attention-based multiple-instance learning on all
    tiles) and ``image`` (a CNN on the whole slide)."""
    task: str = setting(TASKS[0], fixes=Fixes.NETWORK, must=one_of(*TASKS))
    """Meaning of the labels: ``classification`` (one of two or more classes), ``multilabel`` (any of several
    labels), ``regression`` (a value) or ``survival`` (time and event)."""
    backbone: str = setting("resnet18", fixes=Fixes.NETWORK, must=_NAMED)
    """A foundation encoder such as ``uni`` (``wsi-ats encoders`` lists them), any timm name,
    ``hf-hub:owner/model``, or, from Python, ``features:N`` for N precomputed features per tile; resnet18 is
    the smallest network in common use. A foundation encoder also sets tile.size and tile.mpp, unless these
    are given."""
    pretrained: bool = setting(True, fixes=Fixes.TRAINING)
    """Start from the published weights, which are downloaded on first use."""
    checkpoint: str = setting("", fixes=Fixes.TRAINING)
    """A local weights file for the backbone, or a folder as downloaded from the hub, instead of the published
    weights."""
    encoder: str = setting("", fixes=Fixes.NETWORK)
    """With ``backbone=features:N``, the name of the encoder that computed the features, as ``backbone`` would
    name it. A model that was trained on features scores slides by their pixels with it."""
    encoder_digest: str = setting("", fixes=Fixes.NETWORK)
    """Fingerprint of the weights of ``encoder``, which ``--features`` takes from the files if they have it;
    other weights are refused."""
    cases: str = setting("separate", fixes=Fixes.NETWORK, must=one_of("separate", "mean", "union"))
    """Use of several slides of one case: ``separate`` (each slide is an example with the case's label),
    ``mean`` (their outputs are averaged) or ``union`` (one attention over the cells of all slides)."""

    def __post_init__(self) -> None:
        check(self, "model")
        require(
            self.cases != "union" or self.reads_tiles,
            f"model.cases is union, but a model of kind {self.kind} has no attention over several slides; "
            "use mean",
        )

    @property
    def takes_features(self) -> bool:
        """True if the input is features of tiles instead of pixels; the model then has no backbone."""
        return self.backbone.startswith(_FEATURES)

    @property
    def features(self) -> int:
        """Number of features of a tile that the input has; 0 if the input is pixels."""
        return int(self.backbone.removeprefix(_FEATURES)) if self.takes_features else 0


@dataclass(frozen=True, slots=True)
class DrawingModel(ModelSettings):
    """Settings of the kinds that draw tiles and pool them."""

    draws: ClassVar[bool] = True

    pool: str = setting("gated", fixes=Fixes.NETWORK, must=one_of("linear", "gated"))
    """``linear`` is the paper's unbiased estimate; ``gated`` also weights each tile by its own content,
    learns faster, and has a bias that decreases as 1/n."""


@dataclass(frozen=True, slots=True)
class SamplingModel(DrawingModel):
    """Settings of attention sampling."""

    attends: ClassVar[bool] = True

    kind: str = setting("sampling", fixes=Fixes.NETWORK, must=one_of("sampling"))
    attention: str = setting(
        "small",
        fixes=Fixes.NETWORK,
        must=Must(
            lambda value: bool(value) and not value.startswith(_FEATURES), "be 'small' or name a timm network"
        ),
    )
    """``small``, or the timm name of any network that returns feature maps."""
    attention_checkpoint: str = setting("", fixes=Fixes.TRAINING)
    """A local weights file for an attention network from timm, instead of the published weights."""


@dataclass(frozen=True, slots=True)
class UniformModel(DrawingModel):
    """Settings of the model that draws tiles without attention."""

    kind: str = setting("uniform", fixes=Fixes.NETWORK, must=one_of("uniform"))


@dataclass(frozen=True, slots=True)
class MilModel(ModelSettings):
    """Settings of attention-based multiple-instance learning on all tiles."""

    kind: str = setting("mil", fixes=Fixes.NETWORK, must=one_of("mil"))
    mil_attention: str = setting("gated", fixes=Fixes.NETWORK, must=one_of("gated", "plain"))
    """``gated`` (equation 9 of Ilse et al. 2018), the more common form, or ``plain`` (equation 8)."""
    mil_tiles: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0))
    """Number of random tiles of each slide in a training step; 0 for all. A network that sees all tiles of
    few slides memorises them. Scoring always uses all tiles."""


@dataclass(frozen=True, slots=True)
class ImageModel(ModelSettings):
    """Settings of a network that sees the whole slide as one image."""

    reads_tiles: ClassVar[bool] = False

    kind: str = setting("image", fixes=Fixes.NETWORK, must=one_of("image"))
    scale: float = setting(0.5, fixes=Fixes.NETWORK, must=positive())
    """Resolution of the image relative to that of tiles. The paper uses 0.5 and 1; at 0.5, slides of four
    times the area fit into memory."""

    def pixels_per_cell(self, tile: TileSettings) -> int:
        """Return the side of a grid cell in pixels of the image.

        Raises
        ------
        SettingsError
            When it is not a whole number.
        """
        pitch = tile.size * tile.stride
        pixels, whole = pitch * self.scale, max(1, round(pitch * self.scale))
        require(
            abs(pixels - whole) <= 1e-9 * whole,
            f"model.scale {self.scale} makes a cell of the grid {pixels:.6g} pixels wide, but it must be a "
            f"whole number; set model.scale={whole / pitch} for {whole} pixels",
        )
        return whole


KINDS: dict[str, type[ModelSettings]] = {
    "sampling": SamplingModel,
    "uniform": UniformModel,
    "mil": MilModel,
    "image": ImageModel,
}
"""The record of section ``model`` for each ``model.kind``; the first is the default."""
