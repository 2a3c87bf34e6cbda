"""Folders of scores as `score` writes them, with known numbers, made without a model.

``write_folder`` writes any; ``write_scores`` writes slides of which only a part was scanned, and one that
failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

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
WIDTH, MODEL = 6, "feedc0de"


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


def write_slide(path: Path, image: np.ndarray, *, mpp: float, levels: int = 1) -> Path:
    """Write a slide whose levels are every fourth pixel of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for number in range(levels):
            file.write(
                image[:: 4**number, :: 4**number],
                tile=(128, 128),
                photometric="rgb",
                compression="zlib",
                resolution=(10_000 / mpp, 10_000 / mpp),
                resolutionunit="CENTIMETER",
                subfiletype=1 if number else 0,
                metadata=None,
            )
    return path


class Made(NamedTuple):
    """What is written of a slide.

    The selection names the path that is in the tables; the reference is where the slide was read. A slide
    without a selection has failed with ``error``.
    """

    ref: SlideRef
    scores: Mapping[str, float] = {}
    selection: Selection | None = None
    attention: AttentionMap | None = None
    features: np.ndarray | None = None
    error: str | None = None


def write_folder(folder: Path, target: Target, slides: Sequence[Made], *changes: str) -> Scores:
    """Write scores as `score` does, without a model, by the default settings with ``changes``."""
    rows = [_prediction(each).row(target.columns) for each in slides]
    columns = {column: [row.get(column) for row in rows] for column in rows[0]}
    (folder / "selections").mkdir(parents=True)
    write_parquet(folder / "predictions.parquet", columns, types={"logit_se": "double", "error": "string"})
    write_csv(folder / "predictions.csv", columns)
    for each in slides:
        if each.selection is not None:
            _write_results(folder, each, each.selection)
    record = {"stage": "score", "end": "2026-01-01T00:00:00+00:00", "target": asdict(target), "seed": 0}
    settings = {"settings": Settings().with_values(changes).tables(), "digests": {"model": MODEL}}
    write_json(folder / "run.json", record | settings)
    return read_scores(folder)


def _prediction(made: Made) -> Prediction:
    chosen, tissue = made.selection, made.attention.tissue if made.attention is not None else np.zeros(0)
    draws = int(chosen.draw.max()) + 1 if chosen is not None else 0
    likely = max(made.scores, key=made.scores.__getitem__) if made.scores else None
    return Prediction(
        slide_id=made.ref.id,
        case_id=made.ref.case,
        path=chosen.path if chosen is not None else made.ref.path,
        status=Status.FAILED if chosen is None else Status.DONE,
        scores=made.scores,
        predicted=likely.removeprefix("prob_") if likely else None,
        logit_se=0.2 if draws > 1 else None,  # one draw does not tell it
        stopped_by=Stop.DRAWS if draws else None,
        draws=draws,
        tiles_read=len(chosen.distinct().cells) if chosen is not None else 0,
        tiles_total=int(tissue.sum()),
        tiles_empty=0,
        bytes_read=1000 if draws else None,
        seconds=0.5,
        model_digest=MODEL,
        seed=0,
        error=made.error,
    )


def _write_results(folder: Path, made: Made, chosen: Selection) -> None:
    name = made.ref.id
    opened = asdict(made.ref) | {"digest": contents_digest(made.ref.path)}
    write_json(folder / "records" / f"{name}.json", {"slide": opened})
    write_selection(folder / "selections" / f"{name}.parquet", chosen)
    if made.attention is not None:
        save_attention(folder / "attention" / f"{name}.npz", made.attention)
    if made.features is not None:
        tiles = ReadTiles(chosen.distinct().cells, None, made.features)
        save_features(folder / "features" / f"{name}.h5", chosen, tiles, model_digest=MODEL)


def write_scores(folder: Path, *names: str, kept: bool = True) -> Scores:
    """Write scores of slides by name, and one that failed."""
    made = []
    for number, name in enumerate(names):
        noise = np.random.default_rng(ord(name[0])).integers(100, 200, (GRID.height, GRID.width, 3), np.uint8)
        path = write_slide(folder / "slides" / f"{name}.tif", noise, mpp=0.25)
        chosen = selection(name, seed=number)
        kept_features = features(name) if kept else None
        made.append(Made(SlideRef(name, str(path), name), chosen.scores, chosen, attention(), kept_features))
    failed = SlideRef("failed", "/scans/failed.svs", "failed")
    made.append(Made(failed, error="the file is damaged"))
    return write_folder(folder, TARGET, made, f"tile.size={GRID.tile_size}", "thumbnail.tissue=none")
