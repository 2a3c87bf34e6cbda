"""The parts that the formats of programs for features of tiles have in common."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from wsi_ats.bags.record import Features
from wsi_ats.bags.writing import write_coordinates
from wsi_ats.errors import ArtifactError
from wsi_ats.files import atomic
from wsi_ats.results.records import Selection
from wsi_ats.results.scores import ScoredSlide


def write_patches(path: Path, selection: Selection) -> Path:
    """Write the places of the distinct tiles as CLAM and TRIDENT do; see :func:`write_coordinates`."""
    corners = selection.grid.boxes(selection.distinct().cells)[:, :2]
    write_coordinates(path, corners, name=selection.slide_id, grid=selection.grid, mpp=selection.mpp)
    return path


def copy_features(path: Path, slide: ScoredSlide) -> Path:
    """Copy the file of kept features, which CLAM, TRIDENT and torchmil read as it is."""
    with atomic(path) as temporary:
        shutil.copyfile(slide.features_file, temporary)
    return path


def read_features(slide: ScoredSlide) -> Features:
    """Return the features of the drawn tiles, in the order of their cells, shape (m, D).

    Raises
    ------
    ArtifactError
        When they were not kept.
    FeatureError
        When they cannot be read.
    """
    bag = slide.features()
    if bag is None:
        raise ArtifactError(
            f"{slide.folder} has no features of {slide.id}, which this format needs; score again with "
            "--keep-features"
        )
    return bag.read(np.arange(len(bag.corners)))
