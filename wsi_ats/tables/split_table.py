"""CLAM's tables of splits, matched with slides."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from wsi_ats.errors import ManifestError
from wsi_ats.tables.columns import SPLITS, slide_id
from wsi_ats.tables.files import read_csv
from wsi_ats.tables.folders import listed

_log = logging.getLogger(__name__)


def read_splits(path: str | Path) -> dict[str, str]:
    """Read CLAM's ``splits_k.csv``: a column of slides for each of ``train``, ``val``, ``test``.

    Returns
    -------
    dict
        Split by slide.

    Raises
    ------
    ManifestError
        When there are other columns, or a slide is in two splits.
    """
    columns = {name.lower(): values for name, values in read_csv(path).items()}
    # An unnamed column is the row number that pandas writes.
    others = [name for name in columns if name not in {*SPLITS, "", "unnamed: 0"}]
    if others or "train" not in columns:
        raise ManifestError(
            f"{path}: a table of splits must have the columns train, val and test; found "
            + ", ".join(filter(None, columns))
            + (f"; rename or remove {', '.join(map(repr, others))}" if "train" in columns else "")
        )
    splits: dict[str, str] = {}
    for split in SPLITS:
        for name in columns.get(split, []):
            slide = slide_id(name)
            if slide and splits.setdefault(slide, split) != split:
                raise ManifestError(f"{path}: {slide!r} is in {splits[slide]} and in {split}")
    return splits


def match_splits(
    splits: Mapping[str, str], known: Collection[str], source: str, *, split: str | None = None
) -> dict[str, str]:
    """Match a table of splits with known slides.

    Parameters
    ----------
    splits
        Split by slide, from :func:`read_splits`. If no slide is called ``104.0``, it is taken as slide
        ``104``: pandas writes integers with ``.0`` in a column with gaps.
    known
        Ids of the slides.
    source
        The table's name in messages.
    split
        The only split of interest; unknown slides in other splits are ignored.

    Returns
    -------
    dict
        Split by the slide's own id.

    Raises
    ------
    ManifestError
        When a slide is unknown, or is in two splits under two spellings of its id.

    Examples
    --------
    >>> match_splits({"103": "train", "104.0": "val"}, ["103", "104", "105"], "splits_0.csv")
    {'103': 'train', '104': 'val'}
    """
    matched: dict[str, str] = {}
    ids, unknown, renamed = set(known), [], []
    for name, of in splits.items():
        slide = name if name in ids else name.removesuffix(".0")
        if slide not in ids:
            if split in {None, of}:
                unknown.append(name)
            continue
        if matched.setdefault(slide, of) != of:
            raise ManifestError(f"{source}: {slide!r} is in {matched[slide]} and, as {name!r}, in {of}")
        renamed += [name] if slide != name else []
    if unknown:
        raise ManifestError(
            f"{source}: {len(unknown)} of its {len(splits)} slides are not among the {len(ids)} given: "
            f"{listed([_with_nearest(name, ids) for name in unknown])}; correct or remove them"
        )
    if renamed:
        _log.warning("%s: the ending '.0' of these ids is ignored: %s", source, listed(renamed))
    return matched


def _with_nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"{name!r} (nearest: {near[0]!r})" if near else repr(name)
