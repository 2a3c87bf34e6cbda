"""Sections of the settings that all kinds of models share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wsi_ats.settings.fields import Fixes, Must, at_least, check, one_of, positive, require, setting, within

ARTEFACTS = ("pen", "blur")
"""Artefacts that can be detected in thumbnails; see :func:`wsi_ats.overview.quality.find_artefacts`."""

COARSEST_FOCUS = 4.0
"""Coarsest thumbnail, in micrometres per pixel, in which blur is measured. Blur shows only if it is about one
pixel wide or wider: a blur of 4 um makes cells unreadable, but a thumbnail of 16 um per pixel looks sharp."""

LEAST_DRAWS = 8
"""Least number of draws before a tolerance can end scoring. The error of a few draws is often small by
chance: 90 % intervals contained the true value in 81 to 87 % of cases when scoring could end after 2 draws,
and in 87 to 89 % when it could end after 8. With 16 the gain was small and the minimum cost doubled
(``benchmarks/coverage.py``, linear pooling)."""

PRECISIONS = ("auto", "float32", "bfloat16")
"""Number formats in which a backbone can compute."""

_BUILT_IN = Fixes.THUMBNAILS | Fixes.NETWORK
_DRAWN = Fixes.TRAINING | Fixes.SCORING


@dataclass(frozen=True, slots=True)
class TileSettings:
    """Settings of the tiles and their grid."""

    size: int = setting(256, fixes=_BUILT_IN, must=at_least(16))
    """Side of a tile in pixels. Most files store tiles of 256 pixels, and aligned reads need a quarter of the
    bytes."""
    mpp: float = setting(0.5, fixes=Fixes.THUMBNAILS, must=positive())
    """Micrometres per pixel. 0.5 is 20x, at which most published backbones were trained."""
    tolerance: float = setting(0.1, fixes=Fixes.THUMBNAILS, must=within("[0, 1)"))
    """Largest relative difference from ``mpp`` at which a level's own pixels are used. Scanners labelled
    "20x" vary by as much (0.46 to 0.55), and resampling adds a pass over four times the pixels."""
    stride: float = setting(1.0, fixes=Fixes.THUMBNAILS, must=within("(0, 1]"))
    """Distance between neighbouring cells as a fraction of a tile. Use 0.5 for objects about as large as a
    tile."""
    colour: str = setting("stored", fixes=_BUILT_IN, must=one_of("stored", "srgb"))
    """``stored``: pixels as in the file, which published backbones were trained on; ``srgb``: converted with
    the file's colour profile, which makes slides of different scanners more alike. Files without a profile
    are not changed."""
    channel: str = setting("", fixes=_BUILT_IN)
    """Channel to read from TIFF files with several: its name, such as ``DAPI``, or its number from 0. Without
    it such files are refused, because the first channel alone is not the slide."""

    def __post_init__(self) -> None:
        check(self, "tile")


def _names_artefacts(text: str) -> bool:
    names = split_names(text)
    return set(names) <= set(ARTEFACTS) and len(set(names)) == len(names)


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names; an empty text has none."""
    return tuple(each.strip() for each in text.split(",")) if text else ()


