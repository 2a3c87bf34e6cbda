"""Whether the 90 % interval of scoring holds the truth nine times in ten, and what stopping early does to it.

Run ``python -m benchmarks.coverage``. A model is trained as the demo trains it, and **all** tissue tiles of
held-out slides are encoded, so that its exact log-odds are known. Tiles are then drawn as scoring draws
them, and of every R draws the interval ``mean +- t * standard error`` is held against

- the exact log-odds, from all tiles;
- the expected log-odds, the mean of all draws of the slide. It differs from the exact ones by the bias that a
  draw of its size has with gated pooling, and that no number of draws takes away.

The table tells which share of the intervals holds each, with the binomial error of that share, and how wide
they are on average to each side; then, of two estimates, the root mean square error, and the absolute bias as
a mean over slides: of the ``mean`` of the draws' log-odds, and of the log-odds of their tiles ``pooled`` into
one estimate before the head. ``linear`` is the same network with its gate left out. Lines with a tolerance
are of anytime scoring: draws are added until the standard error is within it.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student
from torch import Tensor

from pipelines.demo import SETTINGS
from wsi_ats.models.base import WeightedTiles, draw_seed
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.calibration import embed_in_parts
from wsi_ats.models.checkpoints import load_model, save_model
from wsi_ats.models.sampling import draw_cells, weigh
from wsi_ats.models.stopping import MOST_DRAWS
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.pooling import POOLINGS
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.overview import look
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.files import write_csv
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.tasks.evaluation import auc
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.synthetic import write_collection
from wsi_ats.training.fit import fit

RESULTS = Path(__file__).parent / "results"
LEVEL = 0.9
TARGET = Target("classification", ("negative", "positive"))
_STRIDE = 20  # draws between the beginnings of two runs of anytime scoring

Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Parameters
    ----------
    training, held_out, side, epochs
        See :class:`pipelines.demo.Scale`.
    draws
        Of each slide and size of draw.
    tiles
        Sizes of draw.
    repeats
        Intervals are made of so many draws.
    tolerances
        Of anytime scoring, as shares of the standard deviation between draws, that of the median slide.
    least
        Draws before it may stop.
    """

    training: int = 120
    held_out: int = 48
    side: int = 4096
    epochs: int = 8
    draws: int = 320
    tiles: tuple[int, ...] = (16, 64)
    repeats: tuple[int, ...] = (2, 4, 8, 16)
    tolerances: tuple[float, ...] = (0.5, 0.25)
    least: tuple[int, ...] = (2, 4, 8, 16)


@dataclass(frozen=True)
class Encoded:
    """A slide of which everything is known.

    Parameters
    ----------
    ref, tissue
        The slide and its tissue.
    attention
        Over the tissue cells, shape (K,).
    features
        Of all tissue tiles, shape (K, D).
    """

    ref: SlideRef
    tissue: TissueMask
    attention: Tensor
    features: Tensor


@dataclass(frozen=True)
class Draws:
    """What independent draws say of a slide.

    Parameters
    ----------
    slide
        The slide.
    exact
        The model's log-odds of the second class from all tiles.
    tiles
        Of each draw.
    log_odds
        Of each draw, shape (M,).
    """

    slide: Encoded
    exact: float
    tiles: Sequence[WeightedTiles]
    log_odds: np.ndarray

    @property
    def expected(self) -> float:
        """The mean of all draws."""
        return float(self.log_odds.mean())

    def part(self, first: int, size: int) -> list[int]:
        """Numbers of some draws in a row; the first follow upon the last."""
        return [number % len(self.tiles) for number in range(first, first + size)]


@torch.inference_mode()
def encode(model: AttentionSampler, settings: Settings, ref: SlideRef) -> Encoded:
    """Encode all tissue tiles of a slide."""
    with open_slide(ref) as slide:
        thumbnail, tissue = look(slide, settings)
        cells = torch.from_numpy(tissue.cells)
        attention = model.attend(torch.from_numpy(thumbnail), cells, tissue.grid.shape)
        features = embed_in_parts(model.embed, partial(read_tiles, slide, tissue.grid), tissue.cells, None)
    return Encoded(ref, tissue, attention, features)


def without_gate(model: AttentionSampler) -> AttentionSampler:
    """The same network with linear pooling."""
    plain = deepcopy(model)
    plain.gate, plain.pooling = None, POOLINGS["linear"]
    return plain


def log_odds(model: AttentionSampler, slide: Encoded, draws: Sequence[WeightedTiles]) -> float:
    """Log-odds of the second class from the tiles of some draws, pooled into one estimate."""
    cells = np.concatenate([each.cells for each in draws])
    features = slide.features[torch.from_numpy(np.searchsorted(slide.tissue.cells, cells))]
    return _log_odds(model, torch.cat([each.weight for each in draws]) / len(draws), features)


def _log_odds(model: AttentionSampler, weight: Tensor, features: Tensor) -> float:
    logits = model.classify(model.pool(weight, features))
    return (logits[1] - logits[0]).item()


