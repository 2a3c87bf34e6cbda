"""The parts that the formats of programs for features of tiles have in common."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.bags.record import Features
from wsi_ats.bags.writing import write_coordinates
from wsi_ats.errors import ArtifactError
from wsi_ats.files import atomic
from wsi_ats.results.records import FloatArray, Selection
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


def tile_numbers(selection: Selection) -> dict[str, npt.NDArray[Any]]:
    """Return the numbers of the distinct tiles, as columns for tables of other programs.

    Returns
    -------
    dict of ndarray, each of shape (m,)
        ``x, y``, the corner, and ``width, height`` in level-0 pixels of the whole slide; ``attention``,
        ``weight``, ``draws`` and ``evidence_<name>``, NaN where there is none. See
        :class:`wsi_ats.results.records.DistinctTiles`. Names have only letters, digits and ``_.-``, which
        all programs accept; other characters are replaced by ``_``, and a name that is then repeated has a
        number.
    """
    tiles = selection.distinct()
    places = zip(("x", "y", "width", "height"), selection.grid.boxes(tiles.cells).T, strict=True)
    return {
        **dict(places),
        "attention": selection.attention[tiles.row],
        "weight": tiles.weight,
        "draws": tiles.draws,
        **{name: values[tiles.row] for name, values in _plain(selection.evidence).items()},
    }


def _plain(evidence: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Return evidence by names of columns that differ in more than upper and lower case."""
    columns: dict[str, FloatArray] = {}
    for number, (name, values) in enumerate(evidence.items()):
        column = "evidence_" + re.sub(r"[^\w.-]", "_", name)
        repeated = column.lower() in map(str.lower, columns)
        columns[f"{column}_{number}" if repeated else column] = values
    return columns


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
