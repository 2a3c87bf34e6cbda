"""The metadata of a pyramid: OME-Zarr's attributes, and a record of the conversion."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from wsi_ats.files import digest_of
from wsi_ats.geometry import Region
from wsi_ats.slides.base import Slide
from wsi_ats.slides.ome_zarr import ICC, OWN
from wsi_ats.slides.shards import PyramidForm
from wsi_ats.slides.storage import is_remote

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
