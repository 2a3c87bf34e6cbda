"""Speed of training on features: attention sampling beside torchmil's attention MIL on the same files.

Run ``pip install torchmil``, then ``python -m benchmarks.bags``. Files of random features are written once.
Each side trains an epoch over all slides, with their features read from the files, which are soon in the
cache of the system. Sides take turns; ``ms_a_slide`` is a median over rounds, and ``speed`` how many times as
many slides a second pass as with torchmil. ``reading`` reads the drawn tiles alone: the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.report import command, report
from benchmarks.synthetic import TARGET
from benchmarks.timing import interleaved
from wsi_ats.bags.matched import MatchedBag
from wsi_ats.bags.matching import match
from wsi_ats.bags.opening import open_bag
from wsi_ats.bags.writing import BagWriter
from wsi_ats.geometry import Grid
from wsi_ats.models.base import draw_seed
from wsi_ats.models.batches import Example, ahead
from wsi_ats.models.kinds import method_for, model_for
from wsi_ats.models.stored import StoredFeatures
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef

TORCHMIL = "torchmil ABMIL, all tiles"
_SIDE = 256
_MPP = 0.5


def write_bags(folder: Path, *, slides: int, cells: int, width: int) -> list[Path]:
    """Write features of square slides of ``cells`` x ``cells`` tiles, unless they exist."""
    paths = [folder / f"bag_{cells}_{width}_{number}.h5" for number in range(slides)]
    places = np.stack(np.divmod(np.arange(cells**2), cells)[::-1], axis=1) * _SIDE
    for number, path in enumerate(paths):
        if path.exists():
            continue
        size = (cells * _SIDE, cells * _SIDE)
        with BagWriter(path, name=path.stem, size=size, mpp=_MPP, side=_SIDE, width=width) as writer:
            rows = np.random.default_rng(number).normal(size=(cells**2, width)).astype(np.float32)
            writer.append(places, rows)
    return paths


def examples_of(paths: Sequence[Path], cells: int) -> tuple[list[Example], dict[str, MatchedBag]]:
    """Return slides with grey thumbnails and alternating labels, and their features."""
    grid = Grid(cells * _SIDE, cells * _SIDE, cell=_SIDE, tile_size=_SIDE)
    tissue = TissueMask(grid, np.ones(grid.shape, np.float32), np.ones(grid.shape, np.bool_))
    overview = Overview(np.full((cells * 8, cells * 8, 3), 180, np.uint8), tissue)
    examples, bags = [], {}
    for number, path in enumerate(paths):
        label = TARGET.encode(TARGET.names[number % 2])
        examples.append(Example(SlideRef(path.stem, str(path), path.stem), overview, label))
        bag = open_bag(path, mpp=_MPP)
        bags[path.stem] = MatchedBag(bag, match(bag, grid, tissue, mpp=_MPP))
    return examples, bags


def sampling_epoch(
    examples: Sequence[Example], reader: StoredFeatures, settings: Settings, *, attends: bool
) -> Callable[[], None]:
    """Return an epoch of joint training, in which all of the model learns, or one of the classifier alone."""
    model = model_for(settings, TARGET).train()
    model.attention_scale.fill_(float(attends))
    method = method_for(model, settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    count = settings.training.slides_per_step
    steps = [examples[first : first + count] for first in range(0, len(examples), count)]

    def epoch() -> None:
        seeded = ((step, [draw_seed(0, each.ref.id, 0) for each in step]) for step in steps)
        for (step, _), finish in ahead(seeded, lambda each: method.begin(each[0], reader, each[1]), 1):
            labels = torch.tensor([int(each.target[0]) for each in step])
            F.cross_entropy(finish().outputs, labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def mil_epoch(paths: Sequence[Path], width: int) -> Callable[[], None]:
    """Return an epoch of torchmil's model, a slide a step, as its examples train it."""
    from torchmil.models import ABMIL

    model = ABMIL((width,), gated=True, att_act="tanh")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def epoch() -> None:
        for number, path in enumerate(paths):
            with h5py.File(path) as file:
                bag = torch.from_numpy(file["features"][:])
            logit = model(bag[None])
            F.binary_cross_entropy_with_logits(logit, torch.tensor([float(number % 2)])).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def main() -> None:
    """Print and write ``bags.csv``."""
    parser = command(__doc__)
    parser.add_argument("--data", type=Path, default=Path("results/bags"), help="for the files of features")
    parser.add_argument("--slides", type=int, default=16)
    parser.add_argument("--cells", type=int, default=100, help="tiles along a side of a slide")
    parser.add_argument("--width", type=int, default=1024, help="features of a tile")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    paths = write_bags(options.data, slides=options.slides, cells=options.cells, width=options.width)
    settings = Settings().with_values([f"model.backbone=features:{options.width}", "sampling.tiles=64"])
    examples, bags = examples_of(paths, options.cells)
    cells = np.random.default_rng(0).choice(options.cells**2, 64, replace=False)
    with StoredFeatures(None, bags) as reader:  # type: ignore[arg-type]  # slides themselves are not read
        sides = {
            TORCHMIL: mil_epoch(paths, options.width),
            "attention sampling, 64 tiles": sampling_epoch(examples, reader, settings, attends=True),
            "its classifier, 64 tiles": sampling_epoch(examples, reader, settings, attends=False),
            "reading": lambda: [bag.read(cells) for bag in bags.values()],
        }
        times = interleaved(sides, options.rounds)
    rows = [
        {
            "side": side,
            "tiles": options.cells**2,
            "width": options.width,
            "ms_a_slide": 1e3 * each.seconds / options.slides,
            "processor_ms_a_slide": 1e3 * each.processor_seconds / options.slides,
            "speed": times[TORCHMIL].seconds / each.seconds,
        }
        for side, each in times.items()
    ]
    report("training on features", "bags", rows, options.out, machine=True)


if __name__ == "__main__":
    main()
