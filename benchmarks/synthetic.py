"""Synthetic slides and untrained models for measurements of speed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_ats.settings import Settings
from wsi_ats.slides import SlideRef
from wsi_ats.slides.base import Slide
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.bank import TileBank, make_tile_bank
from wsi_ats.testing.synthetic import write_slide

if TYPE_CHECKING:
    from wsi_ats.models.scoring import Scored

TARGET = Target("classification", ("negative", "positive"))


@cache
def _bank() -> TileBank:
    """Draw the tiles of all slides once: it takes longer than to write a slide."""
    return make_tile_bank(256, 0, variants=8, palettes=1)


def slide_of(folder: Path, side: int) -> Path:
    """Write a slide of so many pixels a side, 30 % tissue, unless it exists."""
    path = folder / f"slide_{side}.tif"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(side)
        write_slide(path, bank=_bank(), width=side, height=side, positive=True, rng=rng)
    return path


def slides_to_train_on(folder: Path, count: int, side: int) -> list[Path]:
    """Write slides of one size for training, unless they exist."""
    paths = [folder / f"training_{side}_{number}.tif" for number in range(count)]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        bank = make_tile_bank(256, 0, variants=16, palettes=2)
        for number, path in enumerate(paths):
            generator = np.random.default_rng(number)
            write_slide(path, bank=bank, width=side, height=side, positive=False, rng=generator)
    return paths


def untrained(settings: Settings) -> Any:
    """Return an untrained model, with random rather than uniform attention."""
    import torch  # here, because it would be most of the memory of ``benchmarks.reading.prepare``

    from wsi_ats.models.kinds import model_for

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_for(settings, TARGET).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("logit.weight"):
                torch.nn.init.normal_(parameter)
    return model


def score(model: Any, slide: Slide, settings: Settings) -> Scored:
    """Score an open slide as the library does."""
    from wsi_ats.models.scoring import LoadedModel

    name = Path(slide.path).stem
    return LoadedModel(model, settings, TARGET, "").score(slide, ref=SlideRef(name, slide.path, name))
