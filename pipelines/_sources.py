"""Which slides a command is about: all of the sources that it names, as one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines._records import absolute
from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.dicom import is_dicom
from wsi_ats.slides.storage import is_remote
from wsi_ats.tables.files import write_csv
from wsi_ats.tables.manifest import find_slides_among, read_manifest
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
    """List the slides of several sources, as :func:`wsi_ats.tables.manifest.read_manifest` does those of one.

    Raises
    ------
    ManifestError
        Also when slides of two sources have one name.
    """
    if len(sources) == 1:
        return read_manifest(
            sources[0], labels=labels, label_column=label_column, task=task, splits=splits, mpp=mpp
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
    if labels is None and splits is None:
        return [ref if ref.mpp is not None else replace(ref, mpp=mpp) for ref in refs]
    # Labels are joined with all slides at once, or each source would miss the others' labels; a table
    # is how the library takes slides that are known already.
    with TemporaryDirectory() as folder:
        table = Path(folder) / "slides.csv"
        write_csv(table, _columns(absolute(refs)))
        return read_manifest(
            table, labels=labels, label_column=label_column, task=task, splits=splits, mpp=mpp
        )


def _dicom_files(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Set apart the sources that are DICOM files: where a shell has expanded ``*.dcm``, each is a level."""
    files = [Path(each) for each in sources if not is_remote(each) and is_dicom(Path(each))]
    return files, [each for each in sources if Path(each) not in files]


def _columns(refs: Sequence[SlideRef]) -> dict[str, list[str]]:
    return {
        "slide_id": [ref.id for ref in refs],
        "path": [ref.path for ref in refs],
        "case_id": [ref.case for ref in refs],
        "label": [ref.label or "" for ref in refs],
        "split": [ref.split or "" for ref in refs],
        "mpp": ["" if ref.mpp is None else repr(ref.mpp) for ref in refs],
    }
