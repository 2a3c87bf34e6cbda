"""Options of single stages: ``train``, ``score``, ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pipelines._arguments import (
    EXECUTION,
    INPUT,
    MODEL,
    OUTPUT,
    By,
    LabelColumn,
    Resamples,
    Seed,
    TrainingSeed,
    flag,
    number,
    text,
)
from pipelines._options import SettingsOptions, SlideOptions

if TYPE_CHECKING:
    from pipelines._reports import Reporter
    from pipelines._watch import Arrivals
    from wsi_ats.settings import Settings
    from wsi_ats.slides.base import SlideRef


@dataclass(frozen=True)
class FitOptions:
    """Options of ``train``, under the names of its arguments."""

    restarts: Annotated[
        int,
        number(
            "--restarts",
            "Train this many models and keep the one with the least validation loss, among those whose "
            "attention found where to look.",
            panel=MODEL,
        ),
    ] = 1
    retries: Annotated[
        int,
        number(
            "--retries",
            "Train again with another seed, at most this often, while attention finds nothing.",
            least=0,
            panel=MODEL,
        ),
    ] = 1
    max_bad: Annotated[
        int | None,
        number(
            "--max-bad",
            "Stop when more slides than this become unreadable during training. Default: no limit.",
            least=0,
            panel=EXECUTION,
        ),
    ] = None
    readers: Annotated[
        str,
        text(
            "--readers",
            "threads[:N]|dask",
            "Read tiles with N threads of this process (default: one for each core), or on the workers of "
            "--scheduler, which send them as JPEG.",
            panel=EXECUTION,
        ),
    ] = "threads"
    tensorboard: Annotated[bool, flag("--tensorboard", "Write metrics for TensorBoard as well.", OUTPUT)] = (
        False
    )


@dataclass(frozen=True)
class FeatureOptions:
    """Options of commands that can use features in place of tiles."""

    features: Annotated[
        Path | None,
        text(
            "--features",
            "FOLDER",
            "Features of all tiles, as CLAM, TRIDENT, STAMP or `embed` write them, to use instead of pixels.",
            panel=INPUT,
        ),
    ] = None

    def named(self, refs: list[SlideRef], reporter: Reporter) -> list[SlideRef]:
        """Return slides that name their features, if there is a folder of them."""
        if self.features is None:
            return refs
        from pipelines._features import with_features

        return with_features(refs, self.features, reporter)

    def settings(self, refs: Sequence[SlideRef], choose: Callable[[Settings | None], Settings]) -> Settings:
        """Return the settings of a training: those that its features call for, and then the user's.

        Parameters
        ----------
        refs
            The slides, from :meth:`named`.
        choose
            Applies the user's choices to settings; ``None`` for the defaults.

        Raises
        ------
        SettingsError
            When the settings cannot use features.
        FeatureError, SlideError
            When no features can be opened.
        """
        if self.features is None:
            return choose(None)
        from pipelines._features import KnownFeatures, check_chosen, check_features

        known = KnownFeatures.of(refs)
        start = known.settings()
        settings = choose(start)
        if settings.tile.size != start.tile.size:  # the resolution follows from it
            settings = choose(known.settings(settings.tile.size))
        check_features(settings)
        check_chosen(settings.model, start.model)
        return settings


@dataclass(frozen=True)
class RegionOptions:
    """Options of commands that can keep to annotated regions."""

    regions: Annotated[
        Path | None,
        text(
            "--regions",
            "FOLDER",
            "Annotations of QuPath, ASAP or ImageScope, named after the slides: use only tiles whose centre "
            "lies in one.",
            panel=INPUT,
        ),
    ] = None
    region_class: Annotated[
        list[str] | None,
        text(
            "--region-class",
            "NAME",
            "With --regions: only annotations of this class; may be repeated. '!NAME' cuts a class out.",
            panel=INPUT,
        ),
    ] = None

    def __post_init__(self) -> None:
        from wsi_ats.errors import SettingsError

        if self.region_class and self.regions is None:
            raise SettingsError(
                f"--region-class is {self.region_class[0]!r}, which has no effect without --regions; give "
                "both or none"
            )

    def named(self, refs: list[SlideRef], reporter: Reporter) -> list[SlideRef]:
        """Return slides that name their regions, if there is a folder of them."""
        if self.regions is None:
            return refs
        from pipelines._regions import with_regions

        return with_regions(refs, self.regions, self.region_class or (), reporter)


@dataclass(frozen=True)
class LearningOptions:
    """Options of commands that learn from slides and labels."""

    source: SlideOptions
    stored: FeatureOptions
    areas: RegionOptions
    chosen: SettingsOptions
    label_column: LabelColumn = None
    seed: TrainingSeed = None

    def of(
        self, slides: Sequence[str], labels: Path | None, reporter: Reporter, *, splits: Path | None = None
    ) -> tuple[list[SlideRef], Settings]:
        """Return the slides with their labels, and the settings of a training.

        Parameters
        ----------
        slides, labels, splits
            The sources and tables as given to the command.
        reporter
            Reports features and regions that belong to none of the slides.

        Raises
        ------
        WsiAtsError
            When slides, labels, features, regions or settings cannot be used.
        """
        choose = partial(self.chosen.settings, changes={"training.seed": self.seed})
        tables = {"labels": labels, "label_column": self.label_column, "splits": splits}
        refs = self.source.refs(slides, task=choose().model.task, **tables)
        refs = self.areas.named(self.stored.named(refs, reporter), reporter)
        return refs, self.stored.settings(refs, choose)


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of ``evaluate``, under the names of its arguments."""

    label_column: LabelColumn = None
    splits: Annotated[
        Path | None,
        text(
            "--splits",
            "FILE",
            "Table with the columns train, val and test: evaluate its test slides.",
            panel=INPUT,
        ),
    ] = None
    split: Annotated[
        str | None, text("--split", "train|val|test", "Evaluate the slides of this split.", panel=INPUT)
    ] = None
    annotations: Annotated[
        Path | None,
        text(
            "--annotations",
            "FOLDER",
            "Annotations of QuPath, ASAP or ImageScope, named after the slides: whether drawn tiles and "
            "attention fall on them.",
            panel=INPUT,
        ),
    ] = None
    annotation_class: Annotated[
        list[str] | None,
        text(
            "--annotation-class",
            "NAME",
            "With --annotations: only annotations of this class; may be repeated. '!NAME' cuts a class out.",
            panel=INPUT,
        ),
    ] = None
    by: By = "slide"
    resamples: Resamples = 1000
    seed: Seed = 0

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of :func:`pipelines.evaluate.evaluate`."""
        return vars(self) | {"annotation_class": self.annotation_class or ()}


@dataclass(frozen=True)
class FoldOptions:
    """Options of commands that cross-validate, under the names of their arguments."""

    folds: Annotated[int | None, number("--folds", "Folds. Default: 5.", least=2, panel=INPUT)] = None
    splits: Annotated[
        Path | None,
        text("--splits", "FOLDER", "Folder of splits_0.csv, splits_1.csv ... to use as folds.", panel=INPUT),
    ] = None
    resamples: Resamples = 1000


@dataclass(frozen=True)
class DrawOptions:
    """Options of ``score`` that change settings of the section ``sampling``."""

    draws: Annotated[
        int | None,
        number("--draws", "Independent draws of tiles; two or more give a standard error.", panel=MODEL),
    ] = None
    tiles: Annotated[int | None, number("--tiles", "Tiles in each draw.", panel=MODEL)] = None
    tolerance: Annotated[
        float | None,
        text(
            "--tolerance", "SE", "Add draws until the standard error (logit_se) is at most this.", panel=MODEL
        ),
    ] = None
    max_tiles: Annotated[
        int | None,
        number(
            "--max-tiles", "Add draws as long as a slide needs at most this many tiles.", least=0, panel=MODEL
        ),
    ] = None

    def changes(self) -> dict[str, float | None]:
        """Return the settings by name; ``None`` where an option is not given."""
        return {f"sampling.{name}": value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class KeptOptions:
    """Options of ``score`` for results beside the scores, under the names of its arguments."""

    keep_features: Annotated[
        bool,
        flag(
            "--keep-features",
            "Keep the features of the drawn tiles, for `export` to programs that use features.",
            OUTPUT,
        ),
    ] = False
    pictures: Annotated[
        bool,
        flag("--pictures", "Draw each slide, with attention and drawn tiles, and its drawn tiles.", OUTPUT),
    ] = False


@dataclass(frozen=True)
class PictureOptions:
    """Options of ``export`` for pictures."""

    picture_type: Annotated[
        str | None,
        text(
            "--picture-type",
            "png|svg|pdf",
            "With --to pictures: type of the files. Default: png.",
            panel=OUTPUT,
        ),
    ] = None
    dpi: Annotated[
        int | None,
        number(
            "--dpi",
            "With --to pictures: pixels per inch of a PNG, and of the images in other files. Default: 150.",
            least=50,
            most=1200,
            panel=OUTPUT,
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Return the options that are given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class WatchOptions:
    """Options of ``score`` for slides that arrive while it runs."""

    watch: Annotated[
        bool,
        flag(
            "--watch",
            "Keep running and score slides as they arrive. Ctrl-C or SIGTERM finishes the running slides; "
            "a second one stops at once.",
            INPUT,
        ),
    ] = False
    every: Annotated[
        float | None,
        text(
            "--every",
            "SECONDS",
            "With --watch: time between two checks for slides. Default: 10.",
            panel=INPUT,
        ),
    ] = None
    settle: Annotated[
        float | None,
        text(
            "--settle",
            "SECONDS",
            "With --watch: a slide is complete when it has not changed for this long. Default: 30.",
            panel=INPUT,
        ),
    ] = None
    marker: Annotated[
        str | None,
        text(
            "--marker",
            "SUFFIX",
            "With --watch: a slide is complete when this file is beside it: case7.svs.done or case7.done "
            "for .done.",
            panel=INPUT,
        ),
    ] = None

    def __post_init__(self) -> None:
        from wsi_ats.errors import SettingsError

        if self._waiting and not self.watch:
            name = next(iter(self._waiting))
            raise SettingsError(f"--{name} has no effect without --watch; give both or none")

    @property
    def _waiting(self) -> dict[str, Any]:
        given = {"every": self.every, "settle": self.settle, "marker": self.marker}
        return {name: value for name, value in given.items() if value is not None}

    def arrivals(
        self, sources: Sequence[str], slides: SlideOptions, pause: Callable[[float], object]
    ) -> Arrivals:
        """Return the slides of sources as they arrive."""
        from pipelines._watch import Arrivals

        return Arrivals(sources, slides.mpp, slides.reader, pause=pause, **self._waiting)
