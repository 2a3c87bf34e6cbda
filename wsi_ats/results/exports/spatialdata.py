"""Drawn tiles for spatialdata, and for LazySlide, which keeps its results in the same stores.

Coordinates are level-0 pixels of the whole slide, (x, y), in the coordinate system ``global``; LazySlide
counts so, too, also where only a part of the slide was scanned. ``wsidata.open_wsi(slide, store=FOLDER)``
finds a store by the name of the slide's file.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from wsi_ats.errors import ArtifactError
from wsi_ats.results.exports.anndata import tile_table
from wsi_ats.results.exports.format import Format
from wsi_ats.results.exports.outlines import polygons
from wsi_ats.results.records import AttentionMap, Selection
from wsi_ats.results.scores import ScoredSlide

# Keys by which LazySlide finds tiles, and features of these tiles.
_TILES, _TABLE = "tiles", "wsi_ats_tiles"


def write_spatialdata(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<slide_id>.zarr``, a store with the distinct tiles.

    It has shapes ``tiles``, points ``centres``, the table ``wsi_ats_tiles`` with the numbers and features of
    :func:`wsi_ats.results.exports.anndata.tile_table`, and, for a model with attention, the tissue cells with
    their attention as shapes ``attention``.

    Raises
    ------
    ArtifactError
        When scores are damaged, or the store cannot be written.
    FeatureError
        When the features cannot be read.
    """
    data = _spatial_data(slide)
    store = folder / f"{slide.id}.zarr"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".") as temporary:
            whole = Path(temporary) / store.name
            data.write(whole)
            if store.exists():
                shutil.rmtree(store)
            whole.replace(store)
    except OSError as error:
        raise ArtifactError(
            f"{store} cannot be written: {error.strerror or error}; check the disk's free space and the "
            "folder's permissions"
        ) from error
    return sorted(path for path in store.rglob("*") if path.is_file())


def _spatial_data(slide: ScoredSlide) -> Any:
    from spatialdata import SpatialData
    from spatialdata.models import PointsModel, TableModel

    selection, attention, table = slide.selection(), slide.attention(), tile_table(slide)
    numbers = np.arange(table.n_obs)
    table.obs["tile_id"] = numbers
    table.obs["library_id"] = _TILES
    table.obs["library_id"] = table.obs["library_id"].astype("category")
    boxes = selection.grid.boxes(selection.distinct().cells)
    # LazySlide's tiles belong to pieces of tissue, which are not told apart here.
    columns = {"tile_id": numbers, "x": boxes[:, 0], "y": boxes[:, 1], "tissue_id": np.zeros_like(numbers)}
    shapes = {_TILES: _shapes(boxes, columns)}
    if attention is not None:
        shapes["attention"] = _cells(attention)
    return SpatialData(
        shapes=shapes,
        points={"centres": PointsModel.parse(table.obsm["spatial"])},
        tables={
            _TABLE: TableModel.parse(table, region=_TILES, region_key="library_id", instance_key="tile_id")
        },
        attrs={"tile_spec": {_TILES: _tile_spec(selection)}},
    )


def _shapes(boxes: Any, columns: dict[str, Any]) -> Any:
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(GeoDataFrame(columns | {"geometry": polygons(boxes)}))


def _cells(attention: AttentionMap) -> Any:
    cells = np.flatnonzero(attention.tissue)
    return _shapes(attention.grid.boxes(cells), {"attention": attention.attention.flat[cells]})


def _tile_spec(selection: Selection) -> dict[str, Any]:
    """Describe the tiles so that LazySlide reads their pixels, from level 0 and reduced to their size."""
    grid = selection.grid
    scale = grid.cell / grid.tile_size
    return {
        **dict.fromkeys(("width", "height"), grid.tile_size),
        **dict.fromkeys(("stride_width", "stride_height"), round(grid.pitch / scale)),
        **dict.fromkeys(("ops_level", "base_level"), 0),
        **dict.fromkeys(("ops_downsample", "base_downsample"), scale),
        "mpp": selection.mpp * scale,
        "tissue_name": None,
    }


FORMAT = Format(
    "spatialdata",
    programs="spatialdata, LazySlide",
    contents="*.zarr, a store for each slide with tiles, centres, numbers and attention",
    slide=write_spatialdata,
    packages=("spatialdata",),
    extra="spatialdata",
)
