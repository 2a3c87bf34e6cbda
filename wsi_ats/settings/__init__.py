"""Settings: frozen, checked at birth, written as TOML; under every default stands its reason."""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, get_type_hints

import tomli_w

from wsi_ats.errors import SettingsError

_Record = TypeVar("_Record")

# Training settings that are one of a few words.
_CHOICES = {
    "precision": ("auto", "float32", "bfloat16"),
    "balance": ("none", "weights", "sampling"),
    "monitor": ("loss", "score"),
}

# Settings that are a name or a number.
_NAMES_OR_NUMBERS = frozenset({"tile.channel"})

# How a backbone is called that stands for features that are computed already, before their number.
_FEATURES = "features:"

TASKS = ("classification", "multilabel", "regression", "survival")
"""Names of the tasks, which are :data:`wsi_ats.tasks.registry.TASKS`."""

ARTEFACTS = ("pen", "blur")
"""What can be told of a slide's quality; see :func:`wsi_ats.overview.quality.find_artefacts`."""

COARSEST_FOCUS = 4.0
"""Micrometres per pixel from which on nothing is said of focus: a blur is seen from about one pixel on, and
one of 4 um makes cells unreadable while a thumbnail of 16 um per pixel looks as it ever did."""

LEARNED = ("tile", "thumbnail", "model", "sampling", "training", "augmentation")
"""Sections of the settings that a trained model depends on."""

