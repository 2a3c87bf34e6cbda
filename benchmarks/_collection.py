"""What benchmarks of scoring share: the machine by name, models without training, slides, tasks for workers.

Torch is loaded by nothing here that a process loads at its start: a worker reads how many cores are its share
when torch is loaded, and is told just before that.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines._records import Row, SlideTask
from pipelines.score import ScoreTask
from wsi_ats.models.card import read_card
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.targets import Target

if TYPE_CHECKING:
    from wsi_ats.testing.bank import TileBank

TARGET = Target("classification", ("negative", "positive"))

# What of a processor decides how fast it multiplies.
_MULTIPLIES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def hardware() -> str:
    """Name the processor, its cores, and what it multiplies with."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.machine())
    if "model" in facts:  # a virtual machine may call its processor by no better name than its maker's
        name += f" (family {facts.get('cpu family')} model {facts['model']})"
    flags = [flag for flag in _MULTIPLIES if flag in facts.get("flags", "").split()]
    return ", ".join([name, f"{os.cpu_count()} cores", " ".join(flags)]).rstrip(", ")


def say(part: str, row: Mapping[str, Any]) -> None:
    """Print a row as soon as it is known."""
    cells = (f"{name} {_short(value)}" for name, value in row.items() if name != "hardware")
    print(f"{part}: {', '.join(cells)}", flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of rows."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_model(folder: Path, settings: Settings) -> Path:
    """Write a model that has learned nothing, whose attention is random and not uniform."""
    import torch

    from wsi_ats.models.checkpoints import model_for, save_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_for(settings, TARGET).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("logit.weight"):
                torch.nn.init.normal_(parameter)
    save_model(folder, model, settings, TARGET)
    return folder.resolve()


def score_task(out: Path, model: Path) -> ScoreTask:
    """Score slides with a model, by its own settings."""
    card = read_card(model)
    return ScoreTask(out, "benchmark", model, card.digest, card.target, card.settings, seed=0)


def links(paths: Sequence[Path], folder: Path, count: int) -> list[SlideRef]:
    """Make a collection of a few slides: each has many names, and takes its turn."""
    folder.mkdir(parents=True, exist_ok=True)
    refs = []
    for number in range(count):
        source = paths[number % len(paths)].resolve()
        link = folder.resolve() / f"{number:04d}_{source.name}"
        link.unlink(missing_ok=True)
        link.symlink_to(source)
        refs.append(SlideRef.from_path(link))
    return refs


def tiny_slides(folder: Path, count: int) -> list[Path]:
    """Write slides of tiles of 64 pixels, unless they are there; each has 16 x 16 tiles."""
    from wsi_ats.testing.synthetic import write_collection

    made = folder / f"tiny_{count}"
    if not (made / "labels.csv").exists():  # which is written last
        write_collection(made, slides=count, width=1024, height=1024, tile_size=64, seed=0, variants=2)
    return sorted(made.glob("*.tif"))


def small_slides(folder: Path, count: int, *, tile_size: int = 256) -> list[Path]:
    """Write slides of 4 to 12 tissue tiles each, as small biopsies have, unless they are there."""
    from wsi_ats.testing.bank import make_tile_bank

    paths = [folder / f"small_{tile_size}_{number}.tif" for number in range(count)]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        bank = make_tile_bank(tile_size, 0, variants=4, palettes=1)
        for number, path in enumerate(paths):
            _write_small(path, bank, np.random.default_rng(number))
    return paths


def _write_small(path: Path, bank: TileBank, rng: np.random.Generator) -> None:
    from wsi_ats.testing.layout import Kind
    from wsi_ats.testing.outlines import INSIDE
    from wsi_ats.testing.synthetic import write_tiff

    rows, columns = rng.integers(2, 4), rng.integers(2, 5)
    top, left = rng.integers(0, 8 - rows), rng.integers(0, 8 - columns)
    tiles = np.zeros((8, 8), dtype=np.int64)
    variants = rng.integers(0, bank.variants, (rows, columns))
    tiles[top : top + rows, left : left + columns] = bank.number(0, Kind.STROMA, INSIDE, variants)
    write_tiff(path, bank, tiles, 8 * bank.tile_size, 8 * bank.tile_size, 0.5)


def nothing(ref: SlideRef) -> None:
    """Do nothing with a slide."""


@dataclass(frozen=True)
class RecordTask(SlideTask):
    """Leaves a record of a slide and does nothing else: what a stage costs that has nothing to do."""

    stage, tables = "record", ("slides",)

    @property
    def columns(self) -> Mapping[str, str]:
        """Columns of the table."""
        return dict.fromkeys(("slide_id", "status", "error"), "string")

    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Give a row."""
        return {"slide_id": ref.id, "status": "done"}, ()

    def files(self, slide_id: str) -> Sequence[Path]:  # noqa: ARG002
        """There are none."""
        return ()


def loop(function: Callable[[SlideRef], Any], refs: Sequence[SlideRef]) -> float:
    """Call a function for each slide, one after the other; gives the seconds that it took."""
    begin = time.perf_counter()
    for ref in refs:
        function(ref)
    return time.perf_counter() - begin


def torch_threads() -> int:
    """How many threads torch computes with in this process."""
    import torch

    return torch.get_num_threads()
