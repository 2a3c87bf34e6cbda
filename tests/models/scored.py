"""A small classifier that is not trained, a slide, and its score."""

from __future__ import annotations

import numpy as np

from wsi_ats.models.encoding import embed_tiles
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.targets import Target

TARGET = Target("classification", ("benign", "malignant", "other"))
SETTINGS = Settings().with_values(
    [
        "tile.size=32",
        "thumbnail.pixels_per_cell=4",
        "model.backbone=test_resnet",
        "model.pretrained=false",
        "sampling.tiles=5",
        "sampling.exploration=0.0",  # draws by hand are by attention alone
    ]
)


def tissue_slide(kind=MemorySlide, **options) -> MemorySlide:
    """Tissue in the middle of glass, four levels; 10 x 13 cells of which about half are tissue."""
    generator = np.random.default_rng(0)
    pixels = generator.normal(240, 2, (320, 400, 3))
    pixels[64:256, 48:352] = generator.normal((190, 110, 170), 30, (192, 304, 3))
    full = pixels.clip(0, 255).astype(np.uint8)
    levels = [
        full.reshape(320 // factor, factor, 400 // factor, factor, 3).mean((1, 3)).astype(np.uint8)
        for factor in (1, 2, 4, 8)
    ]
    return kind(levels, mpp=0.5, path="memory.svs", **options)


def score(model, slide=None, *, changes=(), seed=0, name="case7"):
    loaded = LoadedModel(model, SETTINGS.with_values(changes), TARGET, "abc")
    return loaded.score(slide or tissue_slide(), ref=SlideRef(name, "memory.svs", "patient"), seed=seed)


def draws_of(method, slide, overview, seeds, *, at_a_time=64):
    """The draws of a method that reads the tiles of an open slide."""
    with embed_tiles(method.model, slide, method.settings, method.device, at_a_time=at_a_time) as embed:
        yield from method.score(slide, overview, seeds, embed)
