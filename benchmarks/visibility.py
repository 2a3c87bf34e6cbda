"""How well attention sampling does when the thumbnail shows more, or less, of where to look.

Run ``python -m benchmarks.visibility``; one core takes about half an hour. For every visibility of the
regions and every seed, slides are made and the arms of the demo are trained and scored on them, with the
demo's settings and fewer slides. Positive and negative slides look the same in the thumbnail at *every*
visibility: what fades is the difference between regions, some of which may be lesions, and the tissue
around them. Prints a table, writes it as CSV and draws it; points that are in the CSV are not measured
again, so a sweep can be interrupted and more seeds can be added.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from torch.nn import functional as F

from benchmarks.report import report
from pipelines._cluster import connect
from pipelines._runs import Execution
from pipelines.demo import ARMS, SETTINGS, Scale, Stopwatch, ceiling, compare, make_slides
from wsi_ats.config import Settings
from wsi_ats.errors import SettingsError
from wsi_ats.evaluation import auc
from wsi_ats.look import look
from wsi_ats.nn.attention import SmallAttention
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables import read_csv, write_csv
from wsi_ats.testing.layout import Kind
from wsi_ats.testing.synthetic import write_collection

SCALE = Scale(training=80, held_out=60, epochs=12)
VISIBILITIES = (0.0, 0.125, 0.25, 0.5, 1.0)
SEEDS = (301, 302)

_COLOURS = {
    "attention sampling": "#c02942",
    "uniform sampling": "#4c6fb0",
    "attention frozen at its start": "#8a8a8a",
}
_TAUGHT_EPOCHS = 5
_TAUGHT_SLIDES = 40  # have tens of thousands of cells


def measure(
    visibility: float, seed: int, scale: Scale, arms: Sequence[str], execution: Execution
) -> list[dict[str, Any]]:
    """Train and score arms on fresh slides; one row of the table for each.

    Parameters
    ----------
    visibility
        How much regions stand out in the thumbnail, 0 to 1.
    seed
        Of slides, weights and draws. Slides of one seed differ in nothing but their visibility.
    scale
        How many slides, how large, how many epochs.
    arms
        Names in :data:`pipelines.demo.ARMS`.
    execution
        Where.
    """
    changes = (*SETTINGS, f"training.epochs={scale.epochs}", f"training.seed={seed}")
    settings, clock = Settings().with_values(changes), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        training, held_out = make_slides(out, scale, seed=seed, execution=execution, visibility=visibility)
        told = regions_told(out, training, held_out, settings)
        best, _ = ceiling(held_out, out / "held-out" / "truth", settings.sampling.tiles, seed)
        chosen = {name: ARMS[name] for name in arms}
        measured = compare(out, training, held_out, settings, execution=execution, clock=clock, arms=chosen)
    return [
        {
            "visibility": visibility,
            "seed": seed,
            "arm": name,
            "auc": arm.auc,
            "drawn_in_lesion": arm.in_lesion,
            "uniform_ceiling": best,
            "regions_told_auc": told,
            **_recorded(scale),
            "tiles": settings.sampling.tiles,
            "seconds": clock.seconds[f"train: {name}"] + clock.seconds[f"score: {name}"],
        }
        for name, arm in measured.items()
    ]


def _recorded(scale: Scale) -> dict[str, float]:
    return {
        "training_slides": scale.training,
        "held_out_slides": scale.held_out,
        "side": scale.side,
        "epochs": scale.epochs,
    }


def regions_told(
    out: Path, training: Sequence[SlideRef], held_out: Sequence[SlideRef], settings: Settings
) -> float:
    """How well an attention network could tell regions from other tissue, were it taught the truth.

    The AUC over cells of held-out slides: 0.5 means that there is nothing to see for it. Only cells with
    tissue all around are asked about, for regions keep away from the border of the tissue.
    """
    torch.manual_seed(settings.training.seed)
    network = SmallAttention(settings.thumbnail.pixels_per_cell)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    slides = {
        part: [_cells(ref, out / part / "truth", settings) for ref in refs[:_TAUGHT_SLIDES]]
        for part, refs in (("training", training), ("held-out", held_out))
    }
    for _ in range(_TAUGHT_EPOCHS):
        for thumbnail, mask, inner, in_region in slides["training"]:
            loss = F.binary_cross_entropy_with_logits(network(thumbnail, mask)[inner], in_region)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    areas = []
    with torch.inference_mode():
        for thumbnail, mask, inner, in_region in slides["held-out"]:
            told = torch.sigmoid(network(thumbnail, mask)[inner])
            areas.append(auc(in_region.int().tolist(), torch.stack([1 - told, told], 1).tolist()))
    return mean(area for area in areas if area is not None)


def _cells(ref: SlideRef, truth: Path, settings: Settings) -> tuple[torch.Tensor, ...]:
    """Thumbnail, tissue, cells with tissue all around, and which of these lie in a region."""
    with open_slide(ref) as slide:
        thumbnail, tissue = look(slide, settings)
    with np.load(truth / f"{ref.id}.npz") as file:
        regions = file["kinds"] >= Kind.LOOKALIKE
    inner = binary_erosion(tissue.mask, np.ones((5, 5)))
    arrays = (thumbnail, tissue.mask, inner, regions[inner].astype(np.float32))
    return tuple(torch.from_numpy(array) for array in arrays)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a table that :func:`main` wrote."""
    columns = read_csv(path)
    numbers = {name: [float(each) for each in cells] for name, cells in columns.items() if name != "arm"}
    return [dict(zip(columns, row, strict=True)) for row in zip(*(columns | numbers).values(), strict=True)]


