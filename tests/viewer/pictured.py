"""Results of slides that are worth looking at, made up from their truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from results.scored_folder import Made

from wsi_ats.annotations.opening import read_annotations
from wsi_ats.annotations.record import Frame
from wsi_ats.geometry import Region
from wsi_ats.overview.overview import read_overview
from wsi_ats.results.records import AttentionMap, Selection
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.targets import Target

TARGET = Target("classification", ("normal", "tumour"))
SETTINGS = Settings().with_values(["tile.size=64", "tile.mpp=0.5"])
DRAWN = 24


def made_up(ref: SlideRef, truth: Path, label: str) -> Made:
    """Return results of a slide: attention is noise and, where the truth has an outline, higher."""
    rng = np.random.default_rng(ord(ref.id[-1]))
    score = rng.beta(8, 2) if label == "positive" else rng.beta(2, 8)
    with open_slide(ref) as slide:
        tissue, full = read_overview(slide, SETTINGS).tissue, slide.levels[0]
        mpp = slide.mpp.value
    whole = Region(0, 0, full.width, full.height)
    outlines = read_annotations(truth, Frame(full.width, full.height, whole), may_be_empty=True)
    lesion = outlines.shares(tissue.grid)
    values = np.where(tissue.mask, np.exp(rng.normal(0, 0.5, tissue.grid.shape) + 2.5 * lesion), 0)
    values /= values.sum()
    cells = rng.choice(values.size, DRAWN, replace=False, p=values.ravel())
    signs = np.where(lesion.flat[cells] > 0.5, 1.0, -0.2) * rng.uniform(0.05, 0.4, DRAWN)
    chosen = Selection(
        slide_id=ref.id,
        path=ref.path,
        grid=tissue.grid,
        level=0,
        mpp=mpp,
        bounds=whole,
        cells=cells,
        attention=values.flat[cells],
        inclusion=np.minimum(1, DRAWN * values.flat[cells]),
        weight=np.full(DRAWN, 1 / DRAWN),
        draw=np.zeros(DRAWN, np.int64),
        order=np.arange(DRAWN),
        scores=dict(zip(TARGET.columns, (1 - score, score), strict=True)),
        evidence={"normal": -signs, "tumour": signs},
    )
    return Made(ref, chosen.scores, chosen, AttentionMap(tissue.grid, values, tissue.mask))
