"""Drawn tiles of all slides for scanpy and squidpy: one table of anndata.

Coordinates are level-0 pixels of the whole slide, (x, y), y down. squidpy takes those of ``obsm["spatial"]``
as they are, and draws them over an image of the whole slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.errors import ArtifactError
from wsi_ats.files import atomic
from wsi_ats.results.exports.coordinates import read_features, tile_numbers
from wsi_ats.results.exports.format import Format
from wsi_ats.results.scores import ScoredSlide, Scores


def tile_table(slide: ScoredSlide) -> Any:
    """Return the distinct tiles of a slide as an ``anndata.AnnData``.

    Returns
    -------
    AnnData
        A row for each tile: ``obs`` with ``slide_id`` and the numbers of
        :func:`wsi_ats.results.exports.coordinates.tile_numbers`, ``obsm["spatial"]`` with the tiles' centres,
        and ``X`` with the features, float32, shape (m, D); (m, 0) if they were not kept.

    Raises
    ------
    ArtifactError
        When the selection is damaged.
    FeatureError
        When the features cannot be read.
    """
    from anndata import AnnData

    numbers = tile_numbers(slide.selection())
    x, y, width, height = (numbers[name] for name in ("x", "y", "width", "height"))
    kept = slide.features_file.exists()
    return AnnData(
        X=read_features(slide).astype(np.float32) if kept else np.empty((len(x), 0), np.float32),
        obs={
            "obs_names": [f"{slide.id}:{left}:{top}" for left, top in zip(x, y, strict=True)],
            "slide_id": [slide.id] * len(x),
            **numbers,
        },
        obsm={"spatial": np.stack([x + width / 2, y + height / 2], axis=1)},
    )


def check_features(folder: Path, slide: ScoredSlide) -> list[Path]:  # noqa: ARG001
    """Read the features of a slide if they were kept, so that a damaged file fails alone.

    See :class:`wsi_ats.results.exports.format.Format` for ``folder`` and ``slide``.
    """
    if slide.features_file.exists():
        read_features(slide)
    return []


def write_anndata(folder: Path, scores: Scores, slides: Sequence[ScoredSlide]) -> list[Path]:
    """Write ``tiles.h5ad`` with the tiles of all slides; nothing if there are no slides.

    See :class:`wsi_ats.results.exports.format.Format` for ``folder``, ``scores`` and ``slides``.

    Raises
    ------
    ArtifactError
        When features were kept of some slides only, or the file cannot be written.
    """
    from anndata import concat

    if not slides:
        return []
    tables = {slide.id: tile_table(slide) for slide in slides}
    widths = {name: table.n_vars for name, table in tables.items()}
    if len(set(widths.values())) > 1:
        few, most = min(widths, key=widths.__getitem__), max(widths, key=widths.__getitem__)
        raise ArtifactError(
            f"{scores.folder} has {widths[few]} features a tile of {few} and {widths[most]} of {most}, but a "
            "table needs as many for all; score again with --keep-features"
        )
    path = folder / "tiles.h5ad"
    with atomic(path) as temporary:
        concat(list(tables.values()), join="outer").write_h5ad(temporary)
    return [path]


FORMAT = Format(
    "anndata",
    programs="scanpy, squidpy",
    contents="tiles.h5ad, a row for each tile of all slides; X has the features if they were kept",
    slide=check_features,
    collection=write_anndata,
    packages=("anndata",),
    extra="anndata",
)
