"""The needle benchmark's figure: what the slides look like, and how well each arm did."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks import needle_slides
from wsi_ats.config import Settings
from wsi_ats.look import look
from wsi_ats.manifest import read_manifest
from wsi_ats.slides import open_slide
from wsi_ats.tiles import read_tiles

_LESION = 0.05
_TILES = 4
_COLOURS: Mapping[str, str] = {
    "MIL on all tiles": "#222222",
    "attention sampling": "#c02942",
    "uniform sampling": "#4c6fb0",
    "attention frozen at its start": "#8a8a8a",
    "thumbnail CNN": "#d9942b",
    "mean colour": "#b9b9b9",
}


def figure(
    path: Path, rows: Sequence[Mapping[str, Any]], settings: Settings, *, data: Path, seed: int
) -> None:
    """Draw a positive and a negative slide, some of their tiles, and the area under the curve of the arms.

    Parameters
    ----------
    path
        PNG to write.
    rows
        Of the table.
    settings
        How slides are looked at.
    data
        Images and outlines.
    seed
        Of the slides that are shown.
    """
    drawing = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(drawing)
    upper, lower = drawing.subfigures(2, 1, height_ratios=(1, 1))
    panels = upper.subplots(1, 4, width_ratios=(1, 1, 1, 1.2))
    for panel, (title, picture) in zip(panels, _pictures(settings, data, seed).items(), strict=True):
        panel.imshow(picture)
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    thumbnails = list(dict.fromkeys(row["thumbnail"] for row in rows))
    for panel, thumbnail in zip(
        lower.subplots(1, len(thumbnails), squeeze=False)[0], thumbnails, strict=True
    ):
        here = [row for row in rows if row["thumbnail"] == thumbnail]
        lesions = sorted({row["lesion"] for row in here})
        arms = [arm for arm in _COLOURS if any(row["arm"] == arm for row in here)]
        for number, arm in enumerate(arms):
            mine = {row["lesion"]: row for row in here if row["arm"] == arm}
            shift = 0.08 * (number - (len(arms) - 1) / 2)
            places = [place + shift for place, lesion in enumerate(lesions) if lesion in mine]
            found = [mine[lesion] for lesion in lesions if lesion in mine]
            areas = [row["AUC"] for row in found]
            errors = [[row["AUC"] - row["low"] for row in found], [row["high"] - row["AUC"] for row in found]]
            panel.errorbar(places, areas, errors, fmt="o", color=_COLOURS[arm], label=arm, capsize=2, ms=4)
        panel.axhline(0.5, color="black", linestyle=":", linewidth=1)
        panel.set_xticks(range(len(lesions)), [f"{lesion:.0%}" for lesion in lesions])
        panel.set(xlabel="part of the tissue that is lesion", ylabel="AUC, 95 % interval", ylim=(0.3, 1.02))
        panel.set_xlim(-0.5, len(lesions) - 0.5)
        panel.set_title(f"the thumbnail {thumbnail}", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    handles, labels = lower.axes[0].get_legend_handles_labels()
    lower.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)


def _pictures(settings: Settings, data: Path, seed: int) -> dict[str, NDArray[np.uint8]]:
    """A pair of slides, the truth of the positive one, and tiles of each kind of tissue."""
    material = needle_slides.read_material(data, seed)["train"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needle_slides.write_slides(
            folder, material, pairs=1, lesion_fraction=_LESION, rng=np.random.default_rng(seed)
        )
        shown: dict[str, NDArray[np.uint8]] = {}
        for ref in sorted(read_manifest(folder / "labels.csv"), key=lambda ref: str(ref.label), reverse=True):
            truth = needle_slides.read_truth(folder, ref.id)
            with open_slide(ref) as slide:
                thumbnail, tissue = look(slide, settings)
                side = thumbnail.shape[0] // tissue.grid.shape[0]
                window = _window(tissue.mask, side)
                shown[f"{ref.label}, thumbnail"] = thumbnail[window]
                if ref.label == "positive":
                    kinds = (truth.tissue > 0.5).astype(int) + (truth.region > 0.5) + (truth.lesion > 0.5)
                    palette = np.array(
                        [[255, 255, 255], [242, 217, 227], [135, 150, 201], [191, 41, 66]], np.uint8
                    )
                    finer = np.ones((side, side), np.uint8)
                    shown["truth: tumour red, lymphocytes blue"] = palette[np.kron(kinds, finer)[window]]
                    whole = (
                        (truth.region == 0) & (truth.tissue == 1),
                        (truth.region == 1) & (truth.lesion == 0),
                        truth.lesion == 1,
                    )
                    tiles = [
                        np.concatenate(read_tiles(slide, tissue.grid, np.flatnonzero(each)[:_TILES]), axis=1)
                        for each in whole
                    ]
        shown["tiles: stroma, lymphocytes, tumour"] = np.concatenate(
            [
                np.pad(row, ((2, 2), (0, max(0, 64 * _TILES - row.shape[1])), (0, 0)), constant_values=255)
                for row in tiles
            ]
        )
    return shown


def _window(mask: NDArray[np.bool_], side: int) -> tuple[slice, slice]:
    """The part of a thumbnail that has tissue, with a margin of one cell."""
    found = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    first, second = (slice(max(0, int(i[0]) - 1) * side, (int(i[-1]) + 2) * side) for i in found)
    return first, second
