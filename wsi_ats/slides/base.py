"""The noun of this folder: a slide, by reference and as an open handle."""

from __future__ import annotations

import math
import re
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from wsi_ats.errors import ManifestError, MppError, SettingsError
from wsi_ats.geometry import IntArray, Level, Region
from wsi_ats.slides.storage import is_remote

Pixels = npt.NDArray[np.uint8]

# Light microscopy scans lie between 0.1 and 4 um per pixel and thumbnails of them below 100; 352.8
# (72 dots per inch) and 0 are what broken writers leave behind.
_PLAUSIBLE_MPP = (0.01, 100.0)

# A slide's files are called as the slide, with an ending of up to twelve bytes, and names have at most 255.
_LONGEST_ID = 240

READERS = ("auto", "direct", "openslide", "zarr")
COLOURS = ("stored", "srgb")


# What is said of files that end too early, or lack a part: by OpenSlide, zlib, numpy, this library ...
_CUT_SHORT = re.compile(
    r"beyond|\beof\b|end of file|too short|short read|truncat|not enough data|premature|no such file|missing|"
    r"requires a buffer|only zeros",
    re.IGNORECASE,
)


# What is said of files that are whole, and of a kind that is not read.
_NOT_READ = re.compile(r"unsupported|not supported|can not handle", re.IGNORECASE)


def advice_on(problem: str) -> str:
    """Say what to do with a file that cannot be read; only what was cut short was hardly copied whole.

    Parameters
    ----------
    problem
        What is wrong with it.

    Examples
    --------
    >>> advice_on("TIFFFillTile: Read error at row 0: Short read")
    'is the copy complete?'
    >>> advice_on("Unsupported TIFF compression: 34712")
    'convert it, with vips or bioformats2raw for example'
    >>> advice_on("Dimensional mismatch reading JPEG")
    'the file is damaged, or was written wrongly; copy it again, or have it written again'
    """
    if _CUT_SHORT.search(problem):
        return "is the copy complete?"
    if _NOT_READ.search(problem):
        return "convert it, with vips or bioformats2raw for example"
    return "the file is damaged, or was written wrongly; copy it again, or have it written again"


def composed(name: str) -> str:
    """Write a name the one way of several that Unicode has (NFC): macOS writes files in another than tables.

    Examples
    --------
    >>> composed("Mu\u0308ller") == "M\u00fcller"
    True
    """
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True, slots=True)
class SlideRef:
    """A slide by name: the only thing about a slide that crosses a process border.

    Parameters
    ----------
    id
        Unique in a collection; the file's stem by default.
    path
        Where the slide is.
    case
        The patient; the slide's own id where the manifest names none.
    label
        The slide's class as written in the manifest; ``None`` where unknown.
    split
        ``"train"``, ``"val"`` or ``"test"`` where the manifest prescribes it.
    mpp
        Micrometres per level-0 pixel; overrides what the file says.
    reader
        Who reads it: ``"direct"``, ``"openslide"`` or ``"zarr"``; ``"auto"`` lets
        :func:`wsi_ats.slides.open_slide` choose.
    colour
        ``"stored"``: pixels as they are; ``"srgb"``: as the file's colour profile says they look.
    channel
        Name or number, from 0, of the channel to read of a TIFF file with several; empty for all others.

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

    def __post_init__(self) -> None:
        for name, value, known in (("reader", self.reader, READERS), ("colour", self.colour, COLOURS)):
            if value not in known:
                raise SettingsError(f"{self.path}: {name} is {value!r}, expected one of {', '.join(known)}")
        if not self.id or "/" in self.id or "\\" in self.id or self.id in {".", ".."}:
            raise ManifestError(
                f"{self.path}: slide_id {self.id!r} names output files, so it cannot be empty or "
                "hold a slash; rename it in the manifest"
            )
        try:
            f"{self.id}{self.path}{self.case}{self.label}".encode()
        except UnicodeEncodeError as error:
            raise ManifestError(
                f"{self.path!r}: the name is no valid UTF-8 text, as tables of results must be; rename it"
            ) from error
        if len(self.id.encode()) > _LONGEST_ID:
            raise ManifestError(
                f"{self.path}: slide_id has {len(self.id.encode())} bytes and names output files, so it can "
                f"have {_LONGEST_ID} at most; rename the file, or give a shorter slide_id in a table"
            )
        if self.mpp is not None:
            Mpp(self.mpp, "the given mpp").check(self.path)

    @classmethod
    def from_path(cls, path: str | Path, *, mpp: float | None = None) -> Self:
        """Name a slide after its file, or its folder: without ``.svs``, ``.ome.tif``, ``.ome.zarr``.

        What comes after ``?`` in a URL is no part of the name. An image ``0`` in ``a.ome.zarr`` is ``a_0``.
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
        """Refuse a slide that would be opened in other colours, or another channel, than a model expects.

        Raises
        ------
        SettingsError
            When ``colour`` or ``channel`` is not the wanted one.
        """
        for name, own, wanted in (("colour", self.colour, colour), ("channel", self.channel, channel)):
            if own != wanted:
                raise SettingsError(
                    f"{self.path}: its {name} is {own!r}, but tile.{name} is {wanted!r}; open it by "
                    f"SlideRef(..., {name}={wanted!r})"
                )


