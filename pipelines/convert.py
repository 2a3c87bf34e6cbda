"""Convert slides to OME-Zarr pyramids, with a table of the outcome for each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

from pipelines._records import Row, SlideTask, absolute, own_cores
from pipelines._runs import Execution, Identity, Summary, rooted
from pipelines._stage import run_stage
from wsi_ats.errors import SettingsError
from wsi_ats.files import digest_of
from wsi_ats.results.records import Status
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import slide_digest
from wsi_ats.slides.storage import is_remote

_COLUMNS = {
    **dict.fromkeys(("slide_id", "path", "status", "pyramid"), "string"),
    **dict.fromkeys(("x", "y", "width", "height", "levels"), "int64"),
    "mpp": "double",
    "mpp_source": "string",
    "bytes": "int64",
    "seconds": "double",
    "error": "string",
}


def convert(
    refs: Sequence[SlideRef],
    out: str | Path,
    *,
    codec: str = "zstd",
    quality: int | None = None,
    to: str | None = None,
    execution: Execution | None = None,
) -> Summary:
    """Write slides as OME-Zarr 0.5 pyramids, which any program that supports the format can read.

    A run that was stopped continues in the middle of a slide. Slides are distributed over the workers; if
    there are fewer slides than cores on this machine, each slide uses several cores.

    Parameters
    ----------
    refs
        The slides; the mpp of each must be known.
    out
        Folder for ``<slide_id>.ome.zarr``, ``conversions.parquet`` and ``.csv``, ``run.json``. Columns ``x``
        and ``y`` of the table are the origin of the pyramid in level-0 pixels of the source: of formats with
        a margin around the scanned area (MIRAX), only the scanned area is written.
    codec, quality
        See :func:`wsi_ats.slides.pyramid.write_pyramid`.
    to
        Destination of the pyramids, if not ``out``: another folder, or a URL such as ``s3://bucket/slides``.
    execution
        Where and how; on all cores of this machine by default. ``overwrite`` deletes the slides' pyramids.

    Returns
    -------
    Summary

    Raises
    ------
    SettingsError
        For an impossible codec or quality, and when a slide would overwrite itself.
    ArtifactError
        When the output folder cannot be used, or something else is in the place of a pyramid.

    Examples
    --------
    >>> from wsi_ats.tables.manifest import read_manifest
    >>> convert(read_manifest("slides"), "pyramids").counts  # doctest: +SKIP
    {'done': 120, 'failed': 1, 'no_tissue': 0}
    """
    from wsi_ats.slides.pyramid import check_form, remove_pyramid

    execution, out = execution or Execution(), rooted(out)
    quality = check_form(codec, quality)
    place = str(out) if to is None else to.rstrip("/") if "://" in to else str(rooted(to))
    form = {"codec": codec, "quality": quality, "to": place}
    identity = Identity("convert", {"pyramid": form}, {"settings": digest_of(*map(str, form.values()))})
    task, refs = ConvertTask(out, identity.digest, place, codec, quality), absolute(refs)
    for ref in refs:
        if _same(ref.path, task.target(ref.id)):
            raise SettingsError(f"{ref.path} would overwrite itself; choose another --out or --to")

    def remove() -> None:
        for ref in refs:
            remove_pyramid(task.target(ref.id))

    return run_stage(task, refs, identity, execution, refer=absolute, remove=remove)


def check_apart(sources: Sequence[str], out: str | Path, to: str | None) -> None:
    """Refuse to write pyramids into a folder that is searched for slides.

    The same command, given again, would find each slide twice.

    Raises
    ------
    SettingsError
        When the folder is searched.
    """
    place = str(out) if to is None else to
    for source in sources:
        if is_remote(source) != is_remote(place) or not (is_remote(source) or Path(source).is_dir()):
            continue
        folder, inner = (
            PurePath(each) if is_remote(each) else Path(each).resolve() for each in (source, place)
        )
        if inner.is_relative_to(folder):
            raise SettingsError(
                f"{place} is in {source}, which is searched for slides: each slide would be found twice, as "
                "itself and as a pyramid; choose another place, or name the slides by a glob such as "
                f"'{source.rstrip('/')}/*.svs'"
            )


@dataclass(frozen=True)
class ConvertTask(SlideTask):
    """Conversion of a slide.

    Parameters
    ----------
    to
        Folder or URL of all pyramids.
    codec, quality
        See :func:`convert`.
    """

    to: str
    codec: str
    quality: int | None

    stage: ClassVar[str] = "convert"
    tables: ClassVar[Sequence[str]] = ("conversions",)

    @property
    def columns(self) -> Mapping[str, str]:
        """See :func:`convert`."""
        return _COLUMNS

    def target(self, slide_id: str) -> str:
        """Return the folder or URL of a slide's pyramid."""
        return f"{self.to}/{slide_id}.ome.zarr"

    def files(self, slide_id: str) -> tuple[Path, ...]:
        """Return no files: a pyramid is continued, not deleted before each attempt."""
        del slide_id
        return ()

    def is_whole(self, ref: SlideRef) -> bool:
        """Return whether the pyramid is complete; a deleted one is written again."""
        from wsi_ats.slides.pyramid import is_complete

        return is_complete(self.target(ref.id))

    def notes(self, rows: Sequence[Row]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the place of the pyramids, if it is not the output folder."""
        return {} if self.to == str(self.out) else {"pyramids": self.to}

    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Write the pyramid, or its missing parts."""
        from wsi_ats.slides.pyramid import write_pyramid

        begin, target = time.perf_counter(), self.target(ref.id)
        with open_slide(ref) as slide:
            mpp = slide.mpp
            pyramid = write_pyramid(
                slide,
                target,
                codec=self.codec,
                quality=self.quality,
                source=slide_digest(ref.path),
                threads=own_cores(),
            )
        x, y, width, height = pyramid.region
        row = {
            "slide_id": ref.id,
            "path": ref.path,
            "status": Status.DONE.value,
            "pyramid": target,
            "x": x,
            "y": y,
            "width": width,
            "height": height,
            "levels": len(pyramid.sizes),
            "mpp": mpp.value,
            "mpp_source": mpp.source,
            "bytes": pyramid.stored_bytes,
            "seconds": time.perf_counter() - begin,
            "error": None,
        }
        return row, ()


def _same(one: str, other: str) -> bool:
    """Return whether two paths or URLs lead to the same place, with links resolved."""
    if is_remote(one) or is_remote(other):
        return one.rstrip("/") == other
    return Path(one).resolve() == Path(other).resolve()