LEAST_DRAWS = 8
"""Draws before a tolerance may end scoring. The error of a few draws is often small by accident: where 2 may
end it, intervals of 90 % held the truth in 81 to 87 % of cases, where 8 may, in 87 to 89 %; 16 gained a
little more, for twice the least cost (``benchmarks/coverage.py``, linear pooling)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(message)


@dataclass(frozen=True, slots=True)
class TileSettings:
    """Tiles and the grid they lie on."""

    size: int = 256
    """Pixels a side; most files store tiles of 256 pixels, and aligned reads touch a quarter of the bytes."""
    mpp: float = 0.5
    """Micrometres per pixel; 20x, what published backbones were mostly trained at."""
    tolerance: float = 0.1
    """Relative difference from ``mpp`` at which a level's own pixels are used; scanners called "20x" vary by
    as much (0.46 to 0.55), and resampling costs a second pass over four times the pixels."""
    stride: float = 1.0
    """Distance of neighbouring cells as a share of a tile; 0.5 for objects about as large as a tile."""
    colour: str = "stored"
    """``stored``: pixels as the file has them, as published backbones were trained; ``srgb``: as its colour
    profile says they look, which brings scanners closer; files without a profile stay as they are."""
    channel: str = ""
    """Name, or number from 0, of the channel to read of TIFF files with several, such as ``DAPI``. Without it
    such a file is refused, for its first channel is not the slide."""

    def __post_init__(self) -> None:
        _require(self.size >= 16, f"tile.size must be at least 16 pixels, not {self.size}")
        _require(self.mpp > 0, f"tile.mpp must be positive, not {self.mpp}")
        _require(0 <= self.tolerance < 1, f"tile.tolerance must be in [0, 1), not {self.tolerance}")
        _require(0 < self.stride <= 1, f"tile.stride must be in (0, 1], not {self.stride}")
        _require(
            self.colour in {"stored", "srgb"}, f"tile.colour must be stored or srgb, not {self.colour!r}"
        )


@dataclass(frozen=True, slots=True)
class ThumbnailSettings:
    """The low-resolution view that attention sees."""

    pixels_per_cell: int = 8
    """Pixels a side of a cell: at 256-pixel tiles of 0.5 um one pixel is 16 um, a small gland is a blob."""
    tissue: str = "auto"
    """``auto``, ``brightfield``, ``fluorescence`` or ``none`` (every cell counts as tissue)."""
    min_tissue: float = 0.25
    """Share of a cell that must be tissue; below it a tile is mostly glass."""
    levels: int = 1
    """With 1, attention over all cells from one thumbnail; with 2, over regions from a coarse thumbnail, then
    over the cells of the regions drawn: for slides whose thumbnail is itself large."""
    cells_per_region: int = 16
    """Cells a side of a region of two-level sampling: 256 cells are looked at to read a few of them."""
    pixels_per_region: int = 16
    """Pixels a side of a region in the coarse thumbnail: 4096 pixels of 0.5 um a side are 128 um a pixel."""
    exclude: str = ""
    """Artefacts whose cells are left out, ``pen`` or ``blur`` or both, joined by a comma; none by default:
    whoever scores slides decides what is not worth reading, and every slide shows what would be."""
    max_artefact: float = 0.25
    """Most of a cell that an artefact may spoil (see :class:`wsi_ats.overview.masks.Quality`); a line of ink
    along the edge of a tile does no harm, and as little of a cell as this is enough to call it tissue."""

    def __post_init__(self) -> None:
        _require(
            self.pixels_per_cell >= 1,
            f"thumbnail.pixels_per_cell must be at least 1, not {self.pixels_per_cell}",
        )
        _require(
            self.tissue in {"auto", "brightfield", "fluorescence", "none"},
            f"thumbnail.tissue must be auto, brightfield, fluorescence or none, not {self.tissue!r}",
        )
        _require(
            0 < self.min_tissue <= 1,
            f"thumbnail.min_tissue must be in (0, 1], not {self.min_tissue}",
        )
        _require(self.levels in {1, 2}, f"thumbnail.levels must be 1 or 2, not {self.levels}")
        _require(
            self.cells_per_region >= 2,
            f"thumbnail.cells_per_region must be at least 2, not {self.cells_per_region}",
        )
        _require(
            self.pixels_per_region >= 4 and self.pixels_per_region % 4 == 0,
            f"thumbnail.pixels_per_region must be a multiple of 4, not {self.pixels_per_region}",
        )
        names = self.excluded
        _require(
            set(names) <= set(ARTEFACTS) and len(set(names)) == len(names),
            f"thumbnail.exclude names some of {', '.join(ARTEFACTS)}, each once and joined by a comma, not "
            f"{self.exclude!r}",
        )
        _require(
            0 <= self.max_artefact < 1, f"thumbnail.max_artefact must be in [0, 1), not {self.max_artefact}"
        )

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the artefacts whose cells are left out."""
        return tuple(each.strip() for each in self.exclude.split(",")) if self.exclude else ()


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The networks, and what they predict."""

    task: str = TASKS[0]
    """What labels say: ``classification`` (a class of two or more), ``multilabel`` (any of several labels),
    ``regression`` (a value) or ``survival`` (time and event); see :mod:`wsi_ats.tasks`."""
    kind: str = "sampling"
    """``sampling`` is attention sampling, what this project is for; ``uniform`` (tiles drawn without
    attention), ``mil`` (attention-based multiple-instance learning on all tiles) and ``image`` (a CNN on the
    whole slide) are what it is held against."""
    backbone: str = "resnet18"
    """Any timm name, ``hf-hub:owner/model``, or, from Python, ``features:N`` for features of N numbers that
    are computed already; resnet18 is the smallest that is still common."""
    pretrained: bool = True
    """Start from the published weights; they are downloaded at first use."""
    checkpoint: str = ""
    """A local weights file for the backbone, instead of the published ones."""
    attention: str = "small"
    """``small``, or any timm name that gives feature maps."""
    attention_checkpoint: str = ""
    """A local weights file for a network of attention from timm, instead of the published ones."""
    pool: str = "gated"
    """``linear`` is the paper's unbiased estimate; ``gated`` lets the tile weigh itself, learns faster, and
    has a bias that falls as 1/n."""
    mil_attention: str = "gated"
    """Of kind ``mil``: ``gated`` (equation 9 of Ilse et al. 2018), the more common, or ``plain`` (8)."""
    mil_tiles: int = 0
    """Of kind ``mil``: tiles of each slide that a step of training sees, drawn at random; 0: all. A network
    that sees all tiles of few slides learns them by heart; scoring always sees all."""
    cases: str = "separate"
    """Where a case has several slides: ``separate``, each is an example of its own with the case's label;
    ``mean``, their outputs are averaged; ``union``, attention is over the cells of all of them together."""
    scale: float = 0.5
    """Of kind ``image``: resolution of the image relative to that of tiles; the paper has 0.5 and 1, and at
    0.5 four times as large a slide fits into memory."""

    def __post_init__(self) -> None:
        _require(
            self.task in TASKS,
            f"model.task must be one of {', '.join(TASKS)}, not {self.task!r}",
        )
        _require(
            self.kind in {"sampling", "uniform", "mil", "image"},
            f"model.kind must be sampling, uniform, mil or image, not {self.kind!r}",
        )
        _require(
            self.mil_attention in {"gated", "plain"},
            f"model.mil_attention must be gated or plain, not {self.mil_attention!r}",
        )
        _require(self.mil_tiles >= 0, f"model.mil_tiles must not be negative, not {self.mil_tiles}")
        _require(
            self.cases in {"separate", "mean", "union"},
            f"model.cases must be separate, mean or union, not {self.cases!r}",
        )
        _require(
            self.cases != "union" or self.kind != "image",
            "model.cases is union, but a model of kind image has no attention that could be over several "
            "slides; use mean",
        )
        _require(self.scale > 0, f"model.scale must be positive, not {self.scale}")
        _require(bool(self.backbone), "model.backbone must name a timm network")
        _require(
            bool(self.attention) and not self.attention.startswith(_FEATURES),
            f"model.attention must be 'small' or name a timm network, not {self.attention!r}",
        )
        _require(
            self.pool in {"linear", "gated"},
            f"model.pool must be linear or gated, not {self.pool!r}",
        )

    @property
    def takes_features(self) -> bool:
        """Whether the backbone is no network: features of tiles are given, in place of their pixels."""
        return self.backbone.startswith(_FEATURES)


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Which tiles are read."""

    design: str = "systematic"
    """Lowest variance of all designs tried, exact when every tile is taken."""
    tiles: int = 64
    """Tiles drawn of each slide."""
    regions: int = 8
    """Regions drawn of each slide with two levels, at most one for each tile; a closer look at one costs
    about as much as reading a tile."""
    exploration: float = 0.1
    """Share of the draws spent on all candidates alike, with weights that make up for it: attention that is
    wrong on a slide still sees some of the rest of it."""
    draws: int = 1
    """Independent draws at scoring; from two on the sampling error is known."""
    tolerance: float = 0.0
    """Standard error (column ``logit_se``: of log-odds, or of a value in its own units) at which scoring a
    slide ends; draws are added until then. 0: off, all slides cost the same."""
    max_tiles: int = 0
    """Most distinct tiles read of a slide over all draws; draws are added while they fit. 0: no limit."""

    def __post_init__(self) -> None:
        known = ("systematic", "sequential", "multinomial", "uniform", "top")
        _require(self.design in known, f"sampling.design must be one of {known}, not {self.design!r}")
        _require(self.tiles >= 1, f"sampling.tiles must be at least 1, not {self.tiles}")
        _require(self.regions >= 1, f"sampling.regions must be at least 1, not {self.regions}")
        _require(0 <= self.exploration < 1, f"sampling.exploration must be in [0, 1), not {self.exploration}")
        _require(self.draws >= 1, f"sampling.draws must be at least 1, not {self.draws}")
        _require(
            self.design != "top" or self.draws == 1,
            f"sampling.draws is {self.draws}, but design 'top' draws the same tiles every time; leave it 1",
        )
        _require(self.tolerance >= 0, f"sampling.tolerance must not be negative, not {self.tolerance}")
        _require(self.max_tiles >= 0, f"sampling.max_tiles must not be negative, not {self.max_tiles}")
        _require(
            self.design != "top" or not self.anytime,
            f"sampling.tolerance is {self.tolerance} and sampling.max_tiles {self.max_tiles}, but design "
            "'top' draws the same tiles every time; leave both 0",
        )
        least = self.least_draws * self.tiles
        _require(
            self.max_tiles == 0 or self.max_tiles >= least,
            f"sampling.max_tiles is {self.max_tiles}, but the least that is made, {self.least_draws} draws "
            f"of {self.tiles} tiles, may read {least}; allow as many, or lower sampling.tiles",
        )

    @property
    def anytime(self) -> bool:
        """Whether the number of draws depends on what they give."""
        return self.tolerance > 0 or self.max_tiles > 0

    @property
    def least_draws(self) -> int:
        """Draws that are made of every slide."""
        return max(self.draws, LEAST_DRAWS) if self.tolerance > 0 else self.draws


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How the networks learn."""

    epochs: int = 18
    """Passes over the training slides in which gate, head and backbone learn what to look for. Tiles are
    drawn uniformly meanwhile: a classifier that sees what attention shows it learns that by heart."""
    tiles: int = 64
    """Tiles of each slide in a step of these epochs."""
    attention_epochs: int = 12
    """Passes in which attention learns where to look, from a classifier that is fixed."""
    attention_tiles: int = 256
    """Tiles of each slide, drawn uniformly, that attention learns from; they are read and encoded once."""
    joint_epochs: int = 0
    """Passes in which all of the network learns together from tiles drawn by attention, as in the paper;
    the epoch with the best validation figure is kept, or the state before them. Not needed where the first
    two do."""
    feature_dropout: float = 0.5
    """Share of each tile's features that is dropped in training, of kinds that read tiles: a few features
    alone tell the slides that were trained on apart."""
    slides_per_step: int = 8
    """Slides in a step, or cases if their slides are taken together; fewer is noisier, more is slower to
    start. With several processes each has as many."""
    tiles_per_pass: int = 0
    """Tiles that are encoded at once: a step's slides are shared out over passes whose gradients are summed.
    0: as many as have the pixels of 64 tiles of 256 pixels, which take 2.5 GB in a resnet18; large graphics
    processors are faster with more."""
    read_ahead: int = 1
    """Steps whose tiles are drawn and being read while an earlier one computes; one hides the reading, and
    attention that is older by more gives weights that vary more."""
    precision: str = "auto"
    """``float32`` or ``bfloat16``; ``auto`` is the latter where the device has it and tiles are not tiny:
    half the time of a ResNet; weights and what attention, gate and head compute stay in single precision."""
    compile: bool = False
    """Compile the backbone (torch.compile); it takes minutes to begin with."""
    fine_tuning: str = "full"
    """What of the backbone learns: ``full``; ``last-1``, ``last-2``, ... blocks and what follows them; or
    ``frozen``, with which all kinds but ``image`` encode each tile that they read once, as it is, and keep
    its features, what most pipelines do."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.99, which then is the model; 0: none.
    Averages are better late in training and lag behind early."""
    balance: str = "none"
    """``weights`` lets rare classes count more, ``sampling`` shows their slides more often, so that all
    classes have the same say; ``none`` keeps probabilities true to how common classes are."""
    patience: int = 0
    """Epochs without a better validation figure after which a phase ends, with its best epoch's weights.
    0: never, and the last epoch's weights are kept; small validation sets choose epochs by luck."""
    monitor: str = "loss"
    """The validation figure that tells the best epoch: ``loss``, which still moves when few slides are sorted
    without a mistake, or ``score``, the task's own (such as the area under the curve)."""
    checkpoint_steps: int = 200
    """Steps after which the state is written, besides each epoch's end; a killed run repeats as many at
    most."""
    keep_checkpoints: int = 2
    """Latest states that are kept; the one before the last is there if the last is damaged."""
    learning_rate: float = 1e-4
    """Of the backbone, and of attention's own where that is from timm; usual for fine-tuning, and slow enough
    for the features' mean and spread to stay constant."""
    attention_learning_rate: float = 1e-2
    """Of the attention network, which is small and starts from uniform attention, or of its last layer where
    it has a backbone."""
    head_learning_rate: float = 3e-3
    """Of the head: a linear layer on standardised features, which must become large to find a rare tile."""
    gate_learning_rate: float = 1.5e-3
    """Of the gate by which tiles weigh themselves. A sharp one lets very few of the drawn tiles decide, and
    learns its slides by heart: at the head's rate AUC was lower by up to 0.08."""
    weight_decay: float = 0.01
    """AdamW's usual."""
    entropy: float = 1e-4
    """In joint training, strength of the term that keeps attention spread; the paper's scripts' value."""
    teaching: float = 0.0
    """In joint training of classes, strength with which attention is taught what drawn tiles turned out to
    be worth, beside the gradient of the slide's loss (:mod:`wsi_ats.nn.supervision`). For joint training from
    the start, where that gradient alone is noise; behind the other phases it narrows attention too far."""
    evidence: float = 4.0
    """How much a tile's own loss counts in what it was worth, beside its gate, when attention is taught."""
    warmup: float = 0.15
    """Share of the steps over which the learning rate rises: gradients of uniform attention are noisy."""
    clip: float = 1.0
    """Largest gradient norm: a rare tile of large weight must not undo an epoch."""
    validation: float = 0.2
    """Share of the cases set aside to watch; 0 trains on all."""
    calibrate_scores: bool = True
    """After training, scale and shift the outputs so that probabilities are right on the validation slides,
    where these are ten or more and of all classes. Their order stays as it is. Networks are too certain, and
    of slides that they do not know about another boundary."""
    calibration_tiles: int = 512
    """Tiles of all training slides on which the features' mean and spread are measured, and of a backbone
    without published weights its statistics; more changed nothing."""
    seed: int = 0
    """Of weights, order and draws."""

    def __post_init__(self) -> None:
        for name in ("slides_per_step", "tiles", "attention_tiles"):
            count = getattr(self, name)
            _require(count >= 1, f"training.{name} must be at least 1, not {count}")
        _require(
            0 <= self.feature_dropout < 1,
            f"training.feature_dropout must be in [0, 1), not {self.feature_dropout}",
        )
        for name in (
            "epochs",
            "attention_epochs",
            "joint_epochs",
            "tiles_per_pass",
            "read_ahead",
            "patience",
        ):
            count = getattr(self, name)
            _require(count >= 0, f"training.{name} must not be negative, not {count}")
        for name in ("checkpoint_steps", "keep_checkpoints"):
            count = getattr(self, name)
            _require(count >= 1, f"training.{name} must be at least 1, not {count}")
        for name, known in _CHOICES.items():
            chosen = getattr(self, name)
            _require(chosen in known, f"training.{name} must be one of {', '.join(known)}, not {chosen!r}")
        _require(
            re.fullmatch(r"full|frozen|last-[1-9]\d*", self.fine_tuning) is not None,
            f"training.fine_tuning must be full, frozen, or last-1, last-2, ..., not {self.fine_tuning!r}",
        )
        _require(0 <= self.ema < 1, f"training.ema must be in [0, 1), not {self.ema}")
        for name in ("attention_learning_rate", "head_learning_rate", "gate_learning_rate", "clip"):
            value = getattr(self, name)
            _require(value > 0, f"training.{name} must be positive, not {value}")
        for name in ("learning_rate", "weight_decay", "entropy", "teaching", "evidence"):
            value = getattr(self, name)
            _require(value >= 0, f"training.{name} must not be negative, not {value}")
        _require(0 <= self.warmup <= 0.5, f"training.warmup must be in [0, 0.5], not {self.warmup}")
        _require(
            0 <= self.validation <= 0.5, f"training.validation must be in [0, 0.5], not {self.validation}"
        )
        _require(
            self.calibration_tiles >= 2,
            f"training.calibration_tiles must be at least 2, not {self.calibration_tiles}",
        )
        _require(self.seed >= 0, f"training.seed must not be negative, not {self.seed}")

    @property
    def learning_blocks(self) -> int | None:
        """Blocks at the end of the backbone that learn; ``None`` for all of it."""
        if self.fine_tuning == "full":
            return None
        return 0 if self.fine_tuning == "frozen" else int(self.fine_tuning.removeprefix("last-"))


