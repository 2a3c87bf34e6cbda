"""Short training on tiny slides, and the files that it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from wsi_ats.errors import SlideReadError
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.checkpoints import read_record
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tables.files import read_csv
from wsi_ats.tasks.targets import Target
from wsi_ats.training.fit import Trained, fit

torch.set_num_threads(1)  # tiny networks, and a subprocess that must round as this process does


TARGET = Target("classification", ("pink", "violet"))
CPU = torch.device("cpu")
SETTINGS = Settings().with_values(
    [
        *("tile.size=16", "thumbnail.pixels_per_cell=4", "thumbnail.tissue=none"),
        *("model.backbone=test_resnet", "model.pretrained=false", "sampling.tiles=3", "training.epochs=0"),
        *("training.attention_epochs=0", "training.joint_epochs=3", "training.slides_per_step=3"),
        *("training.head_learning_rate=0.01", "training.gate_learning_rate=0.01"),
        *("training.feature_dropout=0.0", "training.calibration_tiles=40", "training.precision=float32"),
    ]
)

# Calibration, the first epoch with its validation, by attention and uniformly, and the middle of the second.
INTERRUPTED_READ = 8 + 8 + 2 * 4 + 5


def slide_of(name: str) -> MemorySlide:
    """A slide of 4 x 5 cells with noise; the last letter of its name is its class, in half of its cells."""
    seed, target = int(name[1:-1]), "pv".index(name[-1])
    generator = np.random.default_rng(seed)
    pixels = generator.normal((200, 130, 190), 25, (64, 80, 3))
    if target:
        for cell in generator.permutation(20)[:10]:
            row, column = divmod(int(cell), 5)
            pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] -= (90, 20, 0)
    return MemorySlide([pixels.clip(0, 255).astype(np.uint8)], mpp=0.5, path=name)


def example(name: str, settings: Settings = SETTINGS) -> Example:
    overview = read_overview(slide_of(name), settings)
    return Example(SlideRef(name, name, name), overview, (float("pv".index(name[-1])),))


TRAINING = [example(f"s{i}{'pv'[i % 2]}") for i in range(8)]
VALIDATION = [example(f"s{i}{'pv'[i % 2]}") for i in range(20, 24)]


def run(folder: Path, *changes: str, **options):
    """The model of :func:`trained`."""
    return trained(folder, *changes, **options).model


def trained(
    folder: Path,
    *changes: str,
    examples=TRAINING,
    validation=VALIDATION,
    on_epoch=lambda row: None,
    opener=lambda ref: slide_of(ref.id),
    threads: int = 2,
    reader: TileReader | None = None,
    **options,
) -> Trained:
    with reader or TileReader(threads, opener) as reader:
        return fit(
            examples,
            validation,
            SETTINGS.with_values(changes),
            target=TARGET,
            folder=folder,
            device=CPU,
            on_epoch=on_epoch,
            reader=reader,
            **options,
        )


def trusting(trust):
    """Trust attention whatever the result on four slides, to test what follows."""

    def trusted(model, *args, **options):
        found = trust(model, *args, **options)
        model.attention_scale.fill_(found.scale or 1.0)
        return replace(found, scale=found.scale or 1.0)

    return trusted


def assert_same_weights(one, other) -> None:
    for (name, value), its in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, its), name


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step_*"))


def progress(folder: Path) -> dict:
    return read_record(newest(folder))["record"]


def metrics_in(folder: Path) -> dict[str, list[str]]:
    return {name: column for name, column in read_csv(folder / "metrics.csv").items() if name != "seconds"}


class Unreadable(MemorySlide):
    """Opens, but gives no pixels after so many reads."""

    left = 0

    def read_regions(self, *args):
        if self.left <= 0:
            raise SlideReadError(self.path, "tile 3 is damaged")
        self.left -= 1
        return super().read_regions(*args)


def unreadable(*names: str, left: int = 0):
    def opener(ref):
        slide = slide_of(ref.id)
        if ref.id in names:
            slide = Unreadable(slide._pyramid, mpp=0.5, path=ref.id)
            slide.left = left
        return slide

    return opener
