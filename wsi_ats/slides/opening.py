"""Opening of slides: the choice of a reader, and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_ats.errors import SlideOpenError
from wsi_ats.slides.advice import advice_on
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.slides.storage import is_remote, is_zarr, open_storage

if TYPE_CHECKING:
    from wsi_ats.slides.storage import Storage
    from wsi_ats.slides.tiff_index import TiffIndex


@dataclass(frozen=True)
class Choice:
    """A reader, chosen for one slide.

    Parameters
    ----------
    reader
        ``direct``: :class:`wsi_ats.slides.tiff.TiffSlide`; ``openslide``:
        :class:`wsi_ats.slides.openslide.OpenSlideSlide`; ``zarr``: :class:`wsi_ats.slides.zarr.ZarrSlide`.
    reason
        The reason.
    """

    reader: str
    reason: str


def choose_reader(ref: SlideRef | str | Path) -> Choice:
    """Return the reader that :func:`open_slide` chooses for a slide, and the reason.

    Parameters
    ----------
    ref
        A reference, or the path or URL of a file.

    Raises
    ------
    SlideOpenError
        When the slide is missing or its index is damaged.

    Examples
    --------
    >>> choose_reader("scans/case7.mrxs")  # doctest: +SKIP
    Choice(reader='openslide', reason='it is not a TIFF file')
    """
    choice, storage, _ = _choose(_reference(ref))
    if storage is not None:
        storage.close()
    return choice


def open_slide(ref: SlideRef | str | Path, *, threads: int = 1) -> Slide:
    """Open a slide; pixels are read only when asked for.

    TIFF files are read directly where the pixels are the same as OpenSlide's, at a fifth to a half of the
    cost (``docs/readers.md``); OME-Zarr is read by zarr, and all else by OpenSlide.

    Parameters
    ----------
    ref
        A reference, or the path or URL of a file. Its ``reader`` forces one. With its ``colour`` "srgb",
        pixels are converted by the file's colour profile; without a profile they stay as stored.
    threads
        Number of threads that decode where tiles are read directly: for a program that reads one slide, or
        fewer than it has cores.

    Raises
    ------
    SlideOpenError
        When the file is missing, damaged or of a format no reader knows.

    Examples
    --------
    >>> with open_slide("scans/case7.svs") as slide:  # doctest: +SKIP
    ...     slide.levels[0].width
    """
    return open_chosen(ref, threads=threads)[0]


def open_chosen(ref: SlideRef | str | Path, *, threads: int = 1) -> tuple[Slide, Choice]:
    """Open a slide as :func:`open_slide` does, and return the choice of its reader, too.

    The index that decides is read only once, which matters where it comes from a store.
    """
    ref = _reference(ref)
    choice, storage, index = _choose(ref)
    slide = _open(ref, threads, choice, storage, index)
    if ref.colour == "stored" or slide.icc is None:
        return slide, choice
    from wsi_ats.slides.colour import SrgbSlide

    try:
        return SrgbSlide(slide), choice
    except SlideOpenError:
        slide.close()
        raise


def _open(
    ref: SlideRef, threads: int, choice: Choice, storage: Storage | None, index: TiffIndex | None
) -> Slide:
    if choice.reader == "direct":
        from wsi_ats.slides.tiff import TiffSlide

        return TiffSlide(
            ref.path, mpp=ref.mpp, channel=ref.channel, threads=threads, storage=storage, index=index
        )
    if storage is not None:
        storage.close()
    if ref.channel:
        raise SlideOpenError(
            ref.path,
            f"tile.channel is {ref.channel!r}, but channels can be chosen of TIFF files alone that are read "
            f"directly, and the reader is {choice.reader}: {choice.reason}",
        )
    if choice.reader == "zarr":
        from wsi_ats.slides.zarr import ZarrSlide

        return ZarrSlide(ref.path, mpp=ref.mpp)
    from wsi_ats.slides.openslide import OpenSlideSlide

    try:
        slide = OpenSlideSlide(ref.path, mpp=ref.mpp)
    except SlideOpenError as error:
        if ref.reader != "auto":
            raise
        raise SlideOpenError(ref.path, f"{error.problem} (and not read directly: {choice.reason})") from error
    if index is not None:
        _check_levels(slide, index)
    return slide


def _check_levels(slide: Slide, index: TiffIndex) -> None:
    """Refuse a pyramid with a damaged level: OpenSlide would read all of level 0 for a thumbnail."""
    from wsi_ats.slides.tiff import damaged_level

    level = damaged_level(index)
    if level is not None and (level.width, level.height) not in {
        (each.width, each.height) for each in slide.levels
    }:
        slide.close()
        raise SlideOpenError(
            slide.path,
            f"its level of {level.width} x {level.height} pixels is not stored as level 0 is: "
            f"{level.refused}; {advice_on(level.refused)}",
        )


def _reference(ref: SlideRef | str | Path) -> SlideRef:
    return ref if isinstance(ref, SlideRef) else SlideRef.from_path(ref)


def _choose(ref: SlideRef) -> tuple[Choice, Storage | None, TiffIndex | None]:
    """Choose a reader, and return the storage and index that were opened for it."""
    if ref.reader == "openslide" and is_remote(ref.path):
        raise SlideOpenError(
            ref.path, "OpenSlide reads files of this machine alone; copy it, or leave out --reader"
        )
    if ref.reader != "auto":
        return Choice(ref.reader, "asked for"), None, None
    if is_zarr(ref.path):
        return Choice("zarr", "it is OME-Zarr"), None, None
    if Path(ref.path).is_dir() and not is_remote(ref.path):
        return Choice("openslide", "it is a folder"), None, None
    if ref.path.lower().endswith(".vsi"):
        raise SlideOpenError(
            ref.path,
            "a .vsi file holds an overview and the label; the slide itself is in .ets files, which cannot be "
            "read here; convert it, with bioformats2raw for example",
        )
    storage = open_storage(ref.path)
    try:
        choice, index = _choose_by_content(ref, storage)
    except SlideOpenError:
        storage.close()
        raise
    return choice, storage, index


def _choose_by_content(ref: SlideRef, storage: Storage) -> tuple[Choice, TiffIndex | None]:
    """Choose a reader by the contents of a file, and return its index, too."""
    from wsi_ats.slides.tiff import levels_of, why_not
    from wsi_ats.slides.tiff_index import TiffIndex

    # The file of a MIRAX slide has no contents, and may be empty.
    if storage.size == 0 and not ref.path.lower().endswith(".mrxs"):
        raise SlideOpenError(ref.path, "it is an empty file; copy it again")
    whole = index = TiffIndex.of(storage)
    if index is not None:
        _check_shows_slide(ref.path, index)
    if index is not None and ref.channel:
        index = index.of_channel(ref.path, ref.channel)
    reason = "it is not a TIFF file" if index is None else why_not(index)
    if index is not None and not reason:
        why = "its pixels are those that OpenSlide gives"
        if ref.channel:
            why = f"channel {ref.channel} was asked for"
        elif not index.images[0].tiled:
            why = "OpenSlide reads no TIFF in strips"
        elif index.vendor == "ome-tiff":
            why = "OpenSlide reads no OME-TIFF, or its finest level alone"
        elif any(each.below for each in levels_of(index)):
            why = "OpenSlide does not see its coarser levels, which are in SubIFDs"
        return Choice("direct", why), whole
    if index is not None and index.planes > 1:
        from wsi_ats.slides.openslide import is_known

        known = not is_remote(ref.path) and is_known(ref.path)
        advice = "; --reader openslide takes the first" if known else ""
        if index.pages:
            advice = "; give one by its name, or its number from 0, with --set tile.channel=..." + advice
        raise SlideOpenError(ref.path, f"{reason}, and a slide is one picture{advice}")
    if not is_remote(ref.path):
        return Choice("openslide", reason), index
    if index is None or why_not(index, like_openslide=False):
        raise SlideOpenError(
            ref.path,
            f"only OME-Zarr and plain TIFF pyramids are read from a store, and {reason}; copy it to this "
            "machine, or convert it with `wsi-ats convert`",
        )
    return Choice("direct", f"OpenSlide reads no store, although {reason}"), whole


def _check_shows_slide(path: str, index: TiffIndex) -> None:
    """Refuse TIFF files that every reader would show wrongly."""
    if index.overview:
        raise SlideOpenError(
            path,
            f"its only picture is called {index.overview!r}; give the file that has the slide itself, or, if "
            "that is what it shows, --reader direct",
        )
    if index.files:
        raise SlideOpenError(
            path,
            f"its picture is in the files of an OME-TIFF ({index.files}), and a slide is one file; write "
            "them to one, with bioformats2raw for example",
        )
    if index.orientation != 1:
        raise SlideOpenError(
            path,
            f"its orientation (tag 274) is {index.orientation}: it is stored turned or mirrored, and readers "
            "of tiles turn each in its place; write it upright, with `vips autorot` for example",
        )
