"""The whole pipeline in one command: make slides, train, score other slides, compare methods, draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines._cluster import connect, dashboard
from pipelines._demo_arms import Arm, Stopwatch, ceiling, check_complete, compare, thumbnail_arm
from pipelines._demo_slides import Scale, claim, make_slides, write_gigapixel
from pipelines._runs import Execution, rooted
from pipelines.score import score
from wsi_ats.results.exports.pictures import read_shown
from wsi_ats.results.pictures import write_pictures_of
from wsi_ats.results.scores import read_scores
from wsi_ats.settings import Settings
from wsi_ats.testing.layout import Kind

# Small enough for a few minutes on two cores. The backbone is one of the smallest in timm and starts from
# random weights, so nothing is downloaded.
SETTINGS = (
    "tile.size=64",
    "thumbnail.pixels_per_cell=4",
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "sampling.tiles=16",
)


@dataclass(frozen=True)
class Demonstration:
    """Results of the demo.

    Parameters
    ----------
    arms
        Metrics of each method, by name.
    ceiling
        Expected AUC of a perfect tile classifier on the same number of uniform draws: spread in space as
        here, and independent.
    gigapixel
        Facts about the large slide.
    seconds
        Seconds of each part.
    figure
        Picture of the large slide; that of its tiles is beside it.
    """

    arms: Mapping[str, Arm]
    ceiling: tuple[float, float]
    gigapixel: Mapping[str, str]
    seconds: Mapping[str, float]
    figure: Path
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self) | {"figure": str(self.figure)}

    def sections(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Return the tables for people."""
        head = ("method", "AUC", "tiles", "bytes", "in lesion", "s/slide")
        spread, independent = (f"{each:.3f}" for each in self.ceiling)
        times = [(name, f"{seconds:.0f} s") for name, seconds in self.seconds.items()]
        return [
            (
                "held-out slides: AUC, shares of tiles and bytes read, share of draws in lesions",
                [
                    head,
                    *((name, *_cells(arm)) for name, arm in self.arms.items()),
                    ("ceiling, spread draws", spread, *[""] * 4),
                    ("ceiling, independent draws", independent, *[""] * 4),
                ],
            ),
            ("a gigapixel slide", [*self.gigapixel.items(), ("figure", str(self.figure))]),
            ("time", [*times, ("total", f"{sum(self.seconds.values()):.0f} s")]),
        ]


def demo(
    out: str | Path, *, seed: int = 0, scale: Scale | None = None, execution: Execution | None = None
) -> Demonstration:
    """Train on synthetic slides from their labels alone, and compare methods on other synthetic slides.

    The slides have regions that stand out in the thumbnail; in positive slides some are lesions, which
    differ from the others only at full resolution. Held-out slides share neither tiles nor stains with
    the training slides.

    Parameters
    ----------
    out
        Folder for slides, models, scores and the figure.
    seed
        Random seed of slides, weights and draws.
    scale
        Number and size of the slides; the default takes about twelve minutes of CPU time.
    execution
        The cluster; a stopped demo of the same seed and scale is continued.

    Raises
    ------
    ArtifactError
        When the folder holds the slides of another demo, or slides of unknown origin.
    SettingsError
        When matplotlib is not installed.

    Examples
    --------
    >>> print(demo("demo").arms["attention sampling"].auc)  # doctest: +SKIP
    """
    execution, scale, out = execution or Execution(), scale or Scale(), rooted(out)
    changes = (*SETTINGS, f"training.epochs={scale.epochs}", f"training.seed={seed}")
    settings = Settings().with_values(changes)
    claim(out, {"seed": seed, **asdict(scale)}, overwrite=execution.overwrite)
    clock = Stopwatch()
    with connect(execution.scheduler, workers=execution.workers) as client:
        if client is not execution.scheduler:
            execution.reporter.message(dashboard(client))
        execution = replace(execution, scheduler=client)
        with clock("write slides"):
            training, held_out = make_slides(out, scale, seed=seed, execution=execution)
        arms = compare(out, training, held_out, settings, execution=execution, clock=clock)
        with clock("train and score: thumbnail only"):
            model = out / "models" / next(iter(arms)).replace(" ", "_")
            arms["thumbnail only"] = thumbnail_arm(model, training, held_out, settings, seed)
        with clock("gigapixel slide: write"):
            truth, slide = write_gigapixel(out / "gigapixel", scale.gigapixel_side, seed=3 * seed + 2)
        with clock("gigapixel slide: score and draw"):
            scores = out / "scores" / "gigapixel"
            check_complete(score([slide], model, scores, seed=seed, execution=execution))
            gigapixel = _draw_gigapixel(out, scores, truth)
    best = ceiling(held_out, out / "held-out" / "truth", settings.sampling.tiles, seed)
    return Demonstration(arms, best, gigapixel, clock.seconds, out / "gigapixel.png")


def _cells(arm: Arm) -> tuple[str, ...]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    seconds = "" if arm.seconds is None else f"{arm.seconds:.2f}"
    return (f"{arm.auc:.3f}", share(arm.tiles), share(arm.bytes), share(arm.in_lesion), seconds)


def _draw_gigapixel(out: Path, scores: Path, truth: npt.NDArray[np.uint8]) -> dict[str, str]:
    """Draw the large slide, with the true outlines, and return facts about it."""
    (slide,) = read_scores(scores).slides
    selection, row = slide.selection(), slide.row
    size = Path(slide.path).stat().st_size
    outlines = {"lesion": truth == Kind.LESION, "look-alike": truth == Kind.LOOKALIKE}
    write_pictures_of(out, replace(read_shown(slide), outlines=outlines))
    return {
        "size": f"{selection.grid.width:,} x {selection.grid.height:,} pixels, {size / 1e6:,.0f} MB",
        "tiles read": f"{row['tiles_read']} of {row['tiles_total']:,} tissue tiles",
        "bytes read": f"{row['bytes_read'] / 1e6:.2f} MB ({row['bytes_read'] / size:.2%})",
        "drawn tiles in lesion": f"{np.mean(truth.flat[selection.cells] == Kind.LESION):.1%}",
        "probability of positive": f"{row['prob_positive']:.3f} (it is positive)",
        "seconds": f"{row['seconds']:.2f}",
    }