@dataclass(frozen=True, slots=True)
class AugmentationSettings:
    """How tiles, and the thumbnails that attention learns from, are varied in training.

    A frozen backbone sees each tile once, as it is; thumbnails are varied all the same.
    """

    turns: bool = True
    """Turn by right angles and mirror: tissue has no upper side, and it costs next to nothing. Of thumbnails
    this is what keeps attention from learning its slides by heart."""
    colour: float = 0.0
    """Of tiles, standard deviation of contrast and brightness; not needed where stains are varied."""
    stain: float = 0.0
    """Of tiles, standard deviation of the amount of each stain, such as 0.1 for slides of several
    laboratories; those of one differ less, and it costs a logarithm a pixel."""

    def __post_init__(self) -> None:
        for name in ("colour", "stain"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"augmentation.{name} must be in [0, 1], not {value}")


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """How a trained model is applied; nothing here is learned."""

    precision: str = "auto"
    """Of what encodes tiles, as ``training.precision``: ``auto`` is ``bfloat16`` where the device computes in
    it, half the time or less; attention, pooling and head stay in single precision."""

    def __post_init__(self) -> None:
        known = _CHOICES["precision"]
        _require(
            self.precision in known,
            f"scoring.precision must be one of {', '.join(known)}, not {self.precision!r}",
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a run.

    Parameters
    ----------
    tile, thumbnail, model, sampling, training, augmentation, scoring
        One section each; every field of a section has its reason under it.

    Examples
    --------
    >>> settings = Settings().with_values(["sampling.tiles=16", "model.backbone='resnet50'"])
    >>> settings.sampling.tiles, settings.model.backbone
    (16, 'resnet50')
    """

    tile: TileSettings = field(default_factory=TileSettings)
    thumbnail: ThumbnailSettings = field(default_factory=ThumbnailSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)

    def __post_init__(self) -> None:
        _require(
            self.model.kind == "sampling" or self.thumbnail.levels == 1,
            f"thumbnail.levels is {self.thumbnail.levels}, but a model of kind {self.model.kind} draws no "
            "regions; leave it 1",
        )
        for name in ("training", "scoring"):
            _require(
                getattr(self, name).precision != "bfloat16" or self.tile.size >= 64,
                f"{name}.precision is bfloat16 and tile.size {self.tile.size}; of tiles under 64 pixels some "
                "processors compute wrong numbers in it, use auto or float32",
            )
        _require(
            self.model.kind != "image" or not self.thumbnail.exclude,
            f"thumbnail.exclude is {self.thumbnail.exclude}, but a model of kind image sees the whole slide; "
            "leave it out",
        )
        pixel = self.thumbnail_mpp
        enough = math.ceil(pixel / COARSEST_FOCUS * self.thumbnail.pixels_per_cell)
        _require(
            "blur" not in self.thumbnail.excluded or pixel <= COARSEST_FOCUS,
            f"thumbnail.exclude names blur, but a pixel of the thumbnail is {pixel:g} micrometres wide, too "
            f"coarse to tell it; set thumbnail.pixels_per_cell={enough}, or leave blur out",
        )
        drawn = self.sampling.draws > 1 or self.sampling.anytime
        _require(
            not drawn or self.model.kind not in {"mil", "image"},
            f"a model of kind {self.model.kind} draws no tiles; leave out sampling.draws, "
            "sampling.tolerance and sampling.max_tiles",
        )
        if self.model.kind == "image":
            pitch = self.tile.size * self.tile.stride
            pixels, whole = pitch * self.model.scale, max(1, round(pitch * self.model.scale))
            _require(
                math.isclose(pixels, whole),
                f"model.scale {self.model.scale} makes a cell of the grid {pixels:.6g} pixels wide, not a "
                f"whole number; {whole / pitch} would make it {whole}",
            )

    @property
    def thumbnail_mpp(self) -> float:
        """Micrometres per pixel of the thumbnail, or of the closer look at a region."""
        return self.tile.size * self.tile.mpp * self.tile.stride / self.thumbnail.pixels_per_cell

    @property
    def image_pixels_per_cell(self) -> int:
        """Side of a cell in pixels of the image that a network of kind ``image`` sees."""
        return round(self.tile.size * self.tile.stride * self.model.scale)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build settings from nested tables; what is not named keeps its default.

        Raises
        ------
        SettingsError
            For an unknown name, a wrong type or a value out of range.
        """
        return _build(cls, values, "")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a TOML file.

        Raises
        ------
        SettingsError
            When the file is missing, is no TOML or holds a wrong setting.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls.from_mapping(tomllib.loads(text))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"settings file {path} cannot be read: {error}") from error

    def with_values(self, assignments: Iterable[str]) -> Self:
        """Change single settings, each given as ``section.name=value`` (TOML; quotes may be left out).

        Raises
        ------
        SettingsError
            For a malformed assignment, or as :meth:`from_mapping`.
        """
        values = asdict(self)
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            section, dot, key = name.strip().partition(".")
            if not equals or not dot:
                raise SettingsError(f"expected section.name=value, not {assignment!r}")
            if not isinstance(values.get(section), dict):
                raise SettingsError(f"unknown settings section {section!r}; known are {_names(self)}")
            values[section] = values[section] | {key: _parse(text.strip())}
        return type(self).from_mapping(values)

    def check_trainable(self) -> None:
        """Refuse what may be scored with, but not trained with.

        :func:`wsi_ats.tasks.trainable.check_trainable` also compares them with the task.

        Raises
        ------
        SettingsError
            For a biased design, phases that could teach nothing, or what kind of model or frozen backbone
            have no use for.
        """
        learning = self.training
        if self.model.kind == "sampling":
            self._check_phases()
        else:
            _require(learning.epochs > 0, "there are no epochs to train; set training.epochs")
            for name in ("joint_epochs", "teaching"):
                value = getattr(learning, name)
                _require(
                    not value,
                    f"training.{name} is {value}, but a model of kind {self.model.kind} has no attention to "
                    f"the thumbnail that could learn; set training.{name}=0",
                )
        for name in ("colour", "stain"):
            strength = getattr(self.augmentation, name)
            for useless, why in (
                (self.model.kind == "image", "a model of kind image learns from slides as they are"),
                (self.model.takes_features, f"of {self.model.backbone} the tiles are never seen"),
                (
                    learning.fine_tuning == "frozen",
                    "training.fine_tuning is frozen, and a frozen backbone encodes each tile once, as it is; "
                    "let it learn with training.fine_tuning=last-1 or full",
                ),
            ):
                _require(
                    not strength or not useless,
                    f"augmentation.{name} is {strength}, but {why}; set augmentation.{name}=0.0",
                )
        _require(
            not self.model.attention_checkpoint
            or (self.model.attention != "small" and self.model.kind == "sampling"),
            f"model.attention_checkpoint is {self.model.attention_checkpoint!r}, but model.attention is "
            f"{self.model.attention} and model.kind {self.model.kind}, which would not use the file; name "
            "its timm network with model.attention, or leave it out",
        )
        _require(
            not self.model.attention_checkpoint or learning.attention_epochs + learning.joint_epochs > 0,
            f"model.attention_checkpoint is {self.model.attention_checkpoint!r}, but attention has no epochs "
            "to learn in; set training.attention_epochs, or leave it out",
        )
        _require(
            self.sampling.design != "top",
            "sampling.design 'top' is biased: it never looks at what attention has not found yet, so nothing "
            "can be trained with it; train with another, such as systematic, and score with top",
        )

    def _check_phases(self) -> None:
        """Refuse phases of attention sampling that could not teach attention anything."""
        learning = self.training
        _require(
            learning.epochs + learning.attention_epochs + learning.joint_epochs > 0,
            "there are no epochs to train; set training.epochs, or training.joint_epochs",
        )
        _require(
            not learning.attention_epochs or learning.epochs > 0,
            f"training.epochs is 0 and training.attention_epochs {learning.attention_epochs}: attention "
            "would be taught by a classifier that has learned nothing; set training.epochs, or, for joint "
            "training alone, training.attention_epochs=0 and training.joint_epochs",
        )
        _require(
            not learning.attention_epochs or self.sampling.design != "uniform",
            "sampling.design is uniform: attention would be learned and never drawn from; set "
            "model.kind=uniform to do without it, or another design, such as systematic",
        )

    def check_watched(self, slides: int) -> None:
        """Refuse to wait for better validation figures of no slides.

        Parameters
        ----------
        slides
            Number of slides that are set aside to watch.

        Raises
        ------
        SettingsError
            When ``training.patience`` would have nothing to go by.
        """
        _require(
            slides > 0 or not self.training.patience,
            f"training.patience is {self.training.patience}, but no slides are set aside to watch; set "
            "training.validation, give a split column with val, or leave patience 0",
        )

    def to_toml(self) -> str:
        """Write as TOML, every value included."""
        return tomli_w.dumps(asdict(self))

    def digest(self, *sections: str) -> str:
        """Fingerprint of the named sections, of all when none is named; equal settings, equal digest."""
        values = asdict(self)
        chosen = {name: values[name] for name in sections or values}
        return hashlib.sha256(tomli_w.dumps(chosen).encode()).hexdigest()[:16]


def _names(record: Any) -> str:
    return ", ".join(each.name for each in fields(record))


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # an unquoted word, as one types it on a command line


def _build(kind: type[_Record], values: Mapping[str, Any], prefix: str) -> _Record:
    """Make a record of ``kind`` from a table, checking names and types on the way."""
    hints: dict[str, type[Any]] = get_type_hints(kind)
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise SettingsError(f"unknown setting {prefix}{name}; known are {_names(kind)}")
        wanted = hints[name]
        if is_dataclass(wanted):
            if not isinstance(value, Mapping):
                raise SettingsError(f"[{name}] must be a table, not {value!r}")
            made[name] = _build(wanted, value, f"{name}.")
            continue
        if wanted is float and type(value) is int:
            value = float(value)
        if f"{prefix}{name}" in _NAMES_OR_NUMBERS and type(value) is int:
            value = str(value)
        if type(value) is not wanted:
            raise SettingsError(f"{prefix}{name} must be of type {wanted.__name__}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{prefix}{name} must be a finite number, not {value}")
        made[name] = value
    return kind(**made)
