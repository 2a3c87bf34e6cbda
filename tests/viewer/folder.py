"""A folder of scores for the viewer, whose slides have tissue, drawn tiles and an outline at known places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from results.scored_folder import Made, write_folder, write_slide

from wsi_ats.geometry import Grid, Region
from wsi_ats.results.records import AttentionMap, Selection
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.targets import Target

# Names that would do harm if they were HTML.
HOSTILE = 'a "quoted" <script>alert(1)<\u2044script> & co'
CLASS = "<img src=x onerror=alert(2)>"
TARGET = Target("classification", (CLASS, "benign"))

WIDTH, HEIGHT = 3000, 2000
GLASS, TISSUE = (240, 240, 240), (200, 80, 160)
GRID = Grid(WIDTH, HEIGHT, cell=100, tile_size=100)
# Columns and rows of the drawn tiles: a row of cells in the tissue.
DRAWN = np.array([4 * 30 + column for column in (4, 6, 8, 10)])


def pixels() -> np.ndarray:
    """Tissue in the left upper quarter, each pixel a little different."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = GLASS
    image[200:1000, 200:1400] = TISSUE
    image[..., 1] += (np.arange(WIDTH) % 8).astype(np.uint8)
    return image


def damage(path: Path) -> None:
    """Spoil the second tile of level 0, which is glass beside the first corner."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[1], page.databytecounts[1]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\0" * size)


def selection(name: str, path: Path) -> Selection:
    count = len(DRAWN)
    return Selection(
        slide_id=name,
        path=str(path),
        grid=GRID,
        level=0,
        mpp=0.5,
        bounds=Region(0, 0, WIDTH, HEIGHT),
        cells=DRAWN,
        attention=np.array([0.1, 0.2, 0.3, 0.05]),
        inclusion=np.full(count, 0.5),
        weight=np.array([0.11, 0.22, 0.33, 0.04]),
        draw=np.zeros(count, np.int64),
        order=np.arange(count),
        scores=dict(zip(TARGET.columns, (0.75, 0.25), strict=True)),
        evidence={CLASS: np.array([1.5, -2.5, 0.5, np.nan]), "benign": np.array([-1.5, 2.5, -0.5, np.nan])},
    )


def attention() -> AttentionMap:
    tissue = np.zeros(GRID.shape, bool)
    tissue[2:10, 2:14] = True
    values = np.where(tissue, 0.35 / 92, 0.0)
    values.flat[DRAWN] = [0.1, 0.2, 0.3, 0.05]
    return AttentionMap(GRID, values, tissue)


def outlines() -> dict[str, Any]:
    ring = [[300, 300], [900, 300], [900, 900], [300, 900], [300, 300]]
    kind = {"name": CLASS, "color": [255, 0, 0]}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": kind}}
    return {"type": "FeatureCollection", "features": [feature]}


def made(ref: SlideRef, score: float = 0.25) -> Made:
    """Return what is written of a slide; its results fit any slide of this size."""
    scores = dict(zip(TARGET.columns, (score, 1 - score), strict=True))
    return Made(ref, scores, selection(ref.id, Path(ref.path)), attention())


def write_scores(root: Path) -> Path:
    """Write ``scores``, ``slides`` and ``annotations``: a hostile, a damaged, a plain and a failed slide."""
    slides = []
    for name, score in ((HOSTILE, 0.75), ("damaged", 0.5), ("plain", 0.25)):
        path = write_slide(root / "slides" / f"{name}.tif", pixels(), mpp=0.5, levels=3)
        if name == "damaged":
            damage(path)
        slides.append(made(SlideRef(name, str(path), f"case of {name}"), score))
    missing = SlideRef("failed", str(root / "slides" / "failed.tif"), "failed")
    slides.append(Made(missing, error="failed.tif: it is an empty file; copy it again"))
    write_folder(root / "scores", TARGET, slides)
    (root / "annotations").mkdir()
    (root / "annotations" / f"{HOSTILE}.geojson").write_text(json.dumps(outlines()))
    return root / "scores"
