"""Pyramids of slides in OME-Zarr 0.5, written so that a stopped conversion can continue.

A pyramid is written shard by shard. Each shard is written whole, read back and compared; a later attempt
keeps intact shards. The image's own ``zarr.json`` is written last: without it, the folder is not accepted as
a slide.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.sync import sync  # private, but stores have no other way to be used without asyncio
from zarr.storage import MemoryStore

from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.files import digest_of
from wsi_ats.geometry import Region
from wsi_ats.slides.base import Slide
from wsi_ats.slides.ome_zarr import ICC, OWN
from wsi_ats.slides.shards import PyramidForm, ShardWriter, level_sizes, writing
from wsi_ats.slides.storage import is_remote
from wsi_ats.slides.zarr_jpeg import register_jpeg
from wsi_ats.slides.zarr_store import get_bytes, list_keys, open_store, set_bytes, text_of, zarr_errors

_FILES = re.compile(r"zarr\.json|\d+/(zarr\.json|c/0/\d+/\d+)")  # all files of a pyramid
_UNFINISHED = ".partial"  # ending of temporary files that a killed process leaves in a folder


@dataclass(frozen=True)
class Pyramid:
    """The result of writing a pyramid.

    Parameters
    ----------
    region
        The part of the source's level 0 that is the pyramid's level 0.
    sizes
        Width and height of each level.
    stored_bytes
        Size of all shards.
    reused
        Number of shards from an earlier attempt.
    """

    region: Region
    sizes: Sequence[tuple[int, int]]
    stored_bytes: int
    reused: int


def write_pyramid(
    slide: Slide,
    target: str,
    *,
    codec: str = "zstd",
    quality: int | None = None,
    source: str = "",
    region: Region | None = None,
    threads: int = 1,
) -> Pyramid:
    """Write a slide as an OME-Zarr 0.5 pyramid.

    Level 0 is the source's; each further level averages 2 x 2 pixels of the previous one (fewer at an odd
    edge), down to 512 pixels. Each thread needs memory for a few shards (2048 x 2048 pixels), regardless of
    the slide's size. A conversion that was stopped continues when called again, with the same bytes as
    result.

    Parameters
    ----------
    slide
        The source; its mpp must be known.
    target
        Folder or URL of the pyramid; its name should end in ``.ome.zarr``.
    codec
        ``"zstd"`` is lossless; ``"jpeg"`` is not, and its coarser levels are averages of the stored pixels.
        JPEG can be read by this library, and by others if imagecodecs-zarr is installed.
    quality
        Quality of ``"jpeg"``, 1 to 100; 90 by default.
    source
        Fingerprint of the source's file. It is recorded in the pyramid, and a different source is refused.
    region
        Part of level 0 to write, in level-0 pixels; by default :attr:`~wsi_ats.slides.base.Slide.bounds`, the
        scanned part. It is recorded as ``region`` in the attribute ``wsi_ats``: add its corner to a pixel of
        the pyramid to get the pixel of the source.
    threads
        Number of shards to make at a time.

    Returns
    -------
    Pyramid

    Raises
    ------
    SettingsError
        For an unknown codec, or a quality or region that is not possible.
    ArtifactError
        When the target holds other data, or cannot be written to.
    MppError, SlideReadError
        When the source's mpp is unknown, or its pixels cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from wsi_ats.slides.memory import MemorySlide
    >>> slide = MemorySlide([np.zeros((600, 700, 3), np.uint8)], mpp=0.5)
    >>> write_pyramid(slide, "memory://docs/black.ome.zarr").sizes
    [(700, 600), (350, 300)]
    """
    form = PyramidForm.of(codec, quality)
    region = region or slide.bounds
    full = slide.levels[0]
    x, y, width, height = region
    if min(x, y) < 0 or min(width, height) < 1 or x + width > full.width or y + height > full.height:
        raise SettingsError(f"{region} is not within the slide's {full.width} x {full.height} pixels")
    if threads < 1:
        raise SettingsError(f"threads must be at least 1, not {threads}")
    record = record_of(slide, region, form, source)
    sizes = level_sizes(width, height)
    register_jpeg()
    with writing(target):
        store = _open_target(target)
        resumed = _begin(store, target, sizes, form, record)
    writer = ShardWriter(slide, store, target, region, form, sizes, resumed=resumed)
    stored, reused = writer.write(threads)
    with writing(target):
        # This file is written last: its presence means that the pyramid is complete.
        memory = MemoryStore()
        zarr.create_group(memory, attributes=attributes_of(slide, target, sizes, record))
        _copy(memory, store, "zarr.json")
    return Pyramid(region, sizes, stored, reused)


def check_form(codec: str, quality: int | None) -> int | None:
    """Check a codec and its quality, and return the quality; ``None`` for a codec without quality.

    Raises
    ------
    SettingsError
        For an unknown codec, or a quality that it does not allow.
    """
    return PyramidForm.of(codec, quality).quality


def is_complete(target: str) -> bool:
    """Return whether the target is a complete pyramid of this library.

    Raises
    ------
    ArtifactError
        When the target cannot be read.
    """
    try:
        text = get_bytes(open_store(target, read_only=True), "zarr.json")
    except FileNotFoundError:
        return False
    except zarr_errors() as error:
        raise ArtifactError(f"{target} cannot be read: {text_of(error)}") from error
    try:
        return text is not None and OWN in json.loads(text)["attributes"]
    except (ValueError, LookupError, TypeError):
        return False  # damaged: it is written again


def remove_pyramid(target: str) -> None:
    """Delete a pyramid of this library, complete or not; do nothing if there is none.

    Raises
    ------
    ArtifactError
        When the target is not a pyramid or holds other files, in which case nothing is deleted; or when it
        cannot be deleted.
    """
    with writing(target):
        store = _open_target(target)
        if _digest_there(store, target) is not None:
            if not is_remote(target) and Path(target).is_symlink():
                raise ArtifactError(
                    f"{target} is a link, and its target is not deleted; delete the link, or choose another "
                    "place"
                )
            others = _other_files(store)
            if others:
                raise ArtifactError(
                    f"{target} holds files that do not belong to the pyramid, such as {others[0]}, so it is "
                    "not deleted; move them, or choose another place"
                )
            # The image's own file is deleted first, so that the rest does not look complete.
            sync(store.delete("zarr.json"))
            sync(store.delete_dir(""))


def _open_target(target: str) -> Store:
    """Open a target for writing.

    Names that stores interpret as patterns are refused: to delete ``scan[1].ome.zarr`` would delete
    ``scan1.ome.zarr``.
    """
    odd = [each for each in ("*", "?", "[", "::") if each in target]
    if is_remote(target) and odd:
        raise ArtifactError(
            f"{target} cannot be written: {', '.join(odd)} has a special meaning in URLs; choose another "
            "place, or give the slide another slide_id in a table"
        )
    return open_store(target, read_only=False)


def _begin(
    store: Store, target: str, sizes: Sequence[tuple[int, int]], form: PyramidForm, record: Mapping[str, Any]
) -> bool:
    """Create the arrays, without pixels, and return whether there was an earlier attempt."""
    there = _digest_there(store, target)
    if there is not None and there != record["digest"]:
        raise ArtifactError(
            f"{target} was made from another slide or with other settings; choose another place, or "
            "delete it (--overwrite)"
        )
    if there is not None:
        for key in list_keys(store):
            if key.endswith(_UNFINISHED):
                sync(store.delete(key))
    # From here on the image is incomplete, until every shard has been checked again.
    sync(store.delete("zarr.json"))
    for level, size in enumerate(sizes):
        if there is None or get_bytes(store, f"{level}/zarr.json") is None:
            # Created in memory first, because Zarr would also write an empty zarr.json of the image.
            memory = MemoryStore()
            form.array(memory, size, **{OWN: {"digest": record["digest"]}})
            _copy(memory, store, "zarr.json", f"{level}/zarr.json")
    return there is not None


def _digest_there(store: Store, target: str) -> str | None:
    """Return the fingerprint of the conversion in a target; ``None`` for an empty target.

    Raises
    ------
    ArtifactError
        When the target holds anything else, which could later be confused with the pyramid's own files.
    """
    for key in ("0/zarr.json", "zarr.json"):
        text = get_bytes(store, key)
        if text is not None:
            try:
                return str(json.loads(text)["attributes"][OWN]["digest"])
            except (ValueError, LookupError, TypeError) as error:
                raise ArtifactError(
                    f"{target} holds something other than a pyramid of wsi-ats, which is left alone; "
                    "choose another place"
                ) from error
    others = _other_files(store)
    if others:
        raise ArtifactError(
            f"{target} holds something other than a pyramid of wsi-ats ({others[0]}), which is left alone; "
            "choose another place"
        )
    return None


def _other_files(store: Store) -> list[str]:
    """List the files that a conversion does not write."""
    return [key for key in list_keys(store) if not (_FILES.fullmatch(key) or key.endswith(_UNFINISHED))]


def _copy(memory: MemoryStore, store: Store, key: str, target: str | None = None) -> None:
    value = get_bytes(memory, key)
    assert value is not None
    set_bytes(store, target or key, value)


_COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}


def record_of(slide: Slide, region: Region, form: PyramidForm, source: str) -> dict[str, Any]:
    """Return a record of a conversion: everything that its bytes depend on, and a fingerprint of that.

    Parameters
    ----------
    slide, region, source
        As in :func:`wsi_ats.slides.pyramid.write_pyramid`.
    form
        The codec.

    Raises
    ------
    MppError
        When the slide's resolution is unknown.
    """
    # The query of a URL may be a signature, which is not part of the name and must not be shared.
    path = slide.path.partition("?")[0] if is_remote(slide.path) else slide.path
    facts = {
        "source": {
            "name": PurePath(path).name,
            "digest": source,
            "mpp": slide.mpp.value,
            "mpp_source": slide.mpp.source,
            "vendor": slide.vendor,
        },
        "region": list(region),
        "codec": form.codec,
        "quality": form.quality,
        "every_chunk_is_stored": True,
    }
    return {**facts, "digest": digest_of(json.dumps(facts, sort_keys=True))}


def attributes_of(
    slide: Slide, target: str, sizes: Sequence[tuple[int, int]], record: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the attributes of the image: those of OME-Zarr, and this library's record.

    Parameters
    ----------
    slide
        The source.
    target
        Folder or URL of the pyramid, from which its name is derived.
    sizes
        Width and height of each level.
    record
        From :func:`record_of`.
    """
    name = PurePath(target).name.removesuffix(".zarr").removesuffix(".ome")
    mpp = slide.mpp.value
    datasets = []
    for level in range(len(sizes)):
        scale = mpp * 2**level
        # OME-Zarr positions are those of pixel centres; the centre of an average lies between its pixels.
        middle = (scale - mpp) / 2
        transformations = [
            {"type": "scale", "scale": [1.0, scale, scale]},
            {"type": "translation", "translation": [0.0, middle, middle]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [
                {
                    "name": name,
                    "axes": [
                        {"name": "c", "type": "channel"},
                        {"name": "y", "type": "space", "unit": "micrometer"},
                        {"name": "x", "type": "space", "unit": "micrometer"},
                    ],
                    "datasets": datasets,
                    "type": "mean",
                }
            ],
            "omero": {
                "name": name,
                "channels": [
                    {"label": label, "color": colour, "active": True, "window": window}
                    for label, colour in _COLOURS.items()
                ],
                "rdefs": {"model": "color"},
            },
        },
        OWN: record if slide.icc is None else {**record, ICC: b64encode(slide.icc).decode()},
    }
