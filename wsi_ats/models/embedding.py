"""Features of the tissue tiles of a slide, from an encoder to a file that other tools read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wsi_ats.bags.writing import BagWriter
from wsi_ats.geometry import IntArray
from wsi_ats.models.base import draw_seed
from wsi_ats.models.encoding import TileBatches, encode_parts
from wsi_ats.models.frozen import fingerprint
from wsi_ats.nn.encoder import TileEncoder, build_encoder
from wsi_ats.nn.precision import resolve
from wsi_ats.overview.records import TissueMask
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Slide


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder with what a file of its features must tell.

    Parameters
    ----------
    network
        The encoder in evaluation mode; only :meth:`~wsi_ats.nn.encoder.TileEncoder.raw` is used.
    name
        Its name, as ``model.backbone`` gives it.
    digest
        Fingerprint of its weights and of the normalisation of pixels.
    precision
        Number format in which it computes: ``float32`` or ``bfloat16``.
    """

    network: TileEncoder
    name: str
    digest: str
    precision: str


def load_encoder(settings: Settings, device: torch.device | None = None) -> NamedEncoder:
    """Load the encoder that settings name.

    Parameters
    ----------
    settings
        Section ``model``, ``tile.size`` and ``scoring.precision`` are used.
    device
        Device of the network; the CPU by default.

    Raises
    ------
    ModelError
        When the name is unknown, or the weights are missing, do not fit or cannot be downloaded.

    Examples
    --------
    >>> choices = ["model.backbone=test_vit", "model.pretrained=false", "tile.size=64"]
    >>> encoder = load_encoder(Settings().with_values([*choices, "scoring.precision=float32"]))
    >>> encoder.name, encoder.network.width, encoder.precision
    ('test_vit', 64, 'float32')
    """
    model, device = settings.model, device or torch.device("cpu")
    network = build_encoder(
        model.backbone, pretrained=model.pretrained, checkpoint=model.checkpoint, size=settings.tile.size
    )
    digest = fingerprint(network)  # before the weights are on a GPU
    precision = str(resolve(settings.scoring.precision, device, settings.tile.size))
    return NamedEncoder(network.to(device).eval(), model.backbone, digest, precision.removeprefix("torch."))


def choose_tiles(tissue: TissueMask, tiles: int | None, *, seed: int, slide_id: str) -> IntArray:
    """Return all tissue cells of a slide, or a uniform draw of them without replacement.

    Parameters
    ----------
    tissue
        The tissue.
    tiles
        Number of tiles; ``None`` for all. A slide with fewer has all of them.
    seed, slide_id
        They decide the draw; see :func:`wsi_ats.models.base.draw_seed`.

    Returns
    -------
    ndarray of int64, shape (n,)
        Flat cell numbers, sorted.
    """
    cells = tissue.cells
    if tiles is None or tiles >= len(cells):
        return cells
    generator = np.random.default_rng(draw_seed(seed, slide_id, 0))
    return np.sort(generator.choice(cells, tiles, replace=False))


def embed_cells(
    path: Path,
    slide: Slide,
    tissue: TissueMask,
    cells: IntArray,
    *,
    slide_id: str,
    encoder: NamedEncoder,
    batches: TileBatches,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write the features of the tiles of cells, as they are encoded; memory holds those of a few tiles.

    Parameters
    ----------
    path
        The file, which :class:`wsi_ats.bags.writing.BagWriter` describes.
    slide
        The open slide.
    tissue
        Its tissue; only the grid is used.
    cells
        Flat cell numbers, shape (n,); without any, the file has no rows.
    slide_id
        The slide's id.
    encoder
        Facts for the file.
    batches
        The same encoder, which other slides may share.
    dtype
        Type of the stored features.

    Raises
    ------
    SlideError
        When a tile cannot be read.
    FeatureError
        When a feature is NaN or infinite, or too large for float16.
    ArtifactError
        When the file cannot be written.
    """
    full, grid = slide.levels[0], tissue.grid
    with BagWriter(
        path,
        name=slide_id,
        size=(full.width, full.height),
        mpp=slide.mpp.value,
        side=grid.cell,
        width=encoder.network.width,
        overlap=grid.cell - grid.pitch,
        tile_size=grid.tile_size,
        encoder=encoder.name,
        digest=encoder.digest,
        precision=encoder.precision,
        dtype=dtype,
    ) as writer:
        for part, features in encode_parts(batches, partial(read_tiles, slide, grid), cells):
            writer.append(grid.boxes(part)[:, :2], features.float().cpu().numpy())