def judge_draws(model: AttentionSampler, slide: Encoded, tiles: Sequence[WeightedTiles]) -> Draws:
    """Compute what a model says of each draw."""
    each = np.array([log_odds(model, slide, [one]) for one in tiles])
    return Draws(slide, _log_odds(model, slide.attention, slide.features), tiles, each)


def estimates(
    model: AttentionSampler, drawn: Sequence[Draws], parts: Sequence[Sequence[Sequence[int]]]
) -> Row:
    """Hold intervals and estimates against the truth.

    Parameters
    ----------
    model
        The model.
    drawn
        The draws of each slide.
    parts
        For each slide, of which draws each interval is made.
    """
    hits: dict[str, list[bool]] = {name: [] for name in ("exact", "expected", "pooled")}
    errors: dict[str, list[list[float]]] = {name: [] for name in ("mean", "pooled", "p_mean", "p_pooled")}
    widths, sizes, read = [], [], []
    for draws, own in zip(drawn, parts, strict=True):
        wrong: dict[str, list[float]] = {name: [] for name in errors}
        for part in own:
            values, tiles = draws.log_odds[part], [draws.tiles[number] for number in part]
            mean, pooled = float(values.mean()), log_odds(model, draws.slide, tiles)
            width = half_width(values)
            hits["exact"].append(abs(mean - draws.exact) <= width)
            hits["expected"].append(abs(mean - draws.expected) <= width)
            hits["pooled"].append(abs(pooled - draws.exact) <= width)
            wrong["mean"].append(mean - draws.exact)
            wrong["pooled"].append(pooled - draws.exact)
            wrong["p_mean"].append(_probability(values).mean() - _probability(draws.exact))
            wrong["p_pooled"].append(_probability(pooled) - _probability(draws.exact))
            widths.append(width)
            sizes.append(len(part))
            read.append(len(np.unique(np.concatenate([each.cells for each in tiles]))))
        for name, values in wrong.items():
            errors[name].append(values)
    row: Row = {
        "intervals": len(widths),
        "mean_draws": float(np.mean(sizes)),
        "mean_tiles": float(np.mean(read)),
    }
    for name, found in hits.items():
        share = float(np.mean(found))
        row[f"covers_{name}"] = share
        row[f"covers_{name}_error"] = float(np.sqrt(share * (1 - share) / len(found)))
    row["half_width"] = float(np.mean(widths))
    for name, slides in errors.items():
        row[f"rmse_{name}"] = float(np.sqrt(np.mean(np.concatenate(slides) ** 2)))
        row[f"bias_{name}"] = float(np.mean([abs(np.mean(own)) for own in slides]))
    return row