def figure(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw AUC and where tiles were drawn against visibility, under thumbnails of one slide at each."""
    drawing = Figure(figsize=(11, 6.4), layout="constrained")
    FigureCanvasAgg(drawing)
    upper, lower = drawing.subfigures(2, 1, height_ratios=(1, 2.4))
    _thumbnails(
        upper,
        sorted({row["visibility"] for row in rows}),
        seed=int(rows[0]["seed"]),
        side=int(rows[0]["side"]),
    )
    left, right = lower.subplots(1, 2)
    for arm, colour in _COLOURS.items():
        _line(left, rows, arm, "auc", colour)
        _line(right, rows, arm, "drawn_in_lesion", colour)
    visibilities, best = _means(rows, rows[0]["arm"], "uniform_ceiling")
    left.plot(visibilities, best, "--", color="black", linewidth=1)
    left.annotate(
        "best possible with uniform draws",
        (visibilities[-1], best[-1]),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    left.axhline(0.5, color="black", linestyle=":", linewidth=1)
    left.annotate("chance", (0, 0.5), xytext=(0, 4), textcoords="offset points", fontsize=9)
    left.set(ylabel="AUC on held-out slides", ylim=(0.45, 1.03))
    right.set(ylabel="share of the drawn tiles that lie in a lesion", ylim=(0, None))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axes in (left, right):
        axes.set(xlabel="visibility of regions in the thumbnail (0: none, 1: plain)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)


def _means(rows: Sequence[dict[str, Any]], arm: str, column: str) -> tuple[list[float], list[float]]:
    """Mean over seeds of a column at each visibility."""
    values: dict[float, list[float]] = {}
    for row in rows:
        if row["arm"] == arm:
            values.setdefault(row["visibility"], []).append(row[column])
    return sorted(values), [mean(values[visibility]) for visibility in sorted(values)]


def _line(axes: Any, rows: Sequence[dict[str, Any]], arm: str, column: str, colour: str) -> None:
    chosen = [row for row in rows if row["arm"] == arm]
    if not chosen:
        return
    axes.plot(*_means(rows, arm, column), color=colour, label=arm)
    # One dot for each seed: two or three are too few for a band that means anything.
    axes.scatter(
        [row["visibility"] for row in chosen],
        [row[column] for row in chosen],
        color=colour,
        s=22,
        alpha=0.6,
        linewidths=0,
        zorder=3,
        clip_on=False,
    )


def _thumbnails(drawing: SubFigure, visibilities: Sequence[float], *, seed: int, side: int) -> None:
    """Draw a positive slide's thumbnail at each visibility, and where its regions are."""
    panels = drawing.subplots(1, len(visibilities) + 1)
    settings = Settings().with_values(SETTINGS)
    for panel, visibility in zip(panels[1:], visibilities, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            pair = write_collection(
                folder,
                slides=2,
                width=side,
                height=side,
                tile_size=settings.tile.size,
                seed=seed,
                visibility=visibility,
                variants=16,
                palettes=1,
            )
            positive = next(slide for slide in pair if slide.label == "positive")
            with open_slide(SlideRef.from_path(positive.path)) as slide:
                thumbnail, tissue = look(slide, settings)
        window = _window(tissue.mask, settings.thumbnail.pixels_per_cell)
        panel.imshow(thumbnail[window])
        panel.set_title(f"visibility {visibility:g}", fontsize=9)
    finer = np.ones((settings.thumbnail.pixels_per_cell,) * 2, dtype=np.uint8)
    kinds = np.kron(positive.kinds, finer)[window]
    shown: NDArray[np.float64] = np.array(
        [[1, 1, 1], [0.95, 0.85, 0.89], [0.53, 0.59, 0.79], [0.75, 0.16, 0.26]]
    )
    panels[0].imshow(shown[kinds])
    panels[0].set_title("truth: lesions red,\nlook-alikes blue", fontsize=9)
    for panel in panels:
        panel.set_axis_off()


def _window(mask: NDArray[np.bool_], side: int) -> tuple[slice, slice]:
    """The part of a thumbnail that has tissue, with a margin of one cell."""
    found = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    first, second = (slice(max(0, int(i[0]) - 1) * side, (int(i[-1]) + 2) * side) for i in found)
    return first, second


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.visibility", description=__doc__)
    parser.add_argument("--visibilities", type=float, nargs="+", default=VISIBILITIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--training", type=int, default=SCALE.training, help="slides to train on")
    parser.add_argument("--held-out", type=int, default=SCALE.held_out, help="slides to score")
    parser.add_argument("--side", type=int, default=SCALE.side, help="of a slide, pixels")
    parser.add_argument("--epochs", type=int, default=SCALE.epochs)
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare and score")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for CSV and figure")
    chosen = parser.parse_args(arguments)
    scale = Scale(training=chosen.training, held_out=chosen.held_out, side=chosen.side, epochs=chosen.epochs)
    table = chosen.out / "visibility.csv"
    rows = read(table) if table.exists() else []
    if any(row[name] != value for row in rows for name, value in _recorded(scale).items()):
        raise SettingsError(f"{table} was measured at another scale; choose another --out")
    missing = {}
    for seed, visibility in itertools.product(chosen.seeds, chosen.visibilities):
        found = {row["arm"] for row in rows if (row["seed"], row["visibility"]) == (seed, visibility)}
        if arms := [arm for arm in chosen.arms if arm not in found]:
            missing[seed, visibility] = arms
    if missing:
        chosen.out.mkdir(parents=True, exist_ok=True)
        with connect("local", workers=chosen.workers) as client:
            for (seed, visibility), arms in missing.items():
                rows += measure(visibility, seed, scale, arms, Execution(scheduler=client))
                write_csv(table, {name: [row[name] for row in rows] for name in rows[0]})
    title = "held-out slides, mean over seeds, lowest and highest"
    report(title, "visibility_means", _summary(rows), str(chosen.out))
    figure(chosen.out / "visibility.png", rows)


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, list[object]]:
    """Means over seeds, and the range of what varies most."""
    columns: dict[str, list[object]] = {}
    for visibility, arm in itertools.product(sorted({row["visibility"] for row in rows}), ARMS):
        here = [row for row in rows if (row["visibility"], row["arm"]) == (visibility, arm)]
        if here:
            areas = [row["auc"] for row in here]
            summary = {
                "visibility": visibility,
                "told by thumbnail": mean(row["regions_told_auc"] for row in here),
                "uniform ceiling": mean(row["uniform_ceiling"] for row in here),
                "arm": arm,
                "AUC": mean(areas),
                "lowest": min(areas),
                "highest": max(areas),
                "drawn in lesion": mean(row["drawn_in_lesion"] for row in here),
            }
            for name, value in summary.items():
                columns.setdefault(name, []).append(value)
    return columns


if __name__ == "__main__":
    main()
