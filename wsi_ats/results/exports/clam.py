"""Drawn tiles for CLAM: coordinates, and features if they were kept.

``create_heatmaps.py`` and ``extract_features_fp.py`` read ``patches/<slide_id>.h5`` with
``process_list_autogen.csv``; training reads ``h5_files`` and ``pt_files``. Tiles are described as pixels of
level 0, from which CLAM resizes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsi_ats.bags.tensors import write_tensor
from wsi_ats.files import atomic
from wsi_ats.results.exports.coordinates import copy_features, read_features, write_patches
from wsi_ats.results.exports.format import Format
from wsi_ats.results.scores import ScoredSlide, Scores
from wsi_ats.tables.files import write_csv


def write_clam(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``patches/<slide_id>.h5``, and ``h5_files`` and ``pt_files`` if features were kept."""
    written = [write_patches(folder / "patches" / f"{slide.id}.h5", slide.selection())]
    if slide.features_file.exists():
        written.append(copy_features(folder / "h5_files" / f"{slide.id}.h5", slide))
        written.append(write_tensor(folder / "pt_files" / f"{slide.id}.pt", read_features(slide)))
    return written


def write_process_list(folder: Path, scores: Scores, slides: Sequence[ScoredSlide]) -> list[Path]:  # noqa: ARG001
    """Write CLAM's list of slides, by which it finds the coordinates.

    See :class:`wsi_ats.results.exports.format.Format` for ``folder``, ``scores`` and ``slides``.
    """
    path = folder / "process_list_autogen.csv"
    names = [slide.id + Path(slide.row["path"]).suffix for slide in slides]
    with atomic(path) as temporary:
        write_csv(
            temporary, {"slide_id": names, "process": [0] * len(names), "status": ["processed"] * len(names)}
        )
    return [path]


FORMAT = Format(
    "clam",
    programs="CLAM",
    contents="patches/*.h5; with kept features h5_files/*.h5 and pt_files/*.pt",
    slide=write_clam,
    collection=write_process_list,
)
