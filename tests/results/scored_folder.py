"""A folder of scores, written by hand: two slides, of which only a part was scanned, and one that failed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import tifffile

from wsi_ats.files import write_json
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.records import AttentionMap, Prediction, ReadTiles, Selection, Status, Stop
from wsi_ats.results.scores import Scores, read_scores
from wsi_ats.results.selections import save_attention, save_features, write_selection
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import contents_digest
from wsi_ats.tables.files import write_csv, write_parquet
from wsi_ats.tasks.targets import Target

TARGET = Target("classification", ("normal", "tumour"))
BOUNDS = Region(100, 37, 800, 500)
GRID = Grid(1000, 600, 256, 128)
WIDTH = 6


def selection(name: str = "a", *, seed: int = 0) -> Selection:
    """Cells 5, 0 in the first draw and 5, 7 in the second, of 3 rows and 4 columns."""
    rng = np.random.default_rng(seed)
    evidence = rng.normal(size=3)[[1, 0, 1, 2]]
    return Selection(
        slide_id=name,
        path=f"/scans/{name}.svs",
        grid=GRID,
        level=1,
        mpp=0.25,
        bounds=BOUNDS,
        cells=np.array([5, 0, 5, 7]),
        attention=np.array([0.4, 0.1, 0.4, 0.2]),
        inclusion=np.array([0.8, 0.3, 0.8, 0.5]),
        weight=np.array([0.5, 0.5, 0.75, 0.25]),
        draw=np.array([0, 0, 1, 1]),
        order=np.array([0, 1, 0, 1]),
        scores={"prob_normal": 0.1, "prob_tumour": 0.9},
        evidence={"normal": -evidence, "tumour": evidence},
    )


def features(name: str = "a") -> np.ndarray:
    """Features of cells 0, 5 and 7."""
    return np.arange(3 * WIDTH, dtype=np.float32).reshape(3, WIDTH) + ord(name[0])


def attention() -> AttentionMap:
    tissue = np.ones(GRID.shape, bool)
    tissue[1, 2] = tissue[2, 3] = False  # a hole, and a corner
    values = np.where(tissue, 1.0, 0.0)
    values[1, 1] = 4
    return AttentionMap(GRID, values / values.sum(), tissue)


def write_slide(folder: Path, name: str) -> None:
    """Write the pixels of a slide, and the record of how it was opened."""
    path = folder / "slides" / f"{name}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(ord(name[0])).integers(100, 200, (GRID.height, GRID.width, 3), np.uint8)
    tifffile.imwrite(
        path,
        noise,
        tile=(64, 64),
        photometric="rgb",
        resolution=(40_000, 40_000),
        resolutionunit="CENTIMETER",
    )
    slide = asdict(SlideRef(name, str(path), name)) | {"digest": contents_digest(str(path))}
    write_json(folder / "records" / f"{name}.json", {"slide": slide})


def write_scores(folder: Path, *names: str, kept: bool = True) -> Scores:
    """Write scores of slides by name, and one that failed."""
    rows = []
    for number, name in enumerate([*names, "failed"]):
        done = name != "failed"
        made = Prediction(
            slide_id=name,
            case_id=name,
            path=f"/scans/{name}.svs",
            status=Status.DONE if done else Status.FAILED,
            scores={"prob_normal": 0.1, "prob_tumour": 0.9} if done else {},
            predicted="tumour" if done else None,
            logit_se=0.2 if done else None,
            stopped_by=Stop.DRAWS if done else None,
            draws=2 if done else 0,
            tiles_read=3 if done else 0,
            tiles_total=10 if done else 0,
            tiles_empty=0,
            bytes_read=1000 if done else None,
            seconds=0.5,
            model_digest="feedc0de",
            seed=0,
            error=None if done else "the file is damaged",
        )
        rows.append(made.row(TARGET.columns))
        if done:
            own = selection(name, seed=number)
            (folder / "selections").mkdir(parents=True, exist_ok=True)
            write_selection(folder / "selections" / f"{name}.parquet", own)
            write_slide(folder, name)
            save_attention(folder / "attention" / f"{name}.npz", attention())
            if kept:
                tiles = ReadTiles(np.array([0, 5, 7]), None, features(name))
                save_features(folder / "features" / f"{name}.h5", own, tiles, model_digest="feedc0de")
    folder.mkdir(parents=True, exist_ok=True)
    columns = {column: [row.get(column) for row in rows] for column in rows[0]}
    write_parquet(folder / "predictions.parquet", columns, types={"logit_se": "double", "error": "string"})
    write_csv(folder / "predictions.csv", columns)
    tables = {"tile": {"size": GRID.tile_size}, "thumbnail": {"tissue": "none"}}
    record = {
        "settings": tables,
        "stage": "score",
        "end": "2026-01-01T00:00:00+00:00",
        "target": asdict(TARGET),
        "seed": 0,
    }
    settings = Settings().tables()
    write_json(folder / "run.json", record | {"digests": {"model": "feedc0de"}, "settings": settings})
    return read_scores(folder)
