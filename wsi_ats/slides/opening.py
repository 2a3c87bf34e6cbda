"""Opening of slides, and the choice of a reader."""

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

# First bytes of images that no reader of slides knows.
_IMAGES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG"}


@dataclass(frozen=True)
class Choice:
    """The reader chosen for a slide.

    Parameters
    ----------
    reader
        ``direct``: :class:`wsi_ats.slides.tiff.TiffSlide`; ``openslide``:
        :class:`wsi_ats.slides.openslide.OpenSlideSlide`; ``zarr``: :class:`wsi_ats.slides.zarr.ZarrSlide`;
        ``thumbnail``: :class:`wsi_ats.slides.thumbnail.ThumbnailSlide`.
    reason
        The reason for the choice.
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
    """Open a slide without reading its pixels.

    TIFF files are read directly if this returns the same pixels as OpenSlide, at a fifth to a half of the
    cost (``docs/reference/readers.md``); OME-Zarr is read by zarr, and all other formats by OpenSlide.

    Parameters
    ----------
    ref
        A reference, or the path or URL of a file. Its ``reader`` overrides the choice. If its ``colour`` is
        "srgb", pixels are converted with the file's colour profile; without a profile they stay as stored.
    threads
        Number of threads that decode directly read tiles; useful for programs that read fewer slides at a
        time than they have cores.

    Raises
    ------
    SlideOpenError
        When the file is missing, damaged or in a format that no reader knows.

    Examples
    --------
    >>> with open_slide("scans/case7.svs") as slide:  # doctest: +SKIP
    ...     slide.levels[0].width
    """
    return open_chosen(ref, threads=threads)[0]


def open_chosen(ref: SlideRef | str | Path, *, threads: int = 1) -> tuple[Slide, Choice]:
    """Open a slide as :func:`open_slide` does, and also return the choice of its reader.

    The index that the choice depends on is read only once, which matters for slides in a store.
    """
    ref = _reference(ref)
    if ref.downsample != 1:
        from wsi_ats.slides.thumbnail import ThumbnailSlide

        return ThumbnailSlide(ref), Choice("thumbnail", "its table gives a downsample")
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
            f"tile.channel is {ref.channel!r}, but a channel can be chosen only in TIFF files that are read "
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
            f"its level of {level.width} x {level.height} pixels is stored in a different form from level 0: "
            f"{level.refused}; {advice_on(level.refused)}",
        )


def _reference(ref: SlideRef | str | Path) -> SlideRef:
    return ref if isinstance(ref, SlideRef) else SlideRef.from_path(ref)


def _choose(ref: SlideRef) -> tuple[Choice, Storage | None, TiffIndex | None]:
    """Choose a reader, and return the storage and index that were opened for it."""
    if ref.reader == "openslide" and is_remote(ref.path):
        raise SlideOpenError(
            ref.path, "OpenSlide reads only files on this machine; copy the slide here, or leave out --reader"
        )
    if ref.reader != "auto":
        return Choice(ref.reader, "requested"), None, None
    if is_zarr(ref.path):
        return Choice("zarr", "it is OME-Zarr"), None, None
    if Path(ref.path).is_dir() and not is_remote(ref.path):
        return Choice("openslide", "it is a folder"), None, None
    if ref.path.lower().endswith(".vsi"):
        raise SlideOpenError(
            ref.path,
            "a .vsi file holds only an overview and the label; the slide itself is in .ets files, which "
            "cannot be read; convert it, for example with bioformats2raw",
        )
    storage = open_storage(ref.path)
    try:
        choice, index = _choose_by_content(ref, storage)
    except SlideOpenError:
        storage.close()
        raise
    return choice, storage, index


def _choose_by_content(ref: SlideRef, storage: Storage) -> tuple[Choice, TiffIndex | None]:
    """Choose a reader by the contents of a file, and also return its index."""
    from wsi_ats.slides.tiff import levels_of, why_not
    from wsi_ats.slides.tiff_index import TiffIndex

    # The .mrxs file of a MIRAX slide has no contents of its own, and may be empty.
    if storage.size == 0 and not ref.path.lower().endswith(".mrxs"):
        raise SlideOpenError(ref.path, "it is an empty file; copy it again")
    whole = index = TiffIndex.of(storage)
    if index is None:
        _refuse_image(ref.path, storage)
    else:
        _check_shows_slide(ref.path, index)
    if index is not None and ref.channel:
        index = index.of_channel(ref.path, ref.channel)
    reason = "it is not a TIFF file" if index is None else why_not(index)
    if index is not None and not reason:
        why = "its pixels are the same as OpenSlide's"
        if ref.channel:
            why = f"channel {ref.channel} was requested"
        elif not index.images[0].tiled:
            why = "OpenSlide does not read TIFF in strips"
        elif index.vendor == "ome-tiff":
            why = "OpenSlide does not read OME-TIFF, or only its finest level"
        elif any(each.below for each in levels_of(index)):
            why = "OpenSlide does not find its coarser levels, which are in SubIFDs"
        return Choice("direct", why), whole
    if index is not None and index.planes > 1:
        from wsi_ats.slides.openslide import is_known

        known = not is_remote(ref.path) and is_known(ref.path)
        advice = "; --reader openslide takes the first" if known else ""
        if index.pages:
            advice = "; give one by its name, or its number from 0, with --set tile.channel=..." + advice
        raise SlideOpenError(ref.path, f"{reason}, but a slide must be one image{advice}")
    if not is_remote(ref.path):
        return Choice("openslide", reason), index
    if index is None or why_not(index, like_openslide=False):
        raise SlideOpenError(
            ref.path,
            f"only OME-Zarr and plain TIFF pyramids can be read from a store, and {reason}; copy it to this "
            "machine, or convert it with `wsi-ats convert`",
        )
    return Choice("direct", f"OpenSlide cannot read from a store, although {reason}"), whole


def _refuse_image(path: str, storage: Storage) -> None:
    """Refuse an image that is no slide, but may stand for one."""
    with storage.open() as file:
        begin = file.read(8)
    kind = next((name for mark, name in _IMAGES.items() if begin.startswith(mark)), "")
    # The .mrxs file of a MIRAX slide may be a small image.
    if kind and not path.lower().endswith(".mrxs"):
        raise SlideOpenError(
            path,
            f"it is a {kind} image, not a slide; if it is the thumbnail of a slide whose features you have, "
            "give a table with the columns path, mpp and downsample, which is the number of level-0 pixels "
            "of the slide in a pixel of the image",
        )


def _check_shows_slide(path: str, index: TiffIndex) -> None:
    """Refuse TIFF files that every reader would show wrongly."""
    if index.overview:
        raise SlideOpenError(
            path,
            f"its only image is called {index.overview!r}; give the file with the slide itself, or, if this "
            "image is the slide, --reader direct",
        )
    if index.files:
        raise SlideOpenError(
            path,
            f"its image is spread over several OME-TIFF files ({index.files}), but a slide must be one file; "
            "combine them, for example with bioformats2raw",
        )
    if index.orientation != 1:
        raise SlideOpenError(
            path,
            f"its orientation (tag 274) is {index.orientation}: it is stored rotated or mirrored, which tile "
            "readers get wrong; write it upright, for example with `vips autorot`",
        )