@dataclass(frozen=True, slots=True)
class ThumbnailSettings:
    """Settings of the low-resolution view that attention sees."""

    pixels_per_cell: int = setting(8, fixes=_BUILT_IN, must=at_least(1))
    """Side of a cell in thumbnail pixels. With tiles of 256 pixels at 0.5 um, one thumbnail pixel is 16 um: a
    small gland is a blob."""
    tissue: str = setting(
        "auto", fixes=Fixes.THUMBNAILS, must=one_of("auto", "brightfield", "fluorescence", "none")
    )
    """Method to find tissue: ``auto``, ``brightfield``, ``fluorescence`` or ``none`` (every cell counts as
    tissue)."""
    min_tissue: float = setting(0.25, fixes=Fixes.THUMBNAILS, must=within("(0, 1]"))
    """Fraction of a cell that must be tissue; below it a tile is mostly glass."""
    levels: int = setting(1, fixes=_BUILT_IN, must=one_of(1, 2), needs="attends")
    """With 1, attention is over all cells, from one thumbnail. With 2, it is over regions, from a coarse
    thumbnail, and then over the cells of the drawn regions; for slides with a very large thumbnail."""
    cells_per_region: int = setting(16, fixes=_BUILT_IN, must=at_least(2), needs="attends")
    """Side of a region in cells, in two-level sampling. With 16, attention is computed over 256 cells of a
    region to read a few of them."""
    pixels_per_region: int = setting(
        16,
        fixes=_BUILT_IN,
        must=Must(
            lambda value: value >= 4 and value % 4 == 0, "be a multiple of 4", {"minimum": 4, "multipleOf": 4}
        ),
        needs="attends",
    )
    """Side of a region in pixels of the coarse thumbnail. A region of 4096 pixels at 0.5 um then has 128 um
    per pixel."""
    exclude: str = setting(
        "",
        fixes=Fixes.THUMBNAILS,
        must=Must(_names_artefacts, f"be some of {', '.join(ARTEFACTS)}, each once and joined by a comma"),
        needs="reads_tiles",
    )
    """Artefacts to exclude: cells with ``pen`` or ``blur``, or both joined by a comma. None by default: the
    user decides which tissue to skip, and every slide reports the cells that would be excluded."""
    max_artefact: float = setting(0.25, fixes=Fixes.THUMBNAILS, must=within("[0, 1)"), needs="reads_tiles")
    """Largest fraction of a cell that an artefact may cover (:class:`wsi_ats.overview.records.Quality`). A
    line of ink along the edge of a tile does no harm; the same fraction of tissue makes a cell count as
    tissue."""

    def __post_init__(self) -> None:
        check(self, "thumbnail")

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the artefacts whose cells are left out."""
        return split_names(self.exclude)


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Settings of the draw: which tiles are read."""

    design: str = setting(
        "systematic",
        fixes=_DRAWN,
        must=one_of("systematic", "sequential", "multinomial", "uniform", "top"),
        needs="draws",
    )
    """Sampling design. ``systematic`` has the lowest variance of all designs tried, and is exact when every
    tile is drawn."""
    tiles: int = setting(64, fixes=_DRAWN, must=at_least(1), needs="draws")
    """Tiles drawn from each slide."""
    regions: int = setting(8, fixes=_DRAWN, must=at_least(1), needs="attends")
    """Regions drawn from each slide with two levels, at most one for each tile. The thumbnail of a region
    costs about as much as a tile."""
    exploration: float = setting(0.1, fixes=_DRAWN, must=within("[0, 1)"), needs="draws")
    """Fraction of the draws that is spread evenly over all candidates; weights correct for it. If attention
    is wrong on a slide, some tiles from the rest of the slide are still read."""
    draws: int = setting(1, fixes=Fixes.SCORING, must=at_least(1), needs="draws")
    """Independent draws at scoring. With two or more, the sampling error is estimated."""
    tolerance: float = setting(0.0, fixes=Fixes.SCORING, must=at_least(0), needs="draws")
    """Standard error at which scoring of a slide ends (column ``logit_se``: of log-odds, or of a value in its
    own units); draws are added until it is reached. 0: off, all slides cost the same."""
    max_tiles: int = setting(0, fixes=Fixes.SCORING, must=at_least(0), needs="draws")
    """Largest number of distinct tiles read from a slide over all draws; draws are added while they fit. 0:
    no limit."""

    def __post_init__(self) -> None:
        check(self, "sampling")
        require(
            self.design != "top" or self.draws == 1,
            f"sampling.draws is {self.draws}, but design 'top' draws the same tiles every time; set "
            "sampling.draws=1",
        )
        require(
            self.design != "top" or not self.anytime,
            f"sampling.tolerance is {self.tolerance} and sampling.max_tiles is {self.max_tiles}, but design "
            "'top' draws the same tiles every time; set both to 0",
        )
        least = self.least_draws * self.tiles
        require(
            self.max_tiles == 0 or self.max_tiles >= least,
            f"sampling.max_tiles is {self.max_tiles}, but the minimum of {self.least_draws} draws of "
            f"{self.tiles} tiles may read {least}; allow as many, or lower sampling.tiles",
        )

    @property
    def anytime(self) -> bool:
        """True if the number of draws depends on their results."""
        return self.tolerance > 0 or self.max_tiles > 0

    @property
    def least_draws(self) -> int:
        """Number of draws made for every slide."""
        return max(self.draws, LEAST_DRAWS) if self.tolerance > 0 else self.draws


