"""Features that were extracted before: the files of each slide, and the settings that they call for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from pipelines._records import Row
from pipelines._reports import Reporter
from pipelines._runs import rooted
from wsi_ats.bags.encoders import encoder_name
from wsi_ats.bags.folder import BagFolder
from wsi_ats.bags.matched import open_features
from wsi_ats.bags.record import Bag
from wsi_ats.encoders import find_encoder
from wsi_ats.errors import FeatureError, ManifestError, SettingsError, SlideError
from wsi_ats.overview.annotated import check_regions
from wsi_ats.settings import ModelSettings, Settings
from wsi_ats.settings.fields import require
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.folders import listed

# Slides whose features decide about the defaults; scanners differ a little in resolution.
_TRIED = 20

# Share of tissue without features that segmentations differ by.
_FEW = 0.1

# Side in pixels of the tiles of an encoder that is not known.
_UNKNOWN_TILE = 256


def with_features(refs: Sequence[SlideRef], folder: str | Path, reporter: Reporter) -> list[SlideRef]:
    """Return slides that name their files of features, and report files that belong to none of them.

    A slide without features names the folder, so it fails with the reason when it is worked on, and the
    others are done.

    Parameters
    ----------
    refs
        The slides.
    folder
        Folder of features; see :meth:`wsi_ats.bags.folder.BagFolder.find`.
    reporter
        Reports features of other slides.

    Raises
    ------
    ManifestError
        When the folder has no features, or those of several encoders.
    """
    found = BagFolder.find(rooted(folder))
    others = sorted(set(found.ids) - {ref.id for ref in refs})
    if others:
        reporter.message(
            f"{folder} has features of {len(others)} slides that are not among these {len(refs)}: "
            f"{listed(others)}"
        )
    return [replace(ref, features=_files(ref, found)) for ref in refs]


@dataclass(frozen=True)
class KnownFeatures:
    """The features of some slides, which decide about the defaults of models that learn from them.

    Parameters
    ----------
    bags
        Features, at least those of one slide, each with the micrometres per level-0 pixel of its slide.
    """

    bags: Sequence[tuple[Bag, float]]

    @classmethod
    def of(cls, refs: Sequence[SlideRef]) -> KnownFeatures:
        """Open the first few slides that can be opened.

        Parameters
        ----------
        refs
            Slides that name their features.

        Raises
        ------
        FeatureError, SlideError
            When none of them can be opened; the error is that of the first.
        ManifestError
            When none of them has features of a tile.
        """
        errors: list[SlideError] = []
        bags: list[tuple[Bag, float]] = []
        for ref in refs[:_TRIED]:
            try:
                with open_slide(ref) as slide:
                    mpp = slide.mpp.value
                bag = open_features(ref, mpp)
            except SlideError as error:
                errors.append(error)
                continue
            if len(bag.corners):
                bags.append((bag, mpp))
        if not bags:
            none = ManifestError("no slide has features; check the folder of --features")
            raise errors[0] if errors else none
        return cls(bags)

    def settings(self, size: int | None = None) -> Settings:
        """Return the defaults.

        The number of features and the encoder are those of the files. Tiles have the resolution at which they
        are as wide as those of the features, so that slides can be scored by their pixels later.

        Parameters
        ----------
        size
            Side of a tile in pixels; by default the one that the encoder saw. If neither file nor encoder
            tells it, it is 256 pixels, or those of level 0 if there are fewer. Tiles that were enlarged for
            the encoder have their pixels of level 0, too.
        """
        bag, known = self.bags[0][0], find_encoder(self.bags[0][0].encoder)
        width = median(each.side * mpp for each, mpp in self.bags)
        if size is None:
            size = bag.pixels or (known.tile if known else min(_UNKNOWN_TILE, round(bag.side)))
            coarsest = max(mpp for _, mpp in self.bags)
            # A slide that is coarser than tiles, by more than the tolerance, would be refused.
            if coarsest > width / size * (1 + Settings().tile.tolerance):
                size = round(width / coarsest)
        model = {"backbone": f"features:{bag.width}", "encoder": bag.encoder, "encoder_digest": bag.digest}
        tile = {"size": size, "mpp": float(f"{width / size:.4g}")}
        return Settings().with_tables({"model": model, "tile": tile})


def starting_settings(refs: Sequence[SlideRef]) -> Settings:
    """Return the defaults for models that learn from the features of some slides; see :class:`KnownFeatures`.

    Examples
    --------
    See :func:`pipelines.plan.plan`.
    """
    return KnownFeatures.of(refs).settings()


def check_features(settings: Settings) -> None:
    """Refuse settings that cannot use features in place of tiles.

    Raises
    ------
    SettingsError
        When the model encodes tiles with weights of its own, has two levels, or reads no tiles.
    """
    model = settings.model
    require(
        model.reads_tiles,
        f"model.kind is {model.kind}, which uses no features of tiles; choose another kind, or leave "
        "--features out",
    )
    require(
        model.takes_features or settings.training.fine_tuning == "frozen",
        f"model.backbone is {model.backbone}, whose weights are trained (training.fine_tuning is "
        f"{settings.training.fine_tuning}), so features from elsewhere do not suit it; leave --features out, "
        "or, to train on features, leave model.backbone out and name their encoder with model.encoder",
    )
    require(
        settings.thumbnail.levels == 1,
        f"thumbnail.levels is {settings.thumbnail.levels}, but features need 1; set thumbnail.levels=1",
    )


def report_matched(rows: Sequence[Row], reporter: Reporter) -> None:
    """Report how tiles and cells of prepared slides match, if they have features.

    Parameters
    ----------
    rows
        Rows of ``slides.csv``.
    reporter
        Gets a message, which is a warning if more than a tenth of the tissue has no features.
    """
    known = [row for row in rows if row.get("matched_tiles") is not None]
    if not known:
        return
    tiles, used, without = (
        sum(row[name] for row in known) for name in ("feature_tiles", "matched_tiles", "unmatched_cells")
    )
    text = f"features: {used} of {tiles} tiles are used, one in a cell; {without} cells with tissue have none"
    if without > _FEW * (used + without):
        text = (
            f"warning: {text}; they are never drawn. Check whether the files hold a draw of the tiles "
            "only, or another segmentation"
        )
    reporter.message(text)


def check_chosen(model: ModelSettings, found: ModelSettings) -> None:
    """Refuse a width or an encoder that the files of features contradict.

    Parameters
    ----------
    model
        The user's choice.
    found
        What the files say; see :class:`KnownFeatures`.

    Raises
    ------
    SettingsError
        When they differ.
    """
    if model.takes_features and model.features != found.features:
        raise SettingsError(
            f"a file has {found.features} features of each tile, but model.backbone is {model.backbone}; "
            "leave model.backbone out"
        )
    if found.encoder and encoder_name(model.encoder).lower() != found.encoder.lower():
        raise SettingsError(
            f"a file has features of {found.encoder}, but model.encoder is {model.encoder or 'empty'}; leave "
            "model.encoder out"
        )


def check_source(refs: Sequence[SlideRef], settings: Settings) -> None:
    """Refuse a training whose slides and settings disagree about the source of features, or about regions.

    Raises
    ------
    SettingsError
        When slides name features or regions that the settings cannot use, or the settings need features and
        a slide names none.
    """
    if any(ref.regions for ref in refs):
        check_regions(settings)
    without = [ref.id for ref in refs if not ref.features]
    if len(without) < len(refs):
        check_features(settings)
    if settings.model.takes_features and without:
        raise SettingsError(
            f"model.backbone is {settings.model.backbone}, but {len(without)} slides name no features: "
            f"{listed(without)}; give their folder with --features"
        )


def _files(ref: SlideRef, found: BagFolder) -> tuple[str, ...]:
    try:
        files = found.files_for(ref.id)
    except FeatureError:
        return (str(found.folder),)
    return tuple(str(path) for path in (files.features, files.coords) if path is not None)
