"""Cost of the features of all tissue tiles: ``wsi-ats embed`` relative to a plain loop, and their floor.

Run ``python -m benchmarks.embedding`` on a machine without other load, with ``OMP_NUM_THREADS`` unset.

``embed`` is our stage on a local cluster as the command starts it. ``loop`` is the usual recipe: a
PyTorch data set of coordinates, OpenSlide's ``read_region(...).convert("RGB")``, normalisation, batches of
64, and one loader process for each core but one, which exist before the clock starts, as our workers do.
Tissue is found before the clock starts for the loop, and after it for ``embed``, which also schedules slides
and writes files and records; the loop keeps its features in memory. The network is loaded before the clock
starts for both. Both encode the same tiles, which is checked, with the same weights, in the same precision,
and with one torch thread for each core in total. On a GPU, our stage has one process.

The floors encode the same number of tiles that are in memory already: ``embed_floor`` in our batches,
``loop_floor`` in batches of 64 with all threads. ``times`` is the time of the loop by that of ``embed``,
``by_floor`` that of ``embed`` by the lesser floor. All four take turns; numbers are medians over rounds.
Weights are random, which does not change the cost.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from benchmarks.report import Rows, command, report
from benchmarks.scoring import all_tissue
from benchmarks.synthetic import slide_of
from benchmarks.timing import interleaved
from pipelines._carry_out import complete, workers_for
from pipelines._runs import Execution
from pipelines.embed import EmbedTask
from wsi_ats.models.embedding import NamedEncoder, load_encoder
from wsi_ats.models.encoding import TileBatches
from wsi_ats.nn.backbone import create_backbone
from wsi_ats.nn.precision import autocast
from wsi_ats.settings import Settings
from wsi_ats.tables.manifest import read_manifest

BATCH = 64

# Tiles of the floors in memory; they are encoded as often as there are tiles.
_IN_MEMORY = 256

# Slides of nearly one size, so that all workers end together.
SIDES = (8_000, 8_100, 8_200, 8_300)

# Networks with the side of their tiles.
NETWORKS = ("resnet18:256", "vit_small_patch16_224:224")

Tile = tuple[Path, int, int]
"""A slide, and the top-left corner (x, y) of a tile in level-0 pixels."""


class Tiles(Dataset[torch.Tensor]):
    """Tiles of slides, read by OpenSlide and normalised in the process of the loader."""

    def __init__(self, tiles: Sequence[Tile], side: int, encoder: NamedEncoder) -> None:
        self.tiles, self.side = tiles, side
        self.mean, self.std = encoder.network.mean.cpu() / 255, encoder.network.std.cpu() / 255
        self.open: dict[Path, Any] = {}  # handles do not survive the way to another process

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, number: int) -> torch.Tensor:
        path, x, y = self.tiles[number]
        if path not in self.open:
            self.open[path] = openslide.OpenSlide(path)
        image = self.open[path].read_region((x, y), 0, (self.side, self.side)).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std


def loader_of(tiles: Sequence[Tile], side: int, encoder: NamedEncoder) -> DataLoader[torch.Tensor]:
    """Return a loader with one process for each core but one, which stay between rounds."""
    return DataLoader(
        Tiles(tiles, side, encoder),
        batch_size=BATCH,
        num_workers=max(1, _cores() - 1),
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn",  # a process with threads, as ours, must not be forked
    )


@torch.inference_mode()
def loop(
    loader: DataLoader[torch.Tensor], encoder: NamedEncoder, precision: str, device: torch.device
) -> torch.Tensor:
    """Encode all tiles of a loader."""
    torch.set_num_threads(_cores())
    found = []
    for images in loader:
        with autocast(precision, device, images.shape[-1]):
            features = encoder.network.network(_laid_out(images.to(device, non_blocking=True), encoder))
        found.append(features.float().cpu())
    return torch.cat(found)


def _laid_out(images: torch.Tensor, encoder: NamedEncoder) -> torch.Tensor:
    """In bfloat16 channels last is faster, as in ``benchmarks.scoring``."""
    layout = torch.contiguous_format if encoder.precision == "float32" else torch.channels_last
    return images.contiguous(memory_format=layout)


@torch.inference_mode()
def loop_floor(
    images: torch.Tensor, tiles: int, encoder: NamedEncoder, precision: str, device: torch.device
) -> None:
    """Encode normalised images, shape (n, 3, h, w), in batches of 64, again and again up to ``tiles``."""
    torch.set_num_threads(_cores())
    for first in range(0, tiles, BATCH):
        start = first % len(images)
        batch = images[start : start + min(BATCH, tiles - first)]
        with autocast(precision, device, batch.shape[-1]):
            encoder.network.network(_laid_out(batch.to(device), encoder)).float().cpu()


def embed_floor(pixels: np.ndarray[Any, Any], tiles: int, batches: TileBatches) -> None:
    """Encode tiles, shape (n, h, w, 3), in our batches, again and again up to ``tiles``."""
    torch.set_num_threads(1)
    begun = [
        batches.encode(pixels[: min(len(pixels), tiles - first)]) for first in range(0, tiles, len(pixels))
    ]
    for each in begun:
        each.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def settings_of(backbone: str, side: int, folder: Path, changes: Sequence[str]) -> Settings:
    """Save random weights, and return settings that load them."""
    path = folder / f"{backbone}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_backbone(backbone, pretrained=False, size=side).network
    save_file(network.state_dict(), path)
    own = [f"model.backbone={backbone}", f"model.checkpoint={path}", f"tile.size={side}"]
    return Settings().with_values([*own, *changes])


def measured(paths: Sequence[Path], settings: Settings, folder: Path, rounds: int) -> Rows:
    """Compare the four sides on some slides."""
    side, precision = settings.tile.size, settings.scoring.precision
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours, theirs = load_encoder(settings, device), load_encoder(settings, device)
    if ours.precision == "float32":
        theirs.network.network.to(memory_format=torch.contiguous_format)
    corners = {path: all_tissue(path, settings)[0] for path in paths}
    tiles = [(path, *corner) for path, own in corners.items() for corner in own.tolist()]
    refs = [ref for path in paths for ref in read_manifest(path)]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (min(_IN_MEMORY, len(tiles)), side, side, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    number, lanes = count(), 1 if device.type == "cuda" else _cores()
    loader = loader_of(tiles, side, theirs)

    def task_in(out: Path) -> EmbedTask:
        return EmbedTask(out, "benchmark", settings, ours.digest, None, 0, "float32")

    def stage(client: Any) -> None:
        task = task_in(folder / f"{settings.model.backbone}_{next(number)}")
        results = complete(task, refs, Execution(scheduler=client))
        task.write_tables(results.rows)
        encoded = sum(row["tiles"] for row in results.rows if row["tiles"] is not None)
        if encoded != len(tiles):
            raise ValueError(f"{encoded} tiles were encoded, not {len(tiles)}; {dict(results.failed)}")

    with (
        TileBatches(ours.network.raw, device=device, precision=precision, lanes=lanes, threads=1) as batches,
        workers_for(task_in(folder), Execution(), tasks=len(refs)) as (client, _),
    ):
        times = interleaved(
            {
                "embed": partial(stage, client),
                "loop": partial(loop, loader, theirs, precision, device),
                "embed_floor": partial(embed_floor, pixels, len(tiles), batches),
                "loop_floor": partial(loop_floor, images, len(tiles), theirs, precision, device),
            },
            rounds,
        )
    seconds = {name: each.seconds for name, each in times.items()}
    size = {"backbone": settings.model.backbone, "side": side, "precision": ours.precision}
    size |= {"device": device.type, "cores": _cores(), "slides": len(paths), "tiles": len(tiles)}
    rates = {f"{name}_tiles_per_s": len(tiles) / each for name, each in seconds.items()}
    floor = min(seconds["embed_floor"], seconds["loop_floor"])
    ratios = {"times": seconds["loop"] / seconds["embed"], "by_floor": seconds["embed"] / floor}
    return [
        {**size, **{f"{name}_s": each for name, each in seconds.items()}, **rates, **ratios, "rounds": rounds}
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write it to ``embedding.csv``."""
    parser = command(__doc__, settings=True, slides=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=SIDES, help="of slides, all different, pixels"
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME:SIDE")
    options = parser.parse_args(arguments)
    if len(set(options.sides)) < len(options.sides):  # there is one slide of each side
        parser.error(f"--sides must be different numbers, not {options.sides}")
    paths = [slide_of(options.slides, side) for side in options.sides]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for name, _, side in (each.partition(":") for each in options.networks)
            for row in measured(
                paths,
                settings_of(name, int(side), Path(folder), options.changes),
                Path(folder),
                options.rounds,
            )
        ]
    report("features of all tissue tiles", "embedding", rows, options.out, machine=True)


if __name__ == "__main__":
    main()
