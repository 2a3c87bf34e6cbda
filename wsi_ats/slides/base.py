"""A slide as a reference, which can cross a process border, and as an open handle, which cannot."""

from __future__ import annotations

import math
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, final

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import ManifestError, MppError, SettingsError
from wsi_ats.geometry import IntArray, Level, Region
from wsi_ats.slides.storage import is_remote

Pixels = npt.NDArray[np.uint8]

# Light microscopy scans have 0.1 to 4 um per pixel and their thumbnails less than 100; faulty writers leave
# 352.8 (72 dots per inch) or 0.
_PLAUSIBLE_MPP = (0.01, 100.0)

# Output files are named after the slide, with an extension of up to twelve bytes; a name has at most 255.
_LONGEST_ID = 240

READERS = ("auto", "direct", "openslide", "zarr")
COLOURS = ("stored", "srgb")


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), because macOS stores file names in decomposed form.

    Examples
    --------
    >>> composed("Mu\u0308ller") == "M\u00fcller"
    True
    """
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True, slots=True)
class SlideRef:
    """A reference to a slide, the only part of a slide that crosses a process border.

    Parameters
    ----------
    id
        Name, unique in a collection; the file's stem by default.
    path
        The slide's path or URL.
    case
        The patient; the slide's own id if the manifest names none.
    label
        The slide's label as written in the manifest; ``None`` if unknown.
    split
        ``"train"``, ``"val"`` or ``"test"``, if the manifest has splits.
    mpp
        Micrometres per level-0 pixel; overrides the value in the file.
    reader
        ``"direct"``, ``"openslide"`` or ``"zarr"``; ``"auto"`` lets :func:`wsi_ats.slides.open_slide` choose.
    colour
        ``"stored"``: pixels as stored; ``"srgb"``: converted to sRGB by the file's colour profile.
    channel
        Channel to read from a TIFF file with several: its name, or its number from 0; empty for other files.
    features
        Files of features of the slide's tiles, which are used in place of their pixels: the features, and
        their coordinates if these are separate. Empty for pixels.
    regions
        File of annotations, or a folder in which it is found by the slide's id; only tiles whose centre lies
        in one of them are used. Empty for the whole slide.
    region_classes
        Classes of these annotations; all if none are named. See
        :meth:`wsi_ats.annotations.record.Annotations.area`.
    downsample
        Level-0 pixels per pixel of the file, for an image that is only a thumbnail of the slide.

    Examples
    --------
    >>> SlideRef.from_path("scans/case7.svs").id
    'case7'
    >>> SlideRef.from_path("https://host/scans/case7.ome.tif?X-Amz-Signature=1/2").id
    'case7'
    """

    id: str
    path: str
    case: str
    label: str | None = None
    split: str | None = None
    mpp: float | None = None
    reader: str = "auto"
    colour: str = "stored"
    channel: str = ""
    features: tuple[str, ...] = ()
    regions: str = ""
    region_classes: tuple[str, ...] = ()
    downsample: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (("reader", self.reader, READERS), ("colour", self.colour, COLOURS)):
            if value not in known:
                raise SettingsError(f"{self.path}: {name} is {value!r}, expected one of {', '.join(known)}")
        if not self.id or "/" in self.id or "\\" in self.id or self.id in {".", ".."}:
            raise ManifestError(
                f"{self.path}: slide_id {self.id!r} names output files, so it cannot be empty or contain a "
                "slash; rename it in the manifest"
            )
        try:
            f"{self.id}{self.path}{self.case}{self.label}".encode()
        except UnicodeEncodeError as error:
            raise ManifestError(
                f"{self.path!r}: the name is not valid UTF-8, so it cannot be written to tables; rename it"
            ) from error
        if len(self.id.encode()) > _LONGEST_ID:
            raise ManifestError(
                f"{self.path}: slide_id has {len(self.id.encode())} bytes, but names of output files allow "
                f"only {_LONGEST_ID}; rename the file, or give a shorter slide_id in a table"
            )
        if not 1 <= self.downsample < math.inf:
            raise ManifestError(
                f"{self.path}: downsample is {self.downsample}, expected level-0 pixels per pixel of the "
                "thumbnail, at least 1"
            )
        if self.mpp is not None:
            try:
                Mpp(self.mpp, "the given mpp")
            except ValueError as error:
                raise MppError(self.path, str(error)) from error

    @classmethod
    def from_path(cls, path: str | Path, *, mpp: float | None = None) -> Self:
        """Return a slide named after its file or folder, without ``.svs``, ``.ome.tif`` or ``.ome.zarr``.

        The query of a URL (after ``?``) is not part of the name. Image ``0`` in ``a.ome.zarr`` is named
        ``a_0``.
        """
        file = Path(path)
        if is_remote(str(path)):
            file = Path(str(path).partition("://")[2].partition("?")[0])
        name = file.stem.removesuffix(".ome")
        if name.isdigit() and file.parent.suffix.lower() == ".zarr":  # one of several images in it
            name = f"{file.parent.stem.removesuffix('.ome')}_{name}"
        name = composed(name)
        return cls(id=name, path=str(path), case=name, mpp=mpp)

    def check_pixels(self, *, colour: str, channel: str) -> None:
        """Refuse a reference whose colour or channel differs from what the model expects.

        Raises
        ------
        SettingsError
            When ``colour`` or ``channel`` differs.
        """
        for name, own, wanted in (("colour", self.colour, colour), ("channel", self.channel, channel)):
            if own != wanted:
                raise SettingsError(
                    f"{self.path}: its {name} is {own!r}, but tile.{name} is {wanted!r}; open it with "
                    f"SlideRef(..., {name}={wanted!r})"
                )


@dataclass(frozen=True, slots=True)
class Mpp:
    """Micrometres per level-0 pixel, and the source of the number.

    Parameters
    ----------
    value
        Micrometres per level-0 pixel.
    source
        Source for messages, such as the name of a property in the file.

    Raises
    ------
    ValueError
        When the value is not plausible for a microscope slide.
    """

    value: float
    source: str

    def __post_init__(self) -> None:
        low, high = _PLAUSIBLE_MPP
        if not (math.isfinite(self.value) and low <= self.value <= high):
            raise ValueError(
                f"{self.source} says {self.value} micrometres per pixel, expected {low} to {high}; "
                "give the true value in the manifest's mpp column or with --mpp"
            )


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """The description of a slide, complete as soon as the slide is open.

    Parameters
    ----------
    path
        The slide's name in errors.
    vendor
        The reader's name for the file's format.
    levels
        The pyramid, finest first; the first level's downsample is 1.
    tile_shapes
        Width and height of the file's own tiles at each level; ``None`` if the format does not record them.
    mpp
        The resolution, or the reason why it is unknown.
    background
        RGB colour of glass without tissue; fills the area outside the scan.
    scan
        The scanned part of level 0; ``None`` for all of it, or if the format does not record it.
    regions
        The scanned parts, if several regions of a slide were scanned; empty for one region.
    """

    path: str
    vendor: str
    levels: tuple[Level, ...]
    tile_shapes: tuple[tuple[int, int] | None, ...]
    mpp: Mpp | str
    background: tuple[int, int, int] = (255, 255, 255)
    scan: Region | None = None
    regions: tuple[Region, ...] = ()


class Slide(ABC):
    """An open slide. All readers fulfil the contract tested in :mod:`wsi_ats.testing.contract`.

    A reader sets :attr:`info` and implements the five abstract members; the rest is derived from these.
    Opening reads only the header; only :meth:`read_regions` reads pixels. Reading is thread-safe. Slides are
    context managers.

    Attributes
    ----------
    info : SlideInfo
        The slide's description.
    """

    info: SlideInfo

    @property
    @abstractmethod
    def icc(self) -> bytes | None:
        """The file's colour profile, if it has one; it is not applied to pixels."""

    @property
    @abstractmethod
    def bytes_read(self) -> int | None:
        """All bytes read since the slide was opened; ``None`` if its reader does not count them.

        For a slide in a store, this includes the index and the gaps between joined tiles.
        """

    @abstractmethod
    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """Read regions of equal size from one level.

        Parameters
        ----------
        level
            Number of the level.
        corners
            Top-left ``x, y`` of each region in **pixels of that level**, not of level 0, shape (N, 2). Whole
            pixels are copied, never interpolated. Regions may lie outside the slide.
        width, height
            Size of each region, in pixels of that level.

        Returns
        -------
        ndarray of uint8, shape (N, height, width, 3)
            RGB; the area outside the scan has the background colour.

        Raises
        ------
        SlideReadError
            When a pixel cannot be read. Pixels are never made up; the slide stays usable.
        """

    @abstractmethod
    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """Return the compressed bytes of the file's tiles that the regions touch, counting each tile once.

        Return ``None`` if the format does not record them.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    @property
    def path(self) -> str:
        """The slide's name in errors."""
        return self.info.path

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, finest first; the first level's downsample is 1."""
        return self.info.levels

    @property
    def vendor(self) -> str:
        """The reader's name for the file's format."""
        return self.info.vendor

    @property
    def background(self) -> tuple[int, int, int]:
        """RGB colour of glass without tissue; fills the area outside the scan."""
        return self.info.background

    @property
    def mpp(self) -> Mpp:
        """Micrometres per level-0 pixel.

        Raises
        ------
        MppError
            When neither the file nor the caller gives a plausible value; the message lists everything tried.
        """
        if isinstance(self.info.mpp, str):
            raise MppError(self.path, self.info.mpp)
        return self.info.mpp

    @property
    def bounds(self) -> Region:
        """The scanned part of level 0; all of it if the format does not record it."""
        return self.info.scan or Region(0, 0, self.levels[0].width, self.levels[0].height)

    @property
    def scanned(self) -> tuple[Region, ...]:
        """The scanned parts, of which there may be several; at least one."""
        return self.info.regions or (self.bounds,)

    def tile_shape(self, level: int) -> tuple[int, int] | None:
        """Return the width and height of the file's own tiles at a level; ``None`` if not recorded."""
        return self.info.tile_shapes[level]

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