@dataclass(frozen=True, slots=True)
class AugmentationSettings:
    """Augmentation of tiles, and of the thumbnails that attention learns from, during training.

    With a frozen backbone each tile is encoded once, unchanged; thumbnails are still augmented.
    """

    turns: bool = setting(True, fixes=Fixes.TRAINING)
    """Rotate by right angles and mirror: tissue has no natural orientation, and the cost is negligible.
    Rotated thumbnails keep attention from memorising the training slides."""
    colour: float = setting(0.0, fixes=Fixes.TRAINING, must=within("[0, 1]"), needs="reads_tiles")
    """Standard deviation of the contrast and brightness of tiles; not needed if stains are augmented."""
    stain: float = setting(0.0, fixes=Fixes.TRAINING, must=within("[0, 1]"), needs="reads_tiles")
    """Standard deviation of the amount of each stain in tiles; for example 0.1 for slides from several
    laboratories. Slides from one laboratory differ less. It costs a logarithm per pixel."""

    def __post_init__(self) -> None:
        check(self, "augmentation")


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """Settings of scoring with a trained model."""

    precision: str = setting("auto", fixes=Fixes.SCORING, must=one_of(*PRECISIONS))
    """Precision of the tile encoder, as ``training.precision``. ``auto`` is ``bfloat16`` if the device
    supports it, which takes half the time or less; attention, pooling and head stay in single precision."""
    encoder_checkpoint: str = setting("", fixes=Fixes.SCORING, needs="reads_tiles")
    """A local weights file of ``model.encoder``, instead of the published weights, to score slides by their
    pixels with a model that was trained on features."""

    def __post_init__(self) -> None:
        check(self, "scoring")


