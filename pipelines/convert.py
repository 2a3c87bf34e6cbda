"""Convert slides to OME-Zarr pyramids, and a table that says what became of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipelines._records import Row, SlideTask, absolute, complete, own_cores, pending, write_table
from pipelines._runs import Execution, Identity, Summary, count, open_run, rooted
from wsi_ats.errors import SettingsError
from wsi_ats.files import digest_of
from wsi_ats.results.records import Status
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import slide_digest
from wsi_ats.slides.storage import is_remote

RESULTS = ("records", "conversions.parquet", "conversions.csv")

_TYPES = {
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
    """Write slides as OME-Zarr 0.5 pyramids, which any program that knows the format reads.

    A run that is stopped goes on in the middle of a slide. Slides are shared out to the workers; where there
    are fewer slides than cores on this machine, each slide is given several of them.

    Parameters
    ----------
    refs
        The slides; each must know its mpp.
    out
        Folder for ``<slide_id>.ome.zarr``, ``conversions.parquet`` and ``.csv``, ``run.json``. Columns ``x``
        and ``y`` of the table are the place, in level-0 pixels of the source, where the pyramid begins: of
        formats that leave a margin around what was scanned (MIRAX), only what was scanned is written.
    codec, quality
        See :func:`wsi_ats.slides.pyramid.write_pyramid`.
    to
        Where the pyramids go, if not to ``out``: another folder, or a URL such as ``s3://bucket/slides``.
    execution
        Where and how; on all cores of this machine by default. ``overwrite`` deletes the slides' pyramids.

    Returns
    -------
    Summary

    Raises
    ------
    SettingsError
        For a codec or quality that cannot be, and when a slide would be written over itself.
    ArtifactError
        When the output folder is not to be used, or holds something else where a pyramid should go.

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
            raise SettingsError(f"{ref.path} would be written over itself; choose another --out or --to")
    with open_run(out, identity, execution, results=RESULTS) as run:
        if execution.dry_run:
            return Summary.of_dry_run("convert", out, *(len(part) for part in pending(task, refs)))
        if execution.overwrite:
            for ref in refs:
                remove_pyramid(task.target(ref.id))
        run.begin()
        results = complete(task, refs, execution, title="convert")
        counts = count(results.rows)
        if not results.stopped:
            write_table(out, "conversions", results.rows, _TYPES)
            run.finish(counts)
    notes = {} if place == str(out) else {"pyramids": place}
    return Summary(
        *("convert", out, counts, results.failed, results.reused),
        notes={**results.notes, **notes},
        table=None if results.stopped else "conversions.csv",
    )


def check_apart(sources: Sequence[str], out: str | Path, to: str | None) -> None:
    """Check that pyramids do not go into a folder that is searched for slides.

    The same command would find them when it is given again, and each slide twice.

    Raises
    ------
    SettingsError
        When they do.
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
                f"{place} is in {source}, which is searched for slides: the pyramids would be found there, "
                "too, and each slide twice; choose another place, or name the slides by a glob such as "
                f"'{source.rstrip('/')}/*.svs'"
            )


@dataclass(frozen=True)
class ConvertTask(SlideTask):
    """What converting does to one slide.

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

    def target(self, slide_id: str) -> str:
        """Folder or URL of a slide's pyramid."""
        return f"{self.to}/{slide_id}.ome.zarr"

    def files(self, slide_id: str) -> tuple[Path, ...]:
        """None that are made anew at each attempt: a pyramid is gone on with."""
        del slide_id
        return ()

    def finished(self, ref: SlideRef) -> Row | None:
        """See :meth:`pipelines._records.SlideTask.finished`; a pyramid that was deleted is made again."""
        from wsi_ats.slides.pyramid import is_complete

        row = super().finished(ref)
        return row if row is not None and is_complete(self.target(ref.id)) else None

    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Write the pyramid, or what is missing of it."""
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

    def failed(self, ref: SlideRef, error: str, seconds: float) -> Row:
        """A row that says why."""
        known = {"slide_id": ref.id, "path": ref.path, "status": Status.FAILED.value}
        return dict.fromkeys(_TYPES) | known | {"seconds": seconds, "error": error}


def _same(one: str, other: str) -> bool:
    """Whether two paths or URLs lead to one place, through whatever links."""
    if is_remote(one) or is_remote(other):
        return one.rstrip("/") == other
    return Path(one).resolve() == Path(other).resolve()
