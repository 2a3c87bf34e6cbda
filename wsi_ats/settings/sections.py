"""Sections of the settings that every kind of model has, but for training."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_ats.settings.fields import Fixes, Must, at_least, check, one_of, positive, require, setting, within

ARTEFACTS = ("pen", "blur")
"""Artefacts that are found in thumbnails; see :func:`wsi_ats.overview.quality.find_artefacts`."""

COARSEST_FOCUS = 4.0
"""Coarsest thumbnail, in micrometres per pixel, on which blur is searched for. A blur is seen from about one
pixel on, and one of 4 um makes cells unreadable while a thumbnail of 16 um per pixel looks sharp."""

LEAST_DRAWS = 8
"""Draws before a tolerance may end scoring. The error of a few draws is often small by accident: where 2 may
end it, intervals of 90 % held the truth in 81 to 87 % of cases, where 8 may, in 87 to 89 %; 16 gained a
little more, for twice the least cost (``benchmarks/coverage.py``, linear pooling)."""

PRECISIONS = ("auto", "float32", "bfloat16")
"""Number formats that a backbone may compute in."""

_BUILT_IN = Fixes.THUMBNAILS | Fixes.NETWORK
_DRAWN = Fixes.TRAINING | Fixes.SCORING


@dataclass(frozen=True, slots=True)
class TileSettings:
    """Tiles and the grid they lie on."""

    size: int = setting(256, fixes=_BUILT_IN, must=at_least(16))
    """Pixels a side; most files store tiles of 256 pixels, and aligned reads touch a quarter of the bytes."""
    mpp: float = setting(0.5, fixes=Fixes.THUMBNAILS, must=positive())
    """Micrometres per pixel; 20x, which most published backbones were trained at."""
    tolerance: float = setting(0.1, fixes=Fixes.THUMBNAILS, must=within("[0, 1)"))
    """Relative difference from ``mpp`` at which a level's own pixels are used; scanners called "20x" vary by
    as much (0.46 to 0.55), and resampling costs a second pass over four times the pixels."""
    stride: float = setting(1.0, fixes=Fixes.THUMBNAILS, must=within("(0, 1]"))
    """Distance of neighbouring cells as a share of a tile; 0.5 for objects about as large as a tile."""
    colour: str = setting("stored", fixes=_BUILT_IN, must=one_of("stored", "srgb"))
    """``stored``: pixels as in the file, as published backbones were trained; ``srgb``: corrected by the
    file's colour profile, which brings scanners closer. Files without a profile stay as they are."""
    channel: str = setting("", fixes=_BUILT_IN)
    """Name, or number from 0, of the channel to read of TIFF files with several, such as ``DAPI``. Without it
    such a file is refused, because its first channel is not the slide."""

    def __post_init__(self) -> None:
        check(self, "tile")


def _names_artefacts(text: str) -> bool:
    names = split_names(text)
    return set(names) <= set(ARTEFACTS) and len(set(names)) == len(names)


def split_names(text: str) -> tuple[str, ...]:
    """Split names that are joined by commas; none in an empty text."""
    return tuple(each.strip() for each in text.split(",")) if text else ()


