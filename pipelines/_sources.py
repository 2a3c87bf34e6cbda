"""The slides of a command: those of all its sources, as one list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.dicom import is_dicom
from wsi_ats.slides.storage import is_remote
from wsi_ats.tables.folders import find_slides_among
from wsi_ats.tables.manifest import completed, read_manifest
from wsi_ats.tables.slide_table import check_series
from wsi_ats.tasks.registry import DEFAULT_TASK


def read_sources(
    sources: Sequence[str],
    *,
    labels: Path | None = None,
    label_column: str | None = None,
    task: str = DEFAULT_TASK,
    splits: Path | None = None,
    mpp: float | None = None,
) -> list[SlideRef]:
    """List the slides of several sources, as :func:`wsi_ats.tables.manifest.read_manifest` does for one.

    Raises
    ------
    ManifestError
        Also when slides of two sources have the same id.
    """
    if len(sources) == 1:
        return read_manifest(
            sources[0], labels=labels, label_column=label_column, task=task, splits=splits, mpp=mpp
        )
    if label_column is not None and labels is None:
        raise ManifestError(
            f"the label column {label_column!r} needs a table of labels; give it with --labels"
        )
    named: dict[str, tuple[str, SlideRef]] = {}
    files, others = _dicom_files(sources)
    found = [(source, read_manifest(source)) for source in others]
    found += [("its files", find_slides_among(files))] if files else []
    for source, refs in found:
        for ref in refs:
            where, other = named.setdefault(ref.id, (source, ref))
            if other is not ref:
                raise ManifestError(
                    f"two slides are called {ref.id!r}: {other.path} (named by {where}) and {ref.path} "
                    f"(named by {source}); name each once, or give a table with a slide_id for each path"
                )
    refs = [ref for _, ref in named.values()]
    check_series(refs, ", ".join(sources))
    # Labels are joined with the slides of all sources at once: no single source has a slide for each label.
    return completed(refs, labels=labels, label_column=label_column, task=task, splits=splits, mpp=mpp)


def _dicom_files(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate the sources that are DICOM files: when a shell expands ``*.dcm``, each file may be a level."""
    files = [Path(each) for each in sources if not is_remote(each) and is_dicom(Path(each))]
    return files, [each for each in sources if Path(each) not in files]