@dataclass(frozen=True, slots=True)
class Mpp:
    """Micrometres per level-0 pixel, and where the number comes from."""

    value: float
    source: str

    def check(self, path: str) -> Self:
        """Return self, or say why no microscope makes such a slide.

        Raises
        ------
        MppError
            When the value is not plausible.
        """
        low, high = _PLAUSIBLE_MPP
        if not (math.isfinite(self.value) and low <= self.value <= high):
            raise MppError(
                path,
                f"{self.source} says {self.value} micrometres per pixel, expected {low} to {high}; "
                "give the true value in the manifest's mpp column or with --mpp",
            )
        return self


class Closable(ABC):
    """What readers share: leaving the context closes the slide, and what was scanned is one rectangle."""

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    @property
    @abstractmethod
    def bounds(self) -> Region:
        """See :attr:`Slide.bounds`."""

    @property
    def scanned(self) -> tuple[Region, ...]:
        """See :attr:`Slide.scanned`."""
        return (self.bounds,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Slide(Protocol):
    """An open slide. Every reader keeps the promises tested in :mod:`wsi_ats.testing.contract`.

    Opening reads the header alone; pixels are read only in :meth:`read_regions`. Reading is safe from
    several threads. Slides are context managers.
    """

    @property
    def path(self) -> str:
        """What errors call this slide."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, finest first; the first level's downsample is 1."""
        ...

    @property
    def mpp(self) -> Mpp:
        """Micrometres per level-0 pixel.

        Raises
        ------
        MppError
            When neither the file nor the caller gives a plausible value; names what was looked at.
        """
        ...

    @property
    def background(self) -> tuple[int, int, int]:
        """RGB colour of glass without tissue; fills what lies outside the scanned area."""
        ...

    @property
    def bounds(self) -> Region:
        """Part of level 0 that was scanned; the whole where the format does not tell."""
        ...

    @property
    def scanned(self) -> tuple[Region, ...]:
        """The same in parts, where several regions of a glass were scanned; at least one."""
        ...

    @property
    def vendor(self) -> str:
        """Format of the file, in the reader's own word."""
        ...

    @property
    def icc(self) -> bytes | None:
        """The file's colour profile, if it has one; pixels are as stored all the same."""
        ...

    def tile_shape(self, level: int) -> tuple[int, int] | None:
        """Width and height of the file's own tiles at a level, where the format tells."""
        ...

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """Read equally large regions of one level.

        Parameters
        ----------
        level
            Number of the level.
        corners
            Shape (N, 2): top-left ``x, y`` in **pixels of that level**, not of level 0: whole pixels are
            copied, never interpolated. May lie outside the slide.
        width, height
            Size of each region, in pixels of that level.

        Returns
        -------
        ndarray of uint8, shape (N, height, width, 3)
            RGB, the background colour outside the scanned area.

        Raises
        ------
        SlideReadError
            When a pixel cannot be read. No pixel is ever made up; the slide stays usable.
        """
        ...

    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """Compressed bytes of the file's tiles that the regions touch, each tile once.

        ``None`` where the format does not tell.
        """
        ...

    def close(self) -> None:
        """Release the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
