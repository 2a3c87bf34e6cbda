"""The bag of one slide, matched to the cells of its grid: from an open slide, or from disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_ats.bags.encoders import encoder_name
from wsi_ats.bags.folder import BagFiles, BagFolder
from wsi_ats.bags.matching import Matched, match, restrict
from wsi_ats.bags.opening import open_bag
from wsi_ats.bags.record import Bag, Features
from wsi_ats.errors import FeatureError
from wsi_ats.files import load_arrays, save_arrays
from wsi_ats.geometry import IntArray
from wsi_ats.overview.records import Overview
from wsi_ats.settings import ModelSettings
from wsi_ats.slides.base import Slide, SlideRef

_COUNTS = ("tiles", "crowded", "duplicates", "without_tile", "away")


@dataclass(frozen=True)
class MatchedBag:
    """Features of a slide's tiles, by the cells of its grid.

    Parameters
    ----------
    bag
        The features.
    matched
        The tile of each cell.
    """

    bag: Bag
    matched: Matched

    def read(self, cells: IntArray) -> Features:
        """Read the features (n, width) of the tiles of ``cells``, flat numbers, shape (n,).

        Raises
        ------
        FeatureError
            When they cannot be read, or are NaN or infinite.
        SettingsError
            For a cell without a tile.
        """
        return self.bag.read(self.matched.rows_of(cells))


def open_features(ref: SlideRef, mpp: float) -> Bag:
    """Open the features that a slide names.

    Parameters
    ----------
    ref
        Names the files of features, or the folder in which they are found by the slide's id.
    mpp
        Micrometres per level-0 pixel of the slide.

    Raises
    ------
    FeatureError
        When there are none, or they cannot be read.
    """
    features, *coords = map(Path, ref.features)
    files = BagFiles(features, *coords)
    if features.is_dir():
        files = BagFolder.find(features).files_for(ref.id)
    return open_bag(files.features, mpp=mpp, coords=files.coords)


def match_features(
    ref: SlideRef, slide: Slide, overview: Overview, model: ModelSettings
) -> tuple[Overview, MatchedBag]:
    """Open the features of a slide, and match them to its cells.

    Parameters
    ----------
    ref
        Names the files of features, or the folder in which they are found by the slide's id.
    slide
        The open slide.
    overview
        Its overview, with one level.
    model
        The model that will use the features.

    Returns
    -------
    Overview
        The overview, in which the cells with a tile are the tissue.
    MatchedBag
        The features.

    Raises
    ------
    FeatureError
        When the slide has no features, they are of another encoder or width than the model's, or they cannot
        be used.
    """
    mpp = slide.mpp.value
    bag = open_features(ref, mpp)
    _check_encoder(bag, model)
    matched = match(
        bag,
        overview.tissue.grid,
        overview.all_tissue,
        mpp=mpp,
        bounds=slide.bounds,
        downsamples=[level.downsample for level in slide.levels],
    )
    return restrict(overview, matched), MatchedBag(bag, matched)


def save_matched(path: Path, found: MatchedBag, mpp: float) -> None:
    """Write which tile belongs to which cell, atomically.

    Parameters
    ----------
    path
        The file, for :func:`load_matched`.
    found
        The matched features.
    mpp
        Micrometres per level-0 pixel of the slide.
    """
    matched = found.matched
    counts = np.array([getattr(matched, name) for name in _COUNTS])
    save_arrays(path, matched.grid, cells=matched.cells, rows=matched.rows, counts=counts, mpp=np.array(mpp))


def load_matched(path: Path, ref: SlideRef) -> MatchedBag:
    """Open the features of a slide with the match that :func:`save_matched` wrote.

    Raises
    ------
    ArtifactError
        When the file is missing or damaged.
    FeatureError
        When the features cannot be opened.
    """
    grid, arrays = load_arrays(path, "cells", "rows", "counts", "mpp")
    counts = dict(zip(_COUNTS, arrays["counts"].tolist(), strict=True))
    return MatchedBag(
        open_features(ref, float(arrays["mpp"])), Matched(grid, arrays["cells"], arrays["rows"], **counts)
    )


def _check_encoder(bag: Bag, model: ModelSettings) -> None:
    learned = encoder_name(model.encoder or ("" if model.takes_features else model.backbone))
    if bag.encoder and learned and bag.encoder.lower() != learned.lower():
        raise FeatureError(
            str(bag.path),
            f"has features of {bag.encoder}, but the model is for those of {learned}; give features of the "
            "same encoder",
        )
    if bag.digest and model.encoder_digest and bag.digest != model.encoder_digest:
        raise FeatureError(
            str(bag.path),
            f"has features of other weights of {bag.encoder} (digest {bag.digest}) than the model learned "
            f"from ({model.encoder_digest}); give features of the same weights",
        )
    if model.takes_features and len(bag.corners) and bag.width != model.features:
        raise FeatureError(
            str(bag.path),
            f"has {bag.width} features for each tile, but the model takes {model.features}; give features of "
            "the same encoder",
        )
