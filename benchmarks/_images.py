"""A folder of images as a collection of slides: what no slide reader opens becomes a small pyramid."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from wsi_ats.artifacts import atomic
from wsi_ats.errors import ManifestError, MppError, SlideError
from wsi_ats.manifest import SLIDE_SUFFIXES, Label, read_labels
from wsi_ats.slides import SlideRef, open_slide

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
_TILE = 256


def write_pyramid(path: Path, image: Image.Image, mpp: float) -> None:
    """Write an image as a tiled TIFF with levels of half the size each, without loss.

    Parameters
    ----------
    path
        File to write.
    image
        Of any mode; stored as RGB.
    mpp
        Micrometres per pixel, stored as the TIFF's resolution.
    """
    image = image.convert("RGB")
    with atomic(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        scale = 1
        while True:
            tiff.write(
                np.asarray(image),
                tile=(_TILE, _TILE),
                photometric="rgb",
                compression="deflate",
                subfiletype=1 if scale > 1 else 0,
                metadata=None,
                resolution=(1e4 / mpp / scale, 1e4 / mpp / scale),
                resolutionunit="CENTIMETER",
            )
            if max(image.size) <= _TILE or min(image.size) < 2:
                return
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
            scale *= 2


def collect(folder: Path, work: Path, *, labels: Path | None, names: str, mpp: float) -> list[SlideRef]:
    """List the labelled images and slides of a folder; plain images are made slides of.

    Parameters
    ----------
    folder
        Searched with all below it.
    work
        For the slides that are made; those of an earlier call are used again.
    labels
        A table as :func:`wsi_ats.manifest.read_labels` reads it, of slides or paths. Files that it does not
        name are left out.
    names
        Without a table: a regular expression with groups ``label`` and ``case`` that file names begin with.
    mpp
        Micrometres per pixel of files for which neither the table nor they themselves give a value.

    Raises
    ------
    ManifestError
        When no file has a label, or two files have one name.
    """
    rows = None if labels is None else read_labels(labels)
    if rows is not None and rows.by_case:
        raise ManifestError(f"{labels}: names cases only; add a column slide_id or path")
    refs: dict[str, SlideRef] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES | SLIDE_SUFFIXES:
            continue
        name = SlideRef.from_path(path).id
        row = _from_name(path, names) if rows is None else rows.rows.get(name, rows.rows.get(path.name))
        if row is None or row.label is None:
            continue
        if name in refs:
            raise ManifestError(f"{folder}: two files are called {name!r}; rename one")
        ref = SlideRef(name, str(path), row.case or name, row.label, mpp=row.mpp)
        mpp_here = row.mpp or mpp
        refs[name] = _as_it_is(ref, mpp_here) or _as_slide(ref, work, mpp_here)
    if not refs:
        how = f"file names match {names!r}" if labels is None else f"files are named in {labels}"
        raise ManifestError(f"{folder}: none of its {how}; give another folder, --labels or --names")
    return list(refs.values())


def _from_name(path: Path, names: str) -> Label | None:
    found = re.match(names, path.name)
    return found and Label(found["label"], found["case"], None, None)


def _as_it_is(ref: SlideRef, mpp: float) -> SlideRef | None:
    """The slide with its resolution; ``None`` for what is no slide."""
    try:
        slide = open_slide(ref)
    except SlideError:
        return None
    with slide:
        try:
            _ = slide.mpp
        except MppError:
            return replace(ref, mpp=mpp)
    return ref


def _as_slide(ref: SlideRef, work: Path, mpp: float) -> SlideRef:
    path = work / f"mpp_{mpp:g}" / f"{ref.id}.tif"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(ref.path) as image:
            write_pyramid(path, image, mpp)
    return SlideRef(ref.id, str(path), ref.case, ref.label)