_FINE_TUNING = Must(
    lambda value: re.fullmatch(r"full|frozen|last-[1-9]\d*", value) is not None,
    "be full, frozen, or last-1, last-2, ...",
    {"pattern": r"^(full|frozen|last-[1-9]\d*)$"},
)


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Settings of the training of the networks."""

    epochs: int = setting(18, fixes=Fixes.TRAINING, must=at_least(0))
    """Passes over the training slides in which backbone, gate and head learn from uniformly drawn tiles. A
    classifier that saw only the tiles that attention selects would memorise them."""
    tiles: int = setting(64, fixes=Fixes.TRAINING, must=at_least(1), needs="draws")
    """Tiles of each slide in a step of these epochs."""
    attention_epochs: int = setting(12, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Passes in which attention learns from the classifier, which stays fixed."""
    attention_tiles: int = setting(256, fixes=Fixes.TRAINING, must=at_least(1), needs="attends")
    """Uniformly drawn tiles of each slide that attention learns from; they are read and encoded once."""
    joint_epochs: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Passes in which all networks learn together from tiles drawn by attention, as in the paper. The epoch
    with the best validation metric is kept, or the state before the first one. Not needed if the first two
    phases succeed."""
    feature_dropout: float = setting(0.5, fixes=Fixes.TRAINING, must=within("[0, 1)"), needs="reads_tiles")
    """Fraction of each tile's features that is dropped in training: a few features are enough to recognise
    the training slides."""
    slides_per_step: int = setting(8, fixes=Fixes.TRAINING, must=at_least(1))
    """Slides in a step, or cases if their slides are taken together. Fewer make gradients noisier; more make
    progress slower at first. With several processes, each process takes this many."""
    tiles_per_pass: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0), needs="draws")
    """Tiles encoded at once. The slides of a step are divided into passes, and the gradients of the passes
    are summed. 0: as many tiles as have the pixels of 64 tiles of 256 pixels, which need 2.5 GB in a
    resnet18; large GPUs are faster with more."""
    read_ahead: int = setting(1, fixes=Fixes.TRAINING, must=at_least(0))
    """Steps whose tiles are drawn and read while an earlier step computes. One is enough to hide the reading;
    with more, attention changes more between draw and use, and weights vary more."""
    precision: str = setting("auto", fixes=Fixes.TRAINING, must=one_of(*PRECISIONS))
    """``float32`` or ``bfloat16``. ``auto`` is ``bfloat16`` if the device supports it and tiles are not tiny,
    which halves the time of a ResNet. Weights, and computations of attention, gate and head, stay in single
    precision."""
    compile: bool = setting(False, fixes=Fixes.TRAINING)
    """Compile the backbone (torch.compile), which takes minutes at the start."""
    fine_tuning: str = setting("full", fixes=Fixes.TRAINING, must=_FINE_TUNING)
    """Part of the backbone that learns: ``full``; ``last-1``, ``last-2``, ... for the last blocks and the
    layers after them; or ``frozen``: all kinds except ``image`` then encode each tile once, without
    augmentation, and keep its features, as most pipelines do."""
    ema: float = setting(0.0, fixes=Fixes.TRAINING, must=within("[0, 1)"))
    """Decay of an exponential moving average of the weights, such as 0.99; the average is then the model. 0:
    off. Averages are better late in training and lag behind early."""
    balance: str = setting("none", fixes=Fixes.TRAINING, must=one_of("none", "weights", "sampling"))
    """``weights`` gives rare classes more weight in the loss, and ``sampling`` shows their slides more often,
    so that all classes count the same. With ``none``, probabilities reflect the frequencies of the
    classes."""
    patience: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0))
    """Epochs without a better validation metric after which a phase ends and its best epoch's weights are
    kept. 0: never, and the last epoch's weights are kept, because small validation sets select epochs by
    chance."""
    monitor: str = setting("loss", fixes=Fixes.TRAINING, must=one_of("loss", "score"))
    """Validation metric that selects the best epoch: ``loss``, which still changes when all of a few slides
    are classified correctly, or ``score``, the task's own metric (such as the area under the ROC curve)."""
    checkpoint_steps: int = setting(200, fixes=Fixes.TRAINING, must=at_least(1))
    """Steps between checkpoints, which are also written at the end of each epoch. A killed run repeats at
    most this many steps."""
    keep_checkpoints: int = setting(2, fixes=Fixes.TRAINING, must=at_least(1))
    """Number of latest checkpoints to keep. With two, training can resume even if the last one is damaged."""
    learning_rate: float = setting(1e-4, fixes=Fixes.TRAINING, must=at_least(0))
    """Learning rate of the backbone, and of the attention network's backbone if it is from timm. It is usual
    for fine-tuning, and low enough to keep the features' mean and spread constant."""
    attention_learning_rate: float = setting(1e-2, fixes=Fixes.TRAINING, must=positive())
    """Learning rate of the attention network, which is small and starts from uniform attention, or of its
    last layer if it has a backbone."""
    head_learning_rate: float = setting(3e-3, fixes=Fixes.TRAINING, must=positive())
    """Learning rate of the head, a linear layer on standardised features. Its weights must become large to
    find a rare tile."""
    gate_learning_rate: float = setting(1.5e-3, fixes=Fixes.TRAINING, must=positive(), needs="draws")
    """Learning rate of the gate, which weights tiles by their content. A sharp gate lets very few of the
    drawn tiles decide and memorises the training slides: at the head's rate, AUC was lower by up to 0.08."""
    weight_decay: float = setting(0.01, fixes=Fixes.TRAINING, must=at_least(0))
    """Weight decay, at the usual value for AdamW."""
    entropy: float = setting(1e-4, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Strength of the entropy term that keeps attention spread out in joint training; the value is from the
    paper's scripts."""
    supervision: float = setting(0.0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Strength of attention supervision by the posterior of the drawn tiles (:mod:`wsi_ats.nn.supervision`)
    in joint training of classes; it is added to the gradient of the slide's loss. Use it for joint training
    from the start, when that gradient alone is noise; after the other phases it narrows attention too far."""
    evidence: float = setting(4.0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Weight of a tile's own loss, in addition to its gate, in the posterior that attention learns from."""
    warmup: float = setting(0.15, fixes=Fixes.TRAINING, must=within("[0, 0.5]"))
    """Fraction of the steps over which the learning rate rises: gradients of uniform attention are noisy."""
    clip: float = setting(1.0, fixes=Fixes.TRAINING, must=positive())
    """Largest gradient norm: a rare tile with a large weight must not undo an epoch."""
    validation: float = setting(0.2, fixes=Fixes.TRAINING, must=within("[0, 0.5]"))
    """Fraction of the cases set aside for validation; with 0, all cases are trained on."""
    calibrate_scores: bool = setting(True, fixes=Fixes.TRAINING)
    """After training, scale and shift the outputs so that probabilities are right on the validation slides,
    if there are at least ten and they include all classes. The order of the scores does not change. Without
    calibration, networks are overconfident and their decision boundary is shifted on new slides."""
    calibration_tiles: int = setting(512, fixes=Fixes.TRAINING, must=at_least(2))
    """Tiles from all training slides on which the mean and spread of the features are measured, as well as
    the statistics of a backbone without published weights; more tiles changed nothing."""
    seed: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0))
    """Seed of the weights, the order of slides and the draws."""

    def __post_init__(self) -> None:
        check(self, "training")

    @property
    def learning_blocks(self) -> int | None:
        """Number of blocks at the end of the backbone that learn; ``None`` for the whole backbone."""
        if self.fine_tuning == "full":
            return None
        return 0 if self.fine_tuning == "frozen" else int(self.fine_tuning.removeprefix("last-"))
