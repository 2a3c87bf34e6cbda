"""Cost of scoring a slide: of each stage, and relative to encoding all tissue.

Run ``python -m benchmarks.scoring``. Leave ``OMP_NUM_THREADS`` unset, or set it to 1: each side computes with
one thread. The model is untrained, which does not change the cost.

``split``: seconds of each stage alone, and the compressed bytes that it reads.
``exhaustive``: scoring relative to reading every tissue tile with OpenSlide and Pillow and encoding batches
of 64 with the same backbone, in float32, and in bfloat16 with its fastest layout. Tiles spread over all the
tissue are measured; ``extrapolated_s`` is ``measured_s * all_tiles / measured_tiles``. Nothing else is
extrapolated: ``all_bytes`` is the sum over all tissue tiles in the file's index, ``scoring_bytes`` the sum
over those that scoring read, and ``scoring_bytes_asked`` all bytes that the process read from files, with the
index. Goals on the slide of 80,000 pixels: ``times`` 400, ``bytes_times`` 80.

Both sides of each ratio take turns; numbers are medians over rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from torch import nn

from benchmarks import reading
from benchmarks.report import Rows, command, report
from benchmarks.synthetic import score, slide_of, untrained
from benchmarks.timing import interleaved, process_io
from wsi_ats.geometry import IntArray
from wsi_ats.nn.backbone import create_backbone
from wsi_ats.nn.precision import autocast, resolve
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.records import Prediction
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.wrappers import CountingSlide

_OUR_BATCH, _THEIR_BATCH = 8, 64


def scored(path: Path, model: Any, settings: Settings) -> Prediction:
    """Open a slide and score it."""
    with open_slide(path) as slide:
        return score(model, slide, settings).prediction


def encode(model: Any, tiles: torch.Tensor, settings: Settings) -> None:
    """Encode ready tiles as scoring does."""
    for part in tiles.split(_OUR_BATCH):
        with autocast(settings.scoring.precision, part.device, part.shape[1]):
            model.embed(part)


@torch.inference_mode()
def split(path: Path, model: Any, settings: Settings, rounds: int) -> Rows:
    """Time the stages of scoring a slide, and the whole."""
    with open_slide(path) as inner:
        slide = CountingSlide(inner)
        overview = read_overview(slide, settings)
        tissue, overview_bytes = overview.tissue, slide.stored_bytes_read
        selection = score(model, inner, settings).selection
        assert selection is not None
        drawn = np.unique(selection.cells)
        tiles = torch.from_numpy(read_tiles(slide, tissue.grid, drawn))
        all_bytes = slide.stored_bytes_read
        assert overview_bytes is not None
        assert all_bytes is not None
        view, cells = torch.from_numpy(overview.thumbnail), torch.from_numpy(tissue.cells)
        stages: dict[str, Callable[[], Any]] = {
            "open": lambda: open_slide(path).close(),
            "overview": partial(read_overview, inner, settings),
            "attention": partial(model.score_cells, view, cells, tissue.grid.shape),
            "tiles": partial(read_tiles, inner, tissue.grid, drawn),
            "network": partial(encode, model, tiles, settings),
        }
        times = interleaved(stages | {"predict": partial(scored, path, model, settings)}, rounds)
    size = {"slide": path.stem, "backbone": settings.model.backbone, "threads": torch.get_num_threads()}
    read_bytes = {"overview": overview_bytes, "tiles": all_bytes - overview_bytes}
    return [
        {**size, "stage": name, "seconds": times[name].seconds}
        | {"share": times[name].seconds / times["predict"].seconds}
        | {"bytes": read_bytes.get(name), "rounds": rounds}
        for name in stages
    ]


def all_tissue(path: Path, settings: Settings) -> tuple[IntArray, int]:
    """Return corners (n, 2) of all tissue tiles in level-0 pixels, and their compressed bytes in the file."""
    side = settings.tile.size
    with open_slide(path) as slide:
        tissue = read_overview(slide, settings).tissue
        corners = tissue.grid.boxes(tissue.cells)[:, :2]
        if tissue.grid.cell != side:
            raise ValueError(f"{path}: a tile is {tissue.grid.cell} pixels wide, not {side}; set tile.mpp")
        stored = slide.stored_bytes(0, corners, side, side)
    assert stored is not None
    return corners, stored


@torch.inference_mode()
def encode_all(path: Path, corners: IntArray, side: int, network: nn.Module, precision: str) -> None:
    """Encode tiles as a pipeline does that encodes all of them."""
    layout = torch.contiguous_format if precision == "float32" else torch.channels_last
    mean, std = (
        torch.tensor(each).reshape(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with openslide.OpenSlide(path) as slide:
        for first in range(0, len(corners), _THEIR_BATCH):
            images = reading.with_openslide(slide, corners[first : first + _THEIR_BATCH], side)
            batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            with autocast(precision, batch.device, side):
                network(((batch - mean) / std).contiguous(memory_format=layout))


def exhaustive(path: Path, model: Any, settings: Settings, count: int, rounds: int) -> Rows:
    """Compare scoring a slide with encoding all of its tissue."""
    side, backbone = settings.tile.size, settings.model.backbone
    corners, stored = all_tissue(path, settings)
    chosen = corners[np.linspace(0, len(corners) - 1, min(count, len(corners))).round().astype(int)]
    made = create_backbone(backbone, pretrained=False, size=side).network.eval()
    fast = create_backbone(backbone, pretrained=False, size=side).network.eval()
    networks = {"float32": made, "bfloat16": fast.to(memory_format=torch.channels_last)}
    sides: dict[str, Callable[[], Any]] = {
        precision: partial(encode_all, path, chosen, side, network, precision)
        for precision, network in networks.items()
    }
    times = interleaved(sides | {"scoring": partial(scored, path, model, settings)}, rounds)
    before = process_io("rchar")
    prediction = scored(path, model, settings)
    asked, read = process_io("rchar") - before, prediction.bytes_read
    assert read is not None
    precision_of_scoring = resolve(settings.scoring.precision, torch.device("cpu"), side)
    rows: Rows = []
    for precision in networks:
        extrapolated = times[precision].seconds * len(corners) / len(chosen)
        rows.append(
            {
                "slide": path.stem,
                "backbone": backbone,
                "threads": torch.get_num_threads(),
                "precision": precision,
                "measured_tiles": len(chosen),
                "measured_s": times[precision].seconds,
                "all_tiles": len(corners),
                "extrapolated_s": extrapolated,
                "scoring_precision": str(precision_of_scoring).removeprefix("torch."),
                "scoring_tiles": prediction.tiles_read,
                "scoring_s": times["scoring"].seconds,
                "times": extrapolated / times["scoring"].seconds,
                "all_bytes": stored,
                "scoring_bytes": read,
                "scoring_bytes_asked": asked,
                "bytes_times": stored / read,
                "bytes_times_asked": stored / asked,
                "rounds": rounds,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and write them to ``scoring_*.csv``."""
    parser = command(__doc__, settings=True, slides=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[20_000, 80_000], help="of the slides, pixels"
    )
    parser.add_argument("--tiles", type=int, default=512, help="measured where all tissue is encoded")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    common = ["model.backbone=resnet18", "sampling.tiles=64", "model.pretrained=false"]
    settings = Settings().with_values([*common, *options.changes])
    model = untrained(settings)
    paths = [slide_of(options.slides, side) for side in options.sides]
    rows = [row for path in paths for row in split(path, model, settings, options.rounds)]
    report("scoring: split", "scoring_split", rows, options.out, machine=True)
    rows = [row for path in paths for row in exhaustive(path, model, settings, options.tiles, options.rounds)]
    title = "scoring and encoding all tissue (extrapolated from the measured tiles)"
    report(title, "scoring_exhaustive", rows, options.out, machine=True)


if __name__ == "__main__":
    main()
