"""Section ``model``: a record for each kind of model, with the settings that this kind uses and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wsi_ats.settings.fields import Fixes, Must, at_least, check, one_of, positive, require, setting
from wsi_ats.settings.sections import TileSettings

TASKS = ("classification", "multilabel", "regression", "survival")
"""Names of the tasks, which are :data:`wsi_ats.tasks.registry.TASKS`."""

_NAMED = Must(bool, "be the name of a timm network")

# Before the number of features that somebody has computed, in place of a backbone's name.
_FEATURES = "features:"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Settings that all kinds of models share.

    Attributes
    ----------
    attends
        Whether the kind learns attention to thumbnails.
    draws
        Whether it draws tiles.
    reads_tiles
        Whether it sees tiles; otherwise the whole slide is one image.
    """

    attends: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    reads_tiles: ClassVar[bool] = True

    kind: str = setting("", fixes=Fixes.NETWORK, must=one_of("sampling", "uniform", "mil", "image"))
    """``sampling`` is attention sampling, the purpose of this project. The others serve as comparison:
    ``uniform`` (tiles drawn without attention), ``mil`` (attention-based multiple-instance learning on all
    tiles) and ``image`` (a CNN on the whole slide)."""
    task: str = setting(TASKS[0], fixes=Fixes.NETWORK, must=one_of(*TASKS))
    """Meaning of the labels: ``classification`` (a class of two or more), ``multilabel`` (any of several
    labels), ``regression`` (a value) or ``survival`` (time and event)."""
    backbone: str = setting("resnet18", fixes=Fixes.NETWORK, must=_NAMED)
    """Any timm name, ``hf-hub:owner/model``, or, from Python, ``features:N`` for features of N numbers that
    are computed already; resnet18 is the smallest that is still common."""
    pretrained: bool = setting(True, fixes=Fixes.TRAINING)
    """Start from the published weights; they are downloaded at first use."""
    checkpoint: str = setting("", fixes=Fixes.TRAINING)
    """A local weights file for the backbone, instead of the published ones."""
    cases: str = setting("separate", fixes=Fixes.NETWORK, must=one_of("separate", "mean", "union"))
    """Where a case has several slides: ``separate``, each is an example of its own with the case's label;
    ``mean``, their outputs are averaged; ``union``, attention is over the cells of all of them together."""

    def __post_init__(self) -> None:
        check(self, "model")
        require(
            self.cases != "union" or self.reads_tiles,
            f"model.cases is union, but a model of kind {self.kind} has no attention that could be over "
            "several slides; use mean",
        )

    @property
    def takes_features(self) -> bool:
        """Whether features of tiles are given in place of pixels, and there is no backbone."""
        return self.backbone.startswith(_FEATURES)


@dataclass(frozen=True, slots=True)
class DrawingModel(ModelSettings):
    """Settings of kinds that draw tiles and pool them."""

    draws: ClassVar[bool] = True

    pool: str = setting("gated", fixes=Fixes.NETWORK, must=one_of("linear", "gated"))
    """``linear`` is the paper's unbiased estimate; ``gated`` lets the tile weigh itself, learns faster, and
    has a bias that falls as 1/n."""


@dataclass(frozen=True, slots=True)
class SamplingModel(DrawingModel):
    """Attention sampling."""

    attends: ClassVar[bool] = True

    kind: str = setting("sampling", fixes=Fixes.NETWORK, must=one_of("sampling"))
    attention: str = setting(
        "small",
        fixes=Fixes.NETWORK,
        must=Must(
            lambda value: bool(value) and not value.startswith(_FEATURES), "be 'small' or name a timm network"
        ),
    )
    """``small``, or any timm name that gives feature maps."""
    attention_checkpoint: str = setting("", fixes=Fixes.TRAINING)
    """A local weights file for a network of attention from timm, instead of the published ones."""


@dataclass(frozen=True, slots=True)
class UniformModel(DrawingModel):
    """Tiles drawn without attention."""

    kind: str = setting("uniform", fixes=Fixes.NETWORK, must=one_of("uniform"))


@dataclass(frozen=True, slots=True)
class MilModel(ModelSettings):
    """Attention-based multiple-instance learning on all tiles."""

    kind: str = setting("mil", fixes=Fixes.NETWORK, must=one_of("mil"))
    mil_attention: str = setting("gated", fixes=Fixes.NETWORK, must=one_of("gated", "plain"))
    """``gated`` (equation 9 of Ilse et al. 2018), the more common, or ``plain`` (8)."""
    mil_tiles: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0))
    """Tiles of each slide that a step of training sees, drawn at random; 0: all. A network that sees all
    tiles of few slides memorises them; scoring always sees all."""


@dataclass(frozen=True, slots=True)
class ImageModel(ModelSettings):
    """A network that sees the whole slide as one image."""

    reads_tiles: ClassVar[bool] = False

    kind: str = setting("image", fixes=Fixes.NETWORK, must=one_of("image"))
    scale: float = setting(0.5, fixes=Fixes.NETWORK, must=positive())
    """Resolution of the image relative to that of tiles; the paper has 0.5 and 1, and at 0.5 four times as
    large a slide fits into memory."""

    def pixels_per_cell(self, tile: TileSettings) -> int:
        """Side of a cell of the grid in pixels of the image.

        Raises
        ------
        SettingsError
            When it is not a whole number.
        """
        pitch = tile.size * tile.stride
        pixels, whole = pitch * self.scale, max(1, round(pitch * self.scale))
        require(
            abs(pixels - whole) <= 1e-9 * whole,
            f"model.scale {self.scale} makes a cell of the grid {pixels:.6g} pixels wide, not a whole "
            f"number; {whole / pitch} would make it {whole}",
        )
        return whole


KINDS: dict[str, type[ModelSettings]] = {
    "sampling": SamplingModel,
    "uniform": UniformModel,
    "mil": MilModel,
    "image": ImageModel,
}
"""The section's record for each ``model.kind``; the first is the default."""
