"""Coverage of the 90 % intervals of scores, with fixed numbers of draws and with tolerances.

Run ``python -m benchmarks.coverage``. A model is trained as the demo trains it, and **all** tissue tiles of
held-out slides are encoded, so that its exact log-odds are known. Tiles are then drawn as scoring draws
them, and the interval ``mean +- t * standard error`` of every R draws is compared with the exact log-odds.

Columns are the share of intervals that contain the exact log-odds, with its binomial error, and their mean
half width; then the absolute bias, averaged over slides, of two estimates: the ``mean`` of the log-odds of
the draws, and the log-odds of their tiles ``pooled`` into one estimate before the head. With gated pooling
the mean keeps the bias of a single draw, however many there are; ``linear`` is the same network without its
gate. In rows with a tolerance, draws are added until the standard error is within it. ``least`` is the number
of draws, or with a tolerance the minimum number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from benchmarks.report import Rows, command, report
from pipelines._runs import Execution
from pipelines.demo import SETTINGS, Scale, make_slides
from pipelines.train import train
from wsi_ats.models.base import WeightedTiles, draw_seed
from wsi_ats.models.calibration import embed_in_parts
from wsi_ats.models.checkpoints import load_model
from wsi_ats.models.drawing import draw_cells, weigh
from wsi_ats.models.stopping import MOST_DRAWS
from wsi_ats.nn.expectation import POOLINGS
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef

LEVEL = 0.9
_STRIDE = 20  # draws between the beginnings of two runs of anytime scoring


@dataclass(frozen=True)
class Plan:
    """The plan: slides of the demo, draws of each, tiles a draw, draws an interval, and minimum draws.

    Tolerances are shares of the standard deviation between draws of the median slide.
    """

    slides: Scale
    draws: int = 320
    tiles: tuple[int, ...] = (16, 64)
    repeats: tuple[int, ...] = (2, 4, 8, 16)
    least: tuple[int, ...] = (2, 4, 8, 16)
    tolerances: tuple[float, ...] = (0.5, 0.25)


class Encoded:
    """A slide with features of all its tissue tiles."""

    @torch.inference_mode()
    def __init__(self, model: AttentionSampler, settings: Settings, ref: SlideRef) -> None:
        self.ref, self.settings = ref, settings
        with open_slide(ref) as slide:
            overview = read_overview(slide, settings)
            thumbnail, self.tissue = overview.thumbnail, overview.tissue
            cells = torch.from_numpy(self.tissue.cells)
            self.attention = model.attend(torch.from_numpy(thumbnail), cells, self.tissue.grid.shape)
            read = partial(read_tiles, slide, self.tissue.grid)
            self.features = embed_in_parts(model.embed, read, self.tissue.cells, None)

    def draw(self, tiles: int, seed: int) -> WeightedTiles:
        """Draw as scoring does."""
        sampling = self.settings.with_values([f"sampling.tiles={tiles}"]).sampling
        logits = self.attention.log()
        return weigh(logits, self.tissue, draw_cells(logits, self.tissue, sampling, seed))


class Judged:
    """Draws of one slide, and the log-odds of a model for each, shape (M,)."""

    @torch.inference_mode()
    def __init__(self, model: AttentionSampler, slide: Encoded, draws: Sequence[WeightedTiles]) -> None:
        self.model, self.slide, self.draws = model, slide, draws
        self.exact = self._log_odds(slide.attention, slide.features)
        self.log_odds = np.array([self.pooled([number]) for number in range(len(draws))])

    @torch.inference_mode()
    def pooled(self, part: Sequence[int]) -> float:
        """Return the log-odds of the tiles of some draws, pooled into one estimate."""
        cells = np.concatenate([self.draws[number].cells for number in part])
        weight = torch.cat([self.draws[number].weight for number in part]) / len(part)
        return self._log_odds(weight, self.slide.features[np.searchsorted(self.slide.tissue.cells, cells)])

    def _log_odds(self, weight: Tensor, features: Tensor) -> float:
        logits = self.model.classify(self.model.pool(weight, features))
        return float(logits[1] - logits[0])

    def fixed(self, size: int) -> Iterator[list[int]]:
        """Yield disjoint parts of so many draws."""
        for first in range(0, len(self.draws) - size + 1, size):
            yield list(range(first, first + size))

    def anytime(self, tolerance: float, least: int) -> Iterator[list[int]]:
        """Yield parts that were drawn until the error was within the tolerance.

        Parts longer than ``_STRIDE`` share draws with the next, so that their binomial error is too small.
        """
        count = len(self.draws)
        for first in range(0, count, _STRIDE):
            part = [number % count for number in range(first, first + min(MOST_DRAWS, count))]
            yield part[: stopping_time(self.log_odds[part], tolerance, least)]


def stopping_time(values: NDArray[np.float64], tolerance: float, least: int) -> int:
    """Return the number of draws after which :func:`wsi_ats.models.stopping.stop` ends."""
    ends = (size for size in range(least, len(values)) if standard_error(values[:size]) <= tolerance)
    return next(ends, len(values))


def standard_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def half_width(values: NDArray[np.float64]) -> float:
    """Return the half width of the interval around the mean log-odds of independent draws."""
    return float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * standard_error(values)


def compare(judged: Sequence[Judged], parts: Sequence[Sequence[Sequence[int]]]) -> dict[str, float]:
    """Compare intervals and estimates with the truth; ``parts`` has the draws of each interval, by slide."""
    # Of each interval: whether it contains the exact value, half width, draws, tiles.
    found: list[tuple[float, ...]] = []
    biases = []  # of each slide
    for slide, own in zip(judged, parts, strict=True):
        errors = np.array([(slide.log_odds[part].mean(), slide.pooled(part)) for part in own]) - slide.exact
        biases.append(abs(errors.mean(0)))
        for part, (error, _) in zip(own, errors, strict=True):
            width = half_width(slide.log_odds[part])
            cells = np.concatenate([slide.draws[number].cells for number in part])
            found.append((abs(error) <= width, width, len(part), len(np.unique(cells))))
    share, width, draws, tiles = np.mean(found, axis=0).tolist()
    mean, pooled = np.mean(biases, axis=0).tolist()
    return {
        "intervals": len(found),
        "mean_draws": draws,
        "mean_tiles": tiles,
        "covers_exact": share,
        "covers_exact_error": float(np.sqrt(share * (1 - share) / len(found))),
        "half_width": width,
        "bias_mean": mean,
        "bias_pooled": pooled,
    }


def rules(judged: Sequence[Judged], plan: Plan) -> Rows:
    """Compare draws of each fixed number and of each tolerance."""
    deviation = float(np.median([slide.log_odds.std(ddof=1) for slide in judged]))
    rows: Rows = []
    for size in plan.repeats:
        found = compare(judged, [list(slide.fixed(size)) for slide in judged])
        rows.append({"rule": "fixed", "least": size, **found})
    for tolerance in (share * deviation for share in plan.tolerances):
        for least in plan.least:
            found = compare(judged, [list(slide.anytime(tolerance, least)) for slide in judged])
            rows.append({"rule": f"tolerance {tolerance:.3g}", "least": least, **found})
    return [{"slides": len(judged), "deviation_of_draws": deviation, **row} for row in rows]


def measure(folder: Path, plan: Plan, seed: int) -> Rows:
    """Train, encode, draw and compare; existing slides and models in the folder are reused."""
    execution = Execution(workers=1)
    training, held_out = make_slides(folder, plan.slides, seed=seed, execution=execution)
    chosen = (f"training.epochs={plan.slides.epochs}", f"training.seed={seed}", "training.validation=0")
    settings = Settings().with_values([*SETTINGS, *chosen, "model.pool=gated"])
    train(training, folder / "gated", settings=settings, execution=execution)
    gated = load_model(folder / "gated").model
    linear = deepcopy(gated)
    linear.gate, linear.pooling = None, POOLINGS["linear"]
    slides = [Encoded(gated, settings, ref) for ref in held_out]
    rows: Rows = []
    for tiles in plan.tiles:
        draws = [
            [slide.draw(tiles, draw_seed(seed, slide.ref.id, number)) for number in range(plan.draws)]
            for slide in slides
        ]
        for pool, model in (("gated", gated), ("linear", linear)):
            judged = [Judged(model, *each) for each in zip(slides, draws, strict=True)]
            rows += [{"pool": pool, "tiles": tiles, **row} for row in rules(judged, plan)]
    return rows


def main() -> None:
    """Print the table and write it to ``coverage.csv``."""
    parser = command(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="random seed; by default that of the demo")
    parser.add_argument("--folder", type=Path, help="keep slides and model there, and reuse existing ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        plan = Plan(Scale(training=120, held_out=48, epochs=8))
        rows = measure(options.folder or Path(temporary), plan, options.seed)
    rows = [{**row, "seed": options.seed} for row in rows]
    report(f"intervals of {LEVEL:.0%}", "coverage", rows, options.out, machine=True)


if __name__ == "__main__":
    main()