@dataclass(frozen=True, slots=True)
class ThumbnailSettings:
    """The low-resolution view that attention sees."""

    pixels_per_cell: int = setting(8, fixes=_BUILT_IN, must=at_least(1))
    """Pixels a side of a cell: at 256-pixel tiles of 0.5 um one pixel is 16 um, a small gland is a blob."""
    tissue: str = setting(
        "auto", fixes=Fixes.THUMBNAILS, must=one_of("auto", "brightfield", "fluorescence", "none")
    )
    """``auto``, ``brightfield``, ``fluorescence`` or ``none`` (every cell counts as tissue)."""
    min_tissue: float = setting(0.25, fixes=Fixes.THUMBNAILS, must=within("(0, 1]"))
    """Share of a cell that must be tissue; below it a tile is mostly glass."""
    levels: int = setting(1, fixes=_BUILT_IN, must=one_of(1, 2), needs="attends")
    """With 1, attention over all cells from one thumbnail; with 2, over regions from a coarse thumbnail, then
    over the cells of the drawn regions: for slides whose thumbnail is itself large."""
    cells_per_region: int = setting(16, fixes=_BUILT_IN, must=at_least(2), needs="attends")
    """Cells a side of a region of two-level sampling: 256 cells are looked at to read a few of them."""
    pixels_per_region: int = setting(
        16,
        fixes=_BUILT_IN,
        must=Must(lambda value: value >= 4 and value % 4 == 0, "be a multiple of 4"),
        needs="attends",
    )
    """Pixels a side of a region in the coarse thumbnail: 4096 pixels of 0.5 um a side are 128 um a pixel."""
    exclude: str = setting(
        "",
        fixes=Fixes.THUMBNAILS,
        must=Must(_names_artefacts, f"be some of {', '.join(ARTEFACTS)}, each once and joined by a comma"),
        needs="reads_tiles",
    )
    """Artefacts whose cells are left out, ``pen`` or ``blur`` or both, joined by a comma. None by default:
    the user decides which tissue not to read, and every slide reports what would be left out."""
    max_artefact: float = setting(0.25, fixes=Fixes.THUMBNAILS, must=within("[0, 1)"), needs="reads_tiles")
    """Largest share of a cell that an artefact may cover (:class:`wsi_ats.overview.masks.Quality`). A line of
    ink along the edge of a tile does no harm, and as little tissue is enough to call a cell tissue."""

    def __post_init__(self) -> None:
        check(self, "thumbnail")

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the artefacts whose cells are left out."""
        return split_names(self.exclude)


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Which tiles are read."""

    design: str = setting(
        "systematic",
        fixes=_DRAWN,
        must=one_of("systematic", "sequential", "multinomial", "uniform", "top"),
        needs="draws",
    )
    """Lowest variance of all designs tried, exact when every tile is taken."""
    tiles: int = setting(64, fixes=_DRAWN, must=at_least(1), needs="draws")
    """Tiles drawn of each slide."""
    regions: int = setting(8, fixes=_DRAWN, must=at_least(1), needs="attends")
    """Regions drawn of each slide with two levels, at most one for each tile; a closer look at one costs
    about as much as reading a tile."""
    exploration: float = setting(0.1, fixes=_DRAWN, must=within("[0, 1)"), needs="draws")
    """Share of the draws spent on all candidates alike, with weights that make up for it: attention that is
    wrong on a slide still sees some of the rest of it."""
    draws: int = setting(1, fixes=Fixes.SCORING, must=at_least(1), needs="draws")
    """Independent draws at scoring; from two on the sampling error is known."""
    tolerance: float = setting(0.0, fixes=Fixes.SCORING, must=at_least(0), needs="draws")
    """Standard error (column ``logit_se``: of log-odds, or of a value in its own units) at which scoring a
    slide ends; draws are added until then. 0: off, all slides cost the same."""
    max_tiles: int = setting(0, fixes=Fixes.SCORING, must=at_least(0), needs="draws")
    """Most distinct tiles read of a slide over all draws; draws are added while they fit. 0: no limit."""

    def __post_init__(self) -> None:
        check(self, "sampling")
        require(
            self.design != "top" or self.draws == 1,
            f"sampling.draws is {self.draws}, but design 'top' draws the same tiles every time; leave it 1",
        )
        require(
            self.design != "top" or not self.anytime,
            f"sampling.tolerance is {self.tolerance} and sampling.max_tiles {self.max_tiles}, but design "
            "'top' draws the same tiles every time; leave both 0",
        )
        least = self.least_draws * self.tiles
        require(
            self.max_tiles == 0 or self.max_tiles >= least,
            f"sampling.max_tiles is {self.max_tiles}, but the least that is made, {self.least_draws} draws "
            f"of {self.tiles} tiles, may read {least}; allow as many, or lower sampling.tiles",
        )

    @property
    def anytime(self) -> bool:
        """Whether the number of draws depends on their results."""
        return self.tolerance > 0 or self.max_tiles > 0

    @property
    def least_draws(self) -> int:
        """Draws that are made of every slide."""
        return max(self.draws, LEAST_DRAWS) if self.tolerance > 0 else self.draws


@dataclass(frozen=True, slots=True)
class AugmentationSettings:
    """How tiles, and the thumbnails that attention learns from, are varied in training.

    A frozen backbone sees each tile once, as it is; thumbnails are varied all the same.
    """

    turns: bool = setting(True, fixes=Fixes.TRAINING)
    """Turn by right angles and mirror: tissue has no upper side, and it costs next to nothing. Turned
    thumbnails keep attention from memorising the training slides."""
    colour: float = setting(0.0, fixes=Fixes.TRAINING, must=within("[0, 1]"), needs="reads_tiles")
    """Of tiles, standard deviation of contrast and brightness; not needed where stains are varied."""
    stain: float = setting(0.0, fixes=Fixes.TRAINING, must=within("[0, 1]"), needs="reads_tiles")
    """Of tiles, standard deviation of the amount of each stain, such as 0.1 for slides of several
    laboratories; those of one differ less, and it costs a logarithm a pixel."""

    def __post_init__(self) -> None:
        check(self, "augmentation")


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """How a trained model is applied; nothing here is learned."""

    precision: str = setting("auto", fixes=Fixes.SCORING, must=one_of(*PRECISIONS))
    """Of the tile encoder, as ``training.precision``: ``auto`` is ``bfloat16`` where the device computes in
    it, half the time or less; attention, pooling and head stay in single precision."""

    def __post_init__(self) -> None:
        check(self, "scoring")
