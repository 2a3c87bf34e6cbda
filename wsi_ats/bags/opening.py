"""From files to a bag."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi_ats.bags.encoders import encoder_name, encoder_of_folder
from wsi_ats.bags.hdf5 import Stored, read_stored
from wsi_ats.bags.layouts import place
from wsi_ats.bags.record import Bag
from wsi_ats.bags.tensors import read_tensor
from wsi_ats.errors import FeatureError

SUFFIXES = (".h5", ".hdf5", ".pt")
"""Extensions of files of features."""

# Attributes that name the encoder: ours and TRIDENT's, and STAMP's.
_ENCODER = ("encoder", "extractor")


def open_bag(path: Path, *, mpp: float, coords: Path | None = None) -> Bag:
    """Open the features of a slide, in the layout of CLAM, TRIDENT, STAMP or this library.

    Coordinates and attributes are read; features only when they are asked for.

    Parameters
    ----------
    path
        The file of features, ``.h5`` or ``.pt``.
    mpp
        Micrometres per level-0 pixel of the slide, for coordinates in micrometres, and for files that give a
        magnification alone.
    coords
        The file of coordinates (CLAM's ``patches/<id>.h5``, TRIDENT's ``patches/<id>_patches.h5``), for
        features without coordinates, or with coordinates but without the size of tiles.

    Returns
    -------
    Bag
        The bag, with corners in level-0 pixels.

    Raises
    ------
    FeatureError
        When a file cannot be read, the two files differ, or the size or place of the tiles is unknown.

    Examples
    --------
    See :class:`wsi_ats.bags.record.Bag`.
    """
    if path.suffix.lower() == ".pt":
        features, stored = read_tensor(path), None
    else:
        stored = read_stored(path)
        if stored.features is None:
            raise FeatureError(str(path), "has coordinates, but no features; give the file of features")
        features = stored.features
    _refuse_slide_level(path, stored)
    placing = read_stored(coords) if coords is not None else None
    _compare(path, stored, placing)
    reasons = []
    for source in (stored, placing):
        if source is None or source.coords is None:
            continue
        if not len(source.coords) and not features.count:
            # TRIDENT writes no attributes for a slide without tiles; no tile has a side.
            return Bag(path, np.empty((0, 2), np.int64), 1.0, features, _encoder(path, stored))
        placed = place(source.coords, source.attributes, mpp=mpp, pixels=source.pixels)
        if not isinstance(placed, str):
            ours = source.attributes if "side" in source.attributes else {}
            pixels = ours.get("tile_size")
            return Bag(
                path,
                *placed,
                features,
                _encoder(path, stored),
                None if pixels is None else int(pixels),
                str(ours.get("encoder_digest", "")),
            )
        reasons.append(f"{source.path.name}: {placed}")
    raise FeatureError(
        str(path),
        f"the places of its tiles are unknown: {'; '.join(reasons) or 'it has no coordinates'}; keep CLAM's "
        "or TRIDENT's folder patches beside the folder of features",
    )


def _refuse_slide_level(path: Path, stored: Stored | None) -> None:
    kind = stored.attributes.get("feat_type", "tile") if stored else "tile"
    if kind != "tile":
        raise FeatureError(str(path), f"has features of a {kind}; features of tiles are needed")


def _compare(path: Path, stored: Stored | None, placing: Stored | None) -> None:
    """Refuse a file of coordinates that is not of the same tiles."""
    if stored is None or placing is None or stored.coords is None or placing.coords is None:
        return
    if not np.array_equal(stored.coords, placing.coords):
        raise FeatureError(
            str(path),
            f"its {len(stored.coords)} coordinates differ from the {len(placing.coords)} in {placing.path}; "
            "extract the features again from these coordinates",
        )


def _encoder(path: Path, stored: Stored | None) -> str:
    attributes = stored.attributes if stored else {}
    for name in _ENCODER:
        if attributes.get(name) not in (None, "", "None"):  # TRIDENT writes None as a text
            return encoder_name(str(attributes[name]))
    return encoder_of_folder(path.parent)