def half_width(values: np.ndarray) -> float:
    """Of the interval around the mean of some independent draws' log-odds."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(student.ppf((1 + LEVEL) / 2, len(values) - 1) * error)


def _probability(log_odds: Any) -> Any:
    return 1 / (1 + np.exp(-log_odds))


def fixed(model: AttentionSampler, drawn: Sequence[Draws], size: int) -> Row:
    """Judge a fixed number of draws; no draw is in two intervals."""
    parts = [
        [draws.part(first, size) for first in range(0, len(draws.tiles) - size + 1, size)] for draws in drawn
    ]
    return estimates(model, drawn, parts)


def anytime(model: AttentionSampler, drawn: Sequence[Draws], tolerance: float, least: int) -> Row:
    """Judge draws that were added until the error was within the tolerance.

    A run begins at every ``_STRIDE``-th draw. Those that are longer share draws with the next, so that the
    binomial error is too small where most are.
    """
    parts = []
    for draws in drawn:
        own = []
        for first in range(0, len(draws.tiles), _STRIDE):
            longest = draws.part(first, min(MOST_DRAWS, len(draws.tiles)))
            own.append(longest[: stopping_time(draws.log_odds[longest], tolerance, least)])
        parts.append(own)
    met = [
        _error(draws.log_odds[part]) <= tolerance
        for draws, own in zip(drawn, parts, strict=True)
        for part in own
    ]
    return {"within_tolerance": float(np.mean(met)), **estimates(model, drawn, parts)}


def _draw(slide: Encoded, settings: Settings, seed: int) -> WeightedTiles:
    logits = slide.attention.log()
    return weigh(logits, slide.tissue, draw_cells(logits, slide.tissue, settings.sampling, seed)).tiles


def stopping_time(values: np.ndarray, tolerance: float, least: int) -> int:
    """After how many draws :func:`wsi_ats.models.stopping.stop` ends them, if it may after ``least``.

    Parameters
    ----------
    values
        Log-odds of all draws that may be made, in order.
    tolerance, least
        The rule.
    """
    for size in range(least, len(values)):
        if _error(values[:size]) <= tolerance:
            return size
    return len(values)


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def measure(folder: Path, scale: Scale, seed: int) -> list[Row]:
    """Train, encode, draw and judge; one row for each way of pooling, size of draw and rule.

    Parameters
    ----------
    folder
        For slides and model; those of an earlier call of the same seed and scale are used again.
    scale
        How much is done.
    seed
        Of everything.
    """
    settings = Settings().with_values(
        [*SETTINGS, f"training.epochs={scale.epochs}", f"training.seed={seed}", "model.pool=gated"]
    )
    training = _slides(folder / "training", scale.training, scale.side, 3 * seed)
    held_out = _slides(folder / "held-out", scale.held_out, scale.side, 3 * seed + 1)
    gated = _train(training, settings, folder / "gated")
    slides = [encode(gated, settings, ref) for ref in held_out]
    rows = []
    with torch.inference_mode():
        for tiles in scale.tiles:
            sized = settings.with_values([f"sampling.tiles={tiles}"])
            chosen = [
                [_draw(slide, sized, draw_seed(seed, slide.ref.id, number)) for number in range(scale.draws)]
                for slide in slides
            ]
            for pool, model in (("gated", gated), ("linear", without_gate(gated))):
                drawn = [judge_draws(model, *each) for each in zip(slides, chosen, strict=True)]
                rows += [
                    {"pool": pool, "tiles": tiles, **_about(drawn), **row}
                    for row in _rows(model, drawn, scale)
                ]
    return rows


def _about(drawn: Sequence[Draws]) -> Row:
    """What is known of the model and its draws before anything is judged."""
    targets = [TARGET.names.index(str(draws.slide.ref.label)) for draws in drawn]
    return {
        "slides": len(drawn),
        "exact_auc": auc(targets, [[-draws.exact, draws.exact] for draws in drawn]),
        "deviation_of_draws": _deviation(drawn),
    }


def _deviation(drawn: Sequence[Draws]) -> float:
    """Standard deviation of the log-odds between draws, of the median slide."""
    return float(np.median([draws.log_odds.std(ddof=1) for draws in drawn]))


def _rows(model: AttentionSampler, drawn: Sequence[Draws], scale: Scale) -> list[Row]:
    rows = [{"rule": "fixed", "least": size, **fixed(model, drawn, size)} for size in scale.repeats]
    for share in scale.tolerances:
        tolerance = share * _deviation(drawn)
        rows += [
            {"rule": f"tolerance {tolerance:.3g}", "least": least, **anytime(model, drawn, tolerance, least)}
            for least in scale.least
        ]
    return rows


def _slides(folder: Path, count: int, side: int, seed: int) -> list[SlideRef]:
    """Slides as the demo writes them."""
    if not (folder / "labels.csv").exists():  # it is written last
        write_collection(
            folder,
            slides=count,
            width=side,
            height=side,
            tile_size=Settings().with_values(SETTINGS).tile.size,
            seed=seed,
            variants=16,
            palettes=1,
            banks=max(1, count // 4),
        )
    return read_manifest(folder / "labels.csv")


def _train(refs: Sequence[SlideRef], settings: Settings, folder: Path) -> AttentionSampler:
    if (folder / "model.json").exists():
        return load_model(folder).model
    examples = []
    for ref in refs:
        with open_slide(ref) as slide:
            examples.append(Example(ref, *look(slide, settings), TARGET.encode(str(ref.label))))
    with TileReader(1) as reader:
        trained = fit(
            examples,
            [],
            settings,
            target=TARGET,
            folder=folder,
            device=torch.device("cpu"),
            on_epoch=lambda _: None,
            reader=reader,
        )
    save_model(folder, trained.model, settings, TARGET)
    return trained.model


_SHOWN = {
    "pool": "pool",
    "tiles": "n",
    "rule": "rule",
    "least": "least",
    "mean_draws": "draws",
    "mean_tiles": "tiles",
    "within_tolerance": "within",
    "covers_exact": "exact in",
    "covers_expected": "expected in",
    "covers_pooled": "exact in, pooled",
    "half_width": "half width",
    "rmse_mean": "rmse mean",
    "rmse_pooled": "pooled",
    "bias_mean": "bias mean",
    "bias_pooled": "pooled",
}


def _cell(row: Row, name: str) -> str:
    value = row.get(name, "")
    if f"{name}_error" in row:
        return f"{value:.3f} ± {row[f'{name}_error']:.3f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Print the table and write it to ``benchmarks/results/coverage.csv``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of everything; by default the demo's")
    parser.add_argument(
        "--folder", type=Path, help="keep slides and model there, and use those that are there"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(options.folder or Path(temporary), Scale(), options.seed)
    table = Table(title=f"intervals of {LEVEL:.0%}, seed {options.seed}")
    for heading in _SHOWN.values():
        table.add_column(heading)
    for row in rows:
        table.add_row(*(_cell(row, name) for name in _SHOWN))
    console = Console(width=190)
    console.print(table)
    console.print(f"{time.perf_counter() - begin:.0f} s, {time.process_time() - used:.0f} s of one core")
    names = dict.fromkeys(name for row in rows for name in row)
    made_with = (
        f"{platform.machine()}, {os.cpu_count()} cores of which one is used, torch {torch.__version__}"
    )
    columns = {name: [row.get(name) for row in rows] for name in names}
    RESULTS.mkdir(exist_ok=True)
    repeated = {"seed": [options.seed] * len(rows), "hardware": [made_with] * len(rows)}
    write_csv(RESULTS / "coverage.csv", columns | repeated)


if __name__ == "__main__":
    main()
