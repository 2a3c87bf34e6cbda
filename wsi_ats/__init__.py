"""Attention sampling for whole-slide histopathology images: the design on one page.

A slide has 10^9 pixels or more, but its label depends on a few tiles. Attention sampling reads a thumbnail,
computes attention over its cells, draws a few tiles from that attention and reads only those. They give an
unbiased estimate of soft attention over all tiles, so both networks learn from the slide's label alone
(Katharopoulos & Fleuret 2019).

Data flow
---------
::

    SlideRef --open_slide--> Slide --grid_for--> Grid --read_thumbnail--> (rows * p, columns * p, 3)
      --find_tissue--> TissueMask --AttentionSampler.attend--> attention --draw--> Draw
      --read_tiles--> (n, size, size, 3) --embed--> features --pool--> feature --classify--> Prediction

Torch draws the cells and later receives their tiles; reading in between does not use it. Gradients flow
through the attention and the features. Only :mod:`wsi_ats.models` knows both slides and networks, with one
file for each kind of model.

Nouns
-----
``SlideRef`` names a slide and can cross a process border; a ``Slide`` is open, can be read, and stays in its
process. ``Level``, ``Region`` and ``Grid`` describe places in level-0 pixels. Each cell of the ``Grid`` has
one attention value and is one tile that may be read. ``TissueMask`` and ``AttentionMap`` have a value for
each cell, and an ``Overview`` is a thumbnail with its tissue.
``Draw`` holds the drawn cells and their inclusion. A run writes a ``Selection`` (the tiles read, with their
weights) and a ``Prediction`` for each slide. ``Target`` describes the label to predict, and ``Settings``
holds all choices of a run. Every error is a ``WsiAtsError``.

Verbs
-----
``read_manifest``, ``open_slide``, ``grid_for``, ``read_thumbnail``, ``find_tissue``, ``build_model``,
``draw``, ``read_tiles``, ``fit``, ``load_model``, ``LoadedModel.score``; and ``read_overview``, which
combines ``grid_for``, ``read_thumbnail`` and ``find_tissue``. Randomness and devices are arguments.

Names are imported on first use, so programs that only read slides do not load torch.

Public names
------------
Programs may rely on the names in ``__all__``, on the estimator (:mod:`wsi_ats.nn.expectation`,
:mod:`wsi_ats.nn.sampling`), on ``MemorySlide`` (:mod:`wsi_ats.slides.memory`) and on :mod:`wsi_ats.testing`.
All other modules are internal and may change in any release.

Examples
--------
One step of attention sampling by hand:

>>> import numpy as np, torch
>>> from wsi_ats.slides.memory import MemorySlide
>>> slide = MemorySlide([np.full((256, 512, 3), 150, np.uint8)], mpp=0.5)
>>> grid = grid_for(slide, tile_size=64, mpp=0.5, tolerance=0.1)
>>> thumbnail = read_thumbnail(slide, grid, 8)
>>> tissue = find_tissue(thumbnail, grid, method="none")
>>> cells = torch.from_numpy(tissue.cells)
>>> model = build_model(classes=2, backbone="test_resnet", pretrained=False, attention="small", pool="linear",
...                     tile_size=64, pixels_per_cell=8).eval()
>>> attention = model.attend(torch.from_numpy(thumbnail), cells, grid.shape)
>>> drawn = draw("systematic", attention, cells=cells, shape=grid.shape, n=4,
...              generator=torch.Generator().manual_seed(0))
>>> tiles = read_tiles(slide, grid, tissue.cells[drawn.indices])
>>> tiles.shape
(4, 64, 64, 3)
>>> from wsi_ats.nn import expectation
>>> pooled = model.pool(expectation.weights(attention, drawn), model.embed(torch.from_numpy(tiles)))
>>> model.classify(pooled).shape
torch.Size([2])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_ats.errors import WsiAtsError
    from wsi_ats.geometry import Grid, Level, Region
    from wsi_ats.models.batches import Example, TileReader
    from wsi_ats.models.checkpoints import load_model, save_model
    from wsi_ats.models.scoring import LoadedModel, Scored
    from wsi_ats.nn.model import AttentionSampler, build_model
    from wsi_ats.nn.sampling import Draw, draw
    from wsi_ats.overview.overview import read_overview
    from wsi_ats.overview.records import Overview, TissueMask
    from wsi_ats.overview.tiles import grid_for, read_thumbnail, read_tiles
    from wsi_ats.overview.tissue import find_tissue
    from wsi_ats.results.records import AttentionMap, Prediction, Selection, Status
    from wsi_ats.settings import Settings
    from wsi_ats.slides import Slide, SlideRef, choose_reader, open_slide
    from wsi_ats.tables.manifest import read_manifest
    from wsi_ats.tasks.targets import Target
    from wsi_ats.training.fit import fit

__all__ = [
    "AttentionMap",
    "AttentionSampler",
    "Draw",
    "Example",
    "Grid",
    "Level",
    "LoadedModel",
    "Overview",
    "Prediction",
    "Region",
    "Scored",
    "Selection",
    "Settings",
    "Slide",
    "SlideRef",
    "Status",
    "Target",
    "TileReader",
    "TissueMask",
    "WsiAtsError",
    "build_model",
    "choose_reader",
    "draw",
    "find_tissue",
    "fit",
    "grid_for",
    "load_model",
    "open_slide",
    "read_manifest",
    "read_overview",
    "read_thumbnail",
    "read_tiles",
    "save_model",
]

# The same names as above, for use at run time.
_HOMES = {
    "errors": ("WsiAtsError",),
    "geometry": ("Grid", "Level", "Region"),
    "models.batches": ("Example", "TileReader"),
    "models.checkpoints": ("load_model", "save_model"),
    "models.scoring": ("LoadedModel", "Scored"),
    "nn.model": ("AttentionSampler", "build_model"),
    "nn.sampling": ("Draw", "draw"),
    "overview.overview": ("read_overview",),
    "overview.records": ("Overview", "TissueMask"),
    "overview.tiles": ("grid_for", "read_thumbnail", "read_tiles"),
    "overview.tissue": ("find_tissue",),
    "results.records": ("AttentionMap", "Prediction", "Selection", "Status"),
    "settings": ("Settings",),
    "slides": ("Slide", "SlideRef", "choose_reader", "open_slide"),
    "tables.manifest": ("read_manifest",),
    "tasks.targets": ("Target",),
    "training.fit": ("fit",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
