"""A folder of scores as `score` writes it, with known numbers, made without a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from wsi_ats.files import write_json
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.records import AttentionMap, Selection
from wsi_ats.results.selections import save_attention, write_selection
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import contents_digest
from wsi_ats.tables.files import write_parquet
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


def write_slide(path: Path, image: np.ndarray, *, levels: int = 3) -> Path:
    with tifffile.TiffWriter(path) as file:
        for number in range(levels):
            file.write(
                image[:: 4**number, :: 4**number],
                tile=(128, 128),
                photometric="rgb",
                compression="zlib",
                resolution=(20_000, 20_000),  # 0.5 micrometres per pixel
                resolutionunit="CENTIMETER",
                subfiletype=1 if number else 0,
                metadata=None,
            )
    return path


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


def write_scores(root: Path) -> Path:
    """Write ``scores``, ``slides`` and ``annotations``: a hostile, a damaged, a plain and a failed slide."""
    folder, slides = root / "scores", root / "slides"
    for each in (slides, folder / "selections", folder / "annotations"):
        each.mkdir(parents=True)
    rows = []
    for name in (HOSTILE, "damaged", "plain"):
        path = write_slide(slides / f"{name.replace('/', '')}.tif", pixels())
        if name == "damaged":
            damage(path)
        ref = SlideRef(name, str(path), f"case of {name}")
        write_json(
            folder / "records" / f"{name}.json",
            {"slide": asdict(ref) | {"digest": contents_digest(ref.path)}},
        )
        write_selection(folder / "selections" / f"{name}.parquet", selection(name, path))
        save_attention(folder / "attention" / f"{name}.npz", attention())
        scores = {HOSTILE: 0.75, "damaged": 0.5, "plain": 0.25}[name]
        rows.append(_row(ref, "done", 4, **dict(zip(TARGET.columns, (scores, 1 - scores), strict=True))))
    missing = SlideRef("failed", str(slides / "failed.tif"), "failed")
    rows.append(_row(missing, "failed", 0, error="failed.tif: it is an empty file; copy it again"))
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_parquet(folder / "predictions.parquet", {name: [row.get(name) for row in rows] for name in names})
    record = {"stage": "score", "end": "2026-01-01", "target": asdict(TARGET), "seed": 0}
    record["settings"] = Settings().tables()
    write_json(folder / "run.json", record)
    (root / "annotations").mkdir()
    (root / "annotations" / f"{HOSTILE}.geojson").write_text(json.dumps(outlines()))
    return folder


def _row(
    ref: SlideRef, status: str, tiles: int, *, error: str | None = None, **scores: float
) -> dict[str, Any]:
    row = {"slide_id": ref.id, "case_id": ref.case, "path": ref.path, "status": status}
    row |= dict.fromkeys(TARGET.columns) | scores
    predicted = max(scores, key=scores.__getitem__).removeprefix("prob_") if scores else None
    return row | {
        "predicted": predicted,
        "logit_se": None,
        **dict.fromkeys(("stopped_by", "bytes_read")),
        "draws": 1,
        "tiles_read": tiles,
        "tiles_total": 96,
        "tiles_empty": 0,
        "seconds": 0.5,
        "model_digest": "feedc0de",
        "seed": 0,
        "error": error,
    }
