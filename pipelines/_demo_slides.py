"""The slides of the demo: synthetic slides to train on and to score, and one gigapixel slide."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines._cluster import connect
from pipelines._runs import Execution
from wsi_ats.errors import ArtifactError
from wsi_ats.files import read_json, write_json
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.testing.bank import make_tile_bank
from wsi_ats.testing.synthetic import write_collection, write_slide

# Folders of slides; `demo.json` beside them says which demo they belong to.
_FOLDERS = ("training", "held-out", "gigapixel")

# Written last, each in its folder: its presence means that the slides are complete.
_MARKS = ("labels.csv", "gigapixel.npz")

_TILE_SIZE = 64


@dataclass(frozen=True)
class Scale:
    """The size of the demo.

    Parameters
    ----------
    training, held_out
        Numbers of slides.
    side
        Pixels a side of these slides.
    gigapixel_side
        Pixels a side of the large slide.
    slides_per_bank
        Number of slides made of the same tiles, as if they came from one laboratory.
    epochs
        Number of epochs in which the classifier learns.
    """

    training: int = 120
    held_out: int = 100
    side: int = 4096
    gigapixel_side: int = 32768
    slides_per_bank: int = 4
    epochs: int = 12


def claim(out: Path, made: Mapping[str, int], *, overwrite: bool) -> None:
    """Record which slides the folder holds; refuse or, with ``overwrite``, delete other slides.

    Raises
    ------
    ArtifactError
        When the folder holds other slides, or slides of unknown origin.
    """
    record, folders = out / "demo.json", [out / name for name in _FOLDERS if (out / name).exists()]
    if folders and not record.exists():
        names = ", ".join(folder.name for folder in folders)
        raise ArtifactError(
            f"{out} holds {names}, but no demo.json, so these may not belong to a demo; choose another --out"
        )
    if folders and overwrite:
        for folder in folders:
            for mark in _MARKS:
                (folder / mark).unlink(missing_ok=True)
            shutil.rmtree(folder)
    elif folders and (there := read_json(record)) != made:
        different = [
            f"{name} is {there.get(name)} there and {value} now"
            for name, value in made.items()
            if there.get(name) != value
        ]
        raise ArtifactError(
            f"{out} holds the slides of another demo: {'; '.join(different)}. Choose another --out, or "
            "replace them with --overwrite"
        )
    write_json(record, made)


def make_slides(
    out: Path, scale: Scale, *, seed: int, execution: Execution, visibility: float = 1.0
) -> tuple[list[SlideRef], list[SlideRef]]:
    """Write slides to train on and slides to score, unless they exist.

    Parameters
    ----------
    out
        Folder for both parts, ``training`` and ``held-out``.
    scale
        Number and size of the slides.
    seed
        Random seed; the two parts share neither tiles nor stains.
    execution
        The cluster; with two workers or more the two parts are written at the same time.
    visibility
        How much the regions stand out in the thumbnail; see ``wsi_ats.testing.bank.TileBank``.
    """
    counts = {"training": scale.training, "held-out": scale.held_out}
    with connect(execution.scheduler, workers=execution.workers) as client:
        jobs = [
            client.submit(_write_slides, out / name, count, scale, 3 * seed + number, visibility, pure=False)
            for number, (name, count) in enumerate(counts.items())
        ]
        client.gather(jobs)
    training, held_out = (read_manifest(out / name / "labels.csv") for name in counts)
    return training, held_out


def _write_slides(folder: Path, count: int, scale: Scale, seed: int, visibility: float) -> None:
    # The labels are written last: their presence means that the folder is complete.
    if not (folder / "labels.csv").exists():
        write_collection(
            folder,
            slides=count,
            width=scale.side,
            height=scale.side,
            tile_size=_TILE_SIZE,
            seed=seed,
            visibility=visibility,
            variants=16,
            palettes=1,
            banks=max(1, count // scale.slides_per_bank),
        )


def write_gigapixel(folder: Path, side: int, *, seed: int) -> tuple[npt.NDArray[np.uint8], SlideRef]:
    """Write one large positive slide, unless it exists."""
    folder.mkdir(parents=True, exist_ok=True)
    path, truth = folder / "gigapixel.tif", folder / "gigapixel.npz"
    if not truth.exists():
        written = write_slide(
            path,
            bank=make_tile_bank(_TILE_SIZE, seed),
            width=side,
            height=side,
            positive=True,
            rng=np.random.default_rng(seed),
        )
        written.write_truth(folder)
    return read_truth(folder, path.stem, "kinds"), SlideRef.from_path(path)


def read_truth(folder: Path, slide_id: str, name: str) -> npt.NDArray[Any]:
    """Read an array of a slide's truth, shape (rows, columns); see ``write_truth`` of a written slide."""
    with np.load(folder / f"{slide_id}.npz") as file:
        array: npt.NDArray[Any] = file[name]
    return array
